"""Joining pretrained parts: `SpeechLLMForConditionalGeneration.from_parts` and what it is made of."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.integrations import deepspeed

from .audio_encoders import load_encoder
from .audio_towers import build_audio_tower
from .configuration_connectors import connector_config
from .configuration_speechllm import SpeechLLMConfig
from .connector_base import Connector
from .connectors import build_connector
from .parents import (
    HUB_ARGUMENTS,
    SOURCE_ARGUMENTS,
    chosen,
    load_causal_lm,
    naming,
    parent_of,
    placeholder_id,
    read_decoder,
    reading_vocabulary,
)
from .partial_checkpoints import record_parents

# Kinds of an LLM's layers that read what the attention mask leaves out: as zeros, or as a step of their state.
NOT_ATTENTION = {"linear_attention", "conv", "hybrid", "hybrid_sliding"}


@contextmanager
def without_zero_init() -> Iterator[None]:
    """Loads models whole under DeepSpeed ZeRO-3, which partitions them when training begins. While it is on,
    transformers partitions each module as it is made (`zero.Init`), which modules made on the meta device do not
    bear."""
    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference


def assemble(
    model_class: type, config: SpeechLLMConfig, encoder: PreTrainedModel, causal_lm: PreTrainedModel
) -> PreTrainedModel:
    """A SpeechLLM around given modules: built on the meta device, then its empty parts are replaced by them.

    Raises:
        ValueError: an LLM family whose logits cannot be reproduced, by name.
    """
    check_family(causal_lm)
    with torch.device("meta"):
        model = model_class(config)
    base = model.model
    base.language_model = decoder_of(causal_lm)
    model.lm_head = causal_lm.get_output_embeddings()
    base.audio_tower = build_audio_tower(
        encoder.config,
        config.audio_window,
        config.pad_to_window,
        encoder=encoder.to(device=execution_device(causal_lm), dtype=causal_lm.dtype),
    )
    config.audio_config, config.text_config = encoder.config, base.language_model.config
    for name in ("hf_device_map", "hf_quantizer", "is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit"):
        if name in causal_lm.__dict__:
            setattr(model, name, getattr(causal_lm, name))
    put_connector(model)
    model.generation_config = causal_lm.generation_config
    check_same_logits(model, causal_lm)
    return model


def new_connector(config: SpeechLLMConfig, embeddings: nn.Module) -> Connector:
    """The connector of a config between its encoder and an LLM with these embeddings, without initialised weights.

    Raises:
        ValueError: a connector that leaves audio tokens out, before an LLM that does not read by attention alone.
    """
    connector = build_connector(
        config.connector,
        config.audio_size,
        embeddings.embedding_dim,
        config.audio_window,
        audio_layers=len(config.audio_layers),
        attention=config._attn_implementation or "sdpa",
    )
    text = config.text_config
    stateful = getattr(MODEL_MAPPING.get(type(text), None), "_is_stateful", False)
    other = set(getattr(text, "layer_types", None) or ()) & NOT_ATTENTION
    if connector.leaves_out and (other or stateful):
        raise ValueError(
            f"Connector {connector.config.type!r} leaves audio tokens out by the attention mask, but the LLM family "
            f"{text.model_type!r} has layers with a state or convolutions ({', '.join(sorted(other)) or 'all'}), for "
            "which they would still be there. Take another connector, or an LLM of attention alone."
        )
    return connector


def execution_device(model: PreTrainedModel) -> torch.device:
    """Where a model computes, also one whose weights are kept elsewhere (`device_map` with "cpu" or "disk")."""
    places = (getattr(model, "hf_device_map", None) or {}).values()
    device = next((place for place in places if str(place) not in ("cpu", "disk")), None)
    if device is not None:
        return torch.device(device)
    device = model.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def put_connector(model: PreTrainedModel) -> None:
    """Gives a SpeechLLM a new connector with the settings of its config, on the LLM's device, in its precision."""
    base = model.model
    connector = new_connector(model.config, base.get_input_embeddings())
    base.audio_layers = model.config.audio_layers
    base.multi_modal_projector = connector.to(device=execution_device(model), dtype=base.language_model.dtype)
    base.multi_modal_projector.apply(model._init_weights)


def read_vocabulary(
    connector: dict | str | None, text: dict[str, str | None], **hub: Any
) -> tuple[dict | str | None, dict[int, list[int]] | None]:
    """The tokens that a `whisper_reader` connector may write, and the settings with their number; others have none.

    Args:
        connector: settings that [`read_decoder`] has completed.
        text: of the LLM what [`parent_of`] tells.
        **hub: how the Hub is reached.

    Raises:
        ValueError: an LLM without a name, whose tokenizer is unknown.
    """
    if not isinstance(connector, dict) or connector.get("type") != "whisper_reader" or not connector.get("decoder"):
        return connector, None
    if not text.get("id"):
        raise ValueError(
            "whisper_reader needs the LLM's tokenizer, and the LLM was given without its id or folder. Name it: "
            'from_parts(..., text="its id or folder").'
        )
    source = {key: value for key, value in text.items() if value and key in ("revision", "gguf_file", "subfolder")}
    found = reading_vocabulary(connector["decoder"], text["id"], connector["end"], hub, **source)
    vocabulary = {token: ids for token, ids in found.items() if token not in connector["suppress_tokens"]}
    return connector | {"vocabulary": len(vocabulary)}, vocabulary


def give_decoder(model: PreTrainedModel, decoder: nn.Module | None, vocabulary: dict[int, list[int]] | None) -> None:
    """Gives the connector a pretrained decoder, and the LLM's vectors of its vocabulary: where the LLM has several
    tokens for one, their mean."""
    connector = model.model.multi_modal_projector
    if decoder is not None:
        connector.load_decoder(decoder)
    if vocabulary is not None:
        device = execution_device(model)
        counts = torch.tensor([len(tokens) for tokens in vocabulary.values()], device=device)
        tokens = torch.tensor([token for tokens in vocabulary.values() for token in tokens], device=device)
        with torch.no_grad():  # by the module: some LLMs scale what they look up (Gemma)
            rows = model.model.embed_text(tokens).float().to(device)
        means = rows.new_zeros(len(counts), rows.shape[1])
        means.index_add_(0, torch.arange(len(counts), device=device).repeat_interleave(counts), rows)
        connector.load_vocabulary(torch.tensor(list(vocabulary), device=device), means / counts[:, None])


def decoder_of(causal_lm: PreTrainedModel) -> PreTrainedModel:
    """The LLM without its head, also of families that name it otherwise than they say (Llama 4)."""
    if causal_lm.base_model is not causal_lm:
        return causal_lm.base_model
    kind = MODEL_MAPPING.get(type(causal_lm.config), None)
    return next((part for part in causal_lm.children() if kind is not None and type(part) is kind), causal_lm)


def check_family(causal_lm: PreTrainedModel) -> None:
    """Refuses what is no decoder-only causal LM.

    Raises:
        ValueError: the family and the finding.
    """
    family = causal_lm.config.model_type
    if causal_lm.config.is_encoder_decoder:
        raise ValueError(f"LLM family {family!r} is an encoder-decoder; a SpeechLLM needs a decoder-only causal LM.")
    text_config = decoder_of(causal_lm).config
    if type(text_config) not in MODEL_MAPPING:
        raise ValueError(f"LLM family {family!r} is not supported: transformers has no class of its decoder alone.")
    if causal_lm.get_output_embeddings() is None:
        raise ValueError(f"LLM family {family!r} is not supported: it has no output layer that is one linear map.")


@torch.no_grad()
def check_same_logits(model: PreTrainedModel, causal_lm: PreTrainedModel) -> None:
    """Refuses LLM families whose logits are not head(decoder(embeddings)) with the scales that the model knows, or
    that cannot go on token by token from a cache.

    Raises:
        ValueError: the family and the finding.
    """
    device = causal_lm.get_input_embeddings().weight.device
    if device.type == "meta":
        return
    refusal = f"LLM family {causal_lm.config.model_type!r} is not supported:"
    input_ids = torch.arange(4, device=device)[None] * (model.config.text_config.vocab_size // 4)
    input_ids[input_ids == model.config.audio_token_id] += 1
    training = causal_lm.training
    causal_lm.eval()
    model.eval()
    expected = causal_lm(input_ids=input_ids).logits
    try:
        hidden = model.model(input_ids=input_ids).last_hidden_state
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{refusal} it does not run from embeddings ({error}).") from error
    width = model.lm_head.in_features
    if hidden.shape[-1] != width:
        raise ValueError(
            f"{refusal} its head takes {width} features and its last layer gives {hidden.shape[-1]}, so it has a "
            "layer between them, which speechllm does not know."
        )
    logits = model.compute_logits(hidden)
    tolerance = 1e-4 if expected.dtype == torch.float32 else 5e-2
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=tolerance, atol=tolerance):
        raise ValueError(
            f"{refusal} its logits are not its head's output with the scales and soft caps known to speechllm "
            f"(largest difference {(logits - expected).abs().max():.3g})."
        )
    expected, after = (_last_logits(part, input_ids) for part in (causal_lm, model))
    if after is None:
        raise ValueError(f"{refusal} it keeps no cache of transformers' kind, without which it cannot generate here.")
    if not torch.allclose(after, expected, rtol=tolerance, atol=tolerance):
        raise ValueError(
            f"{refusal} from its cache it goes on otherwise than by itself (largest difference of the logits "
            f"{(after - expected).abs().max():.3g}), so it cannot generate here."
        )
    causal_lm.train(training)


def _last_logits(causal_lm: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor | None:
    """Logits of the last token, read with the cache of those before it; None without a cache."""
    start = causal_lm(input_ids=input_ids[:, :-1], use_cache=True)
    name = next((name for name in ("cache", "past_key_values") if start.get(name) is not None), None)
    if name is None:
        return None
    return causal_lm(input_ids=input_ids[:, -1:], use_cache=True, **{name: start[name]}).logits


class Composable:
    """Composing of `SpeechLLMForConditionalGeneration`."""

    @classmethod
    @without_zero_init()
    def from_parts(
        cls,
        audio: str | os.PathLike | PreTrainedModel,
        text: str | os.PathLike | PreTrainedModel,
        connector: dict | str | None = None,
        *,
        audio_token_id: int | None = None,
        audio_revision: str | None = None,
        text_revision: str | None = None,
        gguf_file: str | None = None,
        text_adapter: str | os.PathLike | None = None,
        config: SpeechLLMConfig | None = None,
        pad_to_window: bool = False,
        audio_window: int | None = None,
        **kwargs: Any,
    ) -> Self:
        """Joins a pretrained speech encoder and a pretrained causal LM through a new connector.

        Encoder and LLM come out frozen, the connector trainable.

        Args:
            audio: Hub id or folder of a speech encoder (see [`SpeechLLMConfig`]) or of a whole model that has one, or
                the encoder itself.
            text: Hub id or folder of a causal LM, or the model.
            connector: `{"type": name, ...settings}`, a name, or None for `stack_mlp` with its defaults.
            audio_token_id: id of the audio placeholder. By default that of `<|audio|>` in the LLM's tokenizer, else
                the first id after it, which is the one the processor gives the added token.
            audio_revision, text_revision: Hub revisions.
            gguf_file: name of a GGUF file in `text`: its weights are taken, dequantised, and its tokenizer where there
                are no files of one beside it. Recorded with the parents.
            text_adapter: Hub id or folder of a LoRA adapter of the LLM (PEFT), which is merged into it. Recorded with
                the parents.
            config: a whole config, in place of `connector`, `audio_token_id`, `pad_to_window`, `audio_window`.
            pad_to_window, audio_window: see [`SpeechLLMConfig`].
            **kwargs: `from_pretrained` arguments of the LLM: `dtype`, `device_map`, `quantization_config`, ... The
                encoder follows the LLM's dtype and first device; `attn_implementation` may be a dict with the keys
                `"audio_config"` and `"text_config"`.

        Raises:
            ValueError: an unsupported encoder or LLM family, by name; missing weights; unknown connector settings.
            OSError: a parent that is not found, by name.
        """
        audio, text, text_adapter = (
            os.fspath(part) if isinstance(part, os.PathLike) else part for part in (audio, text, text_adapter)
        )
        hub = chosen(kwargs, HUB_ARGUMENTS)
        by_name = [group for group, part in (("encoder", audio), ("llm", text)) if isinstance(part, str)]
        parents = {
            "audio": parent_of(audio, audio_revision),
            "text": parent_of(
                text, text_revision, gguf_file=gguf_file, adapter=text_adapter, **chosen(kwargs, SOURCE_ARGUMENTS)
            ),
        }
        if isinstance(text, str):
            implementations = kwargs.pop("attn_implementation", None)
            if not isinstance(implementations, dict):
                implementations = dict.fromkeys(("audio_config", "text_config", ""), implementations)
            causal_lm = load_causal_lm(
                text,
                None if config is None else config.text_config,
                revision=text_revision,
                gguf_file=gguf_file,
                adapter=text_adapter,
                attn_implementation=implementations.get("text_config"),
                **kwargs,
            )
        elif kwargs or gguf_file or text_adapter:
            named = sorted(kwargs) or (["gguf_file"] if gguf_file else ["text_adapter"])
            raise TypeError(
                f"{', '.join(named)}: arguments of loading are for an LLM given by id or "
                "folder. Load the model with them, or name it instead."
            )
        else:
            causal_lm, implementations = text, {}
        if isinstance(audio, str):
            with naming("Speech encoder", audio):
                audio = load_encoder(
                    audio,
                    None if config is None else config.audio_config,
                    revision=audio_revision,
                    dtype=causal_lm.dtype,
                    attn_implementation=implementations.get("audio_config"),
                    **hub,
                )
        decoder = vocabulary = None
        if config is None:
            connector, decoder = read_decoder(connector, **hub)
            connector, vocabulary = read_vocabulary(connector, parents["text"], **hub)
            if audio_token_id is None:
                source = {key: value for key, value in parents["text"].items() if key in ("gguf_file", "subfolder")}
                audio_token_id = placeholder_id(parents["text"]["id"], revision=text_revision, **source, **hub)
            config = SpeechLLMConfig.from_parts(
                audio.config,
                causal_lm.config,
                connector,
                audio_token_id=audio_token_id,
                pad_to_window=pad_to_window,
                audio_window=audio_window,
                initializer_range=getattr(causal_lm.config.get_text_config(), "initializer_range", 0.02),
            )
        if implementations.get("") is not None:  # the connector's; those of the parts are theirs already
            config._attn_implementation = {"": implementations[""]}
        config.parents = parents if all(parent["id"] for parent in parents.values()) else None
        config.dtype = causal_lm.dtype
        model = assemble(cls, config, audio, causal_lm)
        record_parents(model, by_name)
        give_decoder(model, decoder, vocabulary)
        model.freeze("encoder", "llm")
        model.attention_was_chosen = any(implementations.values())
        return model.eval()

    def replace_connector(self, connector: dict | str | None = None) -> None:
        """Puts a new, untrained connector in place of the one there, as `from_parts` would; encoder and LLM stay.

        The processor follows by `processor.follow(model.config)`.

        Args:
            connector: as in `from_parts`.

        Raises:
            ValueError: unknown connector settings.
        """
        connector, decoder = read_decoder(connector)
        connector, vocabulary = read_vocabulary(connector, (self.config.parents or {}).get("text", {}))
        self.config.connector = asdict(connector_config(connector))
        put_connector(self)
        give_decoder(self, decoder, vocabulary)
        self.model.multi_modal_projector.train(self.training)


__all__ = ["Composable"]
