"""The variants of a paper, read from `papers/NAME.yaml`: data, not code.

    title, source, about       of the paper
    command, settings          of every variant: a trainer's command and its settings, as in a recipe
    data, validation           names of the world's training rows
    questions                  names of the world's question sets
    worlds: NAME: ...          what differs in a world: `values` for `$name` in settings and titles, `settings`,
                               `command`, `data`, `validation`, `questions`, and `leave_out`, variants that it has not
    variants: NAME: ...        `title`, and whatever differs: the keys above, `parts: languages` (a model per
                               language, the updates divided among them), `after: VARIANT` (goes on with its model),
                               `starts: NAME` (from a model that the world has made), `same_as: PAPER/VARIANT` (shown,
                               not run again), `frames: NAME` (of the world, in place of the data's), `keep: true` (its
                               model, which others go on from), `changes_llm: true`,
                               `by_name: true` (made where --variants names it: a regime that was looked for)
    columns: [...]             of the table: `title`, `of` (a path into a result), `better: higher | lower`
    claims: [...]              `says`, `paper` (its figure), `better`, `than` (variants), `of`, `higher` (of the claim)

Settings are merged in this order: paper, world, variant; mappings within them too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PAPERS = Path(__file__).parent / "papers"
MERGED = ("command", "settings", "data", "validation", "questions")
KEYS = (*MERGED, "title", "parts", "after", "starts", "same_as", "frames", "keep", "changes_llm", "by_name")
VALUE = re.compile(r"\$(\w+)")


@dataclass(frozen=True)
class Variant:
    """One line of a paper's table, as the world runs it; see the module's description."""

    paper: str
    name: str
    title: str
    command: str
    settings: Mapping[str, Any]
    data: str
    validation: str | None = None
    questions: tuple[str, ...] = ()
    parts: str | None = None
    after: str | None = None
    starts: str | None = None
    same_as: str | None = None
    frames: str | None = None
    keep: bool = False
    changes_llm: bool = False
    by_name: bool = False


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, the path of its figure in a result, which way is better, a factor."""

    title: str
    of: str
    better: str = "higher"
    times: float = 1.0


@dataclass(frozen=True)
class Claim:
    """What a paper says of two variants: which is better by which figure, and its own figures."""

    says: str
    paper: str
    better: str
    than: str
    of: str
    higher: bool = True


@dataclass(frozen=True)
class Paper:
    """A paper's variants, table and claims in one world."""

    name: str
    title: str
    source: str
    variants: Mapping[str, Variant]
    columns: tuple[Column, ...]
    claims: tuple[Claim, ...] = field(default=())
    left_out: tuple[str, ...] = ()


def papers() -> list[str]:
    """Names of all papers that have a file."""
    return sorted(path.stem for path in PAPERS.glob("*.yaml"))


def load_paper(name: str, world: str, given: Mapping[str, Any] | None = None) -> Paper:
    """
    A paper's variants in a world.

    Args:
        name: of the file.
        world: `nano` or `real`.
        given: further values for `$name`, such as `parents`, the folder of the weights.

    Raises:
        ValueError: no such paper or world, an unknown key, a `$value` that the world does not give, or a variant that
            another one names and that is not there; with its place.
    """
    path = PAPERS / f"{name}.yaml"
    if not path.exists():
        raise ValueError(f"There is no paper {name!r}; there are {', '.join(papers())}.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if world not in content["worlds"]:
        raise ValueError(f"{path.name} knows no world {world!r}; it has {', '.join(content['worlds'])}.")
    here = content["worlds"][world] or {}
    values, left_out = here.get("values", {}) | dict(given or {}), here.get("leave_out", [])
    common = merge({key: content[key] for key in MERGED if key in content}, {k: here[k] for k in MERGED if k in here})
    variants = {}
    for key, changes in content["variants"].items():
        unknown = sorted(set(changes) - set(KEYS))
        if unknown:
            raise ValueError(f"{path.name}, variant {key}: unknown {', '.join(unknown)}; known: {', '.join(KEYS)}.")
        if key not in left_out:
            whole = fill(merge(common, changes), values, f"{path.name}, variant {key}")
            whole["questions"] = tuple(whole.get("questions", ()))
            variants[key] = Variant(paper=name, name=key, **whole)
    columns = tuple(Column(**column) for column in here.get("columns", content["columns"]))
    claims = tuple(Claim(**claim) for claim in here.get("claims", content.get("claims", ())))
    named = {variant.after for variant in variants.values()} | {c.better for c in claims} | {c.than for c in claims}
    missing = sorted(named - {None} - set(content["variants"]))
    if missing:
        raise ValueError(f"{path.name} names the variants {', '.join(missing)}, which it does not have.")
    claims = tuple(claim for claim in claims if claim.better in variants and claim.than in variants)
    return Paper(name, content["title"], content["source"], variants, columns, claims, tuple(left_out))


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mappings within mappings merged alike; a change to None takes a key of `base` out, and
    stays where it has none: a setting whose default is another."""
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value)
        elif value is None and key in merged:
            del merged[key]
        else:
            merged[key] = value
    return merged


def fill(value: Any, values: Mapping[str, Any], place: str) -> Any:
    """
    A setting with `$name` replaced: by the value itself where it is all of the text, else by its words.

    Raises:
        ValueError: a name that is not among the values.
    """
    if isinstance(value, Mapping):
        return {key: fill(part, values, place) for key, part in value.items()}
    if isinstance(value, list):
        return [fill(part, values, place) for part in value]
    if not isinstance(value, str):
        return value
    unknown = [name for name in VALUE.findall(value) if name not in values]
    if unknown:
        raise ValueError(f"{place}: ${unknown[0]} is none of the world's values ({', '.join(values)}).")
    whole = VALUE.fullmatch(value)
    return values[whole[1]] if whole else VALUE.sub(lambda found: str(values[found[1]]), value)


__all__ = ["Claim", "Column", "Paper", "Variant", "load_paper", "merge", "papers"]
