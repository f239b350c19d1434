"""Recordings as encoder frames, computed once by a frozen encoder, with what was said in them.

Two sources: the nano world's own features, and any folder with a `manifest.jsonl` of spoken English number words
(`audio`, `text`, `split`, `speaker`), such as the free spoken digit dataset.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from benchmarks.nanoworld import speech
from benchmarks.nanoworld.lexicon import NUMBERS
from benchmarks.nanoworld.train_encoder import pad_features
from benchmarks.nanoworld.training import autocast
from benchmarks.nanoworld.world import Frame, frames
from modeling_speechllm.audio_towers import AudioTower

BATCH = 64


@dataclass
class Clip:
    """One recording: the request said in it, its language, its encoder frames (frames, dim), its manifest row."""

    request: Frame
    language: str
    frames: torch.Tensor
    row: dict


@torch.no_grad()
def encode(tower: AudioTower, features: list[np.ndarray], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (mel_frames, mel) -> float16 encoder frames of all clips in one tensor (frames, dim), and lengths.

    The test's are computed in float32, as the pipeline does.
    """
    tower.eval()
    order = np.argsort([len(feature) for feature in features], kind="stable")
    encoded: list[torch.Tensor] = [torch.empty(0)] * len(features)
    for start in tqdm(range(0, len(order), BATCH), desc=f"encode {name}", mininterval=5):
        part = order[start : start + BATCH]
        padded, mask = pad_features([torch.from_numpy(features[i].astype(np.float32)) for i in part])
        with autocast(tower.encoder.device, enabled=name != "test"):
            output = tower(padded.to(tower.encoder.device), mask.to(tower.encoder.device))
        for i, row, length in zip(part, output.last_hidden_state, output.lengths.tolist(), strict=True):
            encoded[i] = row[:length].half().cpu()
    return torch.cat(encoded), torch.tensor([len(row) for row in encoded])


def _cached(path: Path, tower: AudioTower, load_features) -> list[torch.Tensor]:
    """The frames stored in `path`, or computed and stored there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        flat, lengths = encode(tower, load_features(), path.stem)
        save_file({"frames": flat, "lengths": lengths}, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    with safe_open(path, framework="pt") as stored:
        return list(stored.get_tensor("frames").split(stored.get_tensor("lengths").tolist()))


def nano_clips(out: Path, split: str, tower: AudioTower) -> list[Clip]:
    """The nano world's recordings of a split."""
    rows, features = speech.load(out, split)
    encoded = _cached(out / "frames" / f"{split}.safetensors", tower, lambda: features)
    known = {(frame.key, frame.text(language)): frame for frame in frames() for language in speech.BASE_VOICES}
    return [
        Clip(known[row["key"], row["text"]], row["language"], frame, row)
        for row, frame in zip(rows, encoded, strict=True)
    ]


def digit_rows(folder: Path, speakers: tuple[str, ...], unseen: bool) -> list[dict]:
    """Manifest rows of the given (unseen) speakers, or of all others; the manifest's own split shares speakers."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    missing = set(speakers) - {row["speaker"] for row in rows}
    if missing:
        raise ValueError(f"{folder} has no speaker {', '.join(sorted(missing))}.")
    return [row for row in rows if (row["speaker"] in speakers) == unseen]


def digit_clips(folder: Path, out: Path, name: str, rows: list[dict], tower: AudioTower, extractor) -> list[Clip]:
    """Recorded number words of a folder with a manifest."""
    from processing_speechllm import load_audio

    def load_features() -> list[np.ndarray]:
        clips = [load_audio(folder / row["audio"], extractor.sampling_rate) for row in tqdm(rows, desc=f"read {name}")]
        return [speech.log_mel(clip, extractor).T for clip in clips]

    encoded = _cached(out / "frames" / f"{name}.safetensors", tower, load_features)
    values = {word: value for value, word in NUMBERS["en"].items()}
    return [
        Clip(Frame("number", (values[row["text"]],)), "en", frame, row)
        for row, frame in zip(rows, encoded, strict=True)
    ]
