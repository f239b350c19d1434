"""Recipes and command lines, read by the dataclasses that they fill."""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from trl import TrlParser


def read_recipe(path: str | Path, classes: Sequence[type]) -> dict[str, Any]:
    """The settings of a YAML recipe.

    Raises:
        ValueError: no such file, no mapping, or unknown keys, each with the nearest valid one.
    """
    path = Path(path)
    if not path.is_file():
        packaged = Path(__file__).parent / "recipes" / path.name
        if not packaged.is_file():
            known = ", ".join(sorted(recipe.name for recipe in packaged.parent.glob("*.yaml")))
            raise ValueError(f"There is no recipe {str(path)!r}. Give a file, or one of the packaged ones: {known}.")
        path = packaged
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings. Write one `key: value` per line.")
    check_keys(settings, classes, str(path))
    return settings


def check_keys(settings: dict[str, Any], classes: Sequence[type], source: str) -> None:
    """Raises a ValueError that names keys which no field has, and the nearest that one has."""
    known = sorted({item.name for cls in classes for item in fields(cls) if item.init})
    unknown = []
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            unknown.append(f"{key} (did you mean {near[0]}?)")
    if unknown:
        raise ValueError(f"{source}: unknown setting {', '.join(unknown)}.")


def parse(classes: Sequence[type], arguments: Sequence[str], prog: str) -> tuple[Any, ...]:
    """Dataclasses filled from `--config recipe.yaml` and from options, which win over the recipe.

    Raises:
        ValueError: unknown or missing settings, or values that do not fit.
    """
    arguments, recipe = list(arguments), {}
    if "--config" in arguments:
        place = arguments.index("--config")
        if place + 1 == len(arguments):
            raise ValueError("--config needs a file.")
        recipe = read_recipe(arguments[place + 1], classes)
        del arguments[place : place + 2]
    names = {argument[2:].split("=")[0].replace("-", "_"): None for argument in arguments if argument.startswith("--")}
    names.pop("help", None)
    check_keys({name.removeprefix("no_") if name.startswith("no_") else name: None for name in names}, classes, prog)
    parser = TrlParser(list(classes), prog=prog)
    parser.set_defaults_with_config(**recipe)
    return parser.parse_args_into_dataclasses(args=arguments)


__all__ = ["check_keys", "parse", "read_recipe"]
