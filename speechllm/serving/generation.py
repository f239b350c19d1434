"""How the server generates: one request after the other, as the pipeline does, and not for clients that have left.

What is unusual here:
- transformers' manager calls `generate` of what it is given as the model. That is `Asked` here: the pipeline's own
  `generate_or_answer`, so that audio in which nothing was read has the checkpoint's answer.
- What a request carries to its generation beside the options of `generate` (its seed, its chat) are attributes of its
  `GenerationConfig`, taken off before it is used.
- transformers calls an answer cut that has as many tokens as it may have. One that is said to its end with the last of
  them is given room for one more before a stream ends and anyone looks.
"""

import threading
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.cli.serving.utils import GenerateManager, GenerationState

from processing_speechllm.confidence import read_embeddings
from processing_speechllm.finish_reasons import finish_reasons
from processing_speechllm.no_speech import generate_or_answer, nothing_read
from processing_speechllm.positions import check_positions, default_new_tokens, positions

from .departures import LEFT
from .requests import RequestError


class Seeded(LogitsProcessor):
    """Seeds the sampling when it begins, in the thread in which it happens: requests before it do not matter."""

    def __init__(self, seed: int):
        self.seed: int | None = seed

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.seed is not None:
            torch.manual_seed(self.seed)
            self.seed = None
        return scores


class HasLeft(StoppingCriteria):
    """Ends a generation when nobody waits for it any more."""

    def __init__(self, left: threading.Event):
        self.left = left

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self.left.is_set(), device=input_ids.device)


class Held:
    """What `generate` takes for a streamer, whose end is left to the caller."""

    def __init__(self, streamer: Any):
        self.put = streamer.put

    def end(self) -> None:
        """Nothing yet."""


class Asked:
    """
    Stands in the model's place for one request.

    Args:
        model, processor: what is served.
        chat: messages of the request, with their audios decoded.
        left: set when the client has left.
    """

    def __init__(self, model: Any, processor: Any, chat: list[dict], left: threading.Event):
        self.model, self.processor, self.chat, self.left = model, processor, chat, left

    @torch.no_grad()
    def generate(self, generation_config: Any, streamer: Any = None, **given: Any) -> torch.LongTensor:
        """Prompt and answer (1, tokens), as of `model.generate`; the prompt alone if the client had left before."""
        names = self.processor.model_input_names
        inputs = {name: given.pop(name) for name in names if name in given}
        prompt = inputs["input_ids"]
        if self.left.is_set():
            if streamer is not None:
                streamer.end()
            return prompt
        answer = self.processor.no_speech_answer
        silent = answer is not None and self.is_silent(inputs, given)
        options = given | {
            "generation_config": generation_config,
            "streamer": None if streamer is None else Held(streamer),
            "stopping_criteria": StoppingCriteriaList([HasLeft(self.left)]),
        }
        tokenizer = self.processor.tokenizer
        new_tokens, _ = generate_or_answer(self.model, tokenizer, inputs, options, [silent], answer)
        asked = {"generation_config": generation_config}
        reasons = finish_reasons(self.model.generation_config, asked, new_tokens, prompt.shape[1], tokenizer)
        if silent or reasons == [["stop"]]:
            room = new_tokens.shape[-1] + 1
            generation_config.max_new_tokens = max(generation_config.max_new_tokens, room)
        if streamer is not None:
            streamer.end()
        return torch.cat([prompt, new_tokens[0].to(prompt.device)], dim=1)

    def is_silent(self, inputs: dict, options: dict) -> bool:
        """Whether nothing was read in the request's audio; what was heard goes into the options of `generate`."""
        if "input_features" not in inputs:
            return False
        mask = inputs["input_features_mask"]
        audio = options["audio_outputs"] = self.model.get_audio_features(inputs["input_features"], mask)
        return nothing_read(self.chat, read_embeddings(self.processor, audio, mask)[1])


class SpeechGenerateManager(GenerateManager):
    """Answers one request after the other, as the pipeline would."""

    def generate_streaming(self, model, processor, inputs, gen_config, **kwargs):
        asked, inputs = self.prepared(model, processor, inputs, gen_config)
        return super().generate_streaming(asked, processor.tokenizer, inputs, gen_config, **kwargs)

    async def generate_non_streaming(self, model, processor, inputs, gen_config, **kwargs):
        asked, inputs = self.prepared(model, processor, inputs, gen_config)
        try:
            return await super().generate_non_streaming(asked, processor.tokenizer, inputs, gen_config, **kwargs)
        except ValueError as error:  # the request was checked, so it is not at fault
            raise RuntimeError(f"generation failed: {error}") from error

    @staticmethod
    def prepared(model: Any, processor: Any, inputs: Any, gen_config: Any) -> tuple[Asked, dict]:
        """What is asked, and with which inputs."""
        chat = gen_config.__dict__.pop("chat")
        return Asked(model, processor, chat, LEFT.get() or threading.Event()), fitted(
            model, processor, inputs, gen_config
        )


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


__all__ = ["SpeechGenerateManager", "SpeechGenerationState"]
