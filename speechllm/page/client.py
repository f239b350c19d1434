"""Answers by the OpenAI API, from any server that speaks it: `speechllm serve`, vLLM, or another base address.

What is unusual here:
- Token counts are asked for (`stream_options`); a server that refuses the option is asked without it from then on.
- Temperature is 0, as in the pipeline: servers differ in what they do by default.
- White space before an answer is left out: vLLM decodes answers behind the prompt, so with a tokenizer that writes
  spaces before words they begin with one, and sent back with it would not be what the model said.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .recordings import PageError

MAX_TOKENS = 256  # as the pipeline's
TIMEOUT = 600.0  # seconds; a server may load its model at the first question
NO_KEY = "none"  # the client wants one, local servers do not look at it


@dataclass(frozen=True)
class Answer:
    """An answer as far as it has come."""

    text: str = ""
    first_word: float | None = None  # seconds from the request to the first text
    seconds: float | None = None  # seconds to the end; None while it is being made
    tokens: int | None = None  # of the answer; None where the server does not say
    cut: bool = False  # whether it ended at the limit of tokens


class Client:
    """
    One model behind one address; nothing else is contacted.

    Args:
        base_url: as `http://localhost:8000/v1`.
        model: its name there; None for the only one that is there.
        key: sent as bearer token.
        max_tokens: longest answer.

    Raises:
        PageError: the address is none or nobody answers there, or which model is meant cannot be told.
    """

    def __init__(self, base_url: str, model: str | None = None, key: str | None = None, max_tokens: int = MAX_TOKENS):
        import openai

        if not base_url.startswith(("http://", "https://")):
            raise PageError(f"--base-url must begin with http:// or https://, not {base_url!r}.")
        self.base_url, self.max_tokens = base_url, max_tokens
        self._api = openai.OpenAI(base_url=base_url, api_key=key or NO_KEY, timeout=TIMEOUT, max_retries=0)
        self._says_usage = True
        self.model = model or self._only_model()

    def _only_model(self) -> str:
        with told(self.base_url):
            names = [model.id for model in self._api.models.list().data]
        if len(names) != 1:
            listed = f"{len(names)} models: {', '.join(names)}" if names else "no model"
            raise PageError(f"The server at {self.base_url} lists {listed}. Say which one is meant: --model NAME.")
        return names[0]

    def answer(self, messages: list[dict]) -> Iterator[Answer]:
        """
        The answer to a chat, growing; the last one has `seconds`.

        Raises:
            PageError: the server does not answer or does not take the chat; with what it said.
        """
        started = time.perf_counter()
        text, first, tokens, reason = "", None, None, None
        with told(self.base_url), self._stream(messages) as chunks:
            for chunk in chunks:
                if chunk.usage is not None:
                    tokens = chunk.usage.completion_tokens
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    text = (text + (choice.delta.content or "")).lstrip()
                    if choice.delta.content and text:
                        first = time.perf_counter() - started if first is None else first
                        yield Answer(text, first)
        yield Answer(text, first, time.perf_counter() - started, tokens, reason == "length")

    def _stream(self, messages: list[dict]) -> Any:
        import openai

        options: dict[str, Any] = {"model": self.model, "messages": messages, "stream": True, "temperature": 0.0}
        options["max_tokens"] = self.max_tokens
        if self._says_usage:
            try:
                return self._api.chat.completions.create(**options, stream_options={"include_usage": True})
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if "stream_options" not in str(error.body):
                    raise
                self._says_usage = False
        return self._api.chat.completions.create(**options)


@contextmanager
def told(base_url: str) -> Iterator[None]:
    """Turns the client's exceptions into words for the page."""
    import openai

    try:
        yield
    except openai.APITimeoutError as error:
        raise PageError(
            f"The server at {base_url} has not answered for {TIMEOUT:.0f} seconds. It may still be busy: try again "
            "later, or with a shorter recording."
        ) from error
    except openai.APIConnectionError as error:
        raise PageError(
            f"The server at {base_url} cannot be reached. See whether it is running, and ask again."
        ) from error
    except openai.APIStatusError as error:
        raise PageError(f"The server did not take this ({error.status_code}). {server_message(error)}") from error
    except openai.APIError as error:  # an error event in the middle of a stream
        raise PageError(f"The server stopped in the middle of the answer. {error.message}") from error


def server_message(error: Any) -> str:
    """What a server said of its refusal: OpenAI's form, FastAPI's `detail`, or the reply as it is."""
    body = error.body
    if isinstance(body, dict):
        found = body.get("message") or body.get("detail") or body.get("error")
        if isinstance(found, str):
            return found
    return str(body or error.message)


__all__ = ["MAX_TOKENS", "Answer", "Client", "server_message", "told"]
