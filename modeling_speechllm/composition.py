"""Joining pretrained parts: `SpeechLLMForConditionalGeneration.from_parts` and what it is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.integrations import deepspeed
from transformers.utils.hub import resolve_revision

from .audio_encoders import load_encoder
from .audio_towers import build_audio_tower
from .configuration_connectors import connector_config
from .configuration_speechllm import AUDIO_TOKEN, SpeechLLMConfig
from .connectors import build_connector
from .partial_checkpoints import check_keys


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


def parent_of(part: str | PreTrainedModel, revision: str | None) -> dict[str, str | None]:
    """Hub id or folder (empty for a model never loaded from one) and the commit, None for a folder."""
    name = part if isinstance(part, str) else part.config.name_or_path
    commit = resolve_revision(name, revision) if name else None
    commit = getattr(commit, "resolved", commit)  # as a string it is the branch that was asked for
    return {"id": name, "revision": commit}


def load_causal_lm(text: str, **kwargs: Any) -> PreTrainedModel:
    """Causal LM from a Hub id or folder.

    Raises:
        ValueError: an encoder-decoder or a family without a causal LM class, by name; missing weights.
    """
    causal_lm, info = AutoModelForCausalLM.from_pretrained(text, output_loading_info=True, **kwargs)
    check_keys(text, info["missing_keys"], [], [])
    return causal_lm


def placeholder_id(text: str, revision: str | None = None) -> int:
    """Id of the audio placeholder in the LLM's tokenizer, or the one it gets when added at the end.

    Raises:
        ValueError: no tokenizer there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(text, revision=revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No tokenizer was found with the LLM {text!r}, so the id of the audio placeholder is unknown. "
            "Pass audio_token_id=..., or a folder that holds the tokenizer too."
        ) from error
    return tokenizer.get_vocab().get(AUDIO_TOKEN, len(tokenizer))


def read_decoder(settings: dict | str | None, **hub: Any) -> tuple[dict | str | None, PreTrainedModel | None]:
    """The pretrained Whisper decoder that a `whisper_qformer` connector names, and the settings with its sizes.

    Raises:
        ValueError: the checkpoint is no whole Whisper model.
    """
    if not isinstance(settings, dict) or not settings.get("decoder"):
        return settings, None
    config = AutoConfig.from_pretrained(settings["decoder"], **hub)
    if config.model_type != "whisper" or (config.architectures or [""])[0] == "WhisperEncoder":
        raise ValueError(f"decoder={settings['decoder']!r} is no whole Whisper checkpoint, so it has no decoder.")
    sizes = {
        "hidden_size": config.d_model,
        "decoder_layers": config.decoder_layers,
        "heads": config.decoder_attention_heads,
        "ffn_size": config.decoder_ffn_dim,
        "positions": config.max_target_positions,
    }
    model, info = AutoModel.from_pretrained(settings["decoder"], output_loading_info=True, **hub)
    check_keys(settings["decoder"], info["missing_keys"], [], [])
    return sizes | settings, model.decoder


def build_lm_head(text_config: Any) -> nn.Linear:
    """A new output layer of the shape that the family's own causal LM has (width, vocabulary, bias)."""
    with torch.device("meta"):
        head = AutoModelForCausalLM.from_config(text_config).get_output_embeddings()
    return nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)


def assemble(
    model_class: type, config: SpeechLLMConfig, encoder: PreTrainedModel, causal_lm: PreTrainedModel
) -> PreTrainedModel:
    """A SpeechLLM around given modules: built on the meta device, then its empty parts are replaced by them.

    Raises:
        ValueError: an LLM family whose logits cannot be reproduced, by name.
    """
    family = causal_lm.config.model_type
    if causal_lm.config.is_encoder_decoder:
        raise ValueError(f"LLM family {family!r} is an encoder-decoder; a SpeechLLM needs a decoder-only causal LM.")
    with torch.device("meta"):
        model = model_class(config)
    device = causal_lm.get_input_embeddings().weight.device
    base = model.model
    base.language_model = causal_lm.base_model
    model.lm_head = causal_lm.get_output_embeddings()
    base.audio_tower = build_audio_tower(
        encoder.config,
        config.audio_window,
        config.pad_to_window,
        encoder=encoder.to(device=device, dtype=causal_lm.dtype),
    )
    config.audio_config, config.text_config = encoder.config, base.language_model.config
    put_connector(model)
    model.generation_config = causal_lm.generation_config
    for name in ("hf_device_map", "hf_quantizer", "is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit"):
        if name in causal_lm.__dict__:
            setattr(model, name, getattr(causal_lm, name))
    check_same_logits(model, causal_lm)
    return model


def put_connector(model: PreTrainedModel) -> None:
    """Gives a SpeechLLM a new connector with the settings of its config, on the LLM's device, in its precision."""
    base, config = model.model, model.config
    embeddings = base.get_input_embeddings()
    connector = build_connector(
        config.connector, config.audio_size, embeddings.embedding_dim, config.audio_window, len(config.audio_layers)
    )
    base.multi_modal_projector = connector.to(device=embeddings.weight.device, dtype=base.language_model.dtype)
    base.multi_modal_projector.apply(model._init_weights)


@torch.no_grad()
def check_same_logits(model: PreTrainedModel, causal_lm: PreTrainedModel) -> None:
    """Refuses LLM families whose logits are not head(decoder(embeddings)) with the scales that the model knows.

    Raises:
        ValueError: the family and the finding.
    """
    embeddings = causal_lm.get_input_embeddings()
    if embeddings.weight.device.type == "meta":
        return
    family = causal_lm.config.model_type
    input_ids = torch.arange(4, device=embeddings.weight.device)[None] * (embeddings.num_embeddings // 4)
    input_ids[input_ids == model.config.audio_token_id] += 1
    training = causal_lm.training
    causal_lm.eval()
    model.eval()
    expected = causal_lm(input_ids=input_ids).logits
    try:
        logits = model(input_ids=input_ids).logits
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"LLM family {family!r} is not supported: it does not run from embeddings ({error})."
        ) from error
    causal_lm.train(training)
    tolerance = 1e-4 if expected.dtype == torch.float32 else 5e-2
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=tolerance, atol=tolerance):
        raise ValueError(
            f"LLM family {family!r} is not supported: its logits are not its head's output with the scales and soft "
            f"caps known to speechllm (largest difference {(logits - expected).abs().max():.3g})."
        )


class Composable:
    """Composing of `SpeechLLMForConditionalGeneration`."""

    @classmethod
    @without_zero_init()
    def from_parts(
        cls,
        audio: str | PreTrainedModel,
        text: str | PreTrainedModel,
        connector: dict | str | None = None,
        *,
        audio_token_id: int | None = None,
        audio_revision: str | None = None,
        text_revision: str | None = None,
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
            config: a whole config, in place of `connector`, `audio_token_id`, `pad_to_window`, `audio_window`.
            pad_to_window, audio_window: see [`SpeechLLMConfig`].
            **kwargs: `from_pretrained` arguments of the LLM: `dtype`, `device_map`, `quantization_config`, ... The
                encoder follows the LLM's dtype and first device; `attn_implementation` may be a dict with the keys
                `"audio_config"` and `"text_config"`.

        Raises:
            ValueError: an unsupported encoder or LLM family, by name; missing weights; unknown connector settings.
        """
        parents = {"audio": parent_of(audio, audio_revision), "text": parent_of(text, text_revision)}
        if isinstance(text, str):
            implementations = kwargs.pop("attn_implementation", None)
            if not isinstance(implementations, dict):
                implementations = dict.fromkeys(("audio_config", "text_config"), implementations)
            text_kwargs = kwargs | {"attn_implementation": implementations.get("text_config")}
            causal_lm = load_causal_lm(text, revision=text_revision, **text_kwargs)
        else:
            causal_lm, implementations = text, {}
        if isinstance(audio, str):
            hub = {key: kwargs[key] for key in ("token", "cache_dir", "local_files_only") if key in kwargs}
            audio = load_encoder(
                audio,
                None if config is None else config.audio_config,
                revision=audio_revision,
                dtype=causal_lm.dtype,
                attn_implementation=implementations.get("audio_config"),
                **hub,
            )
        decoder = None
        if config is None:
            connector, decoder = read_decoder(connector)
            if audio_token_id is None:
                audio_token_id = placeholder_id(parents["text"]["id"], text_revision)
            config = SpeechLLMConfig.from_parts(
                audio.config,
                causal_lm.config,
                connector,
                audio_token_id=audio_token_id,
                pad_to_window=pad_to_window,
                audio_window=audio_window,
                initializer_range=getattr(causal_lm.config.get_text_config(), "initializer_range", 0.02),
            )
        config.parents = parents if all(parent["id"] for parent in parents.values()) else None
        config.dtype = causal_lm.dtype
        model = assemble(cls, config, audio, causal_lm)
        if decoder is not None:
            model.model.multi_modal_projector.load_decoder(decoder)
        model.freeze("encoder", "llm")
        return model.eval()

    def replace_connector(self, connector: dict | str | None = None) -> None:
        """Puts a new, untrained connector in place of the one there, as `from_parts` would; encoder and LLM stay.

        The processor follows by `processor.connector_stages = model.config.connector_stages`.

        Args:
            connector: as in `from_parts`.

        Raises:
            ValueError: unknown connector settings.
        """
        connector, decoder = read_decoder(connector)
        self.config.connector = asdict(connector_config(connector))
        put_connector(self)
        if decoder is not None:
            self.model.multi_modal_projector.load_decoder(decoder)
        self.model.multi_modal_projector.train(self.training)


__all__ = ["Composable"]
