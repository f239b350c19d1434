"""Publishing: facts, model and dataset cards, export, check and push.

The names below are imported when they are first used: `speechllm doctor` reads findings from here where torch or
transformers may be broken.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "Finding": "findings",
    "check_dataset": "check",
    "check_folder": "check",
    "export_checkpoint": "export",
    "export_dataset": "dataset_card",
    "export_remote_code": "remote_code",
    "find_overlap": "contamination",
    "push_folder": "push",
    "read_facts": "facts",
    "render_dataset_card": "dataset_card",
    "render_model_card": "model_card",
    "update_facts": "facts",
    "write_card": "model_card",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
