"""A card's metadata, and scores in the Hub's two forms: `.eval_results/*.yaml` for results on the Hub's data sets, and
the older `model-index`."""

import os
from collections import Counter
from typing import Any

from .tables import interval

TASK_TYPES = {"asr": "automatic-speech-recognition", "transcribe": "automatic-speech-recognition"}
HUB_METRICS = {"word error rate": "wer", "character error rate": "cer"}


def card_data(facts: dict[str, Any]) -> Any:
    """The metadata, as huggingface_hub's own class."""
    from huggingface_hub import ModelCardData

    model = facts.get("model") or {}
    parents = [parent["id"] for parent in facts.get("parents") or [] if is_hub_id(parent.get("id"))]
    names = [entry.get("id") or entry.get("name") for entry in facts.get("data") or []]
    results = eval_results(facts)
    whole = model.get("contents", "whole") == "whole"
    optional = {
        "base_model": list(dict.fromkeys(parents)) or None,
        "base_model_relation": _relation(parents, trained_groups(facts), whole),
        "datasets": list(dict.fromkeys(name for name in names if is_hub_id(name))) or None,
        "language": languages(facts) or None,
        "license": model.get("license"),
        "license_name": model.get("license_name"),
        "license_link": model.get("license_link"),
        "metrics": list(dict.fromkeys(result.metric_type for result in results)) or None,
        "eval_results": results or None,
        "model_name": model_name(facts) if results else None,
    }
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-text-to-text",
        tags=["speechllm", "speech-instruct", "custom_code"],
        **{name: value for name, value in optional.items() if value is not None},
    )


def _relation(parents: list[str], trained: set[str], whole: bool) -> str | None:
    """How the model comes from its parents, in the Hub's words: two joined parents are nearest to a merge."""
    if not parents:
        return None
    if not whole:
        return "adapter"
    return "merge" if len(set(parents)) > 1 and not trained & {"encoder", "llm"} else "finetune"


def trained_groups(facts: dict[str, Any]) -> set[str]:
    """Groups that any stage trained, whole or by LoRA."""
    stages = facts.get("training") or []
    whole = {group for stage in stages for group in stage.get("train_groups") or []}
    return whole | {group for stage in stages for group in (stage.get("lora") or {}).get("groups") or []}


def is_hub_id(name: str | None) -> bool:
    """Whether a name has the form `owner/name` and is no folder here."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not name or name.count("/") != 1 or os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def languages(facts: dict[str, Any]) -> list[str]:
    """Codes of the languages that the model is for: those stated, else those heard in training, by hours."""
    stated = (facts.get("model") or {}).get("languages")
    if stated:
        return list(stated)
    hours: dict[str, float] = {}
    for entry in facts.get("data") or []:
        for code, value in (entry.get("languages") or {}).items():
            hours[code] = hours.get(code, 0.0) + (value or 0.0)
    return sorted((code for code in hours if code not in ("", "unknown", "several")), key=lambda code: -hours[code])


def _chosen(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Evaluations for the metadata that have a score of the speech system: the headlines, or all if there is none."""
    entries = facts.get("evaluation") or []
    headlines = [entry for entry in entries if entry.get("headline")]
    return [e for e in headlines or entries if (e["systems"].get("speech") or {}).get("value") is not None]


def eval_results(facts: dict[str, Any]) -> list[Any]:
    """`EvalResult`s of the speech system, for `model-index`."""
    from huggingface_hub import EvalResult

    results = []
    for entry in _chosen(facts):
        score, dataset = entry["systems"]["speech"], entry["dataset"]
        name = ", ".join(filter(None, (entry["metric"], entry.get("task"), entry.get("language")))).replace("_", " ")
        results.append(
            EvalResult(
                task_type=TASK_TYPES.get(entry.get("task"), "audio-text-to-text"),
                task_name=str(entry.get("task") or "speech instructions").replace("_", " "),
                dataset_type=dataset.get("id") or dataset["name"],
                dataset_name=dataset["name"],
                dataset_config=dataset.get("config"),
                dataset_split=dataset.get("split"),
                dataset_revision=dataset.get("revision"),
                metric_type=HUB_METRICS.get(entry["metric"], entry["metric"].replace(" ", "_")),
                metric_name=name,
                metric_value=round(score["value"], 4),
            )
        )
    return results


def eval_result_files(facts: dict[str, Any]) -> dict[str, str]:
    """Files of `.eval_results`, by name: the speech system's scores on data sets of the Hub. A task with several
    scores of which none is the headline has no entry: the form knows no metrics."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries: dict[str, list] = {}
    chosen = [entry for entry in _chosen(facts) if is_hub_id(entry["dataset"].get("id"))]
    uses = Counter((entry["dataset"]["id"], _task_id(entry)) for entry in chosen)
    for entry in chosen:
        score, dataset, task = entry["systems"]["speech"], entry["dataset"], _task_id(entry)
        if uses[dataset["id"], task] > 1:
            continue
        source = entry.get("source") or {}
        notes = ", ".join(filter(None, (entry["metric"], interval(score), entry.get("interval"))))
        entries.setdefault(dataset["id"], []).append(
            EvalResultEntry(
                dataset_id=dataset["id"],
                task_id=task,
                value=score["value"],
                dataset_revision=dataset.get("revision"),
                date=entry.get("date"),
                source_url=source.get("url"),
                source_name=source.get("name") if source.get("url") else None,
                notes=notes,
            )
        )
    return {
        f"{name.replace('/', '--')}.yaml": yaml.safe_dump(
            eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True
        )
        for name, found in entries.items()
    }


def _task_id(entry: dict[str, Any]) -> str:
    return entry.get("task_id") or "_".join(filter(None, (entry.get("task"), entry.get("language")))) or "default"


def model_name(facts: dict[str, Any]) -> str:
    """The model's name, for the card's title."""
    return (facts.get("model") or {}).get("name") or "SpeechLLM"


__all__ = ["card_data", "eval_result_files", "eval_results", "is_hub_id", "languages", "model_name", "trained_groups"]
