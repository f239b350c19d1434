"""Packages of the `eval` extra: imported when needed, named by their pip line when missing."""

import importlib
from types import ModuleType

REQUIREMENTS = {
    "jiwer": "jiwer>=4",
    "sacrebleu": "sacrebleu>=2.5",
    "lingua": "lingua-language-detector>=2.1",
    "matplotlib": "matplotlib>=3.9",
}


def need(name: str, purpose: str) -> ModuleType:
    """
    The package.

    Args:
        name: module of `REQUIREMENTS`.
        purpose: what is not possible without it.

    Raises:
        ImportError: it is not installed; with the pip line.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{purpose} needs {name}, which cannot be imported ({error}). Install it: pip install "'
            f'{REQUIREMENTS[name]}", or all of evaluation: pip install "speechllm[eval]".'
        ) from error


__all__ = ["REQUIREMENTS", "need"]
