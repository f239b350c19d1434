"""`speechllm doctor`: what is installed, what works, and what to do about the rest.

Each check is a generator of findings and runs behind a guard, so that a broken package is a line of the report and
never its end.
"""

import argparse
import importlib
import importlib.util
import io
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

from hub_cards.findings import Finding, describe, guarded, print_findings

from . import demo
from .loading import CommandError, ask_pipeline, load_pipeline

EXAMPLE = """\
60 seconds with it:
  speechllm doctor

Each line is "ok", "note" (works, with something to know) or "FAIL" with what to do. The exit status is 1 after any
FAIL, else 0.
"""
MINIMUM_PYTHON = (3, 11)
# torchaudio's last release fits a range of torch's CUDA builds only, so the three are installed together.
TORCH_FAMILY = ("torch", "torchaudio", "torchcodec")
IMPORT_NAMES = {"pyyaml": "yaml"}  # packages that are imported by another name
TORCH_REMEDY = (
    'pip install --force-reinstall "torch>=2.11,<2.15" "torchaudio>=2.11" "torchcodec>=0.17" (from PyPI also for use '
    "on the CPU: torchaudio 2.11 does not load beside CPU-only wheels of torch)"
)


# Packages that are installed together, and may be hidden by others of the same name.
PACKAGES = ("modeling_speechllm", "processing_speechllm", "trainers", "hub_cards", "speechllm")
REINSTALL = "pip install --force-reinstall --no-deps . in a clone of the repository"


def add_parser(commands: Any) -> None:
    """Adds `doctor` to the subparsers."""
    parser = commands.add_parser(
        "doctor",
        help="check the installation",
        description="Checks versions, devices, decoders and that the embedded model answers.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    detail = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info >= MINIMUM_PYTHON:
        yield Finding("ok", "python", detail)
    else:
        wanted = ".".join(map(str, MINIMUM_PYTHON))
        yield Finding("FAIL", "python", detail, f"make a virtual environment with Python {wanted} or newer")


def check_packages() -> Iterator[Finding]:
    """speechllm itself, and each package that it declares: installed, in the declared range, and importable."""
    from packaging.requirements import Requirement

    yield Finding("ok", "speechllm", metadata.version("speechllm"))
    for line in metadata.requires("speechllm") or []:
        requirement = Requirement(line)
        if requirement.marker is None:  # else it belongs to an extra
            yield check_package(requirement)


def check_package(requirement: Any) -> Finding:
    """One declared package."""
    name = requirement.name
    remedy = TORCH_REMEDY if name in TORCH_FAMILY else f'pip install --force-reinstall "{requirement}"'
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("FAIL", name, "is not installed", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("FAIL", name, f"{version} is outside {requirement.specifier}", remedy)
    try:
        importlib.import_module(IMPORT_NAMES.get(name, name.replace("-", "_")))
    except Exception as error:  # ImportError, but also OSError and RuntimeError from binaries that do not fit
        return Finding("FAIL", name, f"{version} cannot be imported: {describe(error)}", remedy)
    return Finding("ok", name, version)


def check_extras() -> Iterator[Finding]:
    """Each extra that the package declares: installed whole and in the declared range, or how to get it."""
    from packaging.requirements import Requirement

    extras: dict[str, list[Any]] = {
        name: [] for name in metadata.metadata("speechllm").get_all("Provides-Extra") or []
    }
    for line in metadata.requires("speechllm") or []:
        requirement = Requirement(line)
        for name, wanted in extras.items():
            if requirement.marker is not None and requirement.marker.evaluate({"extra": name}):
                wanted.append(requirement)
    for name, wanted in extras.items():
        states = [describe_extra(requirement) for requirement in wanted]
        missing = [state for state, is_fine in states if not is_fine]
        remedy = f'pip install ".[{name}]" in a clone of the repository' if missing else ""
        detail = f"not whole: {', '.join(missing)}" if missing else ", ".join(state for state, _ in states)
        yield Finding("note" if missing else "ok", f"extra {name}", detail, remedy)


def describe_extra(requirement: Any) -> tuple[str, bool]:
    """A package of an extra with its version, and whether it is there in the declared range."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed", False
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is outside {requirement.specifier}", False
    return f"{requirement.name} {version}", True


def check_places() -> Iterator[Finding]:
    """Whether the packages that are installed together are imported from the same place: `trainers` and `hub_cards`
    are names that other projects, or a folder in the current directory, may have too."""
    home = Path(__file__).parents[1].resolve()
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is None or not found.submodule_search_locations:
            yield Finding("FAIL", name, f"is not where speechllm is, in {home}", REINSTALL)
            continue
        place = Path(next(iter(found.submodule_search_locations))).resolve()
        if place.parent != home:
            remedy = f"rename or uninstall {place}, or run in another folder: it stands before the {name} of speechllm"
            yield Finding("FAIL", name, f"is imported from {place}, not from {home / name}", remedy)
    yield Finding("ok", "place", str(home))


def check_devices() -> Iterator[Finding]:
    """What torch can compute on. An absent GPU is no failure."""
    import torch

    yield Finding("ok", "cpu", f"{torch.get_num_threads()} of {os.cpu_count()} threads used")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("ok", "cuda", f"{torch.version.cuda}: {', '.join(names)}")
    else:
        yield Finding("note", "cuda", "not available, the CPU is used")
    if torch.backends.mps.is_available():
        yield Finding("ok", "mps", "available")


def check_decoders() -> Iterator[Finding]:
    """Decodes a tone in each common format; torchcodec, which serves the rarer ones, may lack FFmpeg."""
    import numpy as np
    import soundfile

    from processing_speechllm import load_audio

    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)).astype(np.float32)
    for name in ("WAV", "FLAC", "MP3", "OGG"):
        file = io.BytesIO()
        soundfile.write(file, tone, 24000, format=name)
        samples = load_audio(file.getvalue(), sampling_rate=16000)
        heard = float(np.sqrt(np.mean(samples**2)))
        if abs(len(samples) - 16000) > 1600 or not 0.25 < heard < 0.45:
            detail = f"a tone of 1 s came back as {len(samples) / 16000:.2f} s of level {heard:.2f}"
            remedy = 'pip install --force-reinstall "soundfile>=0.13" "soxr>=1.0"'
            yield Finding("FAIL", f"decode {name}", detail, remedy)
        else:
            yield Finding("ok", f"decode {name}", "1 s at 24 kHz came back as 1 s at 16 kHz")
    try:
        from torchcodec.decoders import AudioDecoder

        AudioDecoder(file.getvalue()).get_all_samples()  # FFmpeg is first looked for here
        yield Finding("ok", "decode others", "torchcodec with FFmpeg: M4A, MP4, WebM, ...")
    except (ImportError, OSError, RuntimeError):
        remedy = "install FFmpeg (4 to 9) if you need them, or convert the files to WAV"
        yield Finding("note", "decode others", "M4A, MP4, WebM: torchcodec finds no FFmpeg here", remedy)


def check_embedded_model() -> Iterator[Finding]:
    """The embedded model answers one packaged recording as expected."""
    started = time.perf_counter()
    pipe = load_pipeline(None)
    import speechllm

    example = demo.load_examples(Path(speechllm.MODELS[speechllm.DEFAULT]) / "examples")[0]
    question = example["questions"][0]
    answer = ask_pipeline(pipe, [example["file"]], question["instruction"])
    seconds = time.perf_counter() - started
    detail = f"{Path(example['file']).name}, “{question['instruction']}”: “{answer}” ({seconds:.1f} s)"
    if answer == question["expected"]:
        yield Finding("ok", "embedded model", detail)
    else:
        yield Finding(
            "FAIL",
            "embedded model",
            f"{detail}, expected “{question['expected']}”",
            "reinstall speechllm: pip install --force-reinstall --no-deps . and look at the failures above",
        )


# Name for the report, the check, and what to do if it breaks down as a whole.
CHECKS: list[tuple[str, Callable[[], Iterator[Finding]], str]] = [
    ("python", check_python, "reinstall Python"),
    ("packages", check_packages, "install speechllm: pip install . in a clone of the repository"),
    ("places", check_places, REINSTALL),
    ("extras", check_extras, "install speechllm: pip install . in a clone of the repository"),
    ("devices", check_devices, TORCH_REMEDY),
    ("decoders", check_decoders, "see the failures above; pip install . in a clone of the repository repairs them"),
    ("embedded model", check_embedded_model, "see the failures above; else pip install --force-reinstall --no-deps ."),
]


def run(arguments: argparse.Namespace) -> int:
    """Prints the report as it grows; returns 1 if anything failed, else 0."""
    warnings.simplefilter("ignore")
    findings = (guarded(subject, check, remedy, CommandError) for subject, check, remedy in CHECKS)
    failures = print_findings(chain.from_iterable(findings))
    summary = f"{failures} to repair. Begin with the first: others may follow." if failures else "Everything works."
    print(f"\n{summary}")
    return 1 if failures else 0
