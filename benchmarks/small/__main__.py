"""python -m benchmarks.small STAGE --out OUT ...: see the README beside."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.small.accepting import PARTS
from benchmarks.small.adapting import AdaptSettings
from benchmarks.small.imitating import ImitationSettings
from benchmarks.small.reading import BINS, ReadingSettings

WHOLE = {
    "device": "cuda", "sentences": 20000, "answered": 12000, "steps": 20000, "share": 0.6, "workers": 14, "batch": 128,
}  # fmt: skip
Settings = TypeVar("Settings", ReadingSettings, ImitationSettings, AdaptSettings)


def speak(arguments: argparse.Namespace) -> None:
    """Sentences spoken by text-to-speech."""
    from benchmarks.small.speaking import speak

    folder = arguments.out / "speech" / arguments.name
    speak(arguments.data, folder, arguments.count, workers=arguments.workers)


def hear(arguments: argparse.Namespace) -> None:
    """Log-mel features and Whisper's readings of recordings."""
    from benchmarks.small.corpora import SOURCES, recordings, spoken_recordings
    from benchmarks.small.frame_store import FrameStore
    from benchmarks.small.hearing import hear

    for source in arguments.source:
        known = source in SOURCES
        rows = recordings(arguments.data, source) if known else spoken_recordings(arguments.out / "speech" / source)
        hear(
            rows,
            arguments.parents / "whisper-base",
            FrameStore(arguments.out / "mel" / source, BINS, write=True),
            arguments.out / "readings.jsonl",
            known,
            arguments.device,
            arguments.batch_seconds,
            arguments.workers,
        )


def read(arguments: argparse.Namespace) -> None:
    """Stage 1: the connector learns to read."""
    from benchmarks.small.reading import read

    settings = settings_of(ReadingSettings, arguments)
    read(arguments.out, arguments.parents, arguments.run_name, settings, arguments.minutes, arguments.device)


def answers(arguments: argparse.Namespace) -> None:
    """What the LLM answers to instructions about the transcripts."""
    from benchmarks.small.imitating import teacher_answers

    batch = 64 if arguments.device == "cpu" else 1024
    teacher_answers(
        arguments.out, arguments.parents, arguments.sources, arguments.count, arguments.device, batch=batch
    )


def imitate(arguments: argparse.Namespace) -> None:
    """Stage 2: the LLM that hears answers as the LLM that reads."""
    from benchmarks.small.imitating import imitate

    settings, place = settings_of(ImitationSettings, arguments), (arguments.out, arguments.parents)
    imitate(*place, arguments.run_name, arguments.start, settings, arguments.minutes, arguments.device)


def adapt(arguments: argparse.Namespace) -> None:
    """LoRA on the LLM, from Whisper's readings, for a connector that reads with its decoder."""
    from benchmarks.small.adapting import adapt

    settings, place = settings_of(AdaptSettings, arguments), (arguments.data, arguments.parents, arguments.out)
    adapt(*place, arguments.run_name, arguments.minutes, settings, arguments.start)


def measure(arguments: argparse.Namespace) -> None:
    """How a run reads and what the LLM makes of it."""
    from benchmarks.small.measuring import measure

    measure(arguments.out, arguments.parents, arguments.run_name, arguments.count, arguments.device)


def ship(arguments: argparse.Namespace) -> None:
    """A trained run as a folder that the pipeline loads."""
    from benchmarks.small.shipping import ship_trained, ship_whole

    place = (arguments.run_folder, arguments.parents, arguments.out)
    if arguments.gguf is None:
        ship_trained(*place, arguments.reading, arguments.storage or "float16", arguments.tokens)
    else:
        more = (arguments.reading, arguments.data, arguments.storage or "int8", arguments.tokens)
        sizes = ship_whole(*place, arguments.gguf, *more)
        print(f"{sum(sizes.values()) / 1e6:.1f} MB in {arguments.out}")


def accept(arguments: argparse.Namespace) -> None:
    """Whether a shipped model is good enough, as a table."""
    from benchmarks.small.accepting import accept

    parts = tuple(arguments.parts)
    accept(arguments.model, arguments.parents, arguments.data, arguments.out, arguments.count, parts, arguments.dtype)


def silence(arguments: argparse.Namespace) -> None:
    """How likely it is, to the connector that reads with Whisper's decoder, that nothing is said."""
    from benchmarks.small.silence import silence

    for line in silence(arguments.parents, arguments.data, arguments.whisper, arguments.count):
        print(line, flush=True)


def pack(arguments: argparse.Namespace) -> None:
    """Files for a machine without network, in pieces."""
    from benchmarks.small.whole import pack

    print(f"{pack(arguments.out, arguments.file)} pieces in {arguments.out}")


def convert(arguments: argparse.Namespace) -> None:
    """An LLM in a GGUF file beside its tokenizer, as a float16 folder."""
    from benchmarks.small.whole import convert_gguf

    convert_gguf(arguments.folder)


def whole(arguments: argparse.Namespace) -> None:
    """Everything, on one GPU."""
    from benchmarks.small.whole import whole

    names = ("pieces", "work", "results", "minutes", "run_settings", *WHOLE)
    values = {name.removesuffix("_settings"): getattr(arguments, name) for name in names}
    whole(**values)


def settings_of(kind: type[Settings], arguments: argparse.Namespace) -> Settings:
    """A dataclass of settings from the options of its names."""
    values = {field.name: getattr(arguments, field.name) for field in fields(kind)}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def add_settings(stage: argparse.ArgumentParser, kind: type) -> None:
    """An option per field of a dataclass of settings."""
    for field in fields(kind):
        plural = {"nargs": "+", "type": str} if field.name == "sources" else {"type": type(field.default)}
        stage.add_argument(f"--{field.name}", default=field.default, **plural)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.small", description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    stages = parser.add_subparsers(dest="stage", required=True)
    made = {}
    for run in (speak, hear, read, answers, imitate, adapt, measure):
        stage = made[run.__name__] = stages.add_parser(run.__name__, help=run.__doc__)
        stage.set_defaults(run=run)
        stage.add_argument("--out", type=Path, required=True)
        if run in (speak, hear, adapt):
            stage.add_argument("--data", type=Path, required=True)
        if run is not speak:
            stage.add_argument("--parents", type=Path, required=True, help="folder of whisper-base and the LLM")
            stage.add_argument("--device", default="cpu")
        if run in (read, imitate, adapt, measure):
            stage.add_argument("--run", dest="run_name", required=True, help="name of the run's folder")
        if run in (read, imitate, adapt):
            stage.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    for name in ("speak", "hear"):
        made[name].add_argument("--workers", type=int, default=1)
    made["speak"].add_argument("--name", default="tts", help="of the recordings: a source for hear, read, imitate")
    made["speak"].add_argument("--count", type=int, default=4000, help="sentences for training")
    made["hear"].add_argument("--source", nargs="+", required=True)
    made["hear"].add_argument("--batch_seconds", type=float, default=240, help="of audio at a time")
    made["adapt"].add_argument("--start", help="run whose adapter it begins with, brought to this rank")
    made["imitate"].add_argument("--start", required=True, help="run whose connector it begins with")
    made["answers"].add_argument("--sources", nargs="+", default=["cv_en", "cv_unlabelled"])
    made["answers"].add_argument("--count", type=int, default=8000, help="recordings, drawn from the sources")
    made["measure"].add_argument("--count", type=int, default=100, help="recordings of each source")
    add_settings(made["read"], ReadingSettings)
    add_settings(made["imitate"], ImitationSettings)
    add_settings(made["adapt"], AdaptSettings)
    stage = stages.add_parser("ship", help=ship.__doc__)
    stage.set_defaults(run=ship)
    stage.add_argument("--run", dest="run_folder", type=Path, required=True, help="folder of the run")
    stage.add_argument("--reading", type=Path, help="folder of the run that trained the encoder, if another")
    stage.add_argument("--gguf", type=Path, help="the LLM's file: everything in one folder, with it")
    stage.add_argument("--tokens", type=int, default=50_000, help="that Whisper's decoder may write, at most")
    stage.add_argument("--storage", help="precision of what was trained: float16, int8, int6, int5, int4")
    stage.add_argument("--data", type=Path, help="for six example recordings in that folder")
    stage.add_argument("--parents", type=Path, required=True, help="folder of whisper-base and the LLM")
    stage.add_argument("--out", type=Path, required=True)
    stage = stages.add_parser("accept", help=accept.__doc__)
    stage.set_defaults(run=accept)
    for name, text in (
        ("model", "folder that ship made"),
        ("parents", "folder of whisper-base and the LLM"),
        ("data", "see hear"),
        ("out", "of tables, answers and made recordings"),
    ):
        stage.add_argument(f"--{name}", type=Path, required=True, help=text)
    stage.add_argument("--count", type=int, default=150, help="rows of each part at most")
    stage.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="by default all")
    stage.add_argument("--dtype", default="auto", help="precision in which models answer")
    stage = stages.add_parser("silence", help=silence.__doc__)
    stage.set_defaults(run=silence)
    stage.add_argument("--parents", type=Path, required=True, help="folder of Whisper and the LLM")
    stage.add_argument("--data", type=Path, required=True, help="see hear")
    stage.add_argument("--whisper", default="whisper-base", help="which of the parents")
    stage.add_argument("--count", type=int, default=20, help="sounds of each kind; of speech ten times as many")
    stage = stages.add_parser("pack", help=pack.__doc__)
    stage.set_defaults(run=pack)
    stage.add_argument("--out", type=Path, required=True)
    stage.add_argument("--file", nargs="+", required=True, help="NAME=PATH: name in the archive, file or folder")
    stage = stages.add_parser("convert", help=convert.__doc__)
    stage.set_defaults(run=convert)
    stage.add_argument("--folder", type=Path, required=True)
    stage = stages.add_parser("whole", help=whole.__doc__)
    stage.set_defaults(run=whole)
    for name in ("pieces", "work", "results"):
        stage.add_argument(f"--{name}", type=Path, required=True)
    stage.add_argument("--minutes", type=float, default=8.0)
    stage.add_argument("--run", dest="run_settings", nargs="+", default=[""], help="settings of read, a text per run")
    for name, value in WHOLE.items():
        stage.add_argument(f"--{name}", type=type(value), default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every length of a batch, 6 ms each
    arguments.run(arguments)


if __name__ == "__main__":
    main()
