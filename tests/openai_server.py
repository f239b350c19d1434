"""A server that speaks the OpenAI API as far as the page does, without a model: its answer says what it was sent."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import soundfile


def describe(messages: list[dict]) -> str:
    """`3 messages; 1.5 s at 16000 Hz; What is said?`: of the last message its audio and its text."""
    parts = [f"{len(messages)} messages"]
    for block in messages[-1]["content"]:
        if block["type"] == "input_audio":
            content = base64.b64decode(block["input_audio"]["data"])
            samples, rate = soundfile.read(io.BytesIO(content))
            parts.append(f"{len(samples) / rate:.1f} s at {rate} Hz")
        else:
            parts.append(block["text"])
    return "; ".join(parts)


class OpenAIServer(ThreadingHTTPServer):
    """
    Attributes:
        requests: bodies of the chats that came.
        models: names it lists.
        usage: "sent" with the last chunk, "refused" where the option `stream_options` is given, or "none".
        refusal: status and reply of every chat, in place of an answer.
        breaks: whether an error event ends every answer.
        cut: whether every answer ends at the limit of tokens.
        lead: pieces before every answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[dict] = []
        self.models = ["stub"]
        self.usage = "sent"
        self.refusal: tuple[int, dict] | None = None
        self.breaks = self.cut = False
        self.lead: list[str] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: OpenAIServer

    def log_message(self, *arguments) -> None:
        """Silent."""

    def reply(self, status: int, body: dict) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.usage == "refused" and "stream_options" in body:
            return self.reply(422, {"detail": "Unexpected fields in the request: {'stream_options'}"})
        self.server.requests.append(body)
        if self.server.refusal is not None:
            return self.reply(*self.server.refusal)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        words = describe(body["messages"]).split(" ")
        for piece in self.server.lead:
            self.send({"choices": [{"index": 0, "delta": {"content": piece}}]})
        for number, word in enumerate(words):
            self.send({"choices": [{"index": 0, "delta": {"content": " " * bool(number) + word}}]})
        if self.server.breaks:
            return self.send({"error": {"message": "out of memory"}})
        reason = "length" if self.server.cut else "stop"
        self.send({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if self.server.usage == "sent" and body.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": 5, "completion_tokens": len(words), "total_tokens": 5 + len(words)}
            self.send({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, event: dict) -> None:
        event = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "stub"} | event
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())


@contextmanager
def openai_server() -> Iterator[OpenAIServer]:
    """The server, for as long as the block runs."""
    server = OpenAIServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
