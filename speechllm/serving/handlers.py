"""The handlers of `transformers serve`, for one SpeechLLM that is loaded already.

What is unusual here:
- transformers' serving modules do the work; these subclasses override their public methods where a SpeechLLM, or
  honesty, asks for more. A release that has moved those methods is refused with the releases that fit.
- Requests are checked, and audio is fetched and decoded, in a thread, so that a slow address holds up no other answer.
- The answer is the pipeline's: as long by default, at the same precision, sampled only if the caller or the
  checkpoint says so.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import transformers
from fastapi.responses import JSONResponse, Response, StreamingResponse

from processing_speechllm.audio_addresses import is_url

from .requests import (
    CHAT_OPTIONS,
    RESPONSE_OPTIONS,
    Options,
    RequestError,
    load_chat,
    response_messages,
    template_variables,
)

FITTING = 'pip install --upgrade "speechllm[serve]" "transformers>=5.23,<5.25"'
try:
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.utils import BaseHandler, GenerateManager, GenerationState, Modality

    from .generation import SpeechGenerationState
except ImportError as error:
    raise ImportError(
        f"the server of transformers {transformers.__version__} is not the one that this release of speechllm knows "
        f"({error}). Install what fits: {FITTING}"
    ) from error

FETCHING = ThreadPoolExecutor(16, "fetching")  # its own threads: slow addresses wait for each other alone
COLDEST = 1e-5  # a temperature below it takes the most probable token; logits divided by less overflow
HOOKS = {  # what is overridden or called here, beside public names that the imports above find
    ChatCompletionHandler: ("_validate_request", "_resolve_model", "_build_generation_config"),
    ResponseHandler: ("_validate_request", "_resolve_model", "_build_generation_config", "_normalize_input"),
    BaseHandler: ("get_processor_inputs_from_messages",),
    ModelManager: ("load_model_and_processor", "get_model_modality", "shutdown"),
    GenerateManager: ("generate_streaming", "generate_non_streaming"),
    GenerationState: ("get_manager",),
}


def check_hooks() -> None:
    """
    Raises:
        ImportError: this release of transformers has no such method any more, so overriding it would do nothing.
    """
    moved = [f"{kind.__name__}.{name}" for kind, names in HOOKS.items() for name in names if not hasattr(kind, name)]
    if moved:
        raise ImportError(
            f"the server of transformers {transformers.__version__} has no {', '.join(moved)}, which this release of "
            f"speechllm builds on. Install what fits: {FITTING}"
        )


def names_address(value: Any) -> bool:
    """Whether a request holds a web address, which may have to be fetched."""
    if isinstance(value, dict):
        return any(map(names_address, value.values()))
    if isinstance(value, list):
        return any(map(names_address, value))
    return isinstance(value, str) and is_url(value)


class LoadedModel(ModelManager):
    """
    One model, loaded before, under one name.

    Args:
        pipe: the `speech-instruct` pipeline; its model and processor are served.
        name: what clients call the model.
        allow_urls: whether http(s) addresses that clients give are fetched.
        other_names: what clients may call it, too.
    """

    def __init__(self, pipe: Any, name: str, allow_urls: bool = True, other_names: Collection[str] = ()):
        super().__init__()
        self.name, self.model, self.processor, self.allow_urls = name, pipe.model, pipe.processor, allow_urls
        self.other_names = other_names

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return self.model, self.processor

    def get_model_modality(self, *args: Any, **kwargs: Any) -> Modality:
        return Modality.MULTIMODAL

    def list_models(self, *args: Any, **kwargs: Any) -> list[dict]:
        return [{"id": self.name, "object": "model", "created": 0, "owned_by": "speechllm"}]

    get_gen_models = list_models  # its name in transformers 5.23

    def shutdown(self) -> None:
        """Nothing to unload: the model stays until the process ends."""


class _SpeechRequests:
    """What both endpoints add to transformers' handlers."""

    known: dict
    messages_key: str

    def __init__(self, model_manager: LoadedModel, generation_state: SpeechGenerationState):
        super().__init__(model_manager=model_manager, generation_state=generation_state)
        self.options = Options(self.known, template_variables(model_manager.processor))

    async def handle_request(self, body: dict, request_id: str) -> Response:
        """
        Raises:
            RequestError: a request that cannot be answered.
        """
        pool = FETCHING if names_address(body) else None
        body = await asyncio.get_running_loop().run_in_executor(pool, self.prepared, body)
        try:
            response = await super().handle_request(body, request_id)
        except RequestError:
            raise
        except ValueError as error:  # the chat template, or a generation config that contradicts itself
            raise RequestError(str(error)) from error
        if not isinstance(response, StreamingResponse):
            return self.whole(response, body["config"])
        response.body_iterator = self.stream(response.body_iterator, body["config"])
        return response

    def prepared(self, body: dict) -> dict:
        """The request with checked options and loaded messages."""
        body = self.options.check(body)
        name = body.setdefault("model", self.model_manager.name)
        if name != self.model_manager.name and name not in self.model_manager.other_names:
            raise RequestError(
                f"This server has no model {name!r}. It has {self.model_manager.name!r}; name that, or none.",
                status=404,
                code="model_not_found",
                param="model",
            )
        if self.messages_key not in body:
            raise RequestError(f"The request has no {self.messages_key}. Give it.", param=self.messages_key)
        body.setdefault("stream", False)
        messages = self.messages_of(body)
        chat = load_chat(messages, self.model_manager.processor, self.model_manager.allow_urls)
        return {**body, self.messages_key: chat}

    def messages_of(self, body: dict) -> list:
        return body[self.messages_key]

    def whole(self, response: Response, config: Any) -> Response:
        """What is sent of an answer that was generated by `config`."""
        return response

    def stream(self, pieces: AsyncIterator[str], config: Any) -> AsyncIterator[str]:
        """What is sent of a streamed one."""
        return pieces

    def _validate_request(self, body: dict) -> None:
        """Done by `prepared`, more strictly."""

    def _resolve_model(self, body: dict) -> tuple[str, Any, Any]:
        return self.model_manager.name, self.model_manager.model, self.model_manager.processor

    @staticmethod
    def get_processor_inputs_from_messages(messages: list[dict], modality: Modality) -> list[dict]:
        """The messages, which `prepared` has loaded."""
        return messages

    def _build_generation_config(self, body: dict, model_generation_config: Any, use_cb: bool = False) -> Any:
        """As transformers', but a temperature samples, a seed is the request's own, the length the pipeline's."""
        seed = body.get("seed")
        config = super()._build_generation_config({**body, "seed": None}, model_generation_config, use_cb)
        if not any(body.get(key) for key in ("max_tokens", "max_completion_tokens", "max_output_tokens")):
            config.max_new_tokens = model_generation_config.max_new_tokens
        if body.get("temperature") is not None or body.get("top_p") is not None:
            config.do_sample = body.get("temperature") is None or body["temperature"] >= COLDEST
        if not config.do_sample:
            config.temperature = config.top_p = config.top_k = None
        if seed is not None:
            config.seed = seed
        config.chat = body[self.messages_key]
        body["config"] = config  # for the answer's form, which says whether it is cut
        return config


class SpeechChatHandler(_SpeechRequests, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    known = CHAT_OPTIONS
    messages_key = "messages"

    async def stream(self, pieces: AsyncIterator[str], config: Any) -> AsyncIterator[str]:
        """The pieces, and the line that ends a stream in OpenAI's API."""
        async for piece in pieces:
            yield piece
        yield "data: [DONE]\n\n"


class SpeechResponseHandler(_SpeechRequests, ResponseHandler):
    """`/v1/responses`. An answer that ends at its limit is `incomplete`, as OpenAI says it; transformers does not."""

    known = RESPONSE_OPTIONS
    messages_key = "input"

    def messages_of(self, body: dict) -> list:
        return response_messages(body["input"], body.pop("instructions", None))

    def whole(self, response: Response, config: Any) -> Response:
        answer = json.loads(response.body)
        return JSONResponse(cut(answer)) if is_cut(answer, config) else response

    async def stream(self, pieces: AsyncIterator[str], config: Any) -> AsyncIterator[str]:
        async for piece in pieces:
            if '"type":"response.completed"' in piece:  # inside of a text the quotes would be escaped
                event = json.loads(piece.removeprefix("data: "))
                if is_cut(event["response"], config):
                    event |= {"type": "response.incomplete", "response": cut(event["response"])}
                    piece = f"data: {json.dumps(event)}\n\n"
            yield piece

    @staticmethod
    def _normalize_input(body: dict) -> list[dict]:
        """The messages, which `prepared` has loaded."""
        return body["input"]


def is_cut(answer: dict, config: Any) -> bool:
    """Whether an answer of the Responses API has as many tokens as it may have."""
    return answer["usage"]["output_tokens"] >= config.max_new_tokens


def cut(answer: dict) -> dict:
    """The answer, marked as cut."""
    output = [{**item, "status": "incomplete"} for item in answer["output"]]
    return answer | {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": output,
    }


__all__ = ["LoadedModel", "SpeechChatHandler", "SpeechGenerationState", "SpeechResponseHandler", "check_hooks"]
