"""Speech for the requests, from espeak-ng, and its log-mel features on disk.

An utterance is a sentence said by a voice variant at a rate (words per minute) and a pitch (0..99), all drawn by a
hash of (split, sentence, repetition). A voice that crashes the library costs one utterance, which is reported.
"""

import functools
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.world import LANGUAGES, Frame, frames_of, stable_hash
from speechllm.speech_synthesis import SAMPLING_RATE, SynthesisError
from speechllm.speech_synthesis.espeak import speak

MEL_BINS = 64
HOP = 320  # samples per mel frame: 50 Hz, hence encoder frames at 25 Hz
WINDOW_SECONDS = 10
RATES = range(170, 251, 5)  # words per minute
PITCHES = range(25, 76, 5)
BASE_VOICES = {
    "en": ("en-us", "en-gb-x-rp"),
    "zh": ("cmn",),
    "vi": ("vi",),
    "id": ("id",),
    "es": ("es", "es-419"),
    "de": ("de",),
}
VARIANTS = {
    "train": (
        "Alex Andy Annie Denis Diogo Gene Hugo Jacky Lee Marco Michael Mike Nguyen Reed RicishayMax Storm adam "
        "aunty belinda benjamin boris caleb david ed f1 f3 f4 grandma grandpa gustave ian iven john linda "
        "m1 m2 m4 m5 m7 marcelo max michel miguel norbert paul quincy robert sandro shelby steph travis zac klatt"
    ).split(),
    "validation": "Henrique edward f5 iven3 m6 steph3".split(),
    "test": "Alicia Mario f2 m3 m8 pablo victor rob kaukovalta mike2".split(),
}
REPETITIONS = {"train": 3, "validation": 1, "test": 1}
NUMBER_REPETITIONS = 8  # bare numbers are few and short
SHARD_SIZE = 1024  # utterances


@dataclass(frozen=True)
class Utterance:
    """One recording to make: a request in a language, and who says it how."""

    split: str
    language: str
    kind: str
    key: str
    text: str
    voice: str
    rate: int
    pitch: int
    seed: int


def utterances(split: str) -> list[Utterance]:
    """The recordings of a split, in an order that mixes kinds and languages."""
    planned = [_utterance(frame, language, turn) for frame, language, turn in _plan(split)]
    return sorted(planned, key=lambda utterance: utterance.seed)


def _plan(split: str) -> Iterator[tuple[Frame, str, int]]:
    for frame in frames_of(split):
        for language in LANGUAGES:
            for turn in range(NUMBER_REPETITIONS if frame.kind == "number" else REPETITIONS[split]):
                yield frame, language, turn


def _utterance(frame: Frame, language: str, turn: int) -> Utterance:
    text = frame.text(language)
    seed = stable_hash(f"{frame.split}|{language}|{text}|{turn}")
    draw = random.Random(seed)
    voice = f"{draw.choice(BASE_VOICES[language])}+{draw.choice(VARIANTS[frame.split])}"
    rate, pitch = draw.choice(RATES), draw.choice(PITCHES)
    return Utterance(frame.split, language, frame.kind, frame.key, text, voice, rate, pitch, seed)


def record(utterance: Utterance) -> np.ndarray:
    """The utterance at 16 kHz: a random level, up to a fifth of a second of near-silence on either side."""
    samples = speak(utterance.text, utterance.voice, utterance.rate, utterance.pitch)
    draw = np.random.default_rng(utterance.seed)
    samples *= draw.uniform(0.2, 0.9) / max(np.abs(samples).max(), 1e-4)
    before, after = draw.integers(0, SAMPLING_RATE // 5, size=2)
    samples = np.pad(samples, (before, after))
    return (samples + draw.normal(0, 10 ** draw.uniform(-4.5, -3), samples.shape)).astype(np.float32)


@functools.cache
def feature_extractor():
    """The nano model's feature extractor: 64 mel bins at 50 Hz, ten-second windows."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(
        feature_size=MEL_BINS, sampling_rate=SAMPLING_RATE, hop_length=HOP, chunk_length=WINDOW_SECONDS, n_fft=400
    )


def log_mel(samples: np.ndarray, extractor=None) -> np.ndarray:
    """Log-mel features (mel_bins, ceil(samples / hop)) of one clip alone, not padded to the window."""
    extractor = extractor or feature_extractor()
    padded = np.pad(samples, (0, -len(samples) % extractor.hop_length))
    features = extractor(
        padded,
        sampling_rate=extractor.sampling_rate,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_tensors="np",
    )
    return np.asarray(features["input_features"][0], dtype=np.float32)


def _try_record(utterance: Utterance) -> np.ndarray | None:
    """The recording, or None where espeak-ng crashed on this voice and sentence (in a process of its own)."""
    try:
        return record(utterance)
    except SynthesisError:
        return None


def build(out: Path, workers: int = 2) -> None:
    """Synthesises every split into `out/speech/{split}-{shard}.safetensors`; finished shards are kept."""
    from safetensors.numpy import save_file

    folder = out / "speech"
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for split in VARIANTS:
        rows = utterances(split)
        pieces = [rows[start : start + SHARD_SIZE] for start in range(0, len(rows), SHARD_SIZE)]
        shards += [(folder / f"{split}-{index:03d}.safetensors", piece) for index, piece in enumerate(pieces)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for path, rows in tqdm(shards, desc="speech", unit="shard"):
            if path.exists():
                continue
            begin = time.monotonic()
            recordings = list(zip(rows, pool.map(_try_record, rows, chunksize=8), strict=True))
            failed = [row for row, samples in recordings if samples is None]
            rows = [row for row, samples in recordings if samples is not None]
            features = [log_mel(samples).astype(np.float16) for _, samples in recordings if samples is not None]
            for row in failed:
                tqdm.write(f"{path.stem}: espeak-ng failed on {row.text!r} with {row.voice}; left out")
            lengths = np.array([feature.shape[1] for feature in features], dtype=np.int64)
            frames = np.ascontiguousarray(np.concatenate([feature.T for feature in features]))
            manifest = json.dumps([asdict(row) for row in rows], ensure_ascii=False)
            partial = path.with_suffix(".partial")
            save_file({"frames": frames, "lengths": lengths}, partial, metadata={"rows": manifest})
            partial.replace(path)
            log(out, "speech: done", shard=path.stem, left_out=len(failed), seconds=time.monotonic() - begin)


def load(out: Path, split: str) -> tuple[list[dict], list[np.ndarray]]:
    """The rows of a split and their float16 log-mels, each (mel_frames, mel_bins)."""
    from safetensors import safe_open

    rows: list[dict] = []
    features: list[np.ndarray] = []
    for path in sorted((out / "speech").glob(f"{split}-*.safetensors")):
        with safe_open(path, framework="np") as shard:
            rows += json.loads(shard.metadata()["rows"])
            ends = shard.get_tensor("lengths").cumsum()
            features += np.split(shard.get_tensor("frames"), ends[:-1])
    return rows, features
