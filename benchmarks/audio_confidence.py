"""Does a checkpoint know what it cannot make out? Calibrates and measures `min_audio_confidence`.

    python -m benchmarks.audio_confidence --foreign data/common_voice data/fsdd
    python -m benchmarks.audio_confidence --model my-model --known my-data/validation my-data/test --write

Recordings that the checkpoint knows come from two folders with a `manifest.jsonl`, or for the embedded model from the
nano world: the first (other sentences and voices than the training's) sets the threshold, below which `--share` of it
lie; the second tells how many known recordings are refused wrongly. `--foreign` are folders of real speech from
outside its world; silence, noise, music and tones are made here. Needs the extra `tts` for the nano world. `--write`
puts the threshold into the checkpoint's `processor_config.json`.
"""

import argparse
import json
import os
import random
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

RATE = 16_000
SEED = 0


def nano_world(split: str, count: int) -> list[np.ndarray]:
    """Recordings of the nano world, samples at 16 kHz."""
    from benchmarks.nanoworld.recordings import choose
    from benchmarks.nanoworld.speech import _try_record

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        made = pool.map(_try_record, choose(split, count, SEED))
        return [samples for samples in tqdm(made, total=count, desc=split) if samples is not None]


def folder_sample(folder: Path, count: int) -> list[str]:
    """Paths of recordings drawn from a folder's manifest."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    drawn = random.Random(SEED).sample(rows, min(count, len(rows)))
    return [str(folder / row["audio"]) for row in drawn]


def noise(draw: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """White, pink and brown noise of half a second to six, at levels from -80 dB to -6 dB of full scale."""
    for number in range(count):
        samples = draw.standard_normal(int(RATE * draw.uniform(0.5, 6)))
        spectrum = np.fft.rfft(samples)
        spectrum[1:] /= np.arange(1, len(spectrum)) ** (number % 3 / 2)
        samples = np.fft.irfft(spectrum, len(samples))
        yield 10 ** draw.uniform(-4, -0.3) * samples / np.abs(samples).max()


def silence(draw: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """The noise of a quiet line, below -70 dB; every eighth is digital silence."""
    for number in range(count):
        samples = draw.standard_normal(int(RATE * draw.uniform(0.5, 6)))
        yield (number % 8 > 0) * 10 ** draw.uniform(-6, -3.5) * samples


def music(draw: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Plucked major chords with three partials each, in random keys and lengths."""
    for _ in range(count):
        samples = np.zeros(int(RATE * draw.uniform(1, 8)))
        start = 0
        while start < len(samples):
            length = int(RATE * draw.choice([0.125, 0.25, 0.5]))
            time = np.arange(min(length, len(samples) - start)) / RATE
            root = 220 * 2 ** (draw.integers(-12, 13) / 12)
            pitches = [root * step * partial for step in (1, 1.25, 1.5, 2) for partial in (1, 2, 3)]
            chord = sum(np.sin(2 * np.pi * pitch * time) / (index % 3 + 1) for index, pitch in enumerate(pitches))
            samples[start : start + len(time)] = chord * np.exp(-3 * time)
            start += length
        yield 10 ** draw.uniform(-2, -0.1) * samples / np.abs(samples).max()


def tones(draw: np.random.Generator, count: int) -> Iterator[np.ndarray]:
    """Pure tones of 80 to 3000 Hz."""
    for _ in range(count):
        time = np.arange(int(RATE * draw.uniform(0.5, 4))) / RATE
        yield 0.3 * np.sin(2 * np.pi * draw.uniform(80, 3000) * time)


def scores(pipe, clips: list, name: str) -> np.ndarray:
    """The confidence of each recording, as the pipeline's `return_confidence` gives it, without an answer."""
    import torch

    from processing_speechllm.confidence import audio_confidences, read_embeddings

    found, table = [], pipe.model.get_input_embeddings().weight
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", UserWarning)  # digital silence
        for clip in tqdm(clips, desc=name):
            source = clip if isinstance(clip, str) else (clip.astype(np.float32), RATE)
            inputs = pipe.processor.audio_inputs([pipe.processor.load_audio(source)])
            features, mask = (torch.from_numpy(inputs[key]) for key in ("input_features", "input_features_mask"))
            audio = pipe.model.get_audio_features(features.to(pipe.model.dtype), mask, return_dict=True)
            found += audio_confidences(*read_embeddings(pipe.processor, audio, mask), table)
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint (default: the embedded one)")
    parser.add_argument("--known", nargs=2, type=Path, metavar="FOLDER", help="to calibrate and to test (nano world)")
    parser.add_argument("--foreign", nargs="*", type=Path, default=[], metavar="FOLDER", help="real speech")
    parser.add_argument("--count", type=int, default=300, help="recordings of each kind (300)")
    parser.add_argument("--share", type=float, default=0.02, help="of the calibrating ones below the threshold (0.02)")
    parser.add_argument("--write", action="store_true", help="put the threshold into the checkpoint (a folder)")
    arguments = parser.parse_args()
    names = [folder.name for folder in arguments.foreign]
    if arguments.count < 3 or len(set(names)) < len(names):
        parser.error("give --count 3 or more, and --foreign folders of different names.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if arguments.known:
        known = [folder_sample(folder, arguments.count) for folder in arguments.known]
    else:
        known = [nano_world(split, arguments.count) for split in ("validation", "test")]

    from transformers import pipeline

    import speechllm

    pipe = pipeline("speech-instruct", model=arguments.model or speechllm.NANO, device="cpu")
    calibrating, testing = (scores(pipe, clips, name) for clips, name in zip(known, ("known", "test"), strict=True))
    threshold = round(float(np.quantile(calibrating, arguments.share)), 3)
    print(f"min_audio_confidence: {threshold}\n")
    print("| recordings | n | median | could not make out, % |\n|---|---:|---:|---:|")
    draw = np.random.default_rng(SEED)
    kinds = {f"{folder.name} (real speech)": folder_sample(folder, arguments.count) for folder in arguments.foreign}
    made = {make.__name__: list(make(draw, arguments.count // 3)) for make in (silence, noise, music, tones)}
    rows = {"known, calibrating": calibrating, "known, test": testing}
    for name, found in rows.items():
        print(line(name, found, threshold))
    for name, clips in {**kinds, **made}.items():
        print(line(name, scores(pipe, clips, name), threshold), flush=True)
    if arguments.write:
        pipe.processor.min_audio_confidence = threshold
        pipe.processor.save_pretrained(arguments.model or speechllm.NANO)


def line(name: str, found: np.ndarray, threshold: float) -> str:
    return f"| {name} | {len(found)} | {np.median(found):.3f} | {100 * (found < threshold).mean():.1f} |"


if __name__ == "__main__":
    main()
