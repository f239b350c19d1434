"""Requests to an OpenAI-compatible endpoint: retried while it is busy, ended with a clear word when it stays away."""

import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TypeVar

RETRIED = (408, 409, 429)  # and all from 500
REFUSED = (400, 413, 422)  # the endpoint cannot take this request: too long, filtered
LONGEST_PAUSE = 60.0  # seconds

T = TypeVar("T")


class BackendError(RuntimeError):
    """What answers cannot be reached or does not answer; what is finished stays finished."""


class Refusal(ValueError):
    """The endpoint does not take this one request; others it may."""


class Endpoint:
    """
    One address of an OpenAI-compatible endpoint; nothing else is contacted.

    Args:
        base_url: as `http://localhost:8000/v1`.
        path: what follows it, as `/chat/completions`.
        api_key: sent as bearer token if given.
        retries: tries more after 408, 409, 429, 5xx, a time-out, a broken connection or a reply that cannot be read,
            with pauses that double from `first_pause` seconds up to a minute, or as the endpoint says (`Retry-After`).
        timeout: seconds.

    Raises:
        ValueError: `base_url` is no web address.
    """

    def __init__(
        self,
        base_url: str,
        path: str,
        api_key: str | None = None,
        retries: int = 8,
        timeout: float = 300.0,
        first_pause: float = 1.0,
    ):
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, not {base_url!r}.")
        self.url = base_url.rstrip("/") + path
        self.headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self.retries, self.timeout, self.first_pause = retries, timeout, first_pause
        self.stopped = threading.Event()  # set it, and what waits for its next try gives up

    def post(self, body: dict, read: Callable[[bytes], T]) -> T:
        """
        What `read` makes of the reply to `body`.

        Args:
            read: raises `ValueError`, `LookupError` or `TypeError` on a reply that is not of the expected form, which
                is then asked for again.

        Raises:
            Refusal: the endpoint does not take this request.
            BackendError: it stays unreachable, or rejects the key or the model.
        """
        content = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            pause = min(self.first_pause * 2**attempt, LONGEST_PAUSE)
            try:
                request = urllib.request.Request(self.url, data=content, headers=self.headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return read(response.read())
            except urllib.error.HTTPError as error:
                detail = f"HTTP {error.code} {_beginning(error)}".strip()
                if error.code in REFUSED:
                    raise Refusal(detail) from error
                if error.code not in RETRIED and error.code < 500:
                    raise BackendError(f"{self.url} answered {detail}. Check base_url, model and the key.") from error
                try:
                    pause = min(float(error.headers.get("Retry-After", "")), LONGEST_PAUSE)
                except ValueError:  # absent, or a date
                    pass
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                # no connection, time-out, a reply cut short or not of the expected form
                detail = f"{type(error).__name__}: {error}"
            if attempt == self.retries or self.stopped.wait(pause):
                break
        raise BackendError(
            f"{self.url} failed {attempt + 1} times, at last with {detail}. Start it again, or raise retries, and "
            "run the same command: it resumes."
        )


def _beginning(error: urllib.error.HTTPError) -> str:
    """Of the body of a refusal; nothing where it stalls or breaks off."""
    try:
        return error.read(500).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""


__all__ = ["BackendError", "Endpoint", "Refusal"]
