"""`generate` of a SpeechLLM.

Unusual here: the audio is encoded once, and `forward` merges it into whichever pass reads its placeholders: the first,
every one without a cache, or an assistant's own. So each way of generating reads the prompt as greedy search does. To
logits processors a placeholder is a token beside the vocabulary: it is neither penalised nor part of an n-gram, and it
is never said.
"""

from typing import Any

import torch
from transformers import GenerationMixin, LogitsProcessorList, PreTrainedModel, SuppressTokensLogitsProcessor
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.modeling_outputs import BaseModelOutputWithPast

from .attention_backends import attention_for_any_length
from .left_out import attended_places, leave_out, left_out_places, take_places

# What the installed transformers calls the cache in arguments and outputs: `past_key_values` until 5.23.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
FEATURES = ("input_features", "input_features_mask", "language")
PER_PLACE = ("output_hidden_states", "output_attentions")
# Ways of generating that read the prompt's ids by other means than `forward`, and what to do instead.
REFUSED = {
    "prefill_chunk_size": "it cuts the prompt where an audio may be",
    "guidance_scale": "its second prompt has no audio",
    "assistant_early_exit": "it shortens the whole model, not the LLM",
    "use_mtp": "its heads do not read audio",
    "speculation_type": "its heads do not read audio",
}


class PlaceholdersAside(LogitsProcessorList):
    """Logits processors that see audio placeholders as one more token after the vocabulary, of probability 0."""

    def __init__(self, processors: LogitsProcessorList, audio_token_id: int):
        super().__init__(processors)
        self.audio_token_id = audio_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """(rows, tokens) ids and (rows, vocabulary) scores -> scores (rows, vocabulary)."""
        if not self:
            return scores
        vocabulary = scores.shape[-1]
        input_ids = placeholders_aside(input_ids, self.audio_token_id, vocabulary)
        scores = torch.cat([scores, scores.new_full((len(scores), 1), -torch.inf)], dim=-1)
        return super().__call__(input_ids, scores, **kwargs)[:, :vocabulary]


def placeholders_aside(input_ids: torch.LongTensor, audio_token_id: int, vocabulary: int) -> torch.LongTensor:
    """Ids with `vocabulary`, the first id after it, in place of placeholders and of all that are no token."""
    strange = (input_ids == audio_token_id) | (input_ids < 0) | (input_ids >= vocabulary)
    return input_ids.masked_fill(strange, vocabulary)


class CandidatesAfterAudio(CandidateGenerator):
    """Candidates of another generator, which neither match a placeholder nor contain one."""

    def __init__(self, generator: CandidateGenerator, audio_token_id: int):
        self.generator, self.audio_token_id = generator, audio_token_id

    @property
    def requires_model_outputs(self) -> bool:
        return self.generator.requires_model_outputs

    def get_candidates(
        self, input_ids: torch.LongTensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.LongTensor, torch.Tensor | None]:
        """See [`CandidateGenerator`]; each placeholder is a token of its own, below 0."""
        alone = -1 - torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        hidden = torch.where(input_ids == self.audio_token_id, alone, input_ids)
        candidates, logits = self.generator.get_candidates(hidden, *args, **kwargs)
        new = candidates[:, input_ids.shape[1] :]
        kept = int((new[0] >= 0).long().cumprod(0).sum())
        return torch.cat([input_ids.to(new.device), new[:, :kept]], dim=1), logits

    def update_candidate_strategy(self, *args: Any, **kwargs: Any) -> None:
        self.generator.update_candidate_strategy(*args, **kwargs)


class SpeechGenerationMixin(GenerationMixin):
    """Generating of `SpeechLLMForConditionalGeneration`."""

    @torch.no_grad()
    @attention_for_any_length()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: Any = None,
        *args: Any,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        language: torch.LongTensor | None = None,
        audio_outputs: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `GenerationMixin.generate`; the audio is encoded once, whatever the number of beams and returned
        sequences, and beside `input_ids` not at all with `audio_outputs`, what `get_audio_features` made of the same
        features. With `input_ids` the result starts with the prompt, placeholders included; with `inputs_embeds` alone
        it holds the new tokens only.

        An assistant must be a SpeechLLM, which hears the audio by itself.

        Raises:
            ValueError: a way of generating that cannot be had with audio (`REFUSED`), an assistant that cannot hear.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        for name in ("past_key_values", "cache"):
            if name in kwargs:
                kwargs[CACHE] = kwargs.pop(name)
        self._check_left_out(input_ids, kwargs)
        heard = (input_features is not None and len(input_features) > 0) or kwargs.get("audio_embeds") is not None
        if not heard:
            if input_ids is not None and kwargs.get("inputs_embeds") is None and kwargs.get(CACHE) is None:
                self.model.check_no_placeholders(input_ids)
            return super().generate(input_ids, generation_config, *args, **kwargs)
        features = (input_features, input_features_mask, language)
        merged = input_ids is None or kwargs.get("inputs_embeds") is not None
        self._check_mode(generation_config or self.generation_config, kwargs, merged)
        if merged:
            kwargs["inputs_embeds"], audio = self.model.get_inputs_embeds(
                input_ids, kwargs.get("inputs_embeds"), *features, audio_embeds=kwargs.pop("audio_embeds", None)
            )
            if audio is not None and audio.left_out is not None:
                kwargs["attention_mask"], _ = leave_out(audio.left_out, kwargs.get("attention_mask"))
            return super().generate(input_ids, generation_config, *args, **kwargs)
        if kwargs.get("audio_embeds") is None:
            audio = self.model.get_audio_features(*features) if audio_outputs is None else audio_outputs
            kwargs["audio_embeds"] = audio.pooler_output
            if audio.connector.used is not None:
                placeholders = input_ids == self.config.audio_token_id
                self.model.check_audio_count(placeholders, audio.pooler_output, input_features)
                left_out = left_out_places(placeholders, audio.connector)
                kwargs["attention_mask"], _ = leave_out(left_out, kwargs.get("attention_mask"))
                kwargs["closed_up"] = self._left_out_by_all(generation_config or self.generation_config, kwargs)
        if kwargs.get("assistant_model") is not None:
            kwargs |= dict(zip(FEATURES, features, strict=True))
        return super().generate(input_ids, generation_config, *args, **kwargs)

    def _check_mode(self, generation_config: Any, kwargs: dict[str, Any], merged: bool) -> None:
        """Raises a ValueError for what would not give greedy search's tokens with audio."""

        def asked(name: str) -> Any:
            return kwargs[name] if name in kwargs else getattr(generation_config, name, None)

        for name, reason in REFUSED.items():
            if asked(name) not in (None, False, *([1, 1.0] if name == "guidance_scale" else [])):
                raise ValueError(f"generate: {name} cannot be had with audio: {reason}. Leave it out.")
        assistant = asked("assistant_model")
        if assistant is not None and not isinstance(assistant, SpeechGenerationMixin):
            raise ValueError(
                f"generate: the assistant, a {type(assistant).__name__}, cannot hear. Give a smaller SpeechLLM with "
                "the same tokenizer and as many audio tokens, or use prompt_lookup_num_tokens."
            )
        if assistant is not None and assistant.model.multi_modal_projector.leaves_out:
            raise ValueError(
                f"generate: the assistant's connector, {assistant.config.connector['type']}, leaves audio tokens out "
                "of the prompt, which an assistant reads as a whole. Use prompt_lookup_num_tokens, or an assistant "
                "with another connector."
            )
        if assistant is not None and kwargs.get("assistant_tokenizer") is not None:
            raise ValueError("generate: an assistant with another tokenizer cannot be had with audio. Leave it out.")
        rereads = assistant is not None or asked("prompt_lookup_num_tokens") or asked("use_cache") is False
        if merged and rereads:
            raise ValueError(
                "generate: with inputs_embeds the prompt can be read once only. Pass input_ids and input_features, or "
                "leave out assistant_model, prompt_lookup_num_tokens and use_cache=False."
            )

    def _left_out_by_all(self, generation_config: Any, kwargs: dict[str, Any]) -> int:
        """By how many places the prompts become shorter when what their connector leaves out is closed up; 0 where
        the prompt is read again, or what was made of each of its places is asked for."""

        def asked(name: str) -> Any:
            return kwargs[name] if name in kwargs else getattr(generation_config, name, None)

        if asked("use_cache") is False or kwargs.get(CACHE) is not None:
            return 0
        if any(asked(name) for name in ("assistant_model", "prompt_lookup_num_tokens", *PER_PLACE)):
            return 0
        mask = kwargs["attention_mask"]
        return mask.shape[1] - max(int(mask.sum(-1).max()), 1)

    def _check_left_out(self, input_ids: torch.LongTensor | None, kwargs: dict[str, Any]) -> None:
        """Raises a ValueError where it would be unknown which audio tokens the connector leaves out."""
        connector = self.model.multi_modal_projector
        if not connector.leaves_out:
            return
        if kwargs.get("audio_embeds") is not None:
            raise ValueError(
                f"generate: audio_embeds do not tell which audio tokens the connector, {connector.config.type}, "
                "leaves out. Pass input_features."
            )
        cache = kwargs.get(CACHE)
        if cache is None or input_ids is None or cache.get_seq_length() == 0:
            return
        if bool((input_ids[:, : cache.get_seq_length()] == self.config.audio_token_id).any()):
            raise ValueError(
                "generate: a cache does not tell which audio tokens of earlier turns the connector, "
                f"{connector.config.type}, left out. Leave {CACHE} out, and pass the whole prompt with all its audios."
            )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        audio_embeds: torch.Tensor | None = None,
        closed_up: int = 0,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; the audio goes to every pass that reads its placeholders. Where audio tokens are left
        out, the LLM gets a prompt that is shorter by `closed_up` places, with the same positions."""
        if audio_embeds is not None:
            for name in FEATURES:  # they are an assistant's
                kwargs.pop(name, None)
        if closed_up:
            size = attention_mask.shape[1] - closed_up
            if is_first_iteration:
                places = attended_places(attention_mask, size, at_end=True)
                whole, _ = self.model.get_inputs_embeds(input_ids, audio_embeds=audio_embeds)
                inputs_embeds, audio_embeds = take_places(whole, places.to(whole.device)), None
                if kwargs.get("position_ids") is not None:
                    kwargs["position_ids"] = kwargs["position_ids"].gather(1, places)
            counts = attention_mask.sum(-1, keepdim=True)
            place = torch.arange(size, device=attention_mask.device)
            attention_mask = (place >= size - counts).to(attention_mask.dtype)
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            *args,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        read = inputs.get("input_ids")
        if audio_embeds is None or read is None:
            return inputs
        all_of_it = read.shape[1] == input_ids.shape[1] and read.shape[1] > 1
        # After a cache of earlier turns the first pass reads the end of the prompt only.
        if all_of_it:
            inputs["audio_embeds"] = audio_embeds
        elif is_first_iteration and bool((read == self.config.audio_token_id).any()):
            inputs["audio_embeds"] = self._heard_now(input_ids, read, audio_embeds)
        return inputs

    def _heard_now(self, input_ids: torch.LongTensor, read: torch.LongTensor, audio: torch.Tensor) -> torch.Tensor:
        """Of the audio tokens of all turns those whose placeholders are read now; of fewer, all."""
        given, wanted = ((ids == self.config.audio_token_id).sum(-1).tolist() for ids in (input_ids, read))
        if len(audio) != sum(given):
            return audio
        return torch.cat([part[len(part) - count :] for part, count in zip(audio.split(given), wanted, strict=True)])

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        """As in transformers; each prompt's audios are repeated together."""
        audio = model_kwargs.pop("audio_embeds", None)
        expanded, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if audio is not None and expand_size > 1:
            placeholders = input_ids == self.config.audio_token_id
            self.model.check_audio_count(placeholders, audio)
            parts = audio.split(placeholders.sum(-1).tolist())
            audio = torch.cat([part.repeat(expand_size, 1) for part in parts])
        model_kwargs |= {} if audio is None else {"audio_embeds": audio}
        return expanded, model_kwargs

    def _get_logits_processor(
        self, generation_config: Any, input_ids_seq_length: Any = None, encoder_input_ids: Any = None, **kwargs: Any
    ) -> LogitsProcessorList:
        """As in transformers, for prompts with audio [`PlaceholdersAside`]."""
        token, vocabulary = self.config.audio_token_id, self.lm_head.out_features
        ids = encoder_input_ids
        hears = isinstance(ids, torch.Tensor) and ids.ndim == 2 and bool((ids == token).any())
        if hears:
            encoder_input_ids = placeholders_aside(ids, token, vocabulary)
        processors = super()._get_logits_processor(
            generation_config, input_ids_seq_length, encoder_input_ids=encoder_input_ids, **kwargs
        )
        if token < vocabulary:  # before sampling's own, which could keep nothing else
            processors.insert(0, SuppressTokensLogitsProcessor([token], device=kwargs.get("device") or self.device))
        return PlaceholdersAside(processors, token) if hears else processors

    def _get_candidate_generator(self, **kwargs: Any) -> CandidateGenerator:
        """As in transformers; an assistant hears by itself, and prompt lookup finds nothing in placeholders."""
        model_kwargs, assistant = dict(kwargs["model_kwargs"]), kwargs.get("assistant_model")
        if model_kwargs.get("audio_embeds") is None:
            return super()._get_candidate_generator(**kwargs)
        features = [model_kwargs.pop(name, None) for name in FEATURES]
        if assistant is not None:
            model_kwargs["audio_embeds"] = _heard_by(assistant, features)
            return super()._get_candidate_generator(**kwargs | {"model_kwargs": model_kwargs})
        generator = super()._get_candidate_generator(**kwargs | {"model_kwargs": model_kwargs})
        return CandidatesAfterAudio(generator, self.config.audio_token_id)


def _heard_by(assistant: PreTrainedModel, features: list[torch.Tensor | None]) -> torch.Tensor:
    """Audio tokens as another SpeechLLM makes them, `(audio tokens, its dim)`."""
    if features[0] is None:
        raise ValueError("generate: an assistant needs input_features, which it hears by itself, not audio_embeds.")
    features = [part if part is None else part.to(assistant.device) for part in features]
    return assistant.model.get_audio_features(*features).pooler_output


__all__ = ["CACHE", "SpeechGenerationMixin"]
