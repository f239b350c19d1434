"""`speechllm benchmark`: builds the papers' benchmarks; the work is in `speechllm.evaluation.benchmarks`."""

import argparse
import shlex
from typing import Any

from .loading import report

EXAMPLE = """\
60 seconds with it:
  pip install "speechllm[tts]"
  speechllm benchmark audio-mlqa --source google/xquad --split validation --languages en de --items 5 --out mlqa
  speechllm evaluate --model nano --dataset mlqa --dataset_split test --task question --output_dir mlqa-nano

A command that was stopped goes on when it is given again. docs/benchmarks.md says what each benchmark holds.
"""


def add_parser(commands: Any) -> None:
    """Adds `benchmark`, with a subparser for each benchmark, to the subparsers."""
    parser = commands.add_parser(
        "benchmark",
        help="build the benchmarks of the papers: audio-mlqa, mtbi, bloomzmms",
        description="Builds a benchmark from data that you have; `speechllm evaluate` then scores models on it.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    benchmarks = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", dest="benchmark", required=True)
    for name, text, add_options in (("audio-mlqa", "spoken questions about texts (LAD)", _add_audio_mlqa),):
        options = benchmarks.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        options.add_argument("--out", required=True, metavar="FOLDER", help="folder that is written")
        add_options(options)
        options.add_argument("--license", help="licence of the source, for the card")
        options.add_argument("--seed", type=int, default=0, help="of all that is drawn")
        options.set_defaults(run=run)


def _add_audio_mlqa(options: argparse.ArgumentParser) -> None:
    options.add_argument("--source", required=True, help="set in SQuAD's form: Hub id, JSON file or folder of these")
    options.add_argument("--languages", nargs="+", default=["en", "vi", "es", "de", "zh"], help="codes")
    options.add_argument("--items", type=int, default=250, help="questions per language")
    options.add_argument(
        "--max_context_characters", type=int, default=2000, help="longer texts are left out and counted; 0: no limit"
    )
    options.add_argument("--split", default="test", help="split of a Hub dataset, or word in the files' names")
    options.add_argument("--config", help="configuration of a Hub dataset, with {language} for the code")
    options.add_argument("--revision", help="revision of a Hub dataset")
    _add_speech(options)


def _add_speech(options: argparse.ArgumentParser) -> None:
    speech = options.add_argument_group("speech synthesis")
    speech.add_argument("--synthesizer", default="espeak", help="espeak, hibari, or an endpoint: http://host/v1")
    speech.add_argument("--speech_model", help="the endpoint's name of its speech model")
    speech.add_argument("--api_key_variable", help="environment variable that holds the endpoint's key")
    speech.add_argument("--voices_per_gender", type=int, default=5, help="voices per language and gender")
    speech.add_argument("--voices", nargs="+", default=[], help="these instead: name, name:f or name:m")


def run(arguments: argparse.Namespace) -> int:
    """Builds; returns 0, or 2 where input or settings cannot be used."""
    try:
        from trainers.targets.endpoints import BackendError
    except (ImportError, OSError, RuntimeError) as error:
        report(f"a package is missing or broken ({error}). Run: speechllm doctor")
        return 2
    try:
        for line in BUILDERS[arguments.benchmark](arguments):
            print(line)
    except (ValueError, OSError, ImportError, BackendError) as error:
        report(error)
        return 2
    return 0


def _build_audio_mlqa(arguments: argparse.Namespace) -> list[str]:
    from speechllm.evaluation.benchmarks.audio_mlqa import AudioMLQASettings, plan_audio_mlqa

    synthesizer, voices = _synthesizer(arguments)
    settings = AudioMLQASettings(
        source=arguments.source,
        languages=arguments.languages,
        items=arguments.items,
        max_context_characters=arguments.max_context_characters or None,
        split=arguments.split,
        config=arguments.config,
        revision=arguments.revision,
        voices_per_gender=arguments.voices_per_gender,
        voices=voices,
        license=arguments.license,
        seed=arguments.seed,
    )
    return [_written(plan_audio_mlqa(settings, synthesizer), arguments.out, synthesizer, arguments)]


def _synthesizer(arguments: argparse.Namespace) -> tuple[Any, list]:
    from speechllm.speech_synthesis import load_synthesizer
    from speechllm.speech_synthesis.voices import parse_voice

    voices = [parse_voice(text) for text in arguments.voices]
    return load_synthesizer(arguments.synthesizer, arguments.speech_model, arguments.api_key_variable, voices), voices


def _written(plan: Any, out: str, synthesizer: Any, arguments: argparse.Namespace) -> str:
    """Writes a plan; what became of it, as a line."""
    from speechllm.evaluation.benchmarks.building import build, reasons_line

    result = build(plan, out, synthesizer, f"speechllm {shlex.join(arguments.command_line)}")
    left_out = reasons_line(result["dropped"])
    return f"{out}: {result['rows']} rows, {result['seconds'] / 60:.1f} minutes of speech. " + (
        f"Left out: {left_out} (see dropped.jsonl)." if left_out else "Nothing was left out."
    )


BUILDERS = {"audio-mlqa": _build_audio_mlqa}
