"""`speechllm benchmark`: builds the papers' benchmarks; the work is in `speechllm.evaluation.benchmarks`."""

import argparse
import json
import shlex
from collections.abc import Iterator
from typing import Any

from .loading import CommandError, report
from .pages import page

EXAMPLE = f"""\
60 seconds with it:
  pip install "speechllm[tts]"
  speechllm benchmark audio-mlqa --source google/xquad --split validation --languages en de --items 5 --out mlqa
  speechllm evaluate --model nano --dataset mlqa --dataset_split test --task question --output_dir mlqa-nano

A command that was stopped goes on when it is given again. {page("benchmarks")} says what each benchmark holds.
"""
LABELLED = ("xnli", "mnli", "rte", "wnli", "qnli", "mrpc", "qqp", "sst2", "cola")


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
    for name, text, add_options in (
        ("audio-mlqa", "spoken questions about texts (LAD)", _add_audio_mlqa),
        ("mtbi", "seen prompts, unseen prompts and unseen tasks (MTBI)", _add_mtbi),
        ("bloomzmms", "recognition, translation, classification with several audios (BLOOMZMMS)", _add_bloomzmms),
    ):
        options = benchmarks.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        options.add_argument("--out", required=True, metavar="FOLDER", help="folder that is written")
        add_options(options)
        options.add_argument("--license", help="licence of the source, for the card")
        options.add_argument("--seed", type=int, default=0, help="of all that is drawn")
        options.set_defaults(run=run)


def _add_audio_mlqa(options: argparse.ArgumentParser) -> None:
    options.add_argument("--source", required=True, help="set in SQuAD's form: Hub id, JSON file or folder of these")
    options.add_argument("--languages", nargs="+", default=["en", "vi", "es", "de", "zh"], help="codes")
    options.add_argument("--items", type=int, default=250, help="questions per language; 0: all")
    options.add_argument(
        "--max_context_characters", type=int, default=2000, help="longer texts are left out and counted; 0: no limit"
    )
    options.add_argument("--split", default="test", help="split of a Hub dataset, or word in the files' names")
    options.add_argument("--config", help="configuration of a Hub dataset, with {language} for the code")
    options.add_argument("--revision", help="revision of a Hub dataset")
    _add_speech(options)


def _add_mtbi(options: argparse.ArgumentParser) -> None:
    options.add_argument("--source", required=True, help="transcribed set: Hub id, folder or manifest")
    _add_recordings(options)
    options.add_argument("--languages", nargs="+", help="only these; all if left out")
    options.add_argument("--items", type=int, default=250, help="utterances per language; 0: all")
    options.add_argument("--prompt_languages", nargs="+", help="of the prompts; that of the speech if left out")
    options.add_argument("--tasks", nargs="+", help="only these tasks of the pool")
    options.add_argument("--task_folder", help="another task pool")


def _add_bloomzmms(options: argparse.ArgumentParser) -> None:
    options.add_argument("--source", help="transcribed set to transcribe: Hub id, folder or manifest")
    _add_recordings(options)
    options.add_argument("--translation_column", help="column of the transcribed set with translations")
    options.add_argument(
        "--parallel", help="folder with a text per language (de.txt), line by line parallel, to speak"
    )
    options.add_argument("--target_languages", nargs="+", default=["en"], help="that are translated to")
    options.add_argument("--labelled", nargs="+", default=[], metavar="TASK", help=f"of {', '.join(LABELLED)}; or any")
    options.add_argument("--labelled_source", help="file, folder or Hub id of the labelled texts, not the task's own")
    options.add_argument("--labelled_split", help="of a Hub dataset, or by a table's column split")
    options.add_argument("--labelled_prompt", help="of a task of your own, with {column} for the speech of a column")
    options.add_argument("--label_column", default="label", help="of a task of your own")
    options.add_argument("--max_characters", type=int, default=400, help="longer labelled texts are left out; 0: none")
    options.add_argument("--languages", nargs="+", help="only these of recordings; those of texts (en if left out)")
    options.add_argument("--items", type=int, default=250, help="per task and language; 0: all")
    _add_speech(options)


def _add_recordings(options: argparse.ArgumentParser) -> None:
    options.add_argument("--split", default="test", help="split of the transcribed set; a manifest is one: train")
    options.add_argument("--dataset_config", help="configuration of a Hub dataset")
    options.add_argument("--columns", type=json.loads, help='other names of columns, as \'{"sentence": "text"}\'')
    options.add_argument("--language", help="code, if the rows do not say theirs")


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
    planners = {"audio-mlqa": _audio_mlqa, "mtbi": _mtbi, "bloomzmms": _bloomzmms}
    try:
        for plan, folder, synthesizer in list(planners[arguments.benchmark](arguments)):  # all plans before any work
            print(_written(plan, folder, synthesizer, arguments))
    except (ValueError, OSError, ImportError, BackendError, CommandError) as error:
        report(error)
        return 2
    return 0


def _audio_mlqa(arguments: argparse.Namespace) -> Iterator[tuple[Any, str, Any]]:
    """The plan, where it goes, and who speaks."""
    from speechllm.evaluation.benchmarks.audio_mlqa import AudioMLQASettings, plan_audio_mlqa

    synthesizer, voices = _synthesizer(arguments)
    settings = AudioMLQASettings(
        source=arguments.source,
        languages=arguments.languages,
        items=arguments.items or None,
        max_context_characters=arguments.max_context_characters or None,
        split=arguments.split,
        config=arguments.config,
        revision=arguments.revision,
        voices_per_gender=arguments.voices_per_gender,
        voices=voices,
        license=arguments.license,
        seed=arguments.seed,
    )
    yield plan_audio_mlqa(settings, synthesizer), arguments.out, synthesizer


def _mtbi(arguments: argparse.Namespace) -> Iterator[tuple[Any, str, Any]]:
    """The plans, where they go; nobody speaks."""
    from speechllm.evaluation.benchmarks.mtbi import MTBISettings, plan_mtbi

    settings = MTBISettings(
        source=arguments.source,
        languages=arguments.languages,
        items=arguments.items or None,
        prompt_languages=arguments.prompt_languages,
        tasks=arguments.tasks,
        task_folder=arguments.task_folder,
        license=arguments.license,
        seed=arguments.seed,
        **_recordings(arguments),
    )
    for plan in plan_mtbi(settings):
        yield plan, f"{arguments.out}/{plan.task}", None


def _bloomzmms(arguments: argparse.Namespace) -> Iterator[tuple[Any, str, Any]]:
    """The plans for all that was given, where they go, and who speaks."""
    from speechllm.evaluation.benchmarks import bloomzmms, labelled

    if not (arguments.source or arguments.parallel or arguments.labelled):
        raise CommandError("nothing to build from. Give --source, --parallel or --labelled.")
    if arguments.translation_column and arguments.parallel:
        raise CommandError("translations come from --translation_column or from --parallel. Give one of them.")
    if arguments.translation_column and (not arguments.source or len(arguments.target_languages) > 1):
        raise CommandError("--translation_column needs --source, and --target_languages to name its one language.")
    speaks = arguments.parallel or arguments.labelled
    synthesizer, voices = _synthesizer(arguments) if speaks else (None, [])
    draw = bloomzmms.Draw(
        items=arguments.items or None,
        seed=arguments.seed,
        voices_per_gender=arguments.voices_per_gender,
        voices=voices,
        license=arguments.license,
    )
    if arguments.source:
        recordings = {**_recordings(arguments), "languages": arguments.languages}
        plan = bloomzmms.plan_transcription(arguments.source, draw, **recordings)
        yield plan, f"{arguments.out}/transcribe", None
        if arguments.translation_column:
            plan = bloomzmms.plan_recorded_translation(
                arguments.source, draw, arguments.target_languages[0], arguments.translation_column, **recordings
            )
            yield plan, f"{arguments.out}/translate", None
    if arguments.parallel:
        languages = arguments.languages or ["en"]
        plan = bloomzmms.plan_spoken_translation(
            arguments.parallel, draw, synthesizer, languages, arguments.target_languages
        )
        yield plan, f"{arguments.out}/translate", synthesizer
    if arguments.labelled:
        tasks = [
            labelled.find_task(name, arguments.labelled_prompt, arguments.label_column) for name in arguments.labelled
        ]
        plan = bloomzmms.plan_classification(
            tasks,
            draw,
            synthesizer,
            arguments.languages or ["en"],
            arguments.labelled_source,
            arguments.labelled_split,
            arguments.max_characters or None,
        )
        yield plan, f"{arguments.out}/classify", synthesizer


def _recordings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What says how a transcribed set is read."""
    names = {"split": "split", "dataset_config": "name", "columns": "columns", "language": "language"}
    return {name: getattr(arguments, option) for option, name in names.items()}


def _synthesizer(arguments: argparse.Namespace) -> tuple[Any, list]:
    """The synthesizer, and the voices that are named."""
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
