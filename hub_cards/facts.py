"""The facts file: what training, evaluation and export measured about a model, and all that its card may say.

`facts.json` lies beside the weights. Nobody types it: each step adds what it knows (`update_facts`), the next step
carries it on, and the card is rendered from it alone. Sections, all optional:

    schema         1
    model          name, summary, license, license_name, license_link, code_license, languages [codes], dtype,
                   encoder, connector {settings}, llm (model types), parameters {total, encoder, connector, llm},
                   weight_bytes, max_audio_seconds, sampling_rate, repository (owner/name), package_name (of a model in
                   the package), contents ("whole" or "trained parts"), vllm (why it does not run there, "" if it does)
    parents        [{role, id, revision, license, license_name, relation}]
    prompt         {template, example, instructions [..]}: chat template, a rendered prompt, what is asked in training
    training       [stage], oldest first: {objective, trainer, method [citation keys], base, train_groups, lora,
                   trained_parameters, recipe {settings that differ from the defaults}, seeds, steps, epochs, hours,
                   hardware, processes, packages, losses, finished, notes}
    data           [{name, revision, split, config, license, rows, hours, languages {code: hours}, targets
                   {sets {name: rows}, models [{model, revision}], tasks {name: rows}}, filters, stage, notes}]
    evaluation     [{dataset {name, id, revision, split, config, license}, task, task_id, language, metric, unit,
                   higher_is_better, headline, n, systems {speech, text_bound, cascade, ... : {value, low, high}},
                   interval, command, date, source {name, url}, note}]; where some are `headline`, only these go into
                   the card's metadata
    text_ability   [{dataset, metric, n, before {value, low, high}, after {...}}]: the LLM alone, and inside
    behaviour      {silence [case], foreign_speech [case], other [case]}; a case is {audio, instruction, answer, note}
    failures       [{audio, text, language, instruction, expected, answer}]
    memory         [{device, dtype, what, bytes, command}]
    intended_use, limits [..], notes [..]: prose, from the build script or the recipe
    contamination  [{training, evaluation, training_rows, evaluation_rows, sentences, audio (None: not compared),
                   examples [..]}]
    generation     {run, report}: of a data set of targets, the manifest of `speechllm targets`
    sample         [rows without audio] of a data set
    files          {other files of the repository: what they are}

A value that is absent or None was not measured, and the card says so.
"""

import json
import os
from pathlib import Path
from typing import Any

FACTS_FILE = "facts.json"
SCHEMA = 1
LISTS = (
    "parents",
    "training",
    "data",
    "evaluation",
    "text_ability",
    "failures",
    "memory",
    "limits",
    "notes",
    "sample",
)
MAPPINGS = ("model", "prompt", "behaviour", "files", "generation")
SECTIONS = ("schema", *LISTS, *MAPPINGS, "intended_use", "contamination")


def check_facts(facts: dict[str, Any], source: str = FACTS_FILE) -> None:
    """
    Raises:
        ValueError: a section that does not exist or has another shape, by name.
    """
    if not isinstance(facts, dict):
        raise ValueError(f"{source} holds a {type(facts).__name__}, not sections of facts. Write it by update_facts.")
    if facts.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"{source} has schema {facts['schema']}, this version reads {SCHEMA}. Update speechllm.")
    unknown = sorted(set(facts) - set(SECTIONS))
    if unknown:
        raise ValueError(f"{source} has no section {', '.join(unknown)}. Sections: {', '.join(SECTIONS)}.")
    for names, kind in (((*LISTS, "contamination"), list), (MAPPINGS, dict)):
        for name in names:
            if name in facts and not isinstance(facts[name], kind):
                raise ValueError(
                    f"{source}: section {name} must be a {kind.__name__}, not {type(facts[name]).__name__}."
                )
    for entry in facts.get("evaluation", []):
        if not isinstance(entry.get("systems"), dict) or "metric" not in entry or "dataset" not in entry:
            raise ValueError(f"{source}: an evaluation needs dataset, metric and systems, not {sorted(entry)}.")


def read_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """The facts in a folder, `{}` if it has none.

    Raises:
        ValueError: a file that is no facts file.
    """
    path = Path(folder) / FACTS_FILE
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}). Restore it, or remove it and export anew.") from error
    check_facts(facts, str(path))
    return facts


def facts_of(model: str | os.PathLike) -> dict[str, Any]:
    """The facts of a model, a folder or a Hub id; {} if it has none or cannot be asked."""
    if Path(model).exists():
        return read_facts(model)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return read_facts(Path(hf_hub_download(str(model), FACTS_FILE)).parent)
    except (OSError, HfHubHTTPError, HFValidationError):
        return {}


def write_facts(folder: str | os.PathLike, facts: dict[str, Any]) -> Path:
    """Writes the facts file of a folder, whole or not at all."""
    facts = {"schema": SCHEMA} | facts
    check_facts(facts)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FACTS_FILE, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return folder / FACTS_FILE


def merge_facts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with what `new` knows: mappings are joined, all else is replaced; a None replaces nothing."""
    merged = dict(old)
    for name, value in new.items():
        if value is None:
            merged.setdefault(name, None)
        elif isinstance(value, dict) and isinstance(old.get(name), dict):
            merged[name] = merge_facts(old[name], value)
        else:
            merged[name] = value
    return merged


def update_facts(folder: str | os.PathLike, new: dict[str, Any]) -> dict[str, Any]:
    """Adds `new` to the facts of a folder, see `merge_facts`; returns all of them."""
    facts = merge_facts(read_facts(folder), new)
    write_facts(folder, facts)
    return facts


def without_places(value: Any) -> Any:
    """Facts without this machine's folders: of an absolute path, the last name stays."""
    if isinstance(value, dict):
        return {name: without_places(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if isinstance(value, str) and "\n" not in value and Path(value).is_absolute():
        return Path(value).name
    return value


def write_text(path: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


__all__ = [
    "FACTS_FILE",
    "check_facts",
    "facts_of",
    "merge_facts",
    "read_facts",
    "update_facts",
    "without_places",
    "write_facts",
]
