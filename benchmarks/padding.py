"""What Whisper's input padded to 30 s costs or gains against the audio's own length, with the package's own commands.

    python -m benchmarks.padding --data FOLDER --audio WHISPER --text LLM --out OUT

FOLDER holds a manifest.jsonl with `audio`, `text` and `speaker`. Speakers are apart in training and test. For both
settings `speechllm encode` writes the frames once and `speechllm align` trains a `ctc_compress` to spell the letters,
with equal seeds, steps and batches: some thirty classes can be learned from minutes of speech, an LLM's tokens cannot.
In both settings the connector hears the frames of the audio alone; what differs is the silence that the encoder sees
behind it. `OUT/commands.txt` has every command; the same call goes on where a stopped one was, with more seeds too.
Settings other than those in `OUT/settings.json` are refused.
"""

import argparse
import collections
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer

from benchmarks.nanoworld.train_encoder import edit_distance
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from trainers.cache.frame_cache import FrameCache, pad_frames
from trainers.objectives.ctc import ctc_loss

SETTINGS = {"own length": False, "padded to 30 s": True}
FOLDERS = {"own length": "own", "padded to 30 s": "padded"}
PER_SPEAKER = 3  # clips: many speakers rather than many clips of one, who has a fifth of the whole
TEST_SHARE = 5  # one speaker in so many is in the test
READER = {"type": "ctc_compress", "convolutions": 1, "hidden_size": 256, "blocks": 2, "heads": 4, "ffn_size": 1024}
TRAINING = {
    "dtype": "bfloat16",
    "bf16": True,
    "use_cpu": True,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "activation_checkpointing": False,
    "logging_steps": 10,
    "eval_strategy": "steps",
}


def check_settings(file: Path, settings: dict[str, object], used: bool) -> None:
    """
    Keeps in `file` what the results beside it depend on; where there are results, checks that it is the same.

    Args:
        used: whether there are.

    Raises:
        SystemExit: it is not, by name of what changed; or there are results of settings that nobody kept.
    """
    if not used:
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, file)
        return
    if not file.exists():
        raise SystemExit(f"{file.parent} has results and no {file.name} that says of what. Give another --out.")
    old = json.loads(file.read_text(encoding="utf-8"))
    changed = [f"{name} was {old.get(name)} and is {new}" for name, new in settings.items() if old.get(name) != new]
    if changed:
        raise SystemExit(
            f"{file.parent} has results of other settings: {'; '.join(changed)}. Go on with those, or give another "
            "--out."
        )


def digest_of(manifest: Path) -> str:
    """What tells the content of a manifest from others."""
    return hashlib.sha1(manifest.read_bytes()).hexdigest()[:12]


def is_test(speaker: str) -> bool:
    """Whether a speaker is in the test, the same on every machine."""
    return int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % TEST_SHARE == 0


def spell(text: str) -> str:
    """Its letters, each a word of its own, with a bar between words: "An ox." is "a n | o x"."""
    words = ["".join(filter(str.isalpha, word)) for word in text.lower().split()]
    return " | ".join(" ".join(word) for word in words if word)


def split_rows(data: Path) -> dict[str, list[dict]]:
    """At most `PER_SPEAKER` rows of each speaker, with ids, whole paths and spelled texts, as `train` and `test`."""
    rows, counts = {"train": [], "test": []}, collections.Counter()
    with open(data / "manifest.jsonl", encoding="utf-8") as file:
        for row in map(json.loads, file):
            counts[row["speaker"]] += 1
            if counts[row["speaker"]] <= PER_SPEAKER:
                audio = (data / row["audio"]).resolve()
                row |= {"id": audio.stem, "audio": str(audio), "text": spell(row["text"])}
                rows["test" if is_test(row["speaker"]) else "train"].append(row)
    return rows


def write_manifests(rows: dict[str, list[dict]], out: Path) -> dict[str, Path]:
    """`OUT/train.jsonl` and `OUT/test.jsonl`."""
    paths = {name: out / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[name]), encoding="utf-8")
    return paths


def compose_reader(audio: str, text: str, padded: bool, seed: int, texts: list[str], folder: Path) -> None:
    """A SpeechLLM with a new `ctc_compress` that can read the tokens of `texts`; equal weights for equal seeds."""
    if (folder / "processor_config.json").exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(text)
    tokens = sorted({token for line in texts for token in tokenizer(line, add_special_tokens=False).input_ids})
    torch.manual_seed(seed)
    model = SpeechLLMForConditionalGeneration.from_parts(
        audio, text, connector=READER | {"vocabulary": len(tokens)}, pad_to_window=padded, dtype="bfloat16"
    )
    model.model.multi_modal_projector.load_vocabulary(torch.tensor(tokens), model.get_input_embeddings().weight)
    model.save_pretrained(folder)
    SpeechLLMProcessor.from_parts(audio, text, model.config).save_pretrained(folder)


def options_of(settings: dict[str, object]) -> Iterator[str]:
    """`--name value` of each setting, as the commands take them."""
    for name, value in settings.items():
        yield f"--{name}"
        for item in value if isinstance(value, list) else [value]:
            yield json.dumps(item) if isinstance(item, dict | bool) else str(item)


def run(command: str, settings: dict[str, object], out: Path, done: str) -> None:
    """One `speechllm` command, unless the file `done` in its `output_dir` says it has finished; its seconds are kept
    in `OUT/seconds.json` (of a resumed command those of its last part)."""
    if (Path(settings["output_dir"]) / done).exists():
        return
    line = ["speechllm", command, *options_of(settings)]
    with open(out / "commands.txt", "a", encoding="utf-8") as file:
        file.write(shlex.join(line) + "\n")
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "speechllm_cli.main", *line[1:]], check=True)
    book = out / "seconds.json"
    seconds = json.loads(book.read_text()) if book.exists() else {}
    seconds[Path(settings["output_dir"]).name] = round(time.perf_counter() - begin, 1)
    partial = book.with_suffix(".partial")
    partial.write_text(json.dumps(seconds, indent=2))
    os.replace(partial, book)


def evaluations(folder: Path) -> dict[int, float]:
    """Update -> held-out CTC per utterance, of every evaluation in a finished training."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return {entry["step"]: entry["eval_ctc"] for entry in history if "eval_ctc" in entry}


@torch.no_grad()
def compare(out: Path, seed: int, rows: list[dict]) -> str:
    """Per symbol of the held-out clips that fit: loss and errors under both settings, and the difference of the loss
    with a 95 % interval over speakers (bootstrap)."""
    losses, errors, symbols = {}, {}, torch.tensor([len(row["text"].split()) for row in rows])
    for name in FOLDERS.values():
        folder, cache = out / f"align-{name}-{seed}", FrameCache(out / f"frames-{name}")
        model = SpeechLLMForConditionalGeneration.from_pretrained(folder).float().eval()
        connector = model.model.multi_modal_projector
        tokenizer = AutoTokenizer.from_pretrained(folder)
        losses[name], errors[name] = [], []
        for row in rows:
            logits, lengths = connector.read(*pad_frames([cache.frames(row["id"]).float()]))
            tokens = tokenizer(row["text"], add_special_tokens=False, return_tensors="pt").input_ids
            target = connector.classes_of(tokens)
            loss, unfit = ctc_loss(logits, lengths, target, torch.tensor([target.shape[1]]), connector.blank)
            losses[name].append(torch.nan if unfit else float(loss))
            best = logits[0].argmax(-1).unique_consecutive()
            text = tokenizer.decode(connector.table.token_ids[best[best != connector.blank]])
            errors[name].append(edit_distance(row["text"].split(), text.split()))
    own, padded = (torch.tensor(losses[name], dtype=torch.float64) for name in FOLDERS.values())
    fit = ~own.isnan()
    speakers = sorted({row["speaker"] for row in rows})
    member = torch.tensor([[row["speaker"] == speaker for row in rows] for speaker in speakers]) & fit
    sums = member.double() @ torch.stack([padded - own, symbols.double()], 1).where(fit[:, None], 0.0)
    drawn = torch.randint(len(speakers), (10_000, len(speakers)), generator=torch.Generator().manual_seed(0))
    totals = sums[drawn].sum(1)
    low, high = torch.quantile(totals[:, 0] / totals[:, 1], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    values = [f"{float(loss[fit].sum() / symbols[fit].sum()):.3f}" for loss in (own, padded)]
    wrong = [f"{100 * sum(errors[name]) / int(symbols.sum()):.1f}" for name in FOLDERS.values()]
    difference = f"{float(sums[:, 0].sum() / sums[:, 1].sum()):+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"| {seed} | {' | '.join(values)} | {difference} | {' | '.join(wrong)} |"


def report(out: Path, seeds: int, symbols: float) -> str:
    """Markdown tables of what has finished: held-out loss per symbol (`symbols` per utterance), and seconds."""
    heads = " | ".join(SETTINGS)
    lines = [f"| seed | update | {heads} | difference |", "|---:|---:|---:|---:|---:|"]
    for seed in range(seeds):
        folders = [out / f"align-{name}-{seed}" for name in FOLDERS.values()]
        if not all((folder / "trainer_state.json").exists() for folder in folders):
            continue
        own, padded = map(evaluations, folders)
        for step in sorted(own.keys() & padded.keys()):
            share = 100 * (padded[step] / own[step] - 1)
            values = f"{own[step] / symbols:.3f} | {padded[step] / symbols:.3f} | {share:+.1f} %"
            lines.append(f"| {seed} | {step} | {values} |")
    seconds = json.loads((out / "seconds.json").read_text(encoding="utf-8"))
    lines += ["", f"| seconds of | {heads} |", "|---|---:|---:|"]
    for name in ["frames", *(f"align-{seed}" for seed in range(seeds))]:
        kind, *seed = name.split("-")
        own, padded = (seconds.get("-".join([kind, folder, *seed]), "") for folder in FOLDERS.values())
        lines.append(f"| {name} | {own} | {padded} |")
    return "\n".join(lines)


def main(data: Path, audio: str, text: str, out: Path, seeds: int, steps: int) -> None:
    """Manifests, frames, trainings, table."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {"data": str(data), "manifest": digest_of(data / "manifest.jsonl"), "audio": audio, "text": text}
    used = any(path for pattern in ("frames-*", "reader-*", "align-*") for path in out.glob(pattern))
    check_settings(out / "settings.json", settings | {"steps": steps}, used)
    rows = split_rows(data)
    manifests = write_manifests(rows, out)
    for name, part in rows.items():
        print(f"{name}: {len(part)} clips of {len({row['speaker'] for row in part})} speakers", flush=True)
    for name, padded in zip(FOLDERS.values(), SETTINGS.values(), strict=True):
        frames = {"output_dir": out / f"frames-{name}", "dtype": "bfloat16", "device": "cpu"}
        frames |= {"audio": audio, "text": text, "connector": "stack_mlp", "pad_to_window": padded}
        run("encode", frames | {"dataset": list(manifests.values())}, out, "frames/index.json")
    texts = [row["text"] for part in rows.values() for row in part]
    for seed in range(seeds):
        for name, padded in zip(FOLDERS.values(), SETTINGS.values(), strict=True):
            model = out / f"reader-{name}-{seed}"
            compose_reader(audio, text, padded, seed, texts, model)
            schedule = {"max_steps": steps, "warmup_steps": steps // 10, "eval_steps": steps // 4, "save_steps": steps}
            settings = {"model": model, "seed": seed} | TRAINING | schedule
            settings |= {"dataset": manifests["train"], "eval_dataset": manifests["test"]}
            settings |= {"frames_cache": out / f"frames-{name}", "output_dir": out / f"align-{name}-{seed}"}
            run("align", settings, out, "training_args.json")
    symbols = sum(len(row["text"].split()) for row in rows["test"]) / len(rows["test"])
    table = report(out, seeds, symbols) + "\n\n| seed | loss, own | padded | difference | symbol errors % | padded |\n"
    table += "|---:|---:|---:|---:|---:|---:|\n" + "\n".join(compare(out, seed, rows["test"]) for seed in range(seeds))
    (out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--audio", required=True, help="Hub id or folder of a Whisper checkpoint")
    parser.add_argument("--text", required=True, help="Hub id or folder of an LLM")
    parser.add_argument("--out", type=Path, required=True, help="folder of frames, trainings and the table")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    main(**vars(parser.parse_args()))
