"""From a checkpoint to a complete Hub repository.

OUT/model.safetensors (or shards, or trained.safetensors)   config.json, generation_config.json
OUT/processor_config.json, tokenizer.json, ..., chat_template.jinja
OUT/*.py                      copies of the modelling and processing code
OUT/README.md, facts.json     the card, and what it is rendered from
OUT/LICENSE, examples/        an example that `speechllm check` asks again
OUT/helpers/                  other weights: engines load every *.safetensors of the top
"""

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .evaluations import results_facts
from .facts import FACTS_FILE, merge_facts, read_facts, without_places, write_facts, write_text
from .licenses import license_text, read_license
from .measure import model_facts, weight_bytes
from .model_card import write_card
from .remote_code import export_remote_code

HELPERS, EXAMPLES = "helpers", "examples"
EXAMPLE_LIST = "examples.json"
TRAINED = "trained.safetensors"
ADAPTER = "adapter_config.json"
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")


@dataclass
class ExportSettings:
    """
    How a checkpoint is exported.

    Args:
        merge: merge LoRA adapters, and frozen parents, into one whole model.
        connector_only: write the trained parts alone; the parents are loaded by their ids.
        dtype: number format of the weights, `auto` for the checkpoint's.
        base: model that adapters belong to, where they do not name it.
        max_shard_size: largest file of weights.
        name, summary, license, license_name, license_link, repository: for the card, in place of the facts'.
        languages: codes, in place of those that the facts state.
        example: recording and instruction that `check` asks again; by default those beside the checkpoint.
        results: files `results.json` of `speechllm evaluate`, for the card.
    """

    merge: bool = False
    connector_only: bool = False
    dtype: str = "auto"
    base: str | None = None
    max_shard_size: str = "5GB"
    name: str | None = None
    summary: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    repository: str | None = None
    languages: list[str] | None = None
    example: tuple[str, str] | None = None
    results: list[str] | None = None

    def __post_init__(self):
        if self.merge and self.connector_only:
            raise ValueError("merge and connector_only exclude each other. Choose one.")


def export_checkpoint(checkpoint: str | Path, out: str | Path, settings: ExportSettings | None = None) -> Path:
    """
    Writes a Hub repository from a checkpoint, whole or not at all.

    Args:
        checkpoint: folder of a whole model, of trained parts beside their parents' ids, or of LoRA adapters.
        out: a folder that does not exist yet.
        settings: see [`ExportSettings`].

    Returns:
        `out`.

    Raises:
        FileNotFoundError: no checkpoint there.
        FileExistsError: `out` exists.
        ValueError: adapters without `merge`, parents that are not known, a checkpoint that is no SpeechLLM.
    """
    from processing_speechllm import SpeechLLMProcessor

    settings = settings or ExportSettings()
    checkpoint, out = Path(checkpoint), Path(out)
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"{checkpoint} is no folder. Give a checkpoint of a training, or a saved model.")
    if out.exists():
        raise FileExistsError(f"{out} exists. Give a folder that does not, or remove it.")
    model = load_checkpoint(checkpoint, settings)
    processor = SpeechLLMProcessor.from_pretrained(checkpoint)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        save = {"trained_only": True} if settings.connector_only else {"max_shard_size": settings.max_shard_size}
        parents = model.config.parents
        if not settings.connector_only:
            model.config.parents = None  # the weights are here; the facts tell where they are from
        export_remote_code(model, processor, partial, **save)
        model.config.parents = parents
        copy_helpers(checkpoint, partial)
        facts = export_facts(checkpoint, partial, model, processor, settings)
        write_facts(partial, facts)
        write_license(partial, checkpoint, facts)
        write_example(partial, checkpoint, model, processor, settings.example)
        write_card(partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def load_checkpoint(checkpoint: Path, settings: ExportSettings) -> Any:
    """The model of a checkpoint in the precision asked for, adapters merged, with the parts trainable that
    `connector_only` is to save."""
    from modeling_speechllm import SpeechLLMForConditionalGeneration

    if (checkpoint / ADAPTER).is_file():
        return merge_adapters(checkpoint, settings)
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} has no config.json. Give a checkpoint of a training, or a saved model.")
    if settings.base:
        raise ValueError(f"{checkpoint} holds no adapters, so --base {settings.base} changes nothing. Leave it out.")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "speechllm":
        raise ValueError(f"{checkpoint} is a {config.get('model_type')} model, not a SpeechLLM. Export a SpeechLLM.")
    model = SpeechLLMForConditionalGeneration.from_pretrained(checkpoint, dtype=settings.dtype)
    if settings.connector_only:
        if not model.config.parents:
            raise ValueError(
                f"{checkpoint} does not know its parents, so its trained parts alone could not be put together again. "
                "Export it whole: leave --connector_only out."
            )
        local = [part["id"] for part in model.config.parents.values() if Path(part["id"]).exists()]
        if local:
            raise ValueError(
                f"The parents of {checkpoint} are folders of this machine ({', '.join(local)}), which nobody else "
                "has. Export it whole: leave --connector_only out; or train from Hub ids."
            )
        model.freeze("encoder", "connector", "llm")
        model.unfreeze(*(config.get("trained_groups") or ["connector"]))
    return model.eval()


def merge_adapters(checkpoint: Path, settings: ExportSettings) -> Any:
    """The model that a checkpoint of LoRA adapters stands for, adapters merged into the weights."""
    from peft import PeftModel

    from modeling_speechllm import SpeechLLMForConditionalGeneration

    if not settings.merge:
        raise ValueError(f"{checkpoint} holds LoRA adapters. Give --merge to merge them into the weights.")
    named = json.loads((checkpoint / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    base = settings.base or named
    if not base:
        raise ValueError(f"The adapters of {checkpoint} do not name the model they belong to. Give it by --base.")
    if Path(base).resolve() == checkpoint.resolve().parent:
        raise ValueError(
            f"{base} is the model that the training of {checkpoint} has made, with these adapters in it. Export it as "
            "it is, or give the model that the training began with."
        )
    model = SpeechLLMForConditionalGeneration.from_pretrained(base, dtype=settings.dtype)
    try:
        adapted = PeftModel.from_pretrained(model, str(checkpoint))
    except (KeyError, RuntimeError) as error:  # parts that were trained beside the adapters, of other names or sizes
        raise ValueError(
            f"The adapters of {checkpoint} do not fit {base}: its connector, or another trained part, is not the one "
            "that the training had. Export the training's output_dir, whose adapters are merged when it has ended, or "
            "give a model with that connector by --base."
        ) from error
    merged = adapted.merge_and_unload()
    merged.config.parents = None  # the merged groups are no longer theirs
    return merged.eval()


def copy_helpers(checkpoint: Path, out: Path) -> None:
    """Weights beside the model's, such as a CTC head, go to `helpers`; with what already lies there."""
    own = {TRAINED, "adapter_model.safetensors", "model.safetensors"}
    found = [
        path
        for path in sorted(checkpoint.glob("*.safetensors"))
        if path.name not in own and not path.name.startswith("model-")
    ]
    found += [path for path in sorted((checkpoint / HELPERS).glob("*")) if path.is_file()]
    for path in found:
        (out / HELPERS).mkdir(exist_ok=True)
        shutil.copyfile(path, out / HELPERS / path.name)


def export_facts(checkpoint: Path, out: Path, model: Any, processor: Any, settings: ExportSettings) -> dict[str, Any]:
    """The checkpoint's facts, with what the export knows: sizes, licences of the parents, names."""
    facts = read_facts(checkpoint)
    measured = model_facts(model, processor)
    known = facts.get("parents") or measured.get("parents") or []
    types = {"speech encoder": model.config.audio_config.model_type, "LLM": model.config.text_config.model_type}
    parents = [
        (read_license(p["id"], p.get("revision"), types.get(p["role"])) if not p.get("license") else {})
        | {name: value for name, value in p.items() if value is not None}
        for p in known
    ]
    stated = ("name", "summary", "license", "license_name", "license_link", "repository", "languages")
    model_section = {name: getattr(settings, name) for name in stated if getattr(settings, name) is not None}
    model_section["weight_bytes"] = weight_bytes(out)
    model_section["contents"] = "trained parts" if settings.connector_only else "whole"
    data = [
        (read_license(entry["id"], entry.get("revision"), kind="dataset") if entry.get("id") else {}) | entry
        for entry in facts.get("data") or []
    ]
    kept = merge_facts(facts, measured | {"parents": without_places(parents)} | ({"data": data} if data else {}))
    kept = merge_facts(kept, {"model": model_section})
    kept["model"].setdefault("name", (settings.repository or checkpoint.resolve().name).rpartition("/")[2])
    for path in settings.results or []:
        try:
            found = results_facts(json.loads(Path(path).read_text(encoding="utf-8")))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is no JSON ({error}). Give results.json of speechllm evaluate.") from error
        for section, entries in found.items():
            kept[section] = [*(kept.get(section) or []), *without_places(entries)]
    return kept


def write_license(out: Path, checkpoint: Path, facts: dict[str, Any]) -> None:
    """Licence and notices: the checkpoint's own, else the text that this package carries."""
    for name in LICENSE_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, out / name)
    text = license_text(facts["model"].get("license"))
    if not (out / "LICENSE").is_file() and text is not None:
        write_text(out / "LICENSE", text)


def write_example(out: Path, checkpoint: Path, model: Any, processor: Any, example: tuple[str, str] | None) -> None:
    """Recordings with instructions and answers, `examples/examples.json`: a new one, answered now, or those beside the
    checkpoint."""
    if example is None:
        if (checkpoint / EXAMPLES / EXAMPLE_LIST).is_file():
            shutil.copytree(checkpoint / EXAMPLES, out / EXAMPLES)
        return
    from processing_speechllm import SpeechInstructPipeline

    recording, instruction = Path(example[0]), example[1]
    if not recording.is_file():
        raise FileNotFoundError(f"{recording}: no such recording. Give --example FILE INSTRUCTION.")
    pipe = SpeechInstructPipeline(model=model, processor=processor, tokenizer=processor.tokenizer)
    answer = pipe(str(recording), instruction=instruction)[0]["generated_text"]
    (out / EXAMPLES).mkdir()
    name = f"example{recording.suffix}"
    shutil.copyfile(recording, out / EXAMPLES / name)
    row = {"file": name, "questions": [{"instruction": instruction, "expected": answer}]}
    write_text(out / EXAMPLES / EXAMPLE_LIST, json.dumps([row], ensure_ascii=False, indent=2) + "\n")


__all__ = ["FACTS_FILE", "ExportSettings", "export_checkpoint", "export_remote_code"]
