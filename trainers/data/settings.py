"""Settings that are mappings, as Python, YAML and the command line give them."""

import json
from collections.abc import Mapping
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


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice among {', '.join(key for key, _ in pairs)}")
    return found


__all__ = ["must_be_mapping", "read_mapping"]
