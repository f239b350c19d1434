"""The model card: rendered from the facts file, every sentence of it a fact there or a "not measured".

What is unusual here:
- Nothing is remembered between renderings. The card of the same facts is the same, letter by letter, so that a test
  can hold a card to its facts.
- Metadata and scores for the Hub are made in `metadata.py`, tables in `tables.py`.
"""

import json
import os
from pathlib import Path
from typing import Any

from .citations import WORKS, works_of
from .facts import read_facts, write_text
from .licenses import is_permissive
from .metadata import card_data, eval_result_files, is_hub_id, model_name, trained_groups
from .tables import MISSING, cell, duration, millions, overlap_section, pairs, results_section, score_text

CARD = "README.md"
RESULTS_FOLDER = ".eval_results"
TRAINED_PARTS = "it holds trained parts alone, and vLLM does not fetch their parents."


def render_model_card(facts: dict[str, Any]) -> str:
    """The card's text, metadata first."""
    from huggingface_hub import ModelCard

    body = "\n\n".join(part.strip() for part in _sections(facts) if part)
    return str(ModelCard(f"---\n{card_data(facts).to_yaml()}\n---\n\n{body}\n"))


def write_card(folder: str | os.PathLike, facts: dict[str, Any] | None = None) -> Path:
    """
    Writes the card of a folder from its facts, and `.eval_results` beside it.

    Args:
        folder: where `facts.json` lies and `README.md` goes.
        facts: in place of those in the folder.
    """
    folder = Path(folder)
    facts = read_facts(folder) if facts is None else facts
    write_text(folder / CARD, render_model_card(facts))
    files = eval_result_files(facts)
    for stale in (folder / RESULTS_FOLDER).glob("*.yaml"):
        if stale.name not in files:
            stale.unlink()
    for name, text in files.items():
        (folder / RESULTS_FOLDER).mkdir(exist_ok=True)
        write_text(folder / RESULTS_FOLDER / name, text)
    return folder / CARD


# The card's sections, in order. Each takes the facts and gives Markdown, "" to be left out.


def _sections(facts: dict[str, Any]) -> list[str]:
    parts = (
        _head,
        _loading,
        results_section,
        _text_ability,
        _behaviour,
        _failures,
        _parts,
        _training,
        _data,
        _contamination,
    )
    return [part(facts) for part in (*parts, _prompts, _memory, _use, _licence, _files, _citations)]


def _head(facts: dict[str, Any]) -> str:
    model = facts.get("model") or {}
    summary = model.get("summary") or "A speech encoder, a connector and an LLM as one model: speech in, text out."
    return f"# {model_name(facts)}\n\n{summary}"


def _loading(facts: dict[str, Any]) -> str:
    model = facts.get("model") or {}
    name = model.get("repository") or "owner/name"
    notes = "" if model.get("repository") else "`owner/name` stands for this repository's name. "
    package_name = model.get("package_name")
    if package_name:
        notes += f"The package has this model: `speechllm.{package_name.upper()}`, `--model {package_name}`. "
    rate = (
        f" --mm-processor-kwargs '{{\"sampling_rate\": {model['sampling_rate']}}}'"
        if model.get("sampling_rate")
        else ""
    )
    vllm = f"\nvllm serve {name} --trust-remote-code --model-impl transformers{rate}\n```"
    refused = TRAINED_PARTS if model.get("contents") == "trained parts" else model.get("vllm")
    vllm = f"\n```\n\nNot under vLLM: {refused}" if refused else vllm
    return f"""## Use

{notes}With the package speechllm, installed from a clone of its repository, no remote code:

```python
import speechllm
from transformers import pipeline

pipe = pipeline("speech-instruct", model="{name}")
print(pipe("recording.wav", instruction="Transcribe the speech.")[0]["generated_text"])
```

Without it, by the code in this repository:

```python
from transformers import AutoModelForMultimodalLM, AutoProcessor

model = AutoModelForMultimodalLM.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
chat = processor.instruction_chat(["recording.wav"], "Transcribe the speech.")
inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
output = model.generate(**inputs, max_new_tokens=128)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(output, skip_special_tokens=True)[0])
```

On the command line, and as a server with OpenAI's API, where recordings come as `input_audio` (`speechllm serve` needs
the extra `serve`: `pip install ".[serve]"` in the clone):

```sh
speechllm ask recording.wav "Transcribe the speech." --model {name}
speechllm serve {name}{vllm}"""


def _text_ability(facts: dict[str, Any]) -> str:
    rows = facts.get("text_ability") or []
    if not rows:
        frozen = _llm_is_untouched(facts)
        why = (
            " The LLM's weights were not trained, and a prompt without audio gives the LLM's own logits."
            if frozen
            else ""
        )
        return f"## Text ability\n\nBefore and after training: {MISSING}.{why}"
    lines = ["| data | metric | n | before | after |", "|---|---|---:|---:|---:|"]
    for row in rows:
        name = row["dataset"]["name"] if isinstance(row["dataset"], dict) else row["dataset"]
        scores = score_text(row.get("before")), score_text(row.get("after"))
        lines.append(f"| {name} | {row['metric']} | {row.get('n') or ''} | {' | '.join(scores)} |")
    return "## Text ability\n\nThe LLM alone, and as part of this model:\n\n" + "\n".join(lines)


def _llm_is_untouched(facts: dict[str, Any]) -> bool:
    return bool(facts.get("training")) and "llm" not in trained_groups(facts)


def _behaviour(facts: dict[str, Any]) -> str:
    behaviour = facts.get("behaviour") or {}
    titles = {"silence": "Silence and noise", "foreign_speech": "Speech in languages it was not trained on"}
    titles |= {name: name.replace("_", " ").capitalize() for name in behaviour if name not in titles}
    text = "## Behaviour outside its training"
    for name, title in titles.items():
        cases = behaviour.get(name)
        if not cases:
            text += f"\n\n{title}: {MISSING}."
            continue
        lines = ["| recording | instruction | answer |", "|---|---|---|"]
        lines += [
            f"| {cell(c.get('audio'))} | {cell(c.get('instruction'))} | {cell(c.get('answer'))} |" for c in cases
        ]
        text += f"\n\n{title}:\n\n" + "\n".join(lines)
    return text


def _failures(facts: dict[str, Any]) -> str:
    cases = facts.get("failures") or []
    if not cases:
        return f"## Known failures\n\nExamples: {MISSING}."
    lines = ["| language | said | instruction | expected | answer |", "|---|---|---|---|---|"]
    for case in cases:
        names = ("language", "text", "instruction", "expected", "answer")
        lines.append(f"| {' | '.join(cell(case.get(name)) for name in names)} |")
    return "## Known failures\n\n" + "\n".join(lines)


def _parts(facts: dict[str, Any]) -> str:
    model = facts.get("model") or {}
    parameters = model.get("parameters") or {}
    parents = {parent["role"]: parent for parent in facts.get("parents") or []}
    connector = model.get("connector") or {}
    lines = ["| part | from | revision | licence | parameters |", "|---|---|---|---|---:|"]
    rows = [
        ("speech encoder", model.get("encoder"), parameters.get("encoder")),
        ("connector", connector.get("type"), parameters.get("connector")),
        ("LLM", model.get("llm"), parameters.get("llm")),
    ]
    for role, family, count in rows:
        parent = parents.pop(role, {})
        name = _parent_name(parent) if parent.get("id") else "this model's own"
        licence = parent.get("license") or ("unknown" if parent.get("id") else model.get("license") or "not stated")
        kind = f"{role} ({family})" if family else role
        revision = parent.get("revision") or ("unknown" if parent.get("id") else "")
        lines.append(f"| {kind} | {name} | {revision[:12]} | {licence} | {millions(count)} |")
    for role, parent in parents.items():
        revision = (parent.get("revision") or "unknown")[:12]
        lines.append(f"| {role} | {_parent_name(parent)} | {revision} | {parent.get('license') or 'unknown'} | |")
    total = f"In total {millions(parameters.get('total'))} parameters"
    trained = [millions(stage.get("trained_parameters")) for stage in facts.get("training") or []]
    alike = len(trained) > 1 and len(set(trained)) == 1
    stages = f"{trained[0]} in each stage" if alike else f"{' and '.join(trained)} (by stage)"
    total += f", trained {stages}" if trained else ""
    stored = model.get("weight_bytes")
    total += f"; {stored / 1e6:.1f} MB of weights" if stored else ""
    total += f" in {model['dtype']}" if model.get("dtype") else ""
    settings = ", ".join(f"{name} {value}" for name, value in connector.items() if name != "type")
    return f"## Parts\n\n{chr(10).join(lines)}\n\n{total}.\n\nConnector: {settings or MISSING}."


def _parent_name(parent: dict[str, Any]) -> str:
    name = parent["id"]
    link = f"[{name}](https://huggingface.co/{name})" if is_hub_id(name) else f"`{Path(name).name}` (a local folder)"
    return link if not parent.get("relation") else f"{link}, {parent['relation']}"


def _training(facts: dict[str, Any]) -> str:
    stages = facts.get("training") or []
    if not stages:
        return f"## Training\n\nHow it was trained: {MISSING}."
    return "## Training" + "".join(f"\n\n{_stage(number, stage)}" for number, stage in enumerate(stages, 1))


def _stage(number: int, stage: dict[str, Any]) -> str:
    lora = stage.get("lora")
    hours = stage.get("hours")
    rows = {
        "trained": ", ".join([*(stage.get("train_groups") or []), *([_lora(lora)] if lora else [])]),
        "trained parameters": millions(stage.get("trained_parameters")),
        "from": stage.get("base"),
        "steps": stage.get("steps"),
        "epochs": None if stage.get("epochs") is None else f"{stage['epochs']:.2f}",
        "finished": {True: "yes", False: "no, a checkpoint on the way"}.get(stage.get("finished")),
        "seeds": pairs(stage.get("seeds")),
        "time": None if hours is None else duration(hours),
        "hardware": stage.get("hardware"),
        "processes": stage.get("processes"),
        "losses": pairs(stage.get("losses")),
        "packages": pairs(stage.get("packages")),
    }
    known = [f"| {name} | {value} |" for name, value in rows.items() if value not in (None, "")]
    unknown = [name for name in ("steps", "seeds", "time", "hardware", "packages") if rows[name] in (None, "")]
    text = f"### Stage {number}: {stage.get('objective') or MISSING}\n\n| | |\n|---|---|\n" + "\n".join(known)
    text += f"\n\nNot measured: {', '.join(unknown)}." if unknown else ""
    text += "".join(f"\n\n{note}" for note in stage.get("notes") or [])
    if stage.get("recipe"):
        recipe = json.dumps(stage["recipe"], indent=2, ensure_ascii=False)
        text += f"\n\nSettings:\n\n```json\n{recipe}\n```"
    return text


def _lora(lora: dict[str, Any]) -> str:
    return f"LoRA on {', '.join(lora.get('groups') or [])} (rank {lora.get('rank')}, alpha {lora.get('alpha')})"


def _data(facts: dict[str, Any]) -> str:
    entries = facts.get("data") or []
    if not entries:
        return f"## Training data\n\n{MISSING.capitalize()}."
    lines = ["| data | split | licence | rows | audio | by language |", "|---|---|---|---:|---:|---|"]
    notes = []
    for entry in entries:
        name = entry.get("id") or entry["name"]
        link = f"[{name}](https://huggingface.co/datasets/{name})" if is_hub_id(name) else name
        hours = entry.get("languages") or {}
        by_language = ", ".join(f"{code} {duration(value)}" for code, value in hours.items() if value is not None)
        split = ", ".join(filter(None, (entry.get("config"), entry.get("split"), (entry.get("revision") or "")[:12])))
        cells = [
            link,
            split,
            entry.get("license") or "unknown",
            _count(entry.get("rows")),
            duration(entry.get("hours")),
        ]
        lines.append(f"| {' | '.join(cells)} | {by_language or MISSING} |")
        notes += [f"{name}: {note}" for note in _data_notes(entry)]
    return "## Training data\n\n" + "\n".join(lines) + "".join(f"\n\n{note}" for note in notes)


def _count(value: int | None) -> str:
    return MISSING if value is None else str(value)


def _data_notes(entry: dict[str, Any]) -> list[str]:
    targets, notes = entry.get("targets") or {}, list(entry.get("notes") or [])
    if targets.get("models"):
        models = [f"{model['model']} (revision {model.get('revision') or 'unknown'})" for model in targets["models"]]
        notes.append(f"answers written by {', '.join(models)}.")
    if targets.get("sets"):
        notes.append(f"rows by target set: {pairs(targets['sets'])}.")
    if targets.get("tasks"):
        notes.append(f"rows by task: {pairs(targets['tasks'])}.")
    if entry.get("filters"):
        notes.append(f"filters: {pairs(entry['filters'])}.")
    return notes


def _contamination(facts: dict[str, Any]) -> str:
    return overlap_section(facts.get("contamination"))


def _prompts(facts: dict[str, Any]) -> str:
    prompt = facts.get("prompt") or {}
    text = "## Prompts"
    if prompt.get("example"):
        text += "\n\nA prompt as the model reads it (one placeholder stands for an audio's many):"
        text += f"\n\n{fence(prompt['example'])}"
    instructions = prompt.get("instructions") or []
    if instructions:
        text += "\n\nInstructions in training:\n\n" + "\n".join(f"- {cell(line)}" for line in instructions)
    else:
        text += f"\n\nInstructions in training: {MISSING}."
    if prompt.get("template"):
        text += f"\n\nChat template:\n\n{fence(prompt['template'], 'jinja')}"
    return text


def fence(text: str, language: str = "") -> str:
    marks = "`" * (3 if "```" not in text else 4)
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def _memory(facts: dict[str, Any]) -> str:
    rows = facts.get("memory") or []
    stored = (facts.get("model") or {}).get("weight_bytes")
    text = f"## Memory to run\n\nWeights: {stored / 1e9:.3f} GB." if stored else "## Memory to run"
    if not rows:
        return f"{text}\n\nPeak: {MISSING}."
    lines = ["| device | dtype | what | peak |", "|---|---|---|---:|"]
    for row in rows:
        lines.append(
            f"| {row['device']} | {row.get('dtype') or ''} | {row.get('what') or ''} | {row['bytes'] / 1e9:.2f} GB |"
        )
    commands = dict.fromkeys(row["command"] for row in rows if row.get("command"))
    return f"{text}\n\n" + "\n".join(lines) + "".join(f"\n\nCommand: `{command}`" for command in commands)


def _use(facts: dict[str, Any]) -> str:
    limits = facts.get("limits") or []
    longest = (facts.get("model") or {}).get("max_audio_seconds")
    text = f"## Intended use and limits\n\n{facts.get('intended_use') or 'Intended use was not stated.'}"
    lines = [*limits, *([f"Audio of more than {longest:g} s is refused."] if longest else [])]
    text += "".join(f"\n{'' if number else chr(10)}- {line}" for number, line in enumerate(lines))
    return text + "".join(f"\n\n{note}" for note in facts.get("notes") or [])


def _licence(facts: dict[str, Any]) -> str:
    model = facts.get("model") or {}
    stated = model.get("license_name") or model.get("license") or "not stated"
    text = f"## Licence\n\nThis model: {stated}."
    for parent in facts.get("parents") or []:
        known = parent.get("license_name") or parent.get("license")
        line = f" {parent['role'].capitalize()} {_parent_name(parent)}: {known or 'unknown'}."
        text += line + ("" if is_permissive(parent.get("license")) else " Its terms apply to this model too.")
    code = model.get("code_license", "apache-2.0")
    return f"{text} The code files (`*.py`) are under {code}."


def _files(facts: dict[str, Any]) -> str:
    files = facts.get("files") or {}
    if not files:
        return ""
    return "## Other files\n\n" + "\n".join(f"- `{name}`: {what}" for name, what in files.items())


def _citations(facts: dict[str, Any]) -> str:
    keys = works_of(facts)
    if not keys:
        return ""
    return "## Methods\n\n" + "\n".join(f"- {WORKS[key]}" for key in keys)


__all__ = ["fence", "render_model_card", "write_card"]
