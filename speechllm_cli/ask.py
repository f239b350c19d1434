"""`speechllm ask`: recordings and an instruction in, answers out."""

import argparse
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from .loading import CommandError, embedded, load_pipeline, report

# File names that end so are meant as audio also where no such file exists: a typing error, not an instruction.
AUDIO_SUFFIXES = set(".aac .aif .aiff .amr .au .caf .flac .m4a .mka .mp3 .mp4 .oga .ogg .opus .wav .webm .wma".split())
# ISO 639-1, and the two codes that Whisper has beyond it.
LANGUAGES = set(
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en "
    "eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja "
    "jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb "
    "nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq "
    "sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu haw "
    "yue".split()
)
DESCRIPTION = """\
Ask about recordings. The last argument is the instruction, unless it is a file, "-" or named like an audio file.
Each recording is asked on its own; with --together all go into one prompt, in the order given.
"""
EXAMPLE = """\
60 seconds with it, in a clone of the repository:
  speechllm ask speechllm/small/examples/guitars.ogg "What does the company make?"
  speechllm ask speechllm/small/examples/*.ogg "Transcribe the speech."
  speechllm ask speechllm/nano/examples/*.wav "Which language is spoken?" --model nano
  cat question.mp3 | speechllm ask - "What is being asked?" --json

A recording that cannot be used is reported in one line on standard error; the others are still answered and the
exit status is 2. So is a recording that the model could not make out, whose answer is a guess, where the checkpoint
says how sure it must be (nano does), and an answer that was cut at its longest; the status stays 0. --json prints one
object per answer: audio, instruction, answer, model, finish_reason (stop, or length where it was cut), and then
understood: true or false. A model whose connector reads tells where it read nothing at all: the answer says so, and
--json has no_speech: true or false.
"""


def add_parser(commands: Any) -> None:
    """Adds `ask` to the subparsers."""
    parser = commands.add_parser(
        "ask",
        help="ask about recordings",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] AUDIO [AUDIO ...] [INSTRUCTION]",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="AUDIO ... INSTRUCTION",
        help='audio files, http(s) addresses or "-" (an audio file on standard input), then the instruction in quotes',
    )
    parser.add_argument(
        "--model", metavar="ID_OR_FOLDER", help="a SpeechLLM checkpoint, or small (the default) or nano"
    )
    parser.add_argument("--together", action="store_true", help="put all recordings into one prompt")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest answer in tokens")
    parser.add_argument(
        "--language", type=_language, metavar="CODE", help="hint which language is spoken (en, zh, ...), if you know"
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--stream", action="store_true", help="print the answer while it is made")
    output.add_argument("--json", action="store_true", help="print one JSON object per answer")
    parser.set_defaults(run=run)


def positive(text: str) -> int:
    """A number of tokens, as an argument's type."""
    number = int(text) if re.fullmatch(r"\s*-?\d{1,18}\s*", text) else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens; give 1 or more")
    return number


def _language(text: str) -> str:
    if re.split("[-_]", text.lower())[0] not in LANGUAGES:
        raise argparse.ArgumentTypeError(f"{text!r} is no language code known here; give one such as en, zh or vi")
    return text


def split_inputs(inputs: list[str]) -> tuple[list[str], str | None]:
    """(recordings, instruction or None): the last of several inputs is the instruction unless it names audio."""
    *others, last = inputs
    return (inputs, None) if not others or _names_audio(last) else (others, last)


def _names_audio(text: str) -> bool:
    if _elsewhere(text) or os.path.exists(text):
        return True
    return Path(text).suffix.lower() in AUDIO_SUFFIXES and not re.search(r"\s", text)


def _is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _elsewhere(name: str) -> bool:
    """Whether a recording is no path: standard input, a web address, or one that holds or names a file itself."""
    return name == "-" or _is_url(name) or name.lower().startswith(("file:", "data:"))


def _shown(name: str) -> str:
    """A recording's name in a message; one that holds a file itself is shortened."""
    return name if not name.lower().startswith("data:") else f"{name[:40]}..."


def _source(name: str) -> Any:
    """A recording as the processor takes it."""
    if name == "-":
        return sys.stdin.buffer.read()
    return {"url": name} if _is_url(name) else name


def run(arguments: argparse.Namespace) -> int:
    """Answers about every recording; returns 0, or 2 if one could not be used."""
    names, instruction = split_inputs(arguments.inputs)
    try:
        if names.count("-") > 1:
            raise CommandError('"-" is given twice, but standard input holds one recording. Give it once.')
        missing = [name for name in names if not (_elsewhere(name) or os.path.exists(os.path.expanduser(name)))]
        if len(missing) == len(names):  # else the others are answered
            for name in missing:
                found = f"{name}: no such file. Check" if name else "The name of the audio file is empty. Give"
                report(f"{found} the path.")
            return 2
        pipe = load_pipeline(arguments.model)
    except CommandError as error:
        report(error)
        return 2
    from processing_speechllm.pipeline_prompts import DEFAULT_INSTRUCTION

    model = arguments.model or embedded()
    instruction = DEFAULT_INSTRUCTION if instruction is None else instruction
    options = {} if arguments.max_new_tokens is None else {"max_new_tokens": arguments.max_new_tokens}
    if arguments.language is not None:
        connector = pipe.model.config.connector
        if connector.get("gate"):
            options["language"] = arguments.language
        else:
            report(
                f"note: --language {arguments.language} has no effect: the {connector['type']} connector of {model} "
                "takes no hint."
            )
    status = 0
    for group in [names] if arguments.together else [[name] for name in names]:
        label = f"{group[0]}:" if len(names) > 1 and not arguments.together else ""
        try:
            if arguments.stream:
                if label:
                    print(label, flush=True)
                answer(pipe, group, instruction, streamer=_streamer(pipe), **options)
                continue
            text, marks = answer(pipe, group, instruction, **options)
        except ValueError as error:  # the processor's and the pipeline's, AudioError among them, name the remedy
            report(error)
            status = 2
            continue
        if arguments.json:
            audio = group if arguments.together else group[0]
            row = {"audio": audio, "instruction": instruction, "answer": text, "model": model}
            print(json.dumps(row | marks, ensure_ascii=False), flush=True)
        else:
            print(label, text, sep=" " if label else "", flush=True)
    return status


def _streamer(pipe: Any) -> Any:
    from transformers import TextStreamer

    return TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)


def answer(pipe: Any, names: list[str], instruction: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """
    The answer about the recordings `names` in one prompt, and what is known of it: `finish_reason`, and where the
    checkpoint tells, `understood`, whether all were made out, and `no_speech`, whether there was none in any. Warnings
    about them, which could not be made out, and that an answer was cut go to standard error.
    """
    least = pipe.processor.min_audio_confidence
    row = {"audio": [_source(name) for name in names], "instruction": instruction}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        (found,) = pipe(row, return_confidence=least is not None, return_finish_reason=True, **options)
    for warning in caught:
        if warning.category is UserWarning:
            report(f"warning: {warning.message}")
    marks = {name: found[name] for name in ("finish_reason", "no_speech") if name in found}
    if found["finish_reason"] == "length":
        report(
            f"{', '.join(map(_shown, names))}: the answer was cut at the most tokens it may have. --max-new-tokens N "
            "sets more, as far as the LLM's positions go."
        )
    if least is None:
        return found["generated_text"], marks
    for name, heard in zip(names, found["confidence"], strict=True):
        if not heard["understood"]:
            report(
                f"{_shown(name)}: I could not make that out (confidence {heard['score']:.3f}, {least:.3f} is needed), "
                "so the answer is a guess. It may be silence, noise, or speech unlike what this model was trained on."
            )
    return found["generated_text"], {"understood": all(heard["understood"] for heard in found["confidence"])} | marks
