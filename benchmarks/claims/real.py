"""The real world of the claims: Whisper, SmolLM2 and Gemma as they are, people's recordings and synthetic ones.

    OUT/real/speech/                what espeak-ng says of NTREX, as Ogg Opus
    OUT/real/data/SET/              training rows; those of imitation with the LLM's answers (`speechllm targets`)
    OUT/real/questions/SET/         built by `speechllm benchmark`, on speakers and texts that no training hears
    OUT/real/frames-six/            what Whisper makes of LAD's rows, and where reading them leads Gemma
    OUT/real/frames-english/        what it makes of the English ones; rows of two utterances are heard on line
    OUT/real/frames-reading/        the same with the silence after them that a connector that reads needs

`--parents` holds `whisper-base`, `gemma3-270m`, `smollm2-135m-instruct`; `--data` holds `common_voice`,
`common_voice_en` (each with `manifest.jsonl`: `audio`, `text`, `language`, `speaker`), `xquad` (SQuAD files),
`text/ntrex` (parallel sentences, one a line), `text/clinc/clinc150.tsv` (split, intent, text).
"""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from benchmarks.claims.commands import run_command
from benchmarks.claims.worlds import World, by_language, read_rows, write_rows

LANGUAGES = ("en", "vi", "id", "zh", "es", "de")  # LAD's
QUESTION_LANGUAGES = ("en", "vi", "es", "de", "zh")  # of Audio-MLQA
RATE = 16000
LONGEST = 110  # characters of a synthetic sentence
UNSEEN_SHARE = 5  # one speaker in so many is kept from training
ANSWER_TOKENS = 48
ONE_UTTERANCE = ("en-transcribe", "en-one-task", "en-tasks", "six-T", "six-MI", "six-TMI")  # English, by SmolLM2
SENTINEL = "done.json"
BEGUN = "begun.json"  # the size of a world that is on its way
PARENTS = ("whisper-base", "gemma3-270m", "smollm2-135m-instruct")
SOURCES = ("common_voice", "common_voice_en", "xquad", *(f"text/ntrex/{code}.txt" for code in LANGUAGES))
SOURCES += ("text/clinc/clinc150.tsv",)


@dataclass(frozen=True)
class Size:
    """
    How much of the data is taken.

    Args:
        spoken: synthetic training sentences per language.
        people: recordings of people per language, at most; of English for MTBI and BLOOMZMMS ten times as many.
        validation: recordings of unseen speakers per language.
        items: questions per language and benchmark.
    """

    spoken: int = 300
    people: int = 60
    validation: int = 12
    items: int = 25


GPU_SIZE = Size(spoken=1500, people=60, validation=15, items=100)
CPU_SIZE = Size()


def is_unseen(speaker: str) -> bool:
    """Whether a speaker is kept for validation and questions, the same on every machine."""
    return int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % UNSEEN_SHARE == 0


def people(data: Path, folder: str) -> Iterator[dict[str, Any]]:
    """Rows of a folder with a manifest: absolute paths, languages without their region, ids."""
    rows = read_rows(data / folder)
    if rows is None:
        raise FileNotFoundError(f"{data / folder} has no manifest.jsonl. --data is a folder that holds {folder}.")
    for row in rows:
        path = (data / folder / row["audio"]).resolve()
        language = row["language"].partition("-")[0]
        yield row | {"audio": str(path), "language": language, "id": path.stem, "recording": path.stem}


def speak(data: Path, folder: Path, size: Size, seed: int) -> list[dict[str, Any]]:
    """NTREX in synthetic voices, the same sentences in all languages; what is spoken already stays."""
    from speechllm.speech_synthesis import SynthesisError, choose_voices, load_synthesizer

    folder.mkdir(parents=True, exist_ok=True)
    synthesizer = load_synthesizer("espeak")
    texts = {
        language: (data / "text/ntrex" / f"{language}.txt").read_text(encoding="utf-8").splitlines()
        for language in LANGUAGES
    }
    lines = [n for n in range(len(texts["en"])) if all(0 < len(texts[code][n]) <= LONGEST for code in LANGUAGES)]
    random.Random(seed).shuffle(lines)
    rows, failed = [], 0
    for language in LANGUAGES:
        voices = choose_voices(synthesizer, language)
        for number in tqdm(lines[: size.spoken], desc=f"speak {language}", mininterval=5):
            rng = random.Random(f"{seed}|{language}|{number}")
            name, text = f"ntrex-{language}-{number:04d}", texts[language][number]
            path = folder / f"{name}.ogg"
            if not path.exists():
                try:
                    samples = synthesizer.speak(text, rng.choice(voices).name)
                except SynthesisError:
                    failed += 1
                    continue
                partial = path.with_suffix(".partial")
                soundfile.write(partial, np.clip(samples, -1, 1), RATE, format="OGG", subtype="OPUS")
                partial.replace(path)
            row = {"id": name, "recording": name, "audio": str(path.resolve()), "text": text, "language": language}
            rows.append(row | {"speaker": "espeak"})
    if failed:
        print(f"{failed} sentences could not be spoken; left out", flush=True)
    return rows


def check_sources(parents: Path, data: Path) -> None:
    """
    Raises:
        FileNotFoundError: what of the parents and of the data is not there, all of it.
    """
    wanted = {"--parents": [parents / name for name in PARENTS], "--data": [data / name for name in SOURCES]}
    missing = [f"{option}: {path}" for option, paths in wanted.items() for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"Not there: {', '.join(missing)}. README.md here tells what these folders hold.")


def build(out: Path, parents: Path, data: Path, device: str = "cpu", size: Size | None = None, seed: int = 0) -> World:
    """
    Makes the world, or goes on making it, and describes it; a world that is whole is used as it is.

    Args:
        size: by default the smaller on a CPU and the larger elsewhere. Given, a world of another size is refused.
    """
    check_sources(parents, data)
    place = out / "real"
    world = describe(place, parents)
    done = place / SENTINEL
    if done.exists():
        found = json.loads(done.read_text(encoding="utf-8"))
        if size and found != vars(size) | {"seed": seed}:
            raise ValueError(f"{place} holds a real world of another size. Give another --out, or remove it.")
        print(
            f"the real world in {place}: {', '.join(f'{name} {value}' for name, value in found.items())}", flush=True
        )
        return world
    size = size or (CPU_SIZE if device == "cpu" else GPU_SIZE)
    asked = vars(size) | {"seed": seed}
    begun = place / BEGUN
    if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != asked:
        raise ValueError(
            f"{place} was begun in another size: {begun.read_text(encoding='utf-8')}. Go on with the --device of "
            "then, or give another --out."
        )
    place.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(asked), encoding="utf-8")
    spoken = speak(data, place / "speech", size, seed)
    six_languages(place, data, spoken, size)
    english(place, data, world, size, seed)
    questions(place, data, size, seed)
    encode(place, world, device)
    done.write_text(json.dumps(asked), encoding="utf-8")
    return world


def six_languages(place: Path, data: Path, spoken: list[dict[str, Any]], size: Size) -> None:
    """LAD's rows: synthetic sentences and people; validation and open requests are of unseen people."""
    recorded = by_language([row for row in people(data, "common_voice") if row["language"] in LANGUAGES], LANGUAGES)
    synthetic = by_language(spoken, LANGUAGES)
    sets: dict[str, list] = {"six": [], "six-validation": []}
    for language in LANGUAGES:
        train = [row for row in recorded[language] if not is_unseen(row["speaker"])][: size.people]
        unseen = [row for row in recorded[language] if is_unseen(row["speaker"])][: size.validation]
        sets[f"six-{language}"] = train + synthetic[language]
        sets[f"six-validation-{language}"] = unseen
        sets["six"] += sets[f"six-{language}"]
        sets["six-validation"] += unseen
    for name, rows in sets.items():
        write_rows(place / "data" / name, rows, place)
    requests = [
        row | {"messages": [{"role": "user", "content": [{"type": "audio"}]}], "task": f"open {row['language']}"}
        for row in sets["six-validation"]
    ]
    write_rows(place / "questions" / "open", requests, place)
    for language, part in by_language(requests, LANGUAGES).items():
        write_rows(place / "questions" / f"open-{language}", part, place)


def english(place: Path, data: Path, world: World, size: Size, seed: int) -> None:
    """The English rows of MTBI and BLOOMZMMS, answered by SmolLM2, and the unseen speakers that are asked about."""
    rows = list(people(data, "common_voice_en"))
    train = [row for row in rows if not is_unseen(row["speaker"])][: 10 * size.people]
    unseen = [row for row in rows if is_unseen(row["speaker"])][: size.items * 4]
    source = write_rows(place / "data" / "english", train, place)
    write_rows(place / "data" / "english-unseen", unseen, place)
    model = world.parents["mtbi"]["text"]
    common = {"dataset": [source], "model": model, "seed": seed, "batch_size": 32, "max_new_tokens": ANSWER_TOKENS}
    sets = {
        "en-transcribe": {"target_set": "T"},
        "en-one-task": {"target_set": "continuation"},
        "en-tasks": {"target_set": "BI"},
        "en-phrases": {"target_set": "BI", "utterances_per_row": 2},
        "six-T": {"target_set": "T", "fixed_prompt": "Repeat the sentence: {audio}. "},
        "six-MI": {"target_set": "MI"},
        "six-TMI": {"target_set": "TMI", "fixed_prompt": "Repeat the sentence: {audio}. "},
    }
    for name, settings in sets.items():
        run_command("targets", common | settings | {"output_dir": world.data[name]})


def questions(place: Path, data: Path, size: Size, seed: int) -> None:
    """Audio-MLQA, MTBI and BLOOMZMMS, as `speechllm benchmark` builds them."""
    folder, items = place / "questions", str(size.items)
    mlqa = ["audio-mlqa", "--source", str(data / "xquad"), "--license", "cc-by-sa-4.0"]
    sets = {"closed": QUESTION_LANGUAGES} | {f"closed-{code}": (code,) for code in QUESTION_LANGUAGES}
    for name, languages in sets.items():
        options = ["--languages", *languages, "--items", items, "--max_context_characters", "500"]
        benchmark([*mlqa, *options, "--out", str(folder / name)], seed)
    unseen = str(place / "data" / "english-unseen")
    benchmark(["mtbi", "--source", unseen, "--split", "train", "--items", items, "--out", str(folder / "mtbi")], seed)
    bloom = ["bloomzmms", "--source", unseen, "--split", "train", "--items", items]
    benchmark([*bloom, "--out", str(folder / "bloomzmms")], seed)
    pairs = write_pairs(data / "text/clinc/clinc150.tsv", place / "pairs.tsv", size.items, seed)
    prompt = "{first} {second} Do both ask for the same thing? Answer yes or no."
    labelled = ["bloomzmms", "--labelled", "pairs", "--labelled_source", str(pairs), "--labelled_prompt", prompt]
    benchmark([*labelled, "--items", items, "--license", "cc-by-3.0", "--out", str(folder / "pairs")], seed)


def write_pairs(source: Path, path: Path, count: int, seed: int) -> Path:
    """Pairs of requests to an assistant, half of them of one intent: columns `first`, `second`, `label`."""
    intents: dict[str, list[str]] = {}
    for line in source.read_text(encoding="utf-8").splitlines()[1:]:
        _, intent, text = line.split("\t")
        intents.setdefault(intent, []).append(text)
    rng, names = random.Random(seed), sorted(name for name in intents if len(intents[name]) > 1)
    lines = ["first\tsecond\tlabel"]
    for number in range(count):
        one, other = rng.sample(names, 2)
        pair = rng.sample(intents[one], 2) if number % 2 else [rng.choice(intents[one]), rng.choice(intents[other])]
        lines.append("\t".join([*pair, "yes" if number % 2 else "no"]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def benchmark(arguments: list[str], seed: int) -> None:
    """`speechllm benchmark`, in a process of its own."""
    command = [sys.executable, "-m", "speechllm_cli.main", "benchmark", *arguments, "--seed", str(seed)]
    subprocess.run(command, check=True)


def encode(place: Path, world: World, device: str) -> None:
    """Frames of all rows of one utterance, and for LAD's what Gemma is led to by reading them."""
    common = {"device": device, "connector": "stack_mlp"}
    six = [world.data["six"], world.data["six-validation"]]
    run_command(
        "encode",
        dict(world.parents["lad"]) | common | {"dataset": six, "output_dir": world.frames["six"], "teacher": "hidden"},
    )
    english = {"dataset": [str(place / "data" / "english")], "output_dir": world.frames["en-tasks"]}
    run_command("encode", dict(world.parents["mtbi"]) | common | english)
    reader = {"type": "whisper_reader", "decoder": world.parents["mtbi"]["audio"]}
    reading = {"connector": reader, "output_dir": world.frames["reading"]}
    run_command("encode", dict(world.parents["mtbi"]) | common | english | reading)


def describe(place: Path, parents: Path | None) -> World:
    """The real world in a folder, made or not; without parents for its results alone."""
    parents = (parents or Path("parents")).resolve()
    names = ["six", "six-validation", "en-transcribe", "en-one-task", "en-tasks", "en-phrases"]
    names += ["six-T", "six-MI", "six-TMI"]
    names += [f"{name}-{language}" for name in ("six", "six-validation") for language in LANGUAGES]
    whisper = str(parents / "whisper-base")
    smollm = {"audio": whisper, "text": str(parents / "smollm2-135m-instruct")}
    tests = {
        "open": {"task": "instruct", "max_new_tokens": ANSWER_TOKENS},
        "closed": {"task": "question", "max_new_tokens": 16, "dataset_split": "test"},
        "mtbi/question": {"task": "question", "max_new_tokens": 16, "dataset_split": "test"},
        "mtbi/instruct": {"task": "instruct", "max_new_tokens": ANSWER_TOKENS, "dataset_split": "test"},
        "bloomzmms/transcribe": {"task": "transcribe", "max_new_tokens": 60, "dataset_split": "test"},
        "pairs/classify": {"task": "classify", "dataset_split": "test"},
    }
    settings: dict[str, Mapping[str, Any]] = {}
    for name, given in tests.items():
        given = given | {"cascade": whisper, "cascade_num_beams": 1}  # five take twice as long on a CPU
        settings[name.replace("/", "-")] = given | {"dataset": [str(place / "questions" / name)]}
        if name in ("open", "closed"):
            for code in LANGUAGES if name == "open" else QUESTION_LANGUAGES:
                folder = str(place / "questions" / f"{name}-{code}")
                settings[f"{name}-{code}"] = given | {"dataset": [folder]}
    return World(
        name="real",
        parents={
            "lad": {"audio": whisper, "text": str(parents / "gemma3-270m")},
            **dict.fromkeys(("mtbi", "bloomzmms", "across"), smollm),
        },
        data={name: str(place / "data" / name) for name in names},
        frames={
            "six": str(place / "frames-six"),
            **dict.fromkeys(ONE_UTTERANCE, str(place / "frames-english")),
            "reading": str(place / "frames-reading"),
        },
        questions=settings,
        languages=LANGUAGES,
    )


__all__ = ["Size", "build", "describe"]
