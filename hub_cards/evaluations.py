"""Sections of the facts from results of evaluations: those of `speechllm evaluate`, and plain lists of entries.

`speechllm evaluate` writes for every system and metric `{"value", "low", "high", "rows"}`: overall, by group, and the
mean over groups. Others may write the entries of `hub_cards.facts` themselves.
"""

from typing import Any

from .metadata import is_hub_id

MEAN = "mean"


def results_facts(results: Any) -> dict[str, list[dict[str, Any]]]:
    """
    Sections `evaluation` and `text_ability`.

    Args:
        results: content of `results.json` of `speechllm evaluate`; or a list of entries as in `hub_cards.facts`, or a
            mapping with them under `evaluation` or `results`. There `dataset` may be a name, a system's value a number
            alone, and an interval `[low, high]` stand under `interval`.

    Raises:
        ValueError: neither.
    """
    if isinstance(results, dict) and isinstance(results.get("overall"), dict) and "metrics" in results:
        return {"evaluation": run_entries(results), "text_ability": text_ability(results)}
    if isinstance(results, dict):
        lists = (results.get(name) for name in ("evaluation", "results"))
        results = next((found for found in lists if isinstance(found, list)), None)
    if not isinstance(results, list) or not all(isinstance(row, dict) and "systems" in row for row in results):
        raise ValueError("The results hold no list of entries with systems. Give results.json of speechllm evaluate.")
    entries = [
        row
        | {
            "dataset": {"name": row["dataset"]} if isinstance(row["dataset"], str) else row["dataset"],
            "systems": {name: _score(value) for name, value in row["systems"].items()},
        }
        for row in results
    ]
    return {"evaluation": entries, "text_ability": []}


def run_entries(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every metric over all rows, and the run's main metric by language, task or what else it was grouped by."""
    settings = results.get("settings") or {}
    headline = results.get("headline")
    samples = settings.get("bootstrap_samples")
    common = {
        "dataset": dataset_of(settings),
        "interval": f"95 % bootstrap over recordings ({samples} samples)" if samples else None,
        "note": _note(results),
    }
    entries = []
    for name, metric in results["metrics"].items():
        systems = {system: found[name] for system, found in results["overall"].items() if name in found}
        if "speech" in systems and metric.get("higher_is_better") is not None:
            told = {"task": settings.get("task"), "language": "all", "headline": name == headline}
            entries.append(_entry(metric, systems, common | told))
    for grouping, values in (results.get("groups") or {}).items() if headline else ():
        metric = results["metrics"][headline]
        lines = {value: {s: found.get(headline) for s, found in systems.items()} for value, systems in values.items()}
        means = (results.get("means") or {}).get(grouping)
        for value, systems in (lines | ({MEAN: means} if means and len(lines) > 1 else {})).items():
            told = {"task": settings.get("task"), "language": value, "headline": False}
            if grouping != "language":
                told |= {"task": f"{grouping}: {value}", "language": "all"}
            entries.append(_entry(metric, systems, common | told))
    return entries


def _entry(metric: dict[str, Any], systems: dict[str, dict], told: dict[str, Any]) -> dict[str, Any]:
    scores = {name: _score(found) for name, found in systems.items() if found is not None}
    rows = [found.get("rows") for found in systems.values() if found and found.get("rows") is not None]
    entry = {"metric": metric["title"], "unit": metric.get("unit"), "n": max(rows, default=None), "systems": scores}
    entry |= {"higher_is_better": metric.get("higher_is_better")} | told
    return {name: value for name, value in entry.items() if value is not None}


def dataset_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The data that a run was on, by name."""
    sources = settings.get("dataset") or ["unnamed data"]
    sources = [sources] if isinstance(sources, str) else sources
    names = [source if is_hub_id(source) else source.rstrip("/").rpartition("/")[2] for source in sources]
    dataset = {"name": " + ".join(names), "config": settings.get("dataset_config")}
    split = settings.get("dataset_split") or settings.get("split")
    if len(sources) == 1 and is_hub_id(sources[0]):
        dataset["id"] = sources[0]
    return {name: value for name, value in (dataset | {"split": split}).items() if value is not None}


def _note(results: dict[str, Any]) -> str | None:
    """How answers were made, and by which recogniser the cascade hears."""
    cascade = (results.get("models") or {}).get("cascade")
    parts = [results["decoding"]] if results.get("decoding") else []
    parts += [f"the cascade hears by {cascade[0]}"] if cascade else []
    return f"Answers: {'; '.join(parts)}." if parts else None


def text_ability(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The LLM that reads, before and inside: where a run had both."""
    before, after = (results["overall"].get(system) for system in ("text_before", "text_bound"))
    if not before or not after:
        return []
    dataset = dataset_of(results.get("settings") or {})
    return [
        {
            "dataset": dataset,
            "metric": metric["title"],
            "n": after[name].get("rows"),
            "before": _score(before[name]),
            "after": _score(after[name]),
        }
        for name, metric in results["metrics"].items()
        if name in before and name in after and metric.get("higher_is_better") is not None
    ]


def _score(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {"value": value}
    kept = {name: value.get(name) for name in ("value", "low", "high")}
    if value.get("interval"):
        kept["low"], kept["high"] = value["interval"]
    return {name: item for name, item in kept.items() if item is not None or name == "value"}


__all__ = ["results_facts", "run_entries", "text_ability"]
