"""SpeechLLM: a speech encoder, a connector and a causal language model as one transformers model.

    features -> audio_tower -> multi_modal_projector -> (in place of the placeholders) -> language_model -> lm_head

Unusual here:
- The LLM is taken as it is. Its embedding table is not resized (the placeholder id may lie outside it), and scales,
  soft caps and biases after its last layer are kept, so a text-only prompt gives the LLM's own logits.
- `generate` merges the audio into `inputs_embeds` once, before beams are expanded.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput, can_return_tuple

from .audio_towers import build_audio_tower
from .composition import Composable, build_lm_head
from .configuration_speechllm import SpeechLLMConfig
from .conformer_ctc import ctc_logits
from .connector_base import ConnectorOutput, length_mask
from .connectors import build_connector
from .left_out import leave_out, left_out_places
from .pretrained_speechllm import SpeechLLMPreTrainedModel

# What the installed transformers calls the cache in arguments and outputs: `past_key_values` until 5.23.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"


@dataclass
class SpeechLLMModelOutputWithPast(BaseModelOutputWithPast):
    """Base output plus `audio_hidden_states` `(audio tokens, dim)`, the embeddings put in place of placeholders, and
    what else the connector gave."""

    audio_hidden_states: torch.Tensor | None = None
    connector: ConnectorOutput | None = None


@dataclass
class SpeechLLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Causal LM output plus `audio_hidden_states` and `connector` of [`SpeechLLMModelOutputWithPast`]."""

    audio_hidden_states: torch.Tensor | None = None
    connector: ConnectorOutput | None = None


@dataclass
class SpeechLLMAudioOutput(BaseModelOutputWithPooling):
    """Encoder frames, flat audio tokens, and the connector's own output (lengths, language posterior, ...); of a
    prompt `left_out` `(batch, sequence)`, its places that the connector's `used` leaves out, see [`leave_out`]."""

    connector: ConnectorOutput | None = None
    left_out: torch.Tensor | None = None


@dataclass
class SpeechLLMCTCOutput(ModelOutput):
    """CTC `logits` `(audios, tokens, vocabulary)` and their `lengths` `(audios,)`, and the connector's own output."""

    logits: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    connector: ConnectorOutput | None = None


def scale_logits(logits: torch.Tensor, text_config: Any) -> torch.Tensor:
    """What a causal LM does to its logits after the head: Cohere's scale, Granite's divisor, Gemma's soft cap."""
    if getattr(text_config, "logit_scale", None) is not None:
        logits = logits * text_config.logit_scale
    if getattr(text_config, "logits_scaling", None) is not None:
        logits = logits / text_config.logits_scaling
    if getattr(text_config, "final_logit_softcapping", None) is not None:
        cap = text_config.final_logit_softcapping
        logits = torch.tanh(logits / cap) * cap
    return logits


def put_audio(inputs_embeds: torch.Tensor, placeholders: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
    """Puts audio tokens `(audio tokens, dim)` in order in place of the placeholders, a `(batch, sequence)` mask, of a
    prompt's embeddings `(batch, sequence, dim)`."""
    audio = audio.to(inputs_embeds.device, inputs_embeds.dtype)
    placeholders = placeholders.to(inputs_embeds.device)[..., None].expand_as(inputs_embeds)
    return inputs_embeds.masked_scatter(placeholders, audio)


class SpeechLLMModel(SpeechLLMPreTrainedModel):
    """Encoder, connector and the LLM without its head; owns the merging of audio into the prompt."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: SpeechLLMConfig):
        super().__init__(config)
        self.audio_tower = build_audio_tower(config.audio_config, config.audio_window, config.pad_to_window)
        self.language_model = AutoModel.from_config(config.text_config)
        text_size = self.language_model.get_input_embeddings().embedding_dim
        self.multi_modal_projector = build_connector(
            config.connector, config.audio_size, text_size, config.audio_window, len(config.audio_layers)
        )
        self.post_init()

    @classmethod
    def _load_trained(cls, source: str, kwargs: dict[str, Any]) -> "SpeechLLMModel":
        return SpeechLLMForConditionalGeneration._load_trained(source, kwargs).model

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        language: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> SpeechLLMAudioOutput:
        """Encoder frames and the audio tokens made of them.

        Args:
            input_features (`torch.Tensor`): filterbank features `(audios, features, positions)` or waveform
                `(audios, samples)`.
            input_features_mask (`torch.Tensor` of shape `(audios, positions or samples)`, *optional*): 1 where valid.
            language (`torch.LongTensor` of shape `(audios,)`, *optional*): indices into the connector's `languages`,
                -1 for unknown.

        Returns:
            `last_hidden_state`: encoder frames `(audios, frames, dim)`, with gradients and layers to mix
            `(audios, frames, layers, dim)`; `pooler_output`: embeddings of the valid
            audio tokens of all audios in order, `(audio tokens, LLM dim)`; what else the connector gives.
        """
        layers = self.config.audio_layers
        # Without gradients a window's layers are mixed as soon as they are there: an hour of all of them is large.
        mix = self.multi_modal_projector.layer_mix if layers and not torch.is_grad_enabled() else None
        frames = self.audio_tower(input_features, input_features_mask, layers, mix)
        weight = next(self.multi_modal_projector.parameters())
        connected = self.multi_modal_projector(
            frames.last_hidden_state.to(weight.device, weight.dtype),
            frames.lengths.to(weight.device),
            language if language is None else language.to(weight.device),
        )
        valid = length_mask(connected.lengths, connected.embeddings.shape[1])
        return SpeechLLMAudioOutput(
            last_hidden_state=frames.last_hidden_state,
            pooler_output=connected.embeddings[valid],
            connector=connected,
        )

    @property
    def ctc_blank(self) -> int:
        """Token id of CTC's blank: the LLM's padding token, which no transcript holds.

        Raises:
            ValueError: the LLM names none.
        """
        blank = self.config.text_config.pad_token_id
        if blank is None or not 0 <= blank < self.get_input_embeddings().num_embeddings:
            raise ValueError(
                f"The LLM's padding token (id {blank}) has no row in its embeddings, so it cannot be CTC's blank. "
                "Set text_config.pad_token_id to a special token that no transcript holds."
            )
        return blank

    def get_ctc_logits(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        language: torch.LongTensor | None = None,
    ) -> SpeechLLMCTCOutput:
        """CTC logits of the audio tokens over the LLM's vocabulary, with its own frozen input embeddings as the output
        layer (BLOOMZMMS, stage 1); the blank is `ctc_blank`. Arguments as in `get_audio_features`.

        Works with any connector; one that has a CTC of its own gives that, -inf for tokens that it cannot read. CTC
        needs as many audio tokens as the transcript has, and one more wherever a token repeats.
        """
        connected = self.get_audio_features(input_features, input_features_mask, language).connector
        if connected.ctc_logits is not None:
            tokens = self.get_input_embeddings().num_embeddings
            logits = self.multi_modal_projector.over_tokens(connected.ctc_logits, tokens, self.ctc_blank)
            return SpeechLLMCTCOutput(logits=logits, lengths=connected.ctc_lengths, connector=connected)
        logits = ctc_logits(connected.embeddings, self.get_input_embeddings().weight)
        return SpeechLLMCTCOutput(logits=logits, lengths=connected.lengths.to(logits.device), connector=connected)

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, sequence) bool mask of audio placeholders, by id, or by embedding where no ids are given."""
        if input_ids is not None:
            return input_ids == self.config.audio_token_id
        embeddings = self.get_input_embeddings()
        if self.config.audio_token_id >= embeddings.num_embeddings:
            raise ValueError(
                f"The audio placeholder (id {self.config.audio_token_id}) has no row in the LLM's embedding table "
                f"({embeddings.num_embeddings} rows), so it cannot be found in inputs_embeds. "
                "Pass input_ids together with inputs_embeds: the ids only mark the places."
            )
        placeholder = embeddings(torch.tensor(self.config.audio_token_id, device=embeddings.weight.device))
        return (inputs_embeds == placeholder.to(inputs_embeds.device)).all(-1)

    def embed_text(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """The LLM's embeddings of ids, `(..., dim)`; those of placeholders stand for nothing."""
        # A placeholder id may lie outside the table: any row will do, it is replaced.
        outside = input_ids >= self.get_input_embeddings().num_embeddings
        return self.get_input_embeddings()(input_ids.masked_fill(outside, 0))

    def get_inputs_embeds(
        self,
        input_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        language: torch.LongTensor | None = None,
    ) -> tuple[torch.Tensor, SpeechLLMAudioOutput | None]:
        """The prompt as embeddings `(batch, sequence, dim)`, audio in place of its placeholders; and the audio's own
        output.

        Raises:
            ValueError: placeholders and audio tokens differ in number, with both.
        """
        if input_ids is None and inputs_embeds is None:
            raise ValueError("SpeechLLM got neither input_ids nor inputs_embeds. Pass the processor's output.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_text(input_ids)
        if input_features is None or len(input_features) == 0:
            return inputs_embeds, None
        placeholders = self.get_placeholder_mask(input_ids, inputs_embeds)
        output = self.get_audio_features(input_features, input_features_mask, language)
        audio = output.pooler_output
        if int(placeholders.sum()) != len(audio):
            raise ValueError(
                f"Audio features and audio tokens do not match: the prompt has {int(placeholders.sum())} audio "
                f"placeholders, {len(input_features)} audio(s) give {len(audio)} audio tokens. Prepare both with one "
                "processor call, without truncation, and with the processor saved beside this model."
            )
        if output.connector.used is not None:
            output.left_out = left_out_places(placeholders, output.connector)
        return put_audio(inputs_embeds, placeholders, audio), output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        language: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> SpeechLLMModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, sequence)`): prompt with `audio_token_id` placeholders.
            input_features, input_features_mask: one row per audio, in reading order; see `get_audio_features`.
            inputs_embeds (`torch.Tensor` of shape `(batch, sequence, dim)`): in place of `input_ids`, or beside them,
                in which case the ids only mark the placeholders.
            language (`torch.LongTensor` of shape `(audios,)`, *optional*): language of each audio, -1 for unknown.
            cache, past_key_values (`Cache`, *optional*): one thing under its name from transformers 5.24 on and its
                name before; either may be passed with any version.
        """
        if input_features is None and input_ids is not None and inputs_embeds is None and input_ids.shape[1] > 1:
            placeholders = int(self.get_placeholder_mask(input_ids).sum())
            if placeholders:
                raise ValueError(
                    f"The prompt has {placeholders} audio placeholders but no input_features were given. "
                    "Pass the audio to the processor, or take the placeholders out of the prompt."
                )
        inputs_embeds, audio = self.get_inputs_embeds(
            input_ids, inputs_embeds, input_features, input_features_mask, language
        )
        if audio is not None and audio.left_out is not None:
            attention_mask, places = leave_out(audio.left_out, attention_mask)
            position_ids = places if position_ids is None else position_ids
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        kwargs[CACHE] = past_key_values if cache is None else cache
        outputs = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=use_cache, **kwargs
        )
        return SpeechLLMModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **{CACHE: outputs.get(CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=None if audio is None else audio.pooler_output,
            connector=None if audio is None else audio.connector,
        )


class SpeechLLMForConditionalGeneration(Composable, SpeechLLMPreTrainedModel, GenerationMixin):
    """Hears and reads, writes text: [`SpeechLLMModel`] with the LLM's head."""

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: SpeechLLMConfig):
        super().__init__(config)
        self.model = SpeechLLMModel(config)
        self.lm_head = build_lm_head(config.text_config)
        self._name_tied_embedding()
        self.post_init()

    def _name_tied_embedding(self) -> None:
        """Families name their embedding differently (`embed_tokens`, `wte`, `word_embeddings`, ...)."""
        embedding = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.language_model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{name}.weight"}

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_audio_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See [`SpeechLLMModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Logits `(..., vocabulary)` of last hidden states `(..., dim)`, scaled and capped as the LLM's own."""
        return scale_logits(self.lm_head(hidden_states), self.config.text_config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        language: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> SpeechLLMCausalLMOutputWithPast:
        """
        Args:
            labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): next-token targets, -100 is ignored.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): as in transformers; a bool mask
                `(batch, sequence)` gives logits `(positions, vocabulary)`.

        Other arguments as in [`SpeechLLMModel.forward`].
        """
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            language=language,
            **kwargs,
        )
        logits = self.compute_logits(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return SpeechLLMCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: outputs.get(CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            connector=outputs.connector,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: Any = None,
        *args: Any,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        language: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `GenerationMixin.generate`; the audio is encoded and merged once, so beams and several returned
        sequences work with any number of audios per prompt. With `input_ids` the result starts with the prompt,
        placeholders included; with `inputs_embeds` alone it holds the new tokens only.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        for name in ("past_key_values", "cache"):
            if name in kwargs:
                kwargs[CACHE] = kwargs.pop(name)
        if input_features is not None and len(input_features) > 0:
            kwargs["inputs_embeds"], audio = self.model.get_inputs_embeds(
                input_ids, kwargs.get("inputs_embeds"), input_features, input_features_mask, language
            )
            if audio.left_out is not None:
                kwargs["attention_mask"], _ = leave_out(audio.left_out, kwargs.get("attention_mask"))
        if input_ids is None or kwargs.get("inputs_embeds") is None:
            return super().generate(input_ids, generation_config, *args, **kwargs)
        # The stand-in must not be the padding id, from which `generate` infers a missing attention mask.
        padding = kwargs.get(
            "pad_token_id", getattr(generation_config or self.generation_config, "pad_token_id", None)
        )
        prompt = input_ids.masked_fill(input_ids >= self.lm_head.out_features, 0 if padding != 0 else 1)
        result = super().generate(prompt, generation_config, *args, **kwargs)
        sequences = result if isinstance(result, torch.Tensor) else result.sequences
        copies = len(sequences) // len(input_ids)
        sequences[:, : input_ids.shape[1]] = input_ids.repeat_interleave(copies, dim=0).to(sequences.device)
        return result


__all__ = ["SpeechLLMForConditionalGeneration", "SpeechLLMModel", "SpeechLLMPreTrainedModel"]
