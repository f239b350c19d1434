"""`speechllm serve`: the app that transformers builds, with our handlers, errors in OpenAI's form, a gate before it.

What is unusual here:
- The gate lets through the endpoints that are named here, and nothing else, so that what a release of transformers
  adds (loading other models, resetting) is not open before someone has looked at it.
"""

import inspect
import logging
import socket
from collections.abc import Callable, Collection
from typing import Any

import transformers
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException  # FastAPI's own is one of these, and what it raises of bodies is not
from transformers.cli.serving.server import build_server

from .departures import Departures
from .handlers import (
    FITTING,
    LoadedModel,
    SpeechChatHandler,
    SpeechGenerationState,
    SpeechResponseHandler,
    check_hooks,
)
from .requests import RequestError
from .transcriptions import SpeechTranscriptionHandler

SERVED = {
    "/v1/chat/completions": "POST",
    "/v1/responses": "POST",
    "/v1/audio/transcriptions": "POST",
    "/v1/models": "GET",
    "/health": "GET",
}
MAX_BODY = 200 * 2**20  # bytes: an hour of 16 kHz PCM in Base64 takes 154 million
logger = logging.getLogger("uvicorn.error")


def build_app(
    pipe: Any,
    name: str,
    max_body: int = MAX_BODY,
    allow_local_files: bool = False,
    allow_urls: bool = True,
    other_names: Collection[str] = (),
) -> FastAPI:
    """
    The server's app.

    Args:
        pipe: the `speech-instruct` pipeline to serve. Its processor's `allow_local_files` is set.
        name: what clients call the model.
        max_body: bytes of a request, at most.
        allow_local_files: whether an `audio_url` may be a path on this machine.
        allow_urls: whether an `audio_url` may be an http(s) address, which is fetched.
        other_names: what clients may call the model, too.

    Raises:
        ImportError: the server of this release of transformers is not the one that is known here.
    """
    check_hooks()
    pipe.processor.allow_local_files = allow_local_files
    model, state = LoadedModel(pipe, name, allow_urls, other_names), SpeechGenerationState()
    chat = SpeechChatHandler(model, state)
    ours = {
        "chat_handler": chat,
        "response_handler": SpeechResponseHandler(model, state),
        "transcription_handler": SpeechTranscriptionHandler(chat),
    }
    parameters = inspect.signature(build_server).parameters
    if not {"model_manager", "generation_state", *ours} <= set(parameters):
        raise ImportError(
            f"build_server of transformers {transformers.__version__} takes other handlers than this release of "
            f"speechllm knows. Install what fits: {FITTING}"
        )
    closed = {key: None for key in parameters if key.endswith("_handler") and key not in ours}  # behind the gate
    app = build_server(model_manager=model, generation_state=state, **ours, **closed)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(HTTPException, _refused_by_transformers)
    app.add_exception_handler(RequestValidationError, _not_json)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Departures)
    app.add_middleware(Gate, max_body=max_body)
    return app


class Gate:
    """ASGI middleware: refuses paths that are not `SERVED`, and bodies that are too large."""

    def __init__(self, app: Any, max_body: int):
        self.app, self.max_body = app, max_body

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        refusal = self.refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            return await self.app(scope, receive, send)
        while (await receive()).get("more_body"):  # else the client sees a broken connection and no answer
            pass
        await refusal(scope, receive, send)

    def refusal(self, scope: dict) -> JSONResponse | None:
        method, path = scope["method"], scope["path"]
        if path not in SERVED:
            served = ", ".join(f"{verb} {path}" for path, verb in SERVED.items())
            return error_response(404, f"There is nothing at {path}. Served are: {served}.", code="not_found")
        if method != SERVED[path]:
            return error_response(405, f"{path} takes no {method}. Use {SERVED[path]}.", code="method_not_allowed")
        headers = dict(scope["headers"])
        if method == "GET":
            return None
        try:
            size = int(headers[b"content-length"])
        except (KeyError, ValueError):
            return error_response(411, "The request does not say how long it is. Send a Content-Length header.")
        if size > self.max_body:
            return error_response(
                413,
                f"The request has {size / 2**20:.1f} MiB, more than the {self.max_body / 2**20:g} MiB taken here. "
                "Send compressed audio (FLAC, Ogg, MP3), or start the server with a larger --max-body.",
            )
        return None


def error_response(status: int, message: str, code: str | None = None, param: str | None = None) -> JSONResponse:
    """An error in the form of OpenAI's API."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    message, param = (text and text.encode("utf-8", "backslashreplace").decode() for text in (message, param))
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)


async def _refused(request: Request, error: RequestError) -> JSONResponse:
    return error_response(error.status, str(error), error.code, error.param)


async def _refused_by_transformers(request: Request, error: HTTPException) -> JSONResponse:
    return error_response(error.status_code, str(error.detail))


async def _not_json(request: Request, error: RequestValidationError) -> JSONResponse:
    found = "; ".join(entry["msg"] for entry in error.errors())
    return error_response(
        400, f"The body is no JSON object ({found}). Send one, with the header Content-Type: application/json."
    )


async def _failed(request: Request, error: Exception) -> JSONResponse:
    found = f"{type(error).__name__}: {error}".splitlines()[0]
    return error_response(500, f"The server failed ({found}). Its log has the rest; the fault is not the request's.")


def open_port(host: str, port: int) -> socket.socket:
    """
    A socket bound to an address, before anything is loaded.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


class _Server(uvicorn.Server):
    """Calls back when requests are taken."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self.ready()


def run_app(app: FastAPI, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serves until interrupted; `ready` is called as soon as requests are taken."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    _Server(config, ready).run(sockets=[bound])


__all__ = ["SERVED", "build_app", "open_port", "run_app"]
