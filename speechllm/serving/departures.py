"""Whether a client still waits for its answer, also where none is streamed to it and so nothing else would notice.

What is unusual here:
- An ASGI server tells that a client has left only to who asks for the next message of the request. Nobody does while
  an answer is made, so `Departures` asks.
"""

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

LEFT: ContextVar[threading.Event | None] = ContextVar("left", default=None)  # of the request that is worked on


class Departures:
    """ASGI middleware: sets the request's `LEFT` when its client leaves."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        left, leaving = threading.Event(), None
        LEFT.set(left)

        async def departure() -> dict:
            message = await receive()  # behind the body comes nothing but the end of the connection
            left.set()
            return message

        async def received() -> dict:
            nonlocal leaving
            if leaving is not None:
                return await asyncio.shield(leaving)
            message = await receive()
            if not message.get("more_body"):
                leaving = asyncio.create_task(departure())
            return message

        try:
            await self.app(scope, received, send)
        finally:
            if leaving is not None:
                leaving.cancel()


__all__ = ["LEFT", "Departures"]
