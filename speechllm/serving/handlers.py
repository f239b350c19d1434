"""The handlers of `transformers serve`, for one SpeechLLM that is loaded already.

What is unusual here:
- transformers' serving modules do the work; these subclasses override their public methods where a SpeechLLM, or
  honesty, asks for more. A release that has moved those methods is refused with the releases that fit.
- Requests are checked, and audio is fetched and decoded, in a thread, so that a slow address holds up no other answer.
- The answer is the pipeline's: as long by default, at the same precision, sampled only if the caller or the
  checkpoint says so.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import torch
import transformers
from fastapi.responses import Response, StreamingResponse
from transformers import LogitsProcessor, LogitsProcessorList

from processing_speechllm.positions import check_positions, default_new_tokens, positions

from .requests import CHAT_OPTIONS, RESPONSE_OPTIONS, Options, RequestError, load_chat, template_variables

FITTING = 'pip install --upgrade "speechllm[serve]" "transformers>=5.23,<5.25"'
try:
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.utils import BaseHandler, GenerateManager, GenerationState, Modality
except ImportError as error:
    raise ImportError(
        f"the server of transformers {transformers.__version__} is not the one that this release of speechllm knows "
        f"({error}). Install what fits: {FITTING}"
    ) from error

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


class LoadedModel(ModelManager):
    """
    One model, loaded before, under one name.

    Args:
        pipe: the `speech-instruct` pipeline; its model and processor are served.
        name: what clients call the model.
        allow_urls: whether http(s) addresses that clients give are fetched.
    """

    def __init__(self, pipe: Any, name: str, allow_urls: bool = True):
        super().__init__()
        self.name, self.model, self.processor, self.allow_urls = name, pipe.model, pipe.processor, allow_urls

    def load_model_and_processor(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return self.model, self.processor

    def get_model_modality(self, *args: Any, **kwargs: Any) -> Modality:
        return Modality.MULTIMODAL

    def list_models(self, *args: Any, **kwargs: Any) -> list[dict]:
        return [{"id": self.name, "object": "model", "created": 0, "owned_by": "speechllm"}]

    get_gen_models = list_models  # its name in transformers 5.23

    def shutdown(self) -> None:
        """Nothing to unload: the model stays until the process ends."""


class Seeded(LogitsProcessor):
    """Seeds the sampling when it begins, in the thread in which it happens: requests before it do not matter."""

    def __init__(self, seed: int):
        self.seed: int | None = seed

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.seed is not None:
            torch.manual_seed(self.seed)
            self.seed = None
        return scores


class SpeechGenerateManager(GenerateManager):
    """Answers one request after the other, as the pipeline would."""

    def generate_streaming(self, model, processor, inputs, gen_config, **kwargs):
        inputs = fitted(model, processor, inputs, gen_config)
        return super().generate_streaming(model, processor.tokenizer, inputs, gen_config, **kwargs)

    async def generate_non_streaming(self, model, processor, inputs, gen_config, **kwargs):
        inputs = fitted(model, processor, inputs, gen_config)
        try:
            return await super().generate_non_streaming(model, processor.tokenizer, inputs, gen_config, **kwargs)
        except ValueError as error:  # the request was checked, so it is not at fault
            raise RuntimeError(f"generation failed: {error}") from error


def fitted(model: Any, processor: Any, inputs: Any, gen_config: Any) -> dict:
    """
    The inputs at the model's precision, and `gen_config` (changed in place) with as many new tokens as there may be.

    Raises:
        RequestError: prompt and answer do not fit into the LLM's positions.
    """
    length, limit = inputs["input_ids"].shape[-1], positions(model)
    if gen_config.max_new_tokens is None and gen_config.max_length is not None:
        gen_config.max_new_tokens = max(1, gen_config.max_length - length)
    wanted = gen_config.max_new_tokens
    audio = int((inputs["input_ids"] == processor.audio_token_id).sum())
    try:
        check_positions(length, audio, 1 if wanted is None else wanted, limit)
    except ValueError as error:
        raise RequestError(str(error), code="context_length_exceeded", param="messages") from error
    if wanted is None:
        gen_config.max_new_tokens = default_new_tokens(length, limit)
    if gen_config.pad_token_id is None:
        gen_config.pad_token_id = processor.tokenizer.pad_token_id
    seed = gen_config.__dict__.pop("seed", None)
    chosen = {} if seed is None else {"logits_processor": LogitsProcessorList([Seeded(seed)])}
    return {**inputs.to(model.device, dtype=model.dtype), **chosen}


class SpeechGenerationState(GenerationState):
    """One generation thread, as there is one model."""

    def __init__(self):
        super().__init__()
        self._manager = SpeechGenerateManager()

    def get_manager(self, model_id: str, use_cb: bool = False) -> SpeechGenerateManager:
        return self._manager


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
        body = await asyncio.to_thread(self.prepared, body)
        try:
            response = await super().handle_request(body, request_id)
        except RequestError:
            raise
        except ValueError as error:  # the chat template, or a generation config that contradicts itself
            raise RequestError(str(error)) from error
        if isinstance(response, StreamingResponse):
            response.body_iterator = self.stream(response.body_iterator)
        return response

    def prepared(self, body: dict) -> dict:
        """The request with checked options and loaded messages."""
        body = self.options.check(body)
        name = body.setdefault("model", self.model_manager.name)
        if name != self.model_manager.name:
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

    def stream(self, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
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
        return config


class SpeechChatHandler(_SpeechRequests, ChatCompletionHandler):
    """`/v1/chat/completions`."""

    known = CHAT_OPTIONS
    messages_key = "messages"

    async def stream(self, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        """The pieces, and the line that ends a stream in OpenAI's API."""
        async for piece in pieces:
            yield piece
        yield "data: [DONE]\n\n"


class SpeechResponseHandler(_SpeechRequests, ResponseHandler):
    """`/v1/responses`."""

    known = RESPONSE_OPTIONS
    messages_key = "input"

    def messages_of(self, body: dict) -> list:
        try:
            messages = self._normalize_input(body)
        except (KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"The input cannot be read ({type(error).__name__}: {error}). Give text, or a list of messages: "
                '[{"role": "user", "content": ...}].',
                param="input",
            ) from error
        body.pop("instructions", None)  # they are the first message by now
        return messages


__all__ = ["LoadedModel", "SpeechChatHandler", "SpeechGenerationState", "SpeechResponseHandler", "check_hooks"]
