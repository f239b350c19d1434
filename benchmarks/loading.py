"""How fast audio becomes batches: seconds of audio per second of one core, by format and stage.

    python -m benchmarks.loading
    python -m benchmarks.loading --seconds 30 --workers 2   # and batches out of data workers, by the clock

Clips are the embedded model's examples of speech, one after the other, encoded by libsndfile. Each row is a stage and
all before it: decoding, log-mel features (Whisper's, 80 bands), a whole batch of the imitation collator. Times are CPU
seconds of the process, so that a machine that others use says the same.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

import speechllm
from processing_speechllm import SpeechLLMProcessor

FORMATS = {
    "WAV, 16 bit": ("WAV", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
    "Ogg Opus": ("OGG", "OPUS"),
    "Ogg Vorbis": ("OGG", "VORBIS"),
}
BATCH = 8
QUESTION = [{"type": "audio", "text": None}, {"type": "text", "text": "what was said"}]


def speech(seconds: float) -> np.ndarray:
    """Samples of speech at 16 kHz, the examples repeated."""
    files = sorted((Path(speechllm.NANO) / "examples").glob("*.wav"))
    clips = [soundfile.read(path, dtype="float32")[0] for path in files]
    joined = np.concatenate(clips)
    return np.resize(joined, round(16000 * seconds))


def rows_of(samples: np.ndarray, kind: tuple[str, str], count: int) -> list[dict[str, Any]]:
    file = BytesIO()
    soundfile.write(file, samples, 16000, format=kind[0], subtype=kind[1])
    answer = [{"role": "assistant", "content": [{"type": "text", "text": "turn off the radio in the kitchen"}]}]
    row = {
        "audio": {"bytes": file.getvalue(), "path": None},
        "text": "turn off the radio in the kitchen",
        "language": "en",
        "duration": len(samples) / 16000,
        "messages": [{"role": "user", "content": QUESTION}, *answer],
    }
    return [row | {"id": str(number)} for number in range(count)]


def rate(function: Callable[[], Any], seconds: float) -> float:
    """Seconds of audio per CPU second: the median of five after one."""
    function()
    spent = []
    for _ in range(5):
        begin = time.process_time()
        function()
        spent.append(time.process_time() - begin)
    return seconds / statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loading",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--workers", type=int, default=0, help="also by the clock, with so many data workers")
    parser.add_argument("--context", choices=("fork", "spawn"), default="fork", help="how workers start")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    from transformers import WhisperFeatureExtractor

    from trainers import SpeechImitationConfig
    from trainers.data.loaders import build_loader
    from trainers.imitation_trainer import ImitationCollator

    processor = SpeechLLMProcessor.from_pretrained(speechllm.NANO)
    settings = SpeechImitationConfig(
        "build/loading",
        per_device_train_batch_size=BATCH,
        dataloader_num_workers=arguments.workers,
        dataloader_multiprocessing_context=arguments.context if arguments.workers else None,
    )
    collate = ImitationCollator(processor, settings)
    extractor = WhisperFeatureExtractor()
    samples = speech(arguments.seconds)
    print("| format | kB per s | decoded | + features | a whole batch |" + " by the clock |" * bool(arguments.workers))
    print("|---|---:|---:|---:|---:|" + "---:|" * bool(arguments.workers))
    for name, kind in FORMATS.items():
        rows = rows_of(samples, kind, BATCH)
        drawn = [row | {"draw": (0, number)} for number, row in enumerate(rows)]

        def decoded(rows: list = rows) -> list[np.ndarray]:
            return [processor.load_audio(row["audio"]) for row in rows]

        def featured(decoded: Callable = decoded) -> None:
            for clip in decoded():
                extractor(clip, sampling_rate=16000, padding="longest", truncation=False, return_tensors="np")

        total = BATCH * arguments.seconds
        rates = [rate(function, total) for function in (decoded, featured, lambda rows=drawn: collate(rows))]
        cells = [f"{len(rows[0]['audio']['bytes']) / 1000 / arguments.seconds:.1f}", *(f"{one:,.0f}" for one in rates)]
        if arguments.workers:
            cells.append(f"{by_the_clock(build_loader, collate, settings, rows, arguments.seconds):,.0f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def by_the_clock(build_loader: Callable, collate: Any, settings: Any, rows: list, seconds: float) -> float:
    """Seconds of audio per second out of the workers, their start left out."""
    from datasets import Dataset

    batches = max(12, 6 * settings.dataloader_num_workers)
    many = Dataset.from_list([row | {"id": str(number)} for number in range(batches) for row in rows])
    loader = build_loader(many, collate, settings, 0, 1, training=True)
    times = []
    for _ in loader:
        times.append(time.monotonic())
    skipped = 2 * settings.dataloader_num_workers  # made ahead while the workers started
    return (len(times) - 1 - skipped) * BATCH * seconds / (times[-1] - times[skipped])


if __name__ == "__main__":
    main()
