"""The package's own commands, run in this process: a variant is a recipe, as a user would write it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from speechllm import NANO


def write_recipe(path: Path, settings: Mapping[str, Any]) -> Path:
    """Settings as a file for `--config`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def run_command(command: str, settings: Mapping[str, Any], recipe: Path | None = None) -> None:
    """
    `speechllm COMMAND --config RECIPE`.

    Args:
        command: `align`, `imitate`, `distill` or `encode`.
        settings: of the command.
        recipe: where they are kept, by default beside `output_dir`.

    Raises:
        RuntimeError: it failed; it has said why.
    """
    from trainers.commands.run import main

    output = Path(settings["output_dir"])
    recipe = write_recipe(recipe or output.with_name(f"{output.name}.yaml"), settings)
    status = main(command, ["--config", str(recipe)], "", "", {"nano": NANO})
    if status != 0:
        raise RuntimeError(f"speechllm {command} --config {recipe} ended with {status}; see its message above.")


__all__ = ["run_command", "write_recipe"]
