"""The first answer of a whole process, and what of it is the import of torch and transformers.

    python -m benchmarks.first_answer

Each run is a process of its own, in turns: nothing but the imports that any pipeline of an audio model makes, and
`speechllm ask` on a recording of some seconds with either model of the package. Wall and CPU seconds, medians.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import speechllm

from .long_audio import child_output

IMPORTS = """
import torch
from transformers import AutoModel, GenerationMixin, Pipeline, PreTrainedModel, ProcessorMixin, WhisperFeatureExtractor
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder
"""
CLIP = Path(speechllm.NANO) / "examples" / "en.wav"
SMALL_CLIP = Path(speechllm.SMALL) / "examples" / "guitars.ogg"
ASK = ["-m", "speechllm_cli", "ask"]
CASES = {
    "import torch": ["-c", "import torch"],
    "torch and transformers' classes": ["-c", IMPORTS],
    "`speechllm ask --model nano`, whole process": [*ASK, str(CLIP), "what was said", "--model", "nano"],
    "`speechllm ask`, whole process": [*ASK, str(SMALL_CLIP), "what was said"],
}


def run(arguments: list[str], name: str) -> tuple[float, float]:
    """Wall and CPU seconds of a process; `name` says which one failed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    child_output(arguments, name)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_answer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for turn in range(arguments.turns + 1):
        for name, case in CASES.items():
            times = run(case, name)
            if turn:  # the first brings files into the disk cache
                found[name].append(times)
    print("| process | wall s | CPU s |\n|---|---:|---:|")
    for name, times in found.items():
        wall, cpu = (statistics.median(values) for values in zip(*times, strict=True))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
