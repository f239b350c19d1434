"""What a training command knows for the card: the model it began with, the data by name, its own settings."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from hub_cards.facts import facts_of
from hub_cards.metadata import is_hub_id
from hub_cards.rows import cached_commit, describe_rows

from ..checkpoints.card import CardFacts, recipe
from ..data.filters import FilterReport
from .arguments import ScriptArguments


def card_facts(script: ScriptArguments, rows: Any, report: FilterReport | None) -> CardFacts:
    """
    Args:
        script: settings of the command.
        rows: the training rows, within the limits.
        report: what the limits removed; None where it is not known yet.
    """
    base = (
        display_name(script.model) if script.model else f"{display_name(script.audio)} + {display_name(script.text)}"
    )
    if script.model and script.connector is not None:
        base += ", with a new connector"
    stage: dict[str, Any] = {"base": base, "recipe": recipe(script)}
    if script.lora_groups:
        stage["lora"] = {"groups": script.lora_groups, "rank": script.lora_rank, "alpha": script.lora_alpha}
    before = facts_of(script.model) if script.model else {}
    return CardFacts(before=before, data=data_facts(script, rows, report), stage=stage)


def data_facts(script: ScriptArguments, rows: Any, report: FilterReport | None) -> list[dict[str, Any]]:
    """Entries of the section `data`: one for a single source; of several, their names, and what they hold together."""
    names = [display_name(source) for source in script.dataset]
    sources = [
        {"name": name}
        | ({"id": name, "revision": script.dataset_revision or cached_commit(name)} if is_hub_id(name) else {})
        for name in names
    ]
    sources = [source | {"split": script.dataset_split, "config": script.dataset_config} for source in sources]
    if isinstance(rows, Dataset):
        described = describe_rows(rows, names[0] if len(names) == 1 else "all of these, as trained on")
        sources = [sources[0] | described] if len(names) == 1 else [*sources, described]
    removed = dict(report.removed) if report is not None else {}
    if removed:
        sources[-1]["filters"] = {f"rows left out by {name}": count for name, count in removed.items()}
    return [{name: value for name, value in source.items() if value is not None} for source in sources]


def display_name(name: str) -> str:
    """A Hub id as it is, a folder or file by its last name (of a `manifest.jsonl`, its folder's)."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    path = path.resolve()
    return path.parent.name if path.name == "manifest.jsonl" else path.name


__all__ = ["card_facts", "data_facts", "display_name"]
