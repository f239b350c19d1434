"""Trains both language gates on frozen encoder frames and reports accuracy on unseen speakers. See README.md here."""

import argparse
import collections
import hashlib
import json
import os
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoFeatureExtractor

from benchmarks.padding import check_settings, digest_of
from modeling_speechllm import build_audio_tower
from modeling_speechllm.audio_encoders import load_encoder
from modeling_speechllm.connector_base import zero_past
from modeling_speechllm.query_bank import GATES
from processing_speechllm import load_audio

PAPER_LANGUAGES = ("en", "vi", "id", "zh-CN", "es", "de")
FOLDS = 4  # a speaker is in the test of one fold and in the training of the others
CROP = 200  # frames of a training example, 4 s
BATCH = 32
RATE = 16000


def fold_of(speaker: str) -> int:
    """The fold in whose test a speaker is, the same on every machine."""
    return int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % FOLDS


@torch.no_grad()
def encode(data: Path, encoder: str, rows: list[dict], cache: Path) -> dict[str, torch.Tensor]:
    """Frames (frames, dim) in half precision of every clip, by its path; one file per language, made once.

    Raises:
        SystemExit: the cache has frames of another encoder or of other clips.
    """
    cache.mkdir(parents=True, exist_ok=True)
    settings = {"encoder": encoder, "data": str(data), "manifest": digest_of(data / "manifest.jsonl")}
    check_settings(cache / "settings.json", settings, any(cache.glob("*.st")))
    by_language = collections.defaultdict(list)
    for row in rows:
        by_language[row["language"]].append(row["audio"])
    missing = {language: clips for language, clips in by_language.items() if not (cache / f"{language}.st").exists()}
    if missing:
        extractor = AutoFeatureExtractor.from_pretrained(encoder)
        loaded = load_encoder(encoder, dtype=torch.float32)
        tower = build_audio_tower(loaded.config, encoder=loaded).requires_grad_(False).eval()
        progress = tqdm(total=sum(map(len, missing.values())), desc="encoding", unit="clip")
        for language, clips in missing.items():
            frames = {}
            for clip in clips:
                samples = load_audio(data / clip, sampling_rate=RATE)
                features = extractor(
                    samples, sampling_rate=RATE, padding=False, truncation=False, return_tensors="pt"
                ).input_features
                frames[clip] = tower(features).last_hidden_state[0].half()
                progress.update()
            partial = cache / f"{language}.partial"
            save_file(frames, partial)
            os.replace(partial, cache / f"{language}.st")
    frames = {}
    for language in by_language:
        with safe_open(cache / f"{language}.st", "pt") as file:
            frames |= {clip: file.get_tensor(clip) for clip in file.keys()}
    return frames


def split(rows: list[dict], languages: list[str], fold: int) -> tuple[list[dict], list[dict]]:
    """The rows in these languages to train on and to test with, of a fold."""
    chosen = [row for row in rows if row["language"] in languages]
    test = [row for row in chosen if fold_of(row["speaker"]) == fold]
    return [row for row in chosen if fold_of(row["speaker"]) != fold], test


def batch_of(clips: list[torch.Tensor], crop: int | None, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Padded frames (batch, frames, dim), zero past the lengths, and lengths; random crops of `crop` frames."""
    if crop is not None:
        starts = [int(torch.randint(max(len(clip) - crop, 0) + 1, (), generator=generator)) for clip in clips]
        clips = [clip[start : start + crop] for clip, start in zip(clips, starts, strict=True)]
    lengths = torch.tensor([len(clip) for clip in clips])
    frames = torch.nn.utils.rnn.pad_sequence([clip.float() for clip in clips], batch_first=True)
    return zero_past(frames, lengths), lengths


def train_gate(kind: str, train: list, test: list, languages: int, epochs: int, seed: int) -> torch.Tensor:
    """Trains a gate on (frames, label) pairs; returns the confusion counts (true, heard) on the test pairs."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    everything = torch.cat([frames for frames, _ in train]).float()
    mean, std = everything.mean(0), everything.std(0)
    gate = GATES[kind](everything.shape[1], 256, languages)
    del everything
    train = [((frames.float() - mean) / std, label) for frames, label in train]
    test = [((frames.float() - mean) / std, label) for frames, label in test]
    optimizer = torch.optim.AdamW(gate.parameters(), lr=1e-3, weight_decay=0.1)
    steps = epochs * (len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    for _ in tqdm(range(epochs), desc=f"{kind} gate, {languages} languages", unit="epoch"):
        order = torch.randperm(len(train), generator=generator).tolist()
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = [train[index] for index in order[start : start + BATCH]]
            frames, lengths = batch_of([frames for frames, _ in chosen], CROP, generator)
            frames = F.dropout(frames, 0.3)
            loss = F.cross_entropy(gate(frames, lengths), torch.tensor([label for _, label in chosen]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    confusion = torch.zeros(languages, languages, dtype=torch.long)
    with torch.no_grad():
        for start in range(0, len(test), BATCH):
            chosen = test[start : start + BATCH]
            heard = gate(*batch_of([frames for frames, _ in chosen], None, generator)).argmax(-1)
            for (_, label), answer in zip(chosen, heard.tolist(), strict=True):
                confusion[label, answer] += 1
    return confusion


def draw(confusion: torch.Tensor, languages: list[str], title: str, path: Path) -> None:
    """The confusion counts as shares of each true language."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = max(4.0, 0.22 * len(languages))
    figure, axes = plt.subplots(figsize=(size + 1.5, size))
    image = axes.imshow(confusion / confusion.sum(1, keepdim=True).clamp(min=1), vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(languages)), languages, rotation=90)
    axes.set_yticks(range(len(languages)), languages)
    axes.set_xlabel("heard")
    axes.set_ylabel("spoken")
    axes.set_title(title)
    figure.colorbar(image, label="share of the spoken language")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language_gate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--encoder", required=True, help="Hub id or folder of a Whisper checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder for cache, results and pictures")
    parser.add_argument("--epochs", type=int, default=30)
    folds = range(1, FOLDS + 1)
    parser.add_argument("--folds-all", type=int, default=1, choices=folds, help="folds run for all languages")
    arguments = parser.parse_args()
    with open(arguments.data / "manifest.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    everything = sorted({row["language"] for row in rows})
    sets = (("six", list(PAPER_LANGUAGES), FOLDS), ("all", everything, arguments.folds_all))
    for _, languages, folds in sets:
        least = min(len(split(rows, languages, fold)[0]) for fold in range(folds))
        if least < BATCH:
            parser.error(
                f"a fold has {least} clips in {', '.join(languages)} to train on, and a batch has {BATCH}. Give "
                "--data with more clips of more speakers."
            )
    if arguments.epochs < 1:
        parser.error(f"--epochs {arguments.epochs}: give 1 or more")
    frames = encode(arguments.data, arguments.encoder, rows, arguments.out / "frames")
    results = {}
    for name, languages, folds in sets:
        for kind in GATES:
            started = time.perf_counter()
            confusion = torch.zeros(len(languages), len(languages), dtype=torch.long)
            for fold in range(folds):
                train, test = (
                    [(frames[row["audio"]], languages.index(row["language"])) for row in part]
                    for part in split(rows, languages, fold)
                )
                confusion += train_gate(kind, train, test, len(languages), arguments.epochs, seed=fold)
            accuracy = float(confusion.diagonal().sum() / confusion.sum())
            recall = confusion.diagonal() / confusion.sum(1).clamp(min=1)
            results[f"{name}-{kind}"] = {
                "languages": len(languages),
                "test_clips": int(confusion.sum()),
                "accuracy": round(accuracy, 4),
                "chance": round(float(confusion.sum(1).max() / confusion.sum()), 4),
                "recall": {code: round(float(value), 3) for code, value in zip(languages, recall, strict=True)},
                "seconds": round(time.perf_counter() - started),
            }
            print(name, kind, f"accuracy {100 * accuracy:.1f} % on {int(confusion.sum())} clips of unseen speakers")
            draw(
                confusion,
                languages,
                f"{kind} gate, {len(languages)} languages: {100 * accuracy:.1f} %",
                arguments.out / f"{name}-{kind}.png",
            )
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
