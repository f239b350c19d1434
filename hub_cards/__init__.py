"""Publishing: exporting a model with its code."""

from .export import export_remote_code

__all__ = ["export_remote_code"]
