"""The nano world of the claims: six languages of spoken requests, the embedded encoder and LLM, new connectors.

    OUT/nano/speech/NAME.wav            recordings, each made once
    OUT/nano/data/SET/manifest.jsonl    training rows, with the answers of the LLM that reads
    OUT/nano/questions/SET/...          questions on sentences and voices that no training hears
    OUT/nano/frames-.../                what the frozen encoder makes of the training recordings
    OUT/nano/models/ctc_compress/       the embedded model with a new connector that is told which tokens it may read

What stands for what: *text context + spoken question* is the world's task `context`; an open request is one of its
other tasks; BLSP's continuation, which this LLM cannot give, is translation alone. For alignment-free interleaving
sentences are recorded in two phrases, each of them speech or text, as several utterances of a row are.
"""

import json
import os
import random
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from benchmarks.claims.nano_rows import (
    CLOSED,
    MI_WEIGHTS,
    MTBI_SEEN,
    Spoken,
    answered,
    asked,
    fact_questions,
    question_rows,
    spell_phrases,
)
from benchmarks.claims.variants import papers
from benchmarks.claims.worlds import World, by_language, read_rows, write_rows
from benchmarks.nanoworld import speech
from benchmarks.nanoworld.recordings import write_recording
from benchmarks.nanoworld.world import LANGUAGES, Frame, frames
from speechllm import NANO

NAMES = ("six", "six-T", "six-MI", "six-TMI", "en-transcribe", "en-one-task", "en-tasks", "en-phrases")
READER = {"convolutions": 1, "hidden_size": 128, "blocks": 3, "heads": 4, "ffn_size": 512, "dropout": 0.0}


@dataclass(frozen=True)
class Size:
    """How much of the world is recorded: sentences per language, and of English alone.

    Args:
        train, validation, test: per language.
        english, test_english: of English, where a paper's world is English.
        closed: questions about a text, and as many with two recordings, per language.
    """

    train: int = 250
    english: int = 1200
    validation: int = 20
    test: int = 24
    test_english: int = 90
    closed: int = 20


def choose(
    split: str, counts: dict[str, int], seed: int, kinds: Sequence[str] | None = None
) -> list[speech.Utterance]:
    """Utterances of a split, so many per language, no sentence twice, of any or the given kinds of request; the same
    for the same seed.

    Raises:
        ValueError: a language has fewer sentences.
    """
    known = speech.utterances(split)
    random.Random(f"{seed}|{split}").shuffle(known)
    chosen: dict[str, dict[str, speech.Utterance]] = {language: {} for language in counts}
    for utterance in known:
        if kinds is not None and utterance.kind not in kinds:
            continue
        found = chosen.get(utterance.language, {})
        if len(found) < counts.get(utterance.language, 0):
            found.setdefault(utterance.text, utterance)
    for language, found in chosen.items():
        if len(found) < counts[language]:
            raise ValueError(
                f"The nano world has {len(found)} {language} sentences in {split}, not {counts[language]}."
            )
    return [utterance for found in chosen.values() for utterance in found.values()]


def record(folder: Path, plan: dict[str, speech.Utterance], workers: int) -> dict[str, float]:
    """Seconds of each recording `folder/NAME.wav`, those that are there kept; espeak-ng crashes on a few, which are
    left out and said."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder / f"{name}.wav", utterance) for name, utterance in plan.items()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        lengths = tqdm(pool.map(_recorded, jobs, chunksize=16), total=len(jobs), desc="recordings", mininterval=5)
        seconds = dict(zip(plan, lengths, strict=True))
    failed = [name for name, length in seconds.items() if length is None]
    if failed:
        print(f"espeak-ng failed on {len(failed)} recordings, left out: {', '.join(failed[:5])}", flush=True)
    return {name: length for name, length in seconds.items() if length is not None}


def _recorded(job: tuple[Path, speech.Utterance]) -> float | None:
    import soundfile

    path, _ = job
    return soundfile.info(path).duration if path.exists() else write_recording(job)


def spoken_rows(plan: dict[str, speech.Utterance], seconds: dict[str, float]) -> list[Spoken]:
    """The recordings that there are, with the request that each says."""
    requests: dict[tuple[str, str], Frame] = {
        (language, frame.text(language)): frame for frame in frames() for language in LANGUAGES
    }
    return [
        Spoken(name, utterance.text, utterance.language, requests[utterance.language, utterance.text], seconds[name])
        for name, utterance in plan.items()
        if name in seconds
    ]


def named(prefix: str, utterances: Sequence[speech.Utterance]) -> dict[str, speech.Utterance]:
    """File names of recordings."""
    return {f"{prefix}-{number:05d}": utterance for number, utterance in enumerate(utterances)}


def build(out: Path, size: Size, seed: int = 0, workers: int = 1) -> World:
    """Makes the world, or goes on making it, and describes it."""
    place = out / "nano"
    world = describe(place)
    if (place / "done.json").exists():
        if json.loads((place / "done.json").read_text()) != vars(size) | {"seed": seed}:
            raise ValueError(f"{place} holds a nano world of another size. Give another --out, or remove it.")
        make_reading_model(place)
        return world
    counts = dict.fromkeys(LANGUAGES, size.train) | {"en": max(size.english, size.train)}
    plan = named("train", choose("train", counts, seed))
    plan |= named("validation", choose("validation", dict.fromkeys(LANGUAGES, size.validation), seed))
    counts = dict.fromkeys(LANGUAGES, size.test) | {"en": max(size.test_english, size.test)}
    plan |= named("test", choose("test", counts, seed))
    plan |= named("closed", choose("test", dict.fromkeys(LANGUAGES, size.closed), seed, CLOSED))
    plan |= spell_phrases(plan)
    facts, fact_plan = fact_questions(plan, size.closed, seed)
    seconds = record(place / "speech", plan | fact_plan, workers)
    rows = spoken_rows({name: plan[name] for name in plan if "phrase" not in name}, seconds)
    train = [row for row in rows if row.name.startswith("train")]
    write_training(place, train, [row for row in rows if row.name.startswith("validation")], seconds, size, seed)
    test = by_language([row.as_row() | {"spoken": row} for row in rows if row.name.startswith("test")], LANGUAGES)
    each = [row["spoken"] for part in test.values() for row in part[: size.test]]
    english = [row["spoken"] for row in test["en"][: size.test_english]]
    questions = question_rows(each, english, [row for row in rows if row.name.startswith("closed")], seed)
    write_rows(place / "questions" / "two-slots", facts(seconds), place / "speech")
    for name, found in questions.items():
        write_rows(place / "questions" / name, found, place / "speech")
    for language, part in by_language(questions["six"], LANGUAGES).items():
        write_rows(place / "questions" / f"six-{language}", part, place / "speech")
    encode(place, world)
    make_reading_model(place)
    (place / "done.json").write_text(json.dumps(vars(size) | {"seed": seed}), encoding="utf-8")
    return world


def write_training(
    place: Path, train: list[Spoken], validation: list[Spoken], seconds: dict[str, float], size: Size, seed: int
) -> None:
    """All training sets. The same recordings, answered in different ways; `six` and its parts have no answers."""
    per_language = {language: [row for row in train if row.language == language] for language in LANGUAGES}
    six = [row for rows in per_language.values() for row in rows[: size.train]]
    english = per_language["en"][: size.english]
    plain, held_out = ([row.as_row() for row in rows] for rows in (six, validation))
    sets = {"six": plain, "six-validation": held_out}
    sets |= {f"six-{language}": part for language, part in by_language(plain, LANGUAGES).items()}
    sets |= {f"six-validation-{language}": part for language, part in by_language(held_out, LANGUAGES).items()}
    sets["six-T"] = [row.as_row() | asked(row, "Transcribe the speech.", row.text, "T") for row in six]
    sets["six-MI"] = answered(six, MI_WEIGHTS, 2, f"{seed}|MI", "MI")
    sets["six-TMI"] = sets["six-T"] + sets["six-MI"]
    sets["en-transcribe"] = answered(english, {"transcribe": 1.0}, 1, f"{seed}|transcribe", "tasks")
    sets["en-one-task"] = answered(english, {"translate": 1.0}, 1, f"{seed}|one task", "tasks")
    sets["en-tasks"] = answered(english, dict.fromkeys(MTBI_SEEN, 1.0), 1, f"{seed}|tasks", "tasks")
    sets["en-phrases"] = [row for row in map(lambda row: in_phrases(row, seconds), sets["en-tasks"]) if row]
    sets["en-tasks"] = with_words(place, sets["en-tasks"])
    for name, rows in sets.items():
        write_rows(place / "data" / name, rows, place / "speech")


def in_phrases(row: dict, seconds: dict[str, float]) -> dict | None:
    """A row whose sentence is recorded in two phrases; None where one of them could not be said, or has one word."""
    first, second = (f"{row['recording']}-phrase-{number}" for number in (1, 2))
    if first not in seconds or second not in seconds:
        return None
    words = row["text"].split()
    half = (len(words) + 1) // 2
    content = [{"type": "audio"}, {"type": "text", "text": " "}, *row["messages"][0]["content"]]
    return row | {
        "audio": [f"{first}.wav", f"{second}.wav"],
        "text": [" ".join(words[:half]), " ".join(words[half:])],
        "language": ["en", "en"],
        "duration": seconds[first] + seconds[second],
        "messages": [{"role": "user", "content": content}, *row["messages"][1:]],
    }


def with_words(place: Path, rows: list[dict]) -> list[dict]:
    """The rows that the encoder's CTC can align, with their word times."""
    from benchmarks.claims.nano_alignment import HeadCTC
    from trainers.data.word_times import align_rows

    sources = [{**row, "audio": str(place / "speech" / row["audio"])} for row in rows]
    aligned = align_rows(tqdm(sources, desc="word times", mininterval=5), HeadCTC())
    found = [row | {"words": times["words"]} for row, times in zip(rows, aligned, strict=True) if times["words"]]
    print(f"word times: {len(found)} of {len(rows)} rows aligned", flush=True)
    return found


def encode(place: Path, world: World) -> None:
    """Frames of all training recordings, and the teacher's states of those that are distilled from."""
    from benchmarks.claims.commands import run_command

    caches: dict[str, list[str]] = {}
    for name, cache in world.frames.items():
        if name in NAMES + ("six-validation",) and name != "six-TMI":  # whose rows are those of T and MI
            caches.setdefault(cache, []).append(world.data[name])
    for cache, sets in caches.items():
        teacher = {"teacher": "hidden"} if cache == world.frames["six"] else {}
        run_command("encode", {"model": "nano", "device": "cpu", "dataset": sets, "output_dir": cache} | teacher)


def make_reading_model(place: Path) -> None:
    """The embedded model with a new `ctc_compress` that can read the tokens of all training sentences."""
    folder = place / "models" / "ctc_compress"
    if folder.exists():
        return
    import torch

    from trainers.commands.inputs import load_checkpoint

    model, processor = load_checkpoint(NANO, "float32")
    texts = [row["text"] for name in ("six", "six-validation") for row in read_rows(place / "data" / name) or ()]
    tokens = sorted({token for text in texts for token in processor.tokenizer.encode(text, add_special_tokens=False)})
    torch.manual_seed(0)
    model.replace_connector({"type": "ctc_compress", "vocabulary": len(tokens), **READER})
    table = model.get_input_embeddings().weight
    model.model.multi_modal_projector.load_vocabulary(torch.tensor(tokens), table)
    processor.follow(model.config)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")  # another process may make it too
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    try:
        partial.replace(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(partial)


def cache_of(name: str) -> str:
    """Which cache holds a set's frames: rows of one recording and of two do not fit into one."""
    if name == "en-phrases":
        return "phrases"
    return "answered" if name in NAMES[1:] else "plain"


def describe(place: Path) -> World:
    """The nano world in a folder, made or not."""
    names = [*NAMES, "six-validation"]
    names += [f"{name}-{language}" for name in ("six", "six-validation") for language in LANGUAGES]
    asks = {"task": "question", "headline": "f1", "max_new_tokens": 32, "cascade": "ctc_head"}
    questions = {f"six{part}": asks for part in ("", *(f"-{language}" for language in LANGUAGES))}
    questions |= {"english": asks, "instructions": asks}
    labels = {"task": "classify", "headline": "accuracy", "max_new_tokens": 16, "cascade": "ctc_head"}
    questions |= {"labels": labels, "two-slots": labels}
    return World(
        name="nano",
        parents=dict.fromkeys(papers(), {"model": "nano"}),
        data={name: str(place / "data" / name) for name in names},
        frames={name: str(place / f"frames-{cache_of(name)}") for name in names},
        questions={
            name: {"dataset": [str(place / "questions" / name)]} | settings for name, settings in questions.items()
        },
        models={"ctc_compress": str(place / "models" / "ctc_compress")},
        helpers=str(Path(NANO) / "helpers"),
        languages=LANGUAGES,
    )


__all__ = ["Size", "build", "choose", "describe"]
