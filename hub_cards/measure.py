"""Facts that can be read off a model, its processor and this machine."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from modeling_speechllm.under_vllm import check_under_vllm

PACKAGES = ("speechllm", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


def model_facts(model: Any, processor: Any) -> dict[str, Any]:
    """
    Sections `model`, `parents` and `prompt` of a SpeechLLM.

    Args:
        model: a `SpeechLLMForConditionalGeneration`, its parameters whole (not sharded) if they are to be counted.
        processor: its `SpeechLLMProcessor`.
    """
    config = model.config
    facts = {
        "model": {
            "parameters": count_parameters(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "encoder": config.audio_config.model_type,
            "connector": {name: value for name, value in config.connector.items() if value is not None},
            "llm": config.text_config.model_type,
            "vllm": why_not_vllm(config),
        }
    }
    if config.parents:
        roles = {"audio": "speech encoder", "text": "LLM"}
        facts["parents"] = [
            {"role": role, **{name: config.parents[part].get(name) for name in ("id", "revision")}}
            for part, role in roles.items()
            if config.parents.get(part) and config.parents[part].get("id")
        ]
    if processor is not None:
        facts["model"]["max_audio_seconds"] = processor.max_audio_seconds
        facts["model"]["sampling_rate"] = processor.feature_extractor.sampling_rate
        facts["prompt"] = prompt_facts(processor)
    return facts


def why_not_vllm(config: Any) -> str:
    """Why vLLM refuses the model of this config, "" if it does not."""
    try:
        check_under_vllm(config)
    except ValueError as error:
        return str(error)
    return ""


def count_parameters(model: Any) -> dict[str, int]:
    """Parameters of the groups and in total; tied ones count once in total."""
    counts = {"total": sum(count_elements(parameter) for parameter in model.parameters())}
    for group, modules in model.group_modules().items():
        known = {id(parameter): parameter for module in modules for parameter in module.parameters()}
        counts[group] = sum(count_elements(parameter) for parameter in known.values())
    return counts


def count_elements(parameter: Any) -> int:
    """Elements of a parameter, also where DeepSpeed holds it in pieces."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()


def prompt_facts(processor: Any, instruction: str = "Transcribe the speech.") -> dict[str, Any]:
    """The chat template, and a prompt as the pipeline makes it, with one placeholder for the audio's many."""
    chat = processor.instruction_chat([None], instruction)
    example = processor.apply_chat_template(chat, add_generation_prompt=True, audio=[{"tokens": 1}])
    template = processor.chat_template
    return {"template": template if isinstance(template, str) else None, "example": example}


def package_versions() -> dict[str, str]:
    """Versions of the packages that a training rests on, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware_name(processes: int = 1) -> str:
    """What is computed on, in words: `2 x NVIDIA H100 80GB HBM3` or `CPU, 2 cores`."""
    import torch

    if torch.cuda.is_available():
        return f"{processes} x {torch.cuda.get_device_name()}"
    if torch.accelerator.is_available():
        return f"{processes} x {torch.accelerator.current_accelerator().type}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU ({platform.machine()}), {cores} cores, {processes} process{'es' * (processes > 1)}"


def weight_bytes(folder: str | os.PathLike) -> int:
    """Bytes of the safetensors at the top of a folder."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


__all__ = [
    "count_elements",
    "count_parameters",
    "hardware_name",
    "model_facts",
    "package_versions",
    "prompt_facts",
    "weight_bytes",
]
