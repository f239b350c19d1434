"""Targets from an OpenAI-compatible endpoint: a local one that fails in all the ways that real ones do."""

import json
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import load_dataset
from factories_targets import Echo, config, source

from trainers.targets.backends import Answer, BackendError, EndpointBackend, Question, load_backend
from trainers.targets.generate import generate_targets


class Endpoint(ThreadingHTTPServer):
    """Echoes like `Echo`; `faults` says for the how-manieth request (from 0) what goes wrong instead."""

    daemon_threads = True

    def __init__(self, faults):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.requests, self.running, self.most_at_once = faults, [], 0, 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            fault = self.server.faults(len(self.server.requests), body)
            self.server.requests.append((self.path, dict(self.headers), body))
            self.server.running += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.running)
        time.sleep(0.01)
        with self.server.lock:
            self.server.running -= 1
        if fault == "hang":
            time.sleep(1.0)
        if fault == "hang" or fault == "drop":
            return self.connection.close()
        status, content, *ending = fault if fault else (200, reply(body))
        content = content.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) + 100 * bool(ending)))
        if status == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(content)
        if ending == ["stalls"]:
            time.sleep(1.0)
        if ending == ["breaks"]:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()  # with a reset in place of an end


def reply(body, finish_reason="stop"):
    (message,) = body["messages"]
    question = Question([{"content": [{"text": message["content"]}]}], body["seed"])
    content = {"role": "assistant", "content": Echo.reply(question).text}
    return json.dumps({"choices": [{"message": content, "finish_reason": finish_reason}]})


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(faults=lambda number, body: None):
        servers.append(Endpoint(faults))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def backend(server, **changes):
    settings = {"model": "some/llm", "concurrency": 4, "retries": 3, "first_pause": 0.01, "timeout": 0.5}
    return EndpointBackend(server.url, **settings | changes)


def questions(count):
    return [Question([{"role": "user", "content": [{"type": "text", "text": f"q{i}"}]}], i) for i in range(count)]


FAULTS = [
    (429, "slow down"),
    (500, "oops"),
    (503, ""),
    "drop",
    "hang",
    (200, "not JSON"),
    (200, '{"error": {}}'),
    (200, '{"choices": []}'),
]


def test_every_question_is_answered_in_order_whatever_fails_for_a_while(serve):
    server = serve(lambda number, body: FAULTS[number] if number < len(FAULTS) else None)
    done = []
    answers = backend(server, retries=8).answer(questions(12), done.append)
    assert answers == [Answer(f"{i}: q{i}", "stop") for i in range(12)]
    assert sum(done) == 12 and len(server.requests) == 12 + len(FAULTS)
    assert server.most_at_once <= 4


@pytest.mark.parametrize("ending", ["stalls", "breaks"])
def test_a_busy_endpoint_whose_refusal_does_not_end_is_asked_again(serve, ending):
    server = serve(lambda number, body: (503, "", ending) if number < 2 else None)
    assert backend(server, concurrency=1).answer(questions(1), lambda count: None) == [Answer("0: q0", "stop")]
    assert len(server.requests) == 3
    server = serve(lambda number, body: (503, "", ending))
    with pytest.raises(BackendError, match="failed 2 times, at last with HTTP 503"):
        backend(server, concurrency=1, retries=1).answer(questions(1), lambda count: None)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 501, 520, 524, 529, 599])
def test_every_status_that_passes_is_asked_again(serve, status):
    server = serve(lambda number, body: (status, "") if number == 0 else None)
    assert backend(server).answer(questions(1), lambda count: None) == [Answer("0: q0", "stop")]


def test_the_request_says_what_the_settings_say(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "secret")
    server = serve()
    settings = config(
        tmp_path,
        base_url=server.url + "/",
        api_key_variable="MY_KEY",
        temperature=0.7,
        top_p=0.9,
        max_new_tokens=9,
        chat_template_kwargs={"enable_thinking": False},
    )
    load_backend(settings, None).answer(questions(1), lambda count: None)
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "some/llm",
        "messages": [{"role": "user", "content": "q0"}],
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 0,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ValueError, match="MY_KEY is not set"):
        load_backend(settings, None)


def test_an_endpoint_gives_the_rows_that_the_same_llm_gives_here(serve, tmp_path):
    server = serve(lambda number, body: (500, "oops") if number % 5 == 1 else None)
    settings = {"target_set": "TMI", "revision": "abc"}
    report = generate_targets(config(tmp_path / "endpoint", **settings), source(), backend(server))
    generate_targets(config(tmp_path / "here", **settings), source(), Echo())
    rows = [
        load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")).to_list()
        for folder in (tmp_path / "endpoint", tmp_path / "here")
    ]
    assert rows[0] == rows[1] and report["rows"] == len(rows[0]) == 60


def test_a_refused_question_is_dropped_with_its_reason_and_a_cut_answer_marked(serve, tmp_path):
    def faults(number, body):
        if "so 3" in body["messages"][0]["content"]:
            return 400, "too long for me"
        if "world 5" in body["messages"][0]["content"]:
            return 200, reply(body, "content_filter")
        return (200, reply(body, "length")) if "world 10" in body["messages"][0]["content"] else None

    report = generate_targets(config(tmp_path), source(), backend(serve(faults)))
    assert (report["rows"], report["dropped"], report["cut_at_limit"]) == (18, {"refused": 2}, 1)
    listed = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [(entry["id"], entry["detail"]) for entry in listed] == [
        ("utterance-3", "HTTP 400 too long for me"),
        ("utterance-5", "finish_reason content_filter"),
    ]


def test_a_dead_endpoint_ends_the_run_and_a_living_one_resumes_it(serve, tmp_path):
    server = serve(lambda number, body: (503, "gone") if number >= 6 else None)
    start = time.monotonic()
    with pytest.raises(BackendError, match="failed .* times, at last with HTTP 503 gone.*it resumes"):
        generate_targets(config(tmp_path), source(), backend(server, concurrency=1, retries=2))
    assert time.monotonic() - start < 5
    assert len(list((tmp_path / "data").glob("*.parquet"))) == 2
    server = serve()
    report = generate_targets(config(tmp_path), source(), backend(server))
    assert report["rows"] == 20 and len(server.requests) == 14
    asked = Counter(body["messages"][0]["content"] for _, _, body in server.requests)
    assert set(asked.values()) == {1}


@pytest.mark.parametrize(
    ("status", "finding"), [(401, "HTTP 401 no.*the key"), (404, "HTTP 404"), (400, "refused all")]
)
def test_what_no_retry_mends_ends_at_once(serve, status, finding):
    server = serve(lambda number, body: (status, "no"))
    with pytest.raises(BackendError, match=finding):
        backend(server, concurrency=1).answer(questions(2), lambda count: None)
    assert len(server.requests) <= 2


def test_a_base_url_must_be_a_web_address():
    with pytest.raises(ValueError, match="http://"):
        EndpointBackend("localhost:8000", "some/llm")
