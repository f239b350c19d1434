"""What can be checked of a command's settings before anything is launched or loaded: names, packages, data.

All of it runs in one process, so that four do not start before a missing file is noticed.
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from transformers import AutoConfig, PreTrainedConfig

from modeling_speechllm import SpeechLLMConfig
from modeling_speechllm.configuration_connectors import connector_config

EXTRAS = {"deepspeed": 'pip install "speechllm[deepspeed]"'}
REPORTERS = {  # report_to: the module it needs
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
    "comet_ml": "comet_ml",
    "clearml": "clearml",
    "swanlab": "swanlab",
    "dvclive": "dvclive",
    "neptune": "neptune",
}
FOLDERS = {  # settings that name a folder or file which must be there, and what it is
    "frames_cache": "a cache of `speechllm encode`",
    "task_folder": "a folder of task prompts",
    "template_folder": "a folder of templates",
    "resume_from_checkpoint": "a checkpoint",
}
MODELS = ("model", "audio", "text", "asr")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def need_package(name: str, purpose: str) -> None:
    """
    Raises:
        ValueError: the package is not installed; with the line that installs it.
    """
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"{purpose} needs the package {name}. Install it: {EXTRAS.get(name, f'pip install {name}')}")


def check_packages(settings: Sequence[Any], accelerate_config: str | None) -> None:
    """
    Refuses settings that need a package which is not there, or the Hub where it is switched off.

    Args:
        settings: the command's dataclasses.
        accelerate_config: the launch config, by name or file.

    Raises:
        ValueError: by setting, with the remedy.
    """
    config = settings[0]
    wanted = getattr(config, "report_to", None) or []
    for reporter in [wanted] if isinstance(wanted, str) else wanted:
        if reporter in REPORTERS:
            need_package(REPORTERS[reporter], f"report_to: {reporter}")
    if accelerate_config is not None and _uses_deepspeed(accelerate_config):
        need_package("deepspeed", f"accelerate_config: {accelerate_config}")
    if getattr(config, "deepspeed", None):
        need_package("deepspeed", "deepspeed")
    if getattr(config, "push_to_hub", False) and constants.HF_HUB_OFFLINE:
        raise ValueError(
            "push_to_hub needs the Hub, and HF_HUB_OFFLINE is set. Unset it, or leave push_to_hub out and push the "
            "finished folder later."
        )


def _uses_deepspeed(config: str) -> bool:
    path = Path(__file__).parent / "accelerate" / f"{config}.yaml"
    path = path if path.is_file() else Path(config).expanduser()
    return path.is_file() and "deepspeed" in path.read_text(encoding="utf-8").lower()


def check_names(settings: Sequence[Any]) -> None:
    """
    Refuses names of files and folders that are not there.

    Raises:
        ValueError, FileNotFoundError: by setting.
    """
    for group in settings:
        for name, what in FOLDERS.items():
            value = getattr(group, name, None)
            if isinstance(value, str) and value.lower() not in ("true", "false") and not _path(value).exists():
                raise FileNotFoundError(f"{name}: there is no {value!r}. Give {what}, or leave it out.")
        noise = (getattr(group, "augmentation", None) or {}).get("noise_folder")
        if noise is not None and not _path(noise).is_dir():
            raise FileNotFoundError(f"augmentation: there is no noise_folder {noise!r}. Give a folder of recordings.")
        for name in ("dataset", "eval_dataset"):
            for source in getattr(group, name, None) or []:
                if _looks_like_path(source) and not _path(source).exists():
                    raise FileNotFoundError(f"{source}: no such file or folder. Check the path in {name}.")
        for name in MODELS:
            value = None if getattr(group, "base_url", None) else getattr(group, name, None)
            if isinstance(value, str) and _looks_like_path(value) and not _path(value).is_dir():
                raise FileNotFoundError(f"{name}: there is no folder {value!r}. Give a model's folder or a Hub id.")
        output = getattr(group, "output_dir", None)
        if output is not None and _path(output).is_file():
            raise ValueError(f"output_dir: {output} is a file. Give a folder, new or of an unfinished run.")


def _path(name: str) -> Path:
    return Path(name).expanduser()


def _looks_like_path(name: str) -> bool:
    """Whether it cannot be a Hub id; what can be one is only known when it is asked for."""
    return name.startswith((".", "/", "~")) or HUB_ID.fullmatch(name) is None


def check_model(settings: Any) -> None:
    """
    Reads the configs of the models that settings name, no weights: whether they are there, fit together, and take the
    connector.

    Args:
        settings: with `model`, `audio`, `text` and `connector`, where a command has them.

    Raises:
        ValueError, OSError: by what is wrong.
    """
    model, audio, text = (getattr(settings, name, None) for name in ("model", "audio", "text"))
    connector = getattr(settings, "connector", None)
    if audio is not None and text is not None:
        SpeechLLMConfig.from_parts(
            _config(audio, "audio"), _config(text, "text", getattr(settings, "gguf_file", None)), connector
        )
    elif model is not None:
        try:
            found, _ = PreTrainedConfig.get_config_dict(model)
        except OSError as error:
            raise ValueError(_unread("model", model, error)) from error
        if not found:
            remedy = "Give a SpeechLLM's folder or Hub id."
            if (Path(model) / "adapter_config.json").exists():
                remedy = (
                    "It holds the adapters of a training alone: the same command goes on from it, and the model is in "
                    "output_dir when it has ended."
                )
            raise ValueError(f"model: {model} has no config.json. {remedy}")
        connector_config(connector)


def _config(name: str, setting: str, gguf_file: str | None = None) -> Any:
    """The config of a model."""
    try:
        return AutoConfig.from_pretrained(name, **({} if gguf_file is None else {"gguf_file": gguf_file}))
    except (OSError, ValueError) as error:
        raise ValueError(_unread(setting, name, error)) from error


def _unread(setting: str, name: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{setting}: {name} is no folder here and cannot be read from the Hub: {reason} Check the name."


__all__ = ["check_model", "check_names", "check_packages", "need_package"]
