"""python -m benchmarks.small STAGE --out OUT ...: see the README beside."""

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from benchmarks.small.reading import ReadingSettings

AUDIO_SIZE = 512


def hear(arguments: argparse.Namespace) -> None:
    """Encoder frames and Whisper's readings of recordings."""
    from benchmarks.small.corpora import SOURCES, recordings, spoken_recordings
    from benchmarks.small.frame_store import FrameStore
    from benchmarks.small.hearing import Whisper, hear

    whisper = Whisper(arguments.parents / "whisper-base")
    for source in arguments.source:
        known = source in SOURCES
        rows = recordings(arguments.data, source) if known else spoken_recordings(arguments.out / "speech" / source)
        hear(rows, whisper, FrameStore(arguments.out / "frames" / source, AUDIO_SIZE, write=True), read=known)


def speak(arguments: argparse.Namespace) -> None:
    """Sentences spoken by text-to-speech."""
    from benchmarks.small.speaking import speak

    speak(arguments.data, arguments.out / "speech" / arguments.name, arguments.count)


def read(arguments: argparse.Namespace) -> None:
    """Stage 1: the connector learns to read."""
    from benchmarks.small.reading import read

    settings = {field.name: getattr(arguments, field.name) for field in fields(ReadingSettings)}
    settings["sources"] = tuple(settings["sources"])
    read(arguments.out, arguments.parents, arguments.run_name, ReadingSettings(**settings), arguments.minutes)


def measure(arguments: argparse.Namespace) -> None:
    """How a run reads and what the LLM makes of it."""
    from benchmarks.small.measuring import measure

    measure(arguments.out, arguments.parents, arguments.run_name, arguments.count)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.small", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    stages = parser.add_subparsers(dest="stage", required=True)
    stage = stages.add_parser("hear", help=hear.__doc__)
    stage.add_argument("--data", type=Path, required=True)
    stage.add_argument("--parents", type=Path, required=True)
    stage.add_argument("--out", type=Path, required=True)
    stage.add_argument("--source", nargs="+", required=True)
    stage.set_defaults(run=hear)
    stage = stages.add_parser("speak", help=speak.__doc__)
    stage.add_argument("--data", type=Path, required=True)
    stage.add_argument("--out", type=Path, required=True)
    stage.add_argument("--name", default="tts", help="name of the recordings' folder, and a source for hear and read")
    stage.add_argument("--count", type=int, default=4000, help="sentences for training")
    stage.set_defaults(run=speak)
    stage = stages.add_parser("read", help=read.__doc__)
    stage.add_argument("--parents", type=Path, required=True)
    stage.add_argument("--out", type=Path, required=True)
    stage.add_argument("--run", dest="run_name", required=True, help="name of the run's folder")
    stage.add_argument("--minutes", type=float, default=1e9, help="stop after so many, resumable")
    for field in fields(ReadingSettings):
        plural = {"nargs": "+", "type": str} if field.name == "sources" else {"type": type(field.default)}
        stage.add_argument(f"--{field.name}", default=field.default, **plural)
    stage.set_defaults(run=read)
    stage = stages.add_parser("measure", help=measure.__doc__)
    stage.add_argument("--parents", type=Path, required=True)
    stage.add_argument("--out", type=Path, required=True)
    stage.add_argument("--run", dest="run_name", required=True)
    stage.add_argument("--count", type=int, default=100, help="recordings of each source")
    stage.set_defaults(run=measure)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
