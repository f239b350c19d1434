"""Sentences spoken by text-to-speech (`pip install hibari-tts`): English, one natural voice at several pitches.

    python -m benchmarks.small speak --data DATA --out OUT --name tts --count 4000

Resampling moves pitch and formants together, so one voice becomes several; the synthesis speaks faster or slower to
make up for it. Texts are commands (SLURP), queries (CLINC150) and news (NTREX); a share of each is kept for the test.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample
from tqdm import tqdm

from benchmarks.small.corpora import RATE, normalized, share_of

PITCHES = (0.84, 0.89, 0.94, 1.0, 1.06, 1.12, 1.18)
TEST_PITCH = 1.09  # a voice of no training
TEXT_TEST_SHARE = 0.1


def sentences(data: Path) -> list[dict]:
    """Texts with what is known of them: `corpus`, `text`, `label` (SLURP's action, CLINC's intent)."""
    rows = []
    for line in (data / "text/slurp/slurp.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        _, scenario, action, text = line.split("\t")
        rows.append({"corpus": "slurp", "text": text, "label": f"{scenario} {action}"})
    for line in (data / "text/clinc/clinc150.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        _, intent, text = line.split("\t")
        rows.append({"corpus": "clinc", "text": text, "label": intent})
    for line in (data / "text/ntrex/en.txt").read_text(encoding="utf-8").splitlines():
        rows.append({"corpus": "ntrex", "text": line, "label": None})
    seen: set[str] = set()
    kept = []
    for row in rows:
        text = normalized(row["text"])
        if text not in seen and 2 <= len(text.split()) <= 25 and not any(letter.isdigit() for letter in text):
            seen.add(text)
            kept.append(row | {"split": "test" if share_of(text) >= 1 - TEXT_TEST_SHARE else "train"})
    return kept


def speak_row(task: tuple[int, dict, Path, int]) -> dict | None:
    """Speaks one text to a file, unless it is there; None where the synthesis makes under half a second."""
    number, row, folder, seed = task
    path = folder / "audio" / f"{number:06d}.ogg"
    rng = Random(f"{seed}|{row['text']}")
    pitch = TEST_PITCH if row["split"] == "test" else rng.choice(PITCHES)
    if not path.exists():
        wave = voice()(row["text"], speed=rng.uniform(0.85, 1.2) / pitch, seed=number)
        if len(wave) < RATE // 2:
            return None
        wave = resample(torch.from_numpy(wave), round(voice().sample_rate * pitch), RATE).numpy()
        soundfile.write(path, np.clip(wave, -1, 1), RATE, format="OGG", subtype="OPUS")
    return row | {"audio": f"audio/{path.name}", "speaker": f"heart {pitch}"}


@lru_cache(maxsize=1)
def voice() -> Any:
    """The synthesis, loaded once in each process."""
    from hibari import Hibari

    torch.set_num_threads(1)
    return Hibari()


def speak(data: Path, folder: Path, count: int, test_count: int = 200, workers: int = 1, seed: int = 0) -> None:
    """Writes `folder/audio/*.ogg` and `folder/manifest.jsonl`; what is there already is not spoken again."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows = sentences(data)
    Random(seed).shuffle(rows)
    chosen = [row for row in rows if row["split"] == "train"][:count]
    chosen += [row for row in rows if row["split"] == "test" and row["label"]][:test_count]
    tasks = [(number, row, folder, seed) for number, row in enumerate(chosen)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        spoken = pool.map(speak_row, tasks, chunksize=20)
        done = [row for row in tqdm(spoken, desc="speak", total=len(tasks), mininterval=10) if row]
    partial = folder / "manifest.partial"
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in done), encoding="utf-8")
    partial.replace(folder / "manifest.jsonl")
