"""Sentences spoken by text-to-speech (`pip install hibari-tts`): English, one natural voice at several pitches.

    python -m benchmarks.small speak --data DATA --out OUT --name tts --count 4000

Resampling moves pitch and formants together, so one voice becomes several; the synthesis speaks faster or slower to
make up for it. Texts are commands (SLURP), queries (CLINC150) and news (NTREX); a share of each is kept for the test.
"""

import json
from pathlib import Path
from random import Random

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


def speak(data: Path, folder: Path, count: int, test_count: int = 200, seed: int = 0) -> None:
    """Writes `folder/audio/*.ogg` and `folder/manifest.jsonl`; what is there already is not spoken again."""
    from hibari import Hibari

    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows = sentences(data)
    Random(seed).shuffle(rows)
    chosen = [row for row in rows if row["split"] == "train"][:count]
    chosen += [row for row in rows if row["split"] == "test" and row["label"]][:test_count]
    voice, done = Hibari(), []
    for number, row in enumerate(tqdm(chosen, desc="speak", mininterval=10)):
        path = folder / "audio" / f"{number:06d}.ogg"
        rng = Random(f"{seed}|{row['text']}")
        pitch = TEST_PITCH if row["split"] == "test" else rng.choice(PITCHES)
        if not path.exists():
            wave = voice(row["text"], speed=rng.uniform(0.85, 1.2) / pitch, seed=number)
            if len(wave) < RATE // 2:
                continue
            wave = resample(torch.from_numpy(wave), round(voice.sample_rate * pitch), RATE).numpy()
            soundfile.write(path, np.clip(wave, -1, 1), RATE, format="OGG", subtype="OPUS")
        done.append(row | {"audio": f"audio/{path.name}", "speaker": f"heart {pitch}"})
    partial = folder / "manifest.partial"
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in done), encoding="utf-8")
    partial.replace(folder / "manifest.jsonl")
