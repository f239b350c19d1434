"""Settings that several commands share: which model, and mappings as Python, YAML and the command line give them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any


def read_mapping(value: dict | str | None, name: str) -> dict | str | None:
    """A setting that is a mapping or JSON of one; other text stays as it is.

    Raises:
        ValueError: broken JSON, by the setting's name.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value, object_pairs_hook=_without_doubles)
    except ValueError as error:
        raise ValueError(f"{name} is no JSON ({error}): {value!r}. Put it in single quotes on a shell.") from error


def must_be_mapping(value: Mapping | str | None, name: str) -> Mapping | None:
    """`read_mapping`, of a setting that nothing but a mapping can be.

    Raises:
        ValueError: anything else, by the setting's name.
    """
    found = read_mapping(value, name)
    if found is not None and not isinstance(found, Mapping):
        raise ValueError(f"{name}={found!r} must be a mapping, on a command line in JSON: '{{\"key\": value}}'.")
    return found


def described(text: str, default: Any = None) -> Any:
    """A dataclass field with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class ModelSettings:
    """
    Which model a command is about.

    Args:
        model (`str`, *optional*):
            SpeechLLM, a folder or Hub id, or `nano`, the embedded one. With `connector`, its encoder and LLM get a new
            connector.
        audio (`str`, *optional*), text (`str`, *optional*):
            Speech encoder and LLM to join, in place of `model`.
        gguf_file (`str`, *optional*):
            GGUF file in `text` that holds the LLM's weights.
        connector (`dict` or `str`, *optional*):
            Connector between them: a preset or `{"type": ..., settings}`.
        pad_to_window (`bool`, *optional*, defaults to `False`):
            Pad audio to the encoder's window, as Whisper was pretrained. With `audio` and `text` only.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights. `"auto"` is that of the checkpoint.
    """

    model: str | None = described("SpeechLLM: a folder or Hub id, or nano.")
    audio: str | None = described("Speech encoder to join with text, a folder or Hub id.")
    text: str | None = described("LLM to join with audio, a folder or Hub id.")
    gguf_file: str | None = described("GGUF file in text that holds the LLM's weights.")
    connector: dict | str | None = described("New connector: a preset, or settings with a type.")
    pad_to_window: bool = described("Pad audio to the encoder's window; many times slower for short clips.", False)
    dtype: str = described("Precision of the weights: auto, float32, bfloat16, float16.", "auto")

    def __post_init__(self):
        self.connector = read_mapping(self.connector, "connector")
        for name in ("model", "audio", "text", "gguf_file"):
            if not isinstance(value := getattr(self, name), str | PathLike | None):
                raise ValueError(f"{name}={value!r} is not one name. Give one folder, file or Hub id.")

    def check_names(self) -> None:
        """
        Raises:
            ValueError: no model is named, or two are, or a setting that the named one has of its own.
        """
        if self.model is None and (self.audio is None or self.text is None):
            raise ValueError("Name a model: `model`, or both `audio` (speech encoder) and `text` (LLM).")
        if self.model is not None and (self.audio is not None or self.text is not None):
            raise ValueError("Give either `model`, or `audio` and `text`, not both.")
        if self.model is not None and self.gguf_file is not None:
            raise ValueError("gguf_file is a file of `text`; a `model` knows its own. Leave it out.")
        if self.model is not None and self.pad_to_window:
            raise ValueError("pad_to_window is for `audio` and `text`; a `model` has its own. Leave it out.")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice among {', '.join(key for key, _ in pairs)}")
    return found


__all__ = ["ModelSettings", "described", "must_be_mapping", "read_mapping"]
