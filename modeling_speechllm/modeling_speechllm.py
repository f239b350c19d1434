"""SpeechLLM: a speech encoder, a connector and a causal language model as one transformers model.

    features -> audio_tower -> multi_modal_projector -> (in place of the placeholders) -> language_model -> lm_head

Unusual here:
- The LLM is taken as it is. Its embedding table is not resized (the placeholder id may lie outside it), and scales,
  soft caps and biases after its last layer are kept, so a text-only prompt gives the LLM's own logits.
- Nothing on the way depends on the data but the windows of long audio, so text and short audio compile in one graph.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Cache
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import ModelOutput, can_return_tuple, torch_compilable_check

from .attention_backends import attention_for_any_length
from .audio_families import audio_layer_count
from .audio_towers import AudioTowerOutput, build_audio_tower
from .composition import Composable, new_connector
from .configuration_speechllm import SpeechLLMConfig
from .conformer_ctc import ctc_logits
from .connector_base import ConnectorOutput, length_mask
from .generation import CACHE, SpeechGenerationMixin
from .left_out import leave_out, left_out_places
from .llm_head import build_head, scale_logits
from .older_transformers import slice_logits_to_keep
from .partial_checkpoints import Digests
from .pretrained_speechllm import SpeechLLMPreTrainedModel
from .under_vllm import check_under_vllm, prepare_for_vllm, runs_under_vllm


@dataclass
class SpeechLLMModelOutputWithPast(BaseModelOutputWithPast):
    """Base output plus `audio_hidden_states` `(audio tokens, dim)`, the embeddings put in place of placeholders, and
    what else the connector gave; of a mixture of experts `router_logits`."""

    router_logits: tuple[torch.Tensor, ...] | None = None
    audio_hidden_states: torch.Tensor | None = None
    connector: ConnectorOutput | None = None


@dataclass
class SpeechLLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Causal LM output plus `audio_hidden_states` and `connector` of [`SpeechLLMModelOutputWithPast`]; of a mixture of
    experts asked for `output_router_logits` also `router_logits`, `(tokens, experts)` per layer, and their `aux_loss`,
    which the loss contains, weighted."""

    aux_loss: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None
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


def put_audio(inputs_embeds: torch.Tensor, placeholders: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
    """Puts audio tokens `(audio tokens, dim)` in order in place of the placeholders, a `(batch, sequence)` mask, of a
    prompt's embeddings `(batch, sequence, dim)`."""
    audio = audio.to(inputs_embeds.device, inputs_embeds.dtype)
    placeholders = placeholders.to(inputs_embeds.device)[..., None].expand_as(inputs_embeds)
    return inputs_embeds.masked_scatter(placeholders, audio)


def may_hold_tokens(cache: Cache | None) -> bool:
    """Whether a cache holds tokens, or is of a kind that does not tell (a state alone, as Mamba's)."""
    return cache is not None and (all(getattr(cache, "is_linear", [False])) or cache.get_seq_length() > 0)


class SpeechLLMModel(SpeechLLMPreTrainedModel):
    """Encoder, connector and the LLM without its head; owns the merging of audio into the prompt."""

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: SpeechLLMConfig):
        super().__init__(config)
        if runs_under_vllm(config):
            check_under_vllm(config)
        self.audio_tower = build_audio_tower(config.audio_config, config.audio_window, config.pad_to_window)
        self.language_model = AutoModel.from_config(config.text_config)
        self.multi_modal_projector = new_connector(config, self.language_model.get_input_embeddings())
        self.audio_layers = config.audio_layers  # of the encoder, which the connector mixes
        if runs_under_vllm(config):
            prepare_for_vllm(self)
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
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> SpeechLLMAudioOutput:
        """Encoder frames and the audio tokens made of them.

        Args:
            input_features (`torch.Tensor`): filterbank features `(audios, features, positions)` or waveform
                `(audios, samples)`.
            input_features_mask (`torch.Tensor` of shape `(audios, positions or samples)`, *optional*): 1 where valid.
            language (`torch.LongTensor` of shape `(audios,)`, *optional*): indices into the connector's `languages`,
                -1 for unknown.
            output_hidden_states (`bool`, defaults to `False`): return the frames of every encoder layer as well.
            output_attentions (`bool`, defaults to `False`): refused, see below.

        Returns:
            `last_hidden_state`: encoder frames `(audios, frames, dim)`, with gradients and layers to mix
            `(audios, frames, layers, dim)`; `pooler_output`: embeddings of the valid
            audio tokens of all audios in order, `(audio tokens, LLM dim)`; if asked for `hidden_states`, from the
            input of the first layer to the output `(audios, frames, dim)` each; what else the connector gives.

        Raises:
            ValueError: attentions, which are of windows and passes and not of whole audios; layers of an encoder that
                ends in an adapter.
        """
        if output_attentions:
            raise ValueError(
                "get_audio_features has no attentions: the encoder runs on windows of several audios at once. For "
                "those of one window call model.audio_tower.encoder itself with attn_implementation='eager'."
            )
        if isinstance(input_features_mask, list):  # vLLM's, of one of several audios of unequal lengths
            input_features_mask = torch.stack(input_features_mask)
        layers = self.audio_layers
        if output_hidden_states:
            states = self.audio_tower(
                input_features, input_features_mask, list(range(audio_layer_count(self.config.audio_config) + 1))
            )
            hidden = states.last_hidden_state
            chosen = hidden[:, :, layers] if layers else hidden[:, :, -1]
            output = self._connect(AudioTowerOutput(last_hidden_state=chosen, lengths=states.lengths), language)
            output.hidden_states = hidden.unbind(2)
            return output
        # Without gradients a window's layers are mixed as soon as they are there: an hour of all of them is large.
        mix = self._mix_layers if layers and not torch.is_grad_enabled() else None
        return self._connect(self.audio_tower(input_features, input_features_mask, layers, mix), language)

    def _mix_layers(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The connector's mix, as a function: hooks of `device_map` move the modules among a module's arguments."""
        return self.multi_modal_projector.layer_mix(hidden_states)

    def _connect(self, frames: AudioTowerOutput, language: torch.LongTensor | None) -> SpeechLLMAudioOutput:
        """Encoder frames through the connector."""
        # Offloaded weights are nowhere (on the meta device) until their module runs, and it moves its inputs then.
        weight = next(self.multi_modal_projector.parameters())
        device = frames.lengths.device if weight.device.type == "meta" else weight.device
        connected = self.multi_modal_projector(
            frames.last_hidden_state.to(device, weight.dtype),
            frames.lengths.to(device),
            language if language is None else language.to(device),
        )
        valid = length_mask(connected.lengths, connected.embeddings.shape[1])
        return SpeechLLMAudioOutput(
            last_hidden_state=frames.last_hidden_state,
            pooler_output=connected.embeddings[valid],
            connector=connected,
        )

    @property
    def ctc_blank(self) -> int:
        """Token id of CTC's blank, which no transcript holds: the connector's `ctc_blank`, else the LLM's padding.

        Raises:
            ValueError: it has no embedding, or there is none; a connector whose tokens cannot have a CTC.
        """
        if self.multi_modal_projector.autoregressive:
            raise ValueError(
                f"The connector {self.config.connector['type']!r} writes its tokens one after another, not in time "
                "with the audio, so there is no CTC over them, no alignment and no word times. Train it by imitation "
                "or distillation, or take another connector."
            )
        chosen = self.multi_modal_projector.config.ctc_blank
        blank = self.config.text_config.pad_token_id if chosen is None else chosen
        rows = self.config.text_config.vocab_size
        if chosen is not None and not 0 <= blank < rows:
            raise ValueError(
                f"The connector's ctc_blank={blank} has no row in the LLM's {rows} embeddings. Set it to a token that "
                "no transcript holds, or to None for the LLM's padding token."
            )
        if blank is None or not 0 <= blank < rows:
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

        Raises:
            ValueError: see `ctc_blank`.
        """
        if self.multi_modal_projector.autoregressive:
            self.ctc_blank  # noqa: B018  says why there is none
        connected = self.get_audio_features(input_features, input_features_mask, language).connector
        if connected.ctc_logits is not None:
            tokens = self.get_input_embeddings().num_embeddings
            logits = self.multi_modal_projector.over_tokens(connected.ctc_logits, tokens, self.ctc_blank)
            return SpeechLLMCTCOutput(logits=logits, lengths=connected.ctc_lengths, connector=connected)
        logits = ctc_logits(connected.embeddings, self.embedding_weight())
        return SpeechLLMCTCOutput(logits=logits, lengths=connected.lengths.to(logits.device), connector=connected)

    def embedding_weight(self) -> torch.Tensor:
        """(vocabulary, dim) input embeddings, from disk where they are offloaded there."""
        embeddings = self.get_input_embeddings()
        if embeddings.weight.device.type != "meta":
            return embeddings.weight
        name = next(name for name, module in self.named_modules() if module is embeddings)
        return load_offloaded_parameter(self, f"{name}.weight")

    def get_placeholder_mask(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, sequence) bool mask of audio placeholders, by id, or by embedding where no ids are given."""
        if input_ids is not None:
            return input_ids == self.config.audio_token_id
        rows = self.config.text_config.vocab_size
        if self.config.audio_token_id >= rows:
            raise ValueError(
                f"The audio placeholder (id {self.config.audio_token_id}) has no row in the LLM's embedding table "
                f"({rows} rows), so it cannot be found in inputs_embeds. "
                "Pass input_ids together with inputs_embeds: the ids only mark the places."
            )
        token = torch.full((1,), self.config.audio_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token).to(inputs_embeds.device)).all(-1)

    def embed_text(self, input_ids: torch.LongTensor) -> torch.Tensor:
        """The LLM's embeddings of ids, `(..., dim)`; those of placeholders stand for nothing.

        Raises:
            ValueError: an id that is neither a placeholder nor in the embedding table.
        """
        # A placeholder id may lie outside the table: any row will do, it is replaced.
        rows, placeholder = self.config.text_config.vocab_size, self.config.audio_token_id
        input_ids = input_ids.masked_fill(input_ids == placeholder, 0)
        if input_ids.shape[-1] > 1:  # a prompt, whose check costs little; what is generated is in the table
            torch_compilable_check(
                (input_ids < rows).all(),
                lambda: (
                    f"The prompt has the token id {int(input_ids.max())}, the LLM's embedding table has {rows} rows. "
                    "Take the processor saved beside this model; of tokens added since, tell the model: "
                    "model.resize_token_embeddings(len(processor.tokenizer))."
                ),
            )
        return self.get_input_embeddings()(input_ids)

    def get_inputs_embeds(
        self,
        input_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        language: torch.LongTensor | None = None,
        audio_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, SpeechLLMAudioOutput | None]:
        """The prompt as embeddings `(batch, sequence, dim)`, audio in place of its placeholders; and the audio's own
        output. Audio is given as features, or as `audio_embeds` `(audio tokens, dim)` that were made of them.

        Raises:
            ValueError: placeholders and audio tokens differ in number, with both.
        """
        if input_ids is None and inputs_embeds is None:
            raise ValueError("SpeechLLM got neither input_ids nor inputs_embeds. Pass the processor's output.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_text(input_ids)
        if audio_embeds is not None:
            output = SpeechLLMAudioOutput(pooler_output=audio_embeds)
        elif input_features is None or len(input_features) == 0:
            return inputs_embeds, None
        else:
            output = self.get_audio_features(input_features, input_features_mask, language)
        placeholders = self.get_placeholder_mask(input_ids, inputs_embeds)
        self.check_audio_count(placeholders, output.pooler_output, input_features)
        if output.connector is not None and output.connector.used is not None:
            output.left_out = left_out_places(placeholders, output.connector)
        return put_audio(inputs_embeds, placeholders, output.pooler_output), output

    def check_no_placeholders(self, input_ids: torch.LongTensor) -> None:
        """Raises a ValueError if a prompt without audio has placeholders."""
        placeholders = self.get_placeholder_mask(input_ids)
        torch_compilable_check(
            ~placeholders.any(),
            lambda: (
                f"The prompt has {int(placeholders.sum())} audio placeholders but no input_features were given. "
                "Pass the audio to the processor, or take the placeholders out of the prompt."
            ),
        )

    def check_audio_count(
        self, placeholders: torch.Tensor, audio: torch.Tensor, input_features: torch.Tensor | None = None
    ) -> None:
        """Raises a ValueError with both counts unless there is a placeholder for each of the audio tokens."""
        audios = "the given audio_embeds are" if input_features is None else f"{len(input_features)} audio(s) give"
        torch_compilable_check(
            placeholders.sum() == len(audio),
            lambda: (
                f"Audio features and audio tokens do not match: the prompt has {int(placeholders.sum())} audio "
                f"placeholders, {audios} {len(audio)} audio tokens. Prepare both with one processor call, without "
                "truncation, and with the processor saved beside this model."
            ),
        )

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
        audio_embeds: torch.Tensor | None = None,
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
            audio_embeds (`torch.Tensor` of shape `(audio tokens, dim)`, *optional*): in place of features, the
                `pooler_output` that `get_audio_features` made of them. Which of them a connector leaves out is for
                `attention_mask` and `position_ids` to say then.
            cache, past_key_values (`Cache`, *optional*): one thing under its name from transformers 5.24 on and its
                name before; either may be passed with any version.
        """
        cache = past_key_values if cache is None else cache
        no_audio = input_features is None and audio_embeds is None
        if no_audio and inputs_embeds is None and cache is None and self.training and torch.is_grad_enabled():
            raise ValueError(
                "A SpeechLLM in training got no audio: input_features is None. A trainer that knows no audio has left "
                "it out; give it data_collator=SpeechChatCollator(processor) of speechllm's trainers and "
                "remove_unused_columns=False. For a batch that is text alone on purpose pass empty input_features, "
                "torch.zeros(0)."
            )
        if no_audio and input_ids is not None and inputs_embeds is None and input_ids.shape[1] > 1:
            if not may_hold_tokens(cache):  # else they may be candidates, which can be any token
                self.check_no_placeholders(input_ids)
        inputs_embeds, audio = self.get_inputs_embeds(
            input_ids, inputs_embeds, input_features, input_features_mask, language, audio_embeds
        )
        if audio is not None and audio.left_out is not None:
            if may_hold_tokens(cache):
                raise ValueError(
                    f"The connector, {self.config.connector['type']}, leaves audio tokens out of attention and "
                    "positions, which cannot be told beside a cache that holds tokens. Pass the whole prompt with all "
                    "its audios, without the cache."
                )
            attention_mask, places = leave_out(audio.left_out, attention_mask)
            position_ids = places if position_ids is None else position_ids
        if position_ids is not None:
            kwargs["position_ids"] = position_ids
        kwargs[CACHE] = cache
        outputs = self.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=use_cache, **kwargs
        )
        return SpeechLLMModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            **{CACHE: outputs.get(CACHE)},
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            router_logits=outputs.get("router_logits"),
            audio_hidden_states=None if audio is None else audio.pooler_output,
            connector=None if audio is None else audio.connector,
        )


class SpeechLLMForConditionalGeneration(Composable, SpeechLLMPreTrainedModel, SpeechGenerationMixin):
    """Hears and reads, writes text: [`SpeechLLMModel`] with the LLM's head."""

    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: SpeechLLMConfig):
        super().__init__(config)
        self.parent_digests: dict[str, Digests] = {}  # of the groups that were loaded from their parents by name
        self.model = SpeechLLMModel(config)
        self.lm_head, self.router_loss = build_head(config.text_config)
        self._name_tied_embedding()
        self.post_init()

    def init_parallel_plans(self) -> None:
        """The head is sharded where the LLM is: not beside a family without a plan, nor where it is tied to embeddings
        that stay whole."""
        super().init_parallel_plans()
        embedding = self._tied_weights_keys["lm_head.weight"].removesuffix(".weight")
        tied_to_whole = self.config.tie_word_embeddings and embedding not in self._tp_plan
        if tied_to_whole or not self.model.language_model.tp_plan:
            self._tp_plan.pop("lm_head")

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

    @attention_for_any_length()
    def get_audio_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See [`SpeechLLMModel.get_audio_features`]."""
        return self.model.get_audio_features(*args, **kwargs)

    def embedding_weight(self) -> torch.Tensor:
        """(vocabulary, dim) input embeddings of the LLM, from disk where they are offloaded there."""
        return self.model.embedding_weight()

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
        audio_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> SpeechLLMCausalLMOutputWithPast:
        """
        Args:
            labels (`torch.LongTensor` of shape `(batch, sequence)`, *optional*): next-token targets, -100 is ignored;
                placeholders must be.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): as in transformers; a bool mask
                `(batch, sequence)` gives logits `(positions, vocabulary)`.

        Other arguments as in [`SpeechLLMModel.forward`].
        """
        if labels is not None:
            torch_compilable_check(
                (labels != self.config.audio_token_id).all(),
                f"labels: audio placeholders (id {self.config.audio_token_id}) stand for no token that the LLM could "
                "say. Set the labels to -100 there.",
            )
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
            audio_embeds=audio_embeds,
            **kwargs,
        )
        logits = self.compute_logits(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        aux_loss = None
        if outputs.router_logits is not None and self.router_loss is not None:
            heard = outputs.connector
            if heard is not None and heard.used is not None:  # the router has not seen what was left out
                left_out = left_out_places(self.model.get_placeholder_mask(input_ids, inputs_embeds), heard)
                attention_mask, _ = leave_out(left_out, attention_mask)
            aux_loss = self.router_loss(outputs.router_logits, attention_mask)
            if loss is not None:
                loss = loss + self.router_loss.weight * aux_loss.to(loss.device)
        return SpeechLLMCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            router_logits=outputs.router_logits,
            logits=logits,
            **{CACHE: outputs.get(CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            audio_hidden_states=outputs.audio_hidden_states,
            connector=outputs.connector,
        )


__all__ = ["SpeechLLMForConditionalGeneration", "SpeechLLMModel", "SpeechLLMPreTrainedModel"]
