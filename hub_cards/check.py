"""What must hold of a folder before it is published, line by line.

Checks are generators of findings and run behind a guard, as those of `speechllm doctor`; a folder may be pushed if
none of them is a FAIL. The model is loaded twice, each time in a process of its own: with the package, and by the
copied code where the package cannot be found; both answer the folder's own example.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .facts import FACTS_FILE, read_facts
from .findings import Finding, guarded
from .licenses import BINDING, KNOWN, OTHER_LICENSE, conflicts

NEEDED = ("config.json", "processor_config.json", "README.md", FACTS_FILE)
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
TEXTS = {".json", ".md", ".txt", ".py", ".jinja", ".yaml", ".yml", ".jsonl", ".cfg", ".toml", ".csv", ""}
VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"}  # words, not text
SECRETS = {
    "a Hub token": r"\bhf_[A-Za-z0-9]{30,}",
    "an OpenAI key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
    "a password": r"""(?i)["']?(?:api[_-]?key|secret|password|access[_-]?token)["']?\s*[:=]\s*["'][^"'\s]{12,}["']""",
    "a password in an address": r"\b[a-z]+://[^/\s:@]+:[^/\s:@]{3,}@",
}
ROOTS = "home|Users|root|tmp|mnt|media|scratch|workspace|work|data|var|opt|private|gpfs|lustre|content"
PATHS = rf"(?<![\w./:<-])/(?:{ROOTS})/[\w.-]+|\b[A-Za-z]:\\\\?[\w.-]+\\"
LARGEST_FILE, LARGE_FILE = 50e9, 20e9  # the Hub's limit of a file, and above what it advises to split
# Sections of a card that a command fills.
EVALUATE = "speechllm evaluate, then export --results"
OVERLAP = "speechllm overlap --card"
REMEDIES = {"Results": EVALUATE, "Text ability": EVALUATE, "Overlap of training and evaluation": OVERLAP}
LONG_LOADING = 3600  # seconds

# Loads the folder and answers its questions. Printed: one JSON object on the last line.
LOADING = """
import json, sys
folder, way, questions = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
PACKAGES = ("speechllm", "modeling_speechllm", "processing_speechllm", "hub_cards", "trainers", "speechllm_cli")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in PACKAGES:
            raise ModuleNotFoundError(name)
if way == "own code":
    sys.meta_path.insert(0, Absent())
else:
    import speechllm
from transformers import pipeline
options = {"trust_remote_code": True} if way == "own code" else {}
pipe = pipeline("speech-instruct", model=folder, **options)
found = {"classes": [type(part).__name__ for part in (pipe.model, pipe.processor, pipe)]}
found["modules"] = [type(part).__module__ for part in (pipe.model, pipe.processor, pipe)]
found["answers"] = [pipe(file, instruction=text)[0]["generated_text"] for file, text in questions]
print(json.dumps(found))
"""

Check = Callable[[], Iterator[Finding]]


def check_folder(folder: str | os.PathLike, load: bool = True) -> Iterator[Finding]:
    """
    The findings on a model's folder.

    Args:
        folder: as `speechllm export` writes it.
        load: also load the model both ways and ask its example.
    """
    folder = Path(folder)
    if not folder.is_dir():
        yield Finding("FAIL", "folder", f"{folder} is no folder", "give what speechllm export has written")
        return
    checks: list[tuple[str, Check, str]] = [
        ("files", partial(check_files, folder), "export the checkpoint anew: speechllm export"),
        ("weights", partial(check_weights, folder), "export the checkpoint anew: speechllm export"),
        ("sizes", partial(check_sizes, folder), "look at the folder's files"),
        ("pickle", partial(check_pickle, folder), "remove these files; safetensors hold weights"),
        ("secrets", partial(check_secrets, folder), "remove them, and revoke the keys"),
        ("absolute paths", partial(check_paths, folder), "write Hub ids or names in their place"),
        ("code", partial(check_code, folder), "export the checkpoint anew: speechllm export"),
        ("card", partial(check_card, folder), "export the checkpoint anew, or correct README.md"),
        ("licence", partial(check_license, folder), "state it: speechllm export --license"),
    ]
    failed = set()
    for subject, check, remedy in checks:
        for finding in guarded(subject, check, remedy):
            failed |= {subject} if finding.status == "FAIL" else set()
            yield finding
    if load and failed & {"files", "weights", "code"}:
        yield Finding("note", "loading", "not tried: see the failures above")
    elif load:
        remedy = "see the message above; export the checkpoint anew"
        yield from guarded("loading", partial(check_loading, folder), remedy)


def check_dataset(folder: str | os.PathLike) -> Iterator[Finding]:
    """The findings on a data set's folder, as `speechllm export` of targets writes it."""
    from .dataset_card import check_dataset_card, check_rows

    folder = Path(folder)
    if not folder.is_dir():
        yield Finding("FAIL", "folder", f"{folder} is no folder", "give what speechllm export has written")
        return
    checks: list[tuple[str, Check, str]] = [
        ("rows", partial(check_rows, folder), "export the targets anew: speechllm export"),
        ("sizes", partial(check_sizes, folder), "look at the folder's files"),
        ("pickle", partial(check_pickle, folder), "remove these files"),
        ("secrets", partial(check_secrets, folder), "remove them, and revoke the keys"),
        ("absolute paths", partial(check_paths, folder), "export the targets anew: speechllm export"),
        ("card", partial(check_dataset_card, folder), "export the targets anew: speechllm export"),
    ]
    for subject, check, remedy in checks:
        yield from guarded(subject, check, remedy)


def files_of(folder: Path) -> list[Path]:
    """All files of a folder that a push would send."""
    hidden = (".git", ".cache", "__pycache__")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if not set(hidden) & set(path.relative_to(folder).parts)]


def check_files(folder: Path) -> Iterator[Finding]:
    """Files that must be there, and leftovers that must not."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if missing:
        yield Finding("FAIL", "files", f"missing: {', '.join(missing)}", "export the checkpoint: speechllm export")
    else:
        yield Finding("ok", "files", f"{len(files_of(folder))} files")
    links = [path.name for path in folder.rglob("*") if path.is_symlink()]
    partial_files = [path.name for path in folder.rglob("*") if path.name.endswith(".partial")]
    if links or partial_files:
        yield Finding("FAIL", "files", f"links or halves: {', '.join((links + partial_files)[:5])}", "remove them")


def check_weights(folder: Path) -> Iterator[Finding]:
    """Weights at the top are the model's own, whole, and readable."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    present = {path.name for path in folder.glob("*.safetensors")}
    if index.is_file():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        wanted = {"trained.safetensors"} if "trained.safetensors" in present else {"model.safetensors"}
    if wanted - present:
        yield Finding("FAIL", "weights", f"missing: {', '.join(sorted(wanted - present))}", "export anew")
        return
    if present - wanted:
        remedy = "move them to helpers/: engines load every *.safetensors of the top"
        yield Finding("FAIL", "weights", f"not the model's: {', '.join(sorted(present - wanted))}", remedy)
    count, types = 0, set()
    for name in sorted(wanted):
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():
                count, types = count + 1, types | {file.get_slice(key).get_dtype()}
    yield Finding("ok", "weights", f"{count} tensors in {len(wanted)} files, {', '.join(sorted(types))}")


def check_sizes(folder: Path) -> Iterator[Finding]:
    """Sizes that the Hub bears."""
    sizes = {path: path.stat().st_size for path in files_of(folder)}
    if not sizes:
        yield Finding("FAIL", "sizes", f"{folder} is empty", "give what speechllm export has written")
        return
    largest = max(sizes, key=sizes.get)
    detail = f"{sum(sizes.values()) / 1e6:.1f} MB in {len(sizes)} files, the largest {largest.name}"
    if sizes[largest] > LARGEST_FILE:
        yield Finding(
            "FAIL", "sizes", f"{largest.name} has {sizes[largest] / 1e9:.0f} GB, the Hub takes 50", "export in shards"
        )
    elif sizes[largest] > LARGE_FILE:
        yield Finding("note", "sizes", detail, "smaller shards load and resume better: export --max_shard_size 5GB")
    else:
        yield Finding("ok", "sizes", detail)


def check_pickle(folder: Path) -> Iterator[Finding]:
    """No files that run code when they are loaded, by name and by their first bytes."""
    found = []
    for path in files_of(folder):
        with path.open("rb") as file:
            start = file.read(2)
        if (
            path.suffix.lower() in PICKLES
            or start[:1] == b"\x80"
            and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        ):
            found.append(str(path.relative_to(folder)))
    if found:
        remedy = "remove them; weights are safetensors, and a training's state does not belong to a model"
        yield Finding("FAIL", "pickle", f"{', '.join(found[:5])}", remedy)
    else:
        yield Finding("ok", "pickle", "none")


def _texts(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in files_of(folder):
        if path.suffix.lower() in TEXTS and path.name not in VOCABULARIES:
            yield path, path.read_text(encoding="utf-8", errors="replace")


def check_secrets(folder: Path) -> Iterator[Finding]:
    """No strings that look like keys."""
    clean = True
    for path, text in _texts(folder):
        for what, pattern in SECRETS.items():
            match = re.search(pattern, text)
            if match:
                clean = False
                line = text.count("\n", 0, match.start()) + 1
                shown = f"{match[0][:6]}…"
                detail = f"{path.relative_to(folder)}:{line} holds what looks like {what} ({shown})"
                yield Finding("FAIL", "secrets", detail, "remove it, and revoke it: it may have been seen")
    if clean:
        yield Finding("ok", "secrets", "none found")


def check_paths(folder: Path) -> Iterator[Finding]:
    """No paths of the machine that it was made on."""
    clean = True
    for path, text in _texts(folder):
        match = re.search(PATHS, text) if path.suffix != ".py" else None
        if match:
            clean = False
            line = text.count("\n", 0, match.start()) + 1
            detail = f"{path.relative_to(folder)}:{line} names {match[0]}"
            yield Finding("FAIL", "absolute paths", detail, "write a Hub id or a name in its place")
    if clean:
        yield Finding("ok", "absolute paths", "none found")


def check_code(folder: Path) -> Iterator[Finding]:
    """Every class that the configs name is in a file here, and so is what that file imports."""
    from .remote_code import CUSTOM_PIPELINES, MODEL_AUTO_MAP, PROCESSOR_AUTO_MAP, code_files

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    named = (config.get("auto_map") or {}) | (processor.get("auto_map") or {})
    lacking = sorted(set(MODEL_AUTO_MAP | PROCESSOR_AUTO_MAP) - set(named))
    if lacking:
        yield Finding("FAIL", "code", f"the configs do not name {', '.join(lacking)}", "export the checkpoint anew")
    if config.get("custom_pipelines"):
        detail = "config.json has custom_pipelines: `pipeline` asks for remote code even where speechllm is installed"
        yield Finding("FAIL", "code", detail, "export the checkpoint anew")
    modules = {reference.partition(".")[0] for reference in named.values()}
    modules |= {task["impl"].partition(".")[0] for task in CUSTOM_PIPELINES.values()}
    seen: set[str] = set()
    while modules - seen:
        name = (modules - seen).pop()
        seen.add(name)
        path = folder / f"{name}.py"
        if not path.is_file():
            yield Finding("FAIL", "code", f"{name}.py is missing", "export the checkpoint anew")
            continue
        modules |= set(re.findall(r"^\s*from \.(\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE))
    ours = code_files()
    changed = [name for name, source in ours.items() if _differs(folder / name, source)]
    if changed:
        remedy = "export anew to take this version's code; leave it if the older one is meant"
        yield Finding("note", "code", f"{len(changed)} files differ from this version ({changed[0]}, ...)", remedy)
    yield Finding("ok", "code", f"{len(seen)} modules, {len(named)} Auto classes")


def _differs(copy: Path, source: Path) -> bool:
    return not copy.is_file() or copy.read_bytes() != source.read_bytes()


def check_card(folder: Path) -> Iterator[Finding]:
    """The card's metadata, its results, and whether it says what the facts say."""
    from huggingface_hub import ModelCard, parse_eval_result_entries

    from .metadata import eval_result_files
    from .model_card import render_model_card

    text = (folder / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data  # raises on metadata that the Hub would not read
    found = data.to_dict()
    wanted = {"pipeline_tag": "audio-text-to-text", "library_name": "transformers"}
    for name, value in wanted.items():
        if found.get(name) != value:
            yield Finding("FAIL", "card", f"{name} is {found.get(name)!r}, not {value!r}", "correct README.md's head")
    if not found.get("language"):
        yield Finding(
            "FAIL", "card", "no language is stated", "export --languages en ..., or train on rows with language"
        )
    wrong = [
        code for code in found.get("language") or [] if not re.fullmatch(r"[a-z]{2,3}|multilingual|code", str(code))
    ]
    if wrong:
        yield Finding("FAIL", "card", f"{', '.join(map(str, wrong))}: no ISO 639 codes", "give codes such as en, zh")
    facts = read_facts(folder)
    if facts and text != render_model_card(facts):
        remedy = "write into facts.json what is measured, into the card's own words what is not, or export anew"
        yield Finding("note", "card", "differs from what facts.json gives: edited by hand, or older", remedy)
    for name, content in eval_result_files(facts).items():
        path = folder / ".eval_results" / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            yield Finding("FAIL", "card", f".eval_results/{name} is missing or differs from facts.json", "export anew")
        else:
            import yaml

            parse_eval_result_entries(yaml.safe_load(content))
    blanks = missing_facts(text)
    if blanks:
        told = ", ".join(name if count == 1 else f"{name} ({count})" for name, count in blanks.items())
        remedies = dict.fromkeys(REMEDIES.get(name, "update_facts, see docs/publish.md") for name in blanks)
        yield Finding("note", "card", f"not measured: {told}", "; ".join(remedies))
    results = len(found.get("model-index") or [])
    yield Finding(
        "ok",
        "card",
        f"metadata valid, {', '.join(map(str, found.get('language') or ['no language']))}"
        + (", with results" if results else ""),
    )


def missing_facts(card: str) -> dict[str, int]:
    """How many facts each section of a card says are not measured, by title."""
    from .tables import MISSING

    sections = (section.partition("\n") for section in re.split(r"^## ", card, flags=re.MULTILINE)[1:])
    counts = {title: body.count(MISSING) for title, _, body in sections}
    return {title: count for title, count in counts.items() if count}


def check_license(folder: Path) -> Iterator[Finding]:
    """The licence stated, its text, and whether it fits those of the parents."""
    from huggingface_hub import ModelCard

    data = ModelCard.load(folder / "README.md").data
    stated, name = data.get("license"), data.get("license_name")
    if not stated:
        yield Finding("FAIL", "licence", "none is stated", "speechllm export --license ID")
        return
    if stated not in KNOWN:
        yield Finding("note", "licence", f"{stated!r} is not known here", "compare it with the Hub's list of licences")
    if stated == "other" and not (name and data.get("license_link")):
        yield Finding("FAIL", "licence", OTHER_LICENSE, "export --license_name NAME --license_link URL")
    found = conflicts(stated, name, read_facts(folder).get("parents") or [])
    for conflict in found:
        yield Finding("FAIL" if conflict.sure else "note", "licence", conflict.finding, conflict.remedy)
    if stated in BINDING:
        yield Finding("note", "licence", f"{stated}: {BINDING[stated]}", "do so, if you have not")
    if not any((folder / name).is_file() for name in ("LICENSE", "LICENSE.txt", "LICENSE.md")):
        yield Finding("FAIL", "licence", f"the text of {stated} is missing", "put it into the folder as LICENSE")
    elif not any(conflict.sure for conflict in found):
        yield Finding("ok", "licence", f"{stated}, with its text")


def example_questions(folder: Path) -> list[tuple[str, str, str]]:
    """(recording, instruction, expected answer) of the folder's examples."""
    listing = folder.resolve() / "examples" / "examples.json"
    if not listing.is_file():
        return []
    rows = json.loads(listing.read_text(encoding="utf-8"))
    return [
        (str(listing.parent / row["file"]), question["instruction"], question["expected"])
        for row in rows
        for question in row["questions"]
    ]


def check_loading(folder: Path) -> Iterator[Finding]:
    """Loads both ways and asks the first questions of the examples, one of each recording."""
    examples = example_questions(folder)
    asked = list({example[0]: example for example in reversed(examples)}.values())[::-1]
    if not asked:
        remedy = 'speechllm export --example RECORDING "INSTRUCTION"'
        yield Finding("note", "example", "none: whether it answers was not tried", remedy)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for way in ("package", "own code"):
        found, error = load_in_new_process(
            folder, way, [example[:2] for example in asked], bool(config.get("parents"))
        )
        if error:
            remedy = "export anew; without a network only whole models load, see speechllm export"
            yield Finding("FAIL", f"load: {way}", error, remedy)
            continue
        remote = [module.startswith("transformers_modules.") for module in found["modules"]]
        if remote != [way == "own code"] * 3:
            detail = f"classes came from {', '.join(found['modules'])}"
            yield Finding("FAIL", f"load: {way}", detail, "export anew: auto_map must name them")
            continue
        yield Finding("ok", f"load: {way}", ", ".join(found["classes"]))
        wrong = [(e, answer) for e, answer in zip(asked, found["answers"], strict=True) if answer != e[2]]
        for (recording, instruction, expected), answer in wrong:
            detail = f"{Path(recording).name}, “{instruction}”: “{answer}”, expected “{expected}”"
            remedy = "export with the example anew, or look for what changed the weights"
            yield Finding("FAIL", f"asked: {way}", detail, remedy)
        if asked and not wrong:
            yield Finding("ok", f"asked: {way}", f"{len(asked)} of {len(asked)} answers as expected")


def load_in_new_process(
    folder: Path, way: str, questions: list[tuple[str, str]], parents: bool
) -> tuple[dict[str, Any], str]:
    """What `LOADING` found, or ({}, the last line of its error). Offline, unless the parents must be fetched."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"HF_MODULES_CACHE": cache, "TOKENIZERS_PARALLELISM": "false"}
        environment |= {} if parents else {"HF_HUB_OFFLINE": "1"}
        places = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        command = [sys.executable, "-c", LOADING, str(folder.resolve()), way, json.dumps(questions)]
        run = subprocess.run(
            command, env=environment, cwd=cache, capture_output=True, text=True, timeout=LONG_LOADING, encoding="utf-8"
        )
    if run.returncode:
        lines = [line for line in run.stderr.strip().splitlines() if line.strip()]
        return {}, lines[-1] if lines else f"the process ended with {run.returncode}"
    return json.loads(run.stdout.strip().splitlines()[-1]), ""


__all__ = ["check_dataset", "check_folder", "check_loading", "files_of"]
