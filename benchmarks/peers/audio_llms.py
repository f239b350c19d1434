"""transformers' own audio LLMs at the parts' sizes, from configs: Qwen2-Audio, Voxtral, Audio Flamingo 3, Granite.

Weights are random, the placeholder is a token of the LLM's table, features are those of each family's extractor. The
first three hear 30 seconds, however short the audio; Voxtral's LLM reads all 375 tokens of them, the others' those of
the audio. Granite hears the audio's own length through a conformer of the encoder's width and depth.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    Blip2QFormerConfig,
    GraniteSpeechConfig,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechForConditionalGeneration,
    PreTrainedModel,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
)

from processing_speechllm import SpeechLLMProcessor
from trainers.data.chats import pad_chats

from .parts import RATE, Parts, chat_ids

WINDOW_TOKENS = 375  # of Voxtral: 30 s at four encoder frames each


@dataclass
class AudioLLM:
    """One of transformers' audio LLMs, and what makes its inputs."""

    family: str
    model: PreTrainedModel
    extractor: Any
    processor: SpeechLLMProcessor
    dtype: torch.dtype  # of the features

    def features(self, samples: list[np.ndarray]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """The model's audio arguments, and audio tokens of each."""
        if self.family == "granite_speech":
            inputs = self.extractor(samples)
            sizes = inputs.pop("audio_embed_sizes")
            return dict(inputs), [int(size) for size in sizes]
        inputs = self.extractor(
            samples, sampling_rate=RATE, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        features, mask = inputs["input_features"], inputs["attention_mask"]
        if self.family == "voxtral":
            return {"input_features": features}, [WINDOW_TOKENS] * len(samples)
        name = "feature_attention_mask" if self.family == "qwen2_audio" else "input_features_mask"
        counts = ((mask.sum(-1) - 1) // 2 + 1 - 2) // 2 + 1
        return {"input_features": features, name: mask}, counts.tolist()

    def inputs(self, samples: list[np.ndarray], texts: list[str | None]) -> dict[str, torch.Tensor]:
        """A batch; `labels` stand on the answers `texts`."""
        features, counts = self.features(samples)
        batch = pad_chats(*chat_ids(self.processor, texts, counts), self.processor.tokenizer.pad_token_id)
        del batch["prompt_end"]
        places = batch["input_ids"] == self.processor.audio_token_id
        batch["input_ids"] = batch["input_ids"].masked_fill(places, self.model.config.audio_token_id)
        features = {
            name: value.to(self.dtype) if value.is_floating_point() else value for name, value in features.items()
        }
        return batch | features

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """As a collator: rows to a batch for training."""
        samples = [self.processor.load_audio(row["audio"]) for row in rows]
        return self.inputs(samples, [row["text"] for row in rows])


def text_settings(parts: Parts) -> dict[str, Any]:
    """The LLM's sizes, as settings of another family of the same layout (grouped queries, gated MLP, RMS norms)."""
    config = parts.llm.config
    names = (
        "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size".split()
    )
    names += ["max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"]
    return {name: getattr(config, name) for name in names}


def build(family: str, parts: Parts, processor: SpeechLLMProcessor, dtype: torch.dtype, device: str) -> AudioLLM:
    """A family's model; its projector alone requires gradients."""
    encoder, text = parts.whisper.config, text_settings(parts)
    sizes = {"num_mel_bins": encoder.num_mel_bins, "max_source_positions": encoder.max_source_positions}
    named = {
        **{"hidden_size": encoder.d_model, "num_hidden_layers": encoder.encoder_layers},
        **{"num_attention_heads": encoder.encoder_attention_heads, "intermediate_size": encoder.encoder_ffn_dim},
    }
    token, extractor = text["vocab_size"] - 1, parts.extractor
    if family == "qwen2_audio":
        older = {"d_model": encoder.d_model, "encoder_layers": encoder.encoder_layers}
        older |= {"encoder_attention_heads": encoder.encoder_attention_heads}
        older |= {"encoder_ffn_dim": encoder.encoder_ffn_dim, "model_type": "qwen2_audio_encoder"}
        config = Qwen2AudioConfig(
            audio_config=sizes | older, text_config=text | {"model_type": "qwen2"}, audio_token_index=token
        )
        model_class = Qwen2AudioForConditionalGeneration
    elif family == "voxtral":
        config = VoxtralConfig(
            audio_config=sizes | named | {"model_type": "voxtral_encoder"},
            text_config=text | {"model_type": "llama", "head_dim": text["hidden_size"] // text["num_attention_heads"]},
            audio_token_id=token,
        )
        model_class = VoxtralForConditionalGeneration
    elif family == "audioflamingo3":
        config = AudioFlamingo3Config(
            audio_config=sizes | named | {"model_type": "audioflamingo3_encoder"},
            text_config=text | {"model_type": "qwen2"},
            audio_token_id=token,
        )
        model_class = AudioFlamingo3ForConditionalGeneration
    elif family == "granite_speech":
        extractor = GraniteSpeechFeatureExtractor()
        conformer = {"hidden_dim": encoder.d_model, "num_layers": encoder.encoder_layers, "num_heads": 8}
        qformer = Blip2QFormerConfig(
            hidden_size=encoder.d_model, encoder_hidden_size=encoder.d_model, num_attention_heads=8,
            **{"num_hidden_layers": 2, "intermediate_size": encoder.encoder_ffn_dim, "cross_attention_frequency": 1},
        )  # fmt: skip
        config = GraniteSpeechConfig(
            encoder_config=conformer, text_config=text | {"model_type": "granite"}, projector_config=qformer,
            **{"audio_token_index": token, "has_lora_adapter": False},
        )  # fmt: skip
        model_class = GraniteSpeechForConditionalGeneration
    else:
        raise ValueError(f"Unknown family {family!r}.")
    torch.manual_seed(0)
    with torch.device(device):
        model = model_class._from_config(config, dtype=dtype)
    model.requires_grad_(False)
    projector = [module for name, module in model.named_modules() if name.split(".")[-1] in PROJECTORS]
    for module in projector:
        module.requires_grad_(True)
    return AudioLLM(family, model.eval(), extractor, processor, dtype)


PROJECTORS = ("multi_modal_projector", "projector")
FAMILIES = {
    "Qwen2-Audio": "qwen2_audio",
    "Voxtral": "voxtral",
    "Audio Flamingo 3": "audioflamingo3",
    "Granite Speech": "granite_speech",
}

__all__ = ["FAMILIES", "AudioLLM", "build"]
