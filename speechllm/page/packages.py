"""Packages of the `demo` extra: imported when needed, named by their pip line when missing."""

import importlib

NEEDED = ("gradio", "openai", "silero_vad")


def need_packages() -> None:
    """
    Raises:
        ImportError: a package that the page needs is not installed; with the pip line.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(
                f'the page needs {name}, which cannot be imported ({error}). Install it: pip install "speechllm[demo]"'
            ) from error


__all__ = ["need_packages"]
