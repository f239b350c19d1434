"""`speechllm align`, `imitate`, `distill`, `targets`, `encode`, `inspect` and `transcribe`: their help; the work is in
`trainers.commands` and `speechllm.evaluation`."""

from collections.abc import Sequence
from typing import Any

from .loading import report
from .pages import page

HELP = {
    "inspect": "look at data before training: lengths, findings, memory, time, settings",
    "transcribe": "let an ASR model write missing transcripts, and the WER of given ones",
    "targets": "let the LLM answer prompts about transcripts: what a connector learns to imitate",
    "encode": "run the frozen encoder once over the data, for trainings that read its frames from disk",
    "align": "train a connector to spell the transcript in the LLM's tokens (CTC)",
    "imitate": "train a connector on answers, as the LLM that reads gives them",
    "distill": "train a connector to move the LLM to where the transcript moves it",
}
DESCRIPTIONS = {
    "inspect": "Says what is in a data set and, with a model, what a training on it takes; see {data}.",
    "transcribe": "Writes the rows with text where it is missing and wer where it is not; see {data}.",
    "targets": "Writes the LLM's answers about the transcripts of a dataset; see {targets}.",
    "encode": "Writes what the frozen encoder makes of a dataset; see {caching}.",
    "align": "Stage 1 of BLOOMZMMS: CTC over the LLM's embeddings; see {training}.",
    "imitate": "Cross-entropy on answers, divergence from the LLM that reads, or both; see {training}.",
    "distill": "DiVA, LAD and response distillation; see {training}.",
}
SETTINGS = """\

Settings come from a YAML recipe, a file or a packaged one by name, and from options, which win. A setting that does
not exist is refused with the nearest that does. A command that was stopped goes on when it is given again.
"""
DATA = "  python -m benchmarks.nanoworld.recordings --out nano-data     spoken requests, in a clone of the repository"
EXAMPLES = {
    "inspect": ["speechllm inspect --dataset nano-data/train --model nano"],
    "transcribe": [
        "speechllm transcribe --dataset nano-data/train --asr openai/whisper-tiny --out nano-transcribed",
        "speechllm align --config nano-align --dataset nano-transcribed --max_wer 0.1",
    ],
    "targets": ["speechllm targets --config nano-targets", "head nano-targets/manifest.json"],
    "encode": ["speechllm encode --config nano-encode"],
    "align": ["speechllm align --config nano-align", "speechllm align --config nano-align --learning_rate 1e-3"],
    "imitate": [
        "speechllm targets --config nano-targets",
        "speechllm imitate --config nano-imitate",
        'speechllm ask nano-data/validation/00000.wav "Transcribe the speech." --model nano-imitate',
    ],
    "distill": ["speechllm distill --config nano-distill"],
}


def add_parsers(commands: Any) -> None:
    """Lists the commands among the subparsers; `main` hands them their arguments before any parser does."""
    for name, text in HELP.items():
        commands.add_parser(name, help=text, add_help=False)


def run(command: str, arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status, 2 if a package is missing."""
    try:
        import speechllm
        from trainers.commands import run as commands
    except (ImportError, OSError, RuntimeError) as error:
        report(f"a package is missing or broken ({error}). Run: speechllm doctor")
        return 2
    lines = "\n".join(f"  {line}" for line in EXAMPLES[command])
    example = f"60 seconds with it, on a CPU:\n{DATA}\n{lines}\n"
    known = {name: page(name) for name in ("data", "targets", "caching", "training")}
    description = f"{DESCRIPTIONS[command].format(**known)}\n{SETTINGS}"
    elsewhere = {}
    if command == "transcribe":
        from speechllm.evaluation.transcripts import TranscribeConfig, transcribe
        from trainers.commands.arguments import DataArguments, LaunchArguments

        elsewhere = {"classes": (TranscribeConfig, DataArguments, LaunchArguments), "work": transcribe}
    return commands.main(command, arguments, description, example, speechllm.MODELS, **elsewhere)
