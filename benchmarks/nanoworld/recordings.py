"""Spoken requests as training data: WAV files, manifests and a pool of prompts that the embedded model knows.

    python -m benchmarks.nanoworld.recordings --out nano-data --count 400

    nano-data/train/00000.wav, ..., manifest.jsonl        audio, text, language, id, duration, voice
    nano-data/validation/00000.wav, ..., manifest.jsonl   other requests, other voices
    nano-data/tasks/nano.yaml                             task_folder of `speechllm targets`

Requests and voices are drawn from those of the nano world (`world.py`, `speech.py`) by the seed alone.
"""

import argparse
import json
import random
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.nanoworld import speech
from benchmarks.nanoworld.lexicon import LANGUAGE_NAMES
from benchmarks.nanoworld.prompts import PROMPTS
from benchmarks.nanoworld.world import LANGUAGES

SPLITS = ("train", "validation")
TASKS = {"transcribe": "repeat", "translate": "translate", "intent": "intent", "language": "language"}
TARGET_NAMES = {prompt: {code: LANGUAGE_NAMES[code][prompt] for code in LANGUAGES} for prompt in LANGUAGES}
VALIDATION_SHARE = 8  # one validation recording for so many of training


def choose(split: str, count: int, seed: int) -> list[speech.Utterance]:
    """`count` different utterances of a split, the same for the same seed.

    Raises:
        ValueError: the nano world has fewer.
    """
    known = speech.utterances(split)
    if not 1 <= count <= len(known):
        raise ValueError(f"The nano world has {len(known)} recordings of the split {split!r}, not {count}.")
    return random.Random(f"{seed}|{split}").sample(known, count)


def write_recording(job: tuple[Path, speech.Utterance]) -> float | None:
    """Writes one recording as 16-bit WAV; its seconds, or None where espeak-ng crashed on voice and sentence."""
    import soundfile

    path, utterance = job
    try:
        samples = speech.record(utterance)
    except RuntimeError:
        return None
    partial = path.with_suffix(".partial")
    soundfile.write(partial, np.clip(samples, -1, 1), speech.SAMPLING_RATE, subtype="PCM_16", format="WAV")
    partial.replace(path)
    return len(samples) / speech.SAMPLING_RATE


def write_split(folder: Path, rows: list[speech.Utterance], pool: ProcessPoolExecutor) -> int:
    """Writes recordings and their manifest, which comes last; returns how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.wav" for number in range(len(rows))]
    lengths = pool.map(write_recording, zip(paths, rows, strict=True), chunksize=8)
    lines = []
    for path, row, seconds in zip(paths, rows, tqdm(lengths, total=len(rows), desc=folder.name), strict=True):
        if seconds is None:
            tqdm.write(f"{path.name}: espeak-ng failed on {row.text!r} with {row.voice}; left out")
            continue
        lines.append(
            {
                "audio": path.name,
                "text": row.text,
                "language": row.language,
                "id": f"{folder.name}-{path.stem}",
                "duration": seconds,
                "voice": row.voice,
            }
        )
    partial = folder / "manifest.jsonl.partial"
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    partial.replace(folder / "manifest.jsonl")
    return len(lines)


def write_tasks(folder: Path) -> None:
    """Writes the tasks that every request allows as a prompt pool, held-out paraphrases marked."""
    from trainers.targets.prompts import Prompt, Task, save_tasks

    tasks = []
    for name, task in TASKS.items():
        prompts, numbers = [], dict.fromkeys(LANGUAGES, 0)
        for prompt in PROMPTS[name]:
            numbers[prompt.language] += 1
            place = f"{task}/{prompt.language}/{numbers[prompt.language]}"
            targets = TARGET_NAMES[prompt.language] if "{language}" in prompt.text else {}
            prompts.append(Prompt(place, prompt.language, prompt.text, prompt.held_out, targets))
        tasks.append(Task(task, tuple(prompts)))
    folder.mkdir(parents=True, exist_ok=True)
    save_tasks(tasks, folder / "nano.yaml")


def build(out: Path, count: int, seed: int = 0, workers: int = 2) -> dict[str, int]:
    """Writes `count` recordings for training, an eighth as many for validation, and the prompts; returns how many."""
    counts = {"train": count, "validation": max(count // VALIDATION_SHARE, 1)}
    chosen = {split: choose(split, counts[split], seed) for split in SPLITS}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        written = {split: write_split(out / split, rows, pool) for split, rows in chosen.items()}
    write_tasks(out / "tasks")
    return written


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--count", type=int, default=400, help="recordings for training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    begin = time.monotonic()
    written = build(arguments.out, arguments.count, arguments.seed, arguments.workers)
    parts = " and ".join(f"{count} for {split}" for split, count in written.items())
    print(f"{parts} in {arguments.out}, {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
