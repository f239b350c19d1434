"""What cached states depend on, part by part, so that a refusal can say which part differs."""

import hashlib
import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

FORMAT = "1"  # of the cache's folder
# Of a config: what tells where it came from, what the weights tell better, and what a Trainer sets on it.
_NO_EFFECT = {
    *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "_attn_implementation", "attn_implementation"),
}
# Random where a checkpoint lacks it, and only ever used by masking in training.
_UNUSED_WEIGHT = "masked_spec_embed"


def digest(content: Any) -> str:
    """SHA-256, in hexadecimal, of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def weights_digest(*modules: nn.Module) -> str:
    """SHA-256, in hexadecimal, of names, shapes, precisions and bytes of the modules' weights, by sorted name."""
    total = hashlib.sha256()
    for module in modules:
        for name, weight in sorted(module.state_dict().items()):
            if not isinstance(weight, torch.Tensor) or name.endswith(_UNUSED_WEIGHT):
                continue
            total.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            total.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def config_digest(config: PreTrainedConfig) -> str:
    """SHA-256, in hexadecimal, of what a config says about the architecture."""
    return digest({key: value for key, value in config.to_dict().items() if key not in _NO_EFFECT})


def encoder_fingerprint(model: Any, processor: Any) -> dict[str, str]:
    """What the frames of an audio depend on beside the layers: `{part: digest or value}`.

    Call it before adapters are added or the model is sharded.

    Args:
        model: a `SpeechLLMForConditionalGeneration`.
        processor: its `SpeechLLMProcessor`.
    """
    tower = model.model.audio_tower
    extractor = processor.feature_extractor.to_dict()
    extractor.pop("_processor_class", None)
    padded = f"to audio_window {processor.audio_window}" if processor.pad_to_window else "none"
    if processor.trailing_silence:
        padded += f", {processor.trailing_silence} s of silence after it"
    return {
        "cache format": FORMAT,
        "encoder weights": weights_digest(tower.encoder),
        "encoder config": config_digest(tower.config),
        "encoder windows": f"audio_window {tower.window}, pad_to_window {model.config.pad_to_window}",
        "feature extractor": digest(extractor),
        "processor's padding": padded,
    }


def teacher_fingerprint(model: Any, processor: Any, instruction: str | None = None) -> dict[str, str]:
    """What the LLM's states for a text depend on beside the loss: `{part: digest or value}`.

    Args:
        model, processor: as in [`encoder_fingerprint`].
        instruction: what the prompts hold beside the transcript.
    """
    return {
        "cache format": FORMAT,
        "LLM weights": weights_digest(model.model.language_model, model.lm_head),
        "LLM config": config_digest(model.config.text_config),
        "chat template": digest(processor.chat_template),
        "instruction": json.dumps(instruction, ensure_ascii=False),
    }


def teacher_settings(teacher: str, top_k: int, temperature: float) -> str:
    """The fingerprint's part that says what is stored of the teacher."""
    return f"top_k {top_k}, temperature {float(temperature)}" if teacher == "top_k" else teacher


def check_parts(folder: str, cached: dict[str, str], given: dict[str, str], remedy: str) -> None:
    """Refuses a cache whose fingerprint differs in any of the `given` parts.

    Raises:
        ValueError: the parts that differ, as cached and as given, and the remedy.
    """
    differing = [
        f"{part} (cached {_short(cached.get(part))}, now {_short(value)})"
        for part, value in given.items()
        if cached.get(part) != value
    ]
    if differing:
        raise ValueError(f"The cache {folder} was made with another setting of: {'; '.join(differing)}. {remedy}")


def _short(value: str | None) -> str:
    """A digest's beginning, a readable value whole."""
    is_digest = value is not None and len(value) == 64 and " " not in value
    return f"{value[:12]}..." if is_digest else str(value)


__all__ = [
    "check_parts",
    "config_digest",
    "digest",
    "encoder_fingerprint",
    "teacher_fingerprint",
    "teacher_settings",
    "weights_digest",
]
