"""What BLOOMZMMS is evaluated on (Denisov & Vu, arXiv 2404.10922), from data that you have.

- `transcribe`: any transcribed set under the paper's transcription prompt, `Repeat the sentence: {audio}. `.
- `translate`: speech with translations beside its transcripts (CoVoST 2), or parallel text that is synthesised.
- `classify`: GLUE and XNLI read aloud, with several speech slots in one prompt (SpeechGLUE, SpeechXNLI); labels are
  decoded under constraint. Any other labelled table will do.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speechllm.speech_synthesis import Synthesizer, Voice, choose_voices
from trainers.targets.prompts import AUDIO, LANGUAGE, TEMPLATE_FOLDER, Prompt, load_tasks, user_turn

from ..normalise import base_code
from .building import Plan
from .labelled import LabelledTask, LabelledText, read_labelled, spoken_chat
from .recordings import read_recordings, text_cells
from .rows import METRICS, Dropped, Item, Recorded, Spoken, draw_order, source_name

TRANSCRIBE = f"Repeat the sentence: {AUDIO}. "
PAPER = "One of the evaluations of BLOOMZMMS (arXiv 2404.10922), rebuilt from other data; not the paper's own set. "


@dataclass(frozen=True)
class Draw:
    """
    How many items are drawn, by whom they are spoken.

    Args:
        items: per language (or pair of languages); None is all.
        seed: of items and voices.
        voices_per_gender, voices: as in `choose_voices`.
        license: of the source.
    """

    items: int | None = 250
    seed: int = 0
    voices_per_gender: int = 5
    voices: Sequence[Voice] = ()
    license: str | None = None

    def choose(self, names: Sequence[str]) -> tuple[list[int], list[int]]:
        """Places that are drawn, and the others."""
        order = draw_order(self.seed, names)
        count = len(order) if self.items is None else self.items
        return order[:count], order[count:]


def plan_transcription(
    source: str,
    draw: Draw,
    split: str = "test",
    name: str | None = None,
    columns: dict[str, str] | None = None,
    language: str | None = None,
    languages: Sequence[str] | None = None,
) -> Plan:
    """Recordings to be transcribed; arguments as in `read_recordings`."""
    recordings, utterances, dropped = read_recordings(source, split, name, columns, language, languages)
    items = []
    for code, members in sorted(utterances.items()):
        chosen, rest = draw.choose([member.id for member in members])
        dropped += [Dropped(members[place].id, code, "not_drawn") for place in rest]
        for member in (members[place] for place in chosen):
            values = {
                "recording": member.id,
                "task": "transcribe",
                "prompt_kind": "seen",
                "messages": user_turn(TRANSCRIBE, 1),
                "target_language": code,
                "reference": member.text,
                "metric": METRICS["transcribe"],
            }
            items.append(Item(f"{code}-{member.id}", code, (Recorded(member.row, member.text),), values))
    return Plan(
        name="bloomzmms/transcribe",
        task="transcribe",
        title="BLOOMZMMS, speech recognition",
        description=PAPER + "The prompt is the one of its stage 2.",
        source=source_name(source),
        license=draw.license,
        items=items,
        dropped=dropped,
        settings={"split": split, "languages": languages, "items": draw.items, "seed": draw.seed},
        recordings=recordings,
    )


def plan_recorded_translation(
    source: str,
    draw: Draw,
    target_language: str,
    column: str = "translation",
    split: str = "test",
    name: str | None = None,
    columns: dict[str, str] | None = None,
    language: str | None = None,
    languages: Sequence[str] | None = None,
) -> Plan:
    """
    Recordings with their translation in a column (CoVoST 2); other arguments as in `read_recordings`.

    Raises:
        ValueError: there is no such column, it is not text, or the prompts do not know the target language.
    """
    recordings, utterances, dropped = read_recordings(source, split, name, columns, language, languages)
    if column not in recordings.column_names:
        raise ValueError(
            f"{source}: no column {column!r} with translations; found {', '.join(recordings.column_names)}. "
            "Say which it is (translation_column)."
        )
    translations, items = text_cells(recordings, column, source), []
    for code, members in sorted(utterances.items()):
        translated = [member for member in members if translations[member.row]]
        untranslated = [member for member in members if not translations[member.row]]
        dropped += [Dropped(member.id, code, "no_translation") for member in untranslated]
        chosen, rest = draw.choose([member.id for member in translated])
        dropped += [Dropped(translated[place].id, code, "not_drawn") for place in rest]
        for member in (translated[place] for place in chosen):
            values = {"recording": member.id, **_translation(target_language, translations[member.row])}
            slots = (Recorded(member.row, member.text),)
            items.append(Item(f"{code}-{target_language}-{member.id}", code, slots, values))
    settings = {"split": split, "languages": languages, "target_language": target_language}
    return _translation_plan(source, draw, items, dropped, settings, recordings=recordings)


def plan_spoken_translation(
    folder: str, draw: Draw, synthesizer: Synthesizer, languages: Sequence[str], target_languages: Sequence[str]
) -> Plan:
    """
    Parallel text, synthesised: a folder with a file per language (`de.txt`), in all of them line n is sentence n.

    Args:
        languages: that are spoken.
        target_languages: that each of the others is translated to.

    Raises:
        FileNotFoundError: a language has no file.
        ValueError: the files are not parallel.
    """
    texts = {code: _lines(Path(folder), code) for code in dict.fromkeys((*languages, *target_languages))}
    counts = {code: len(lines) for code, lines in texts.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{folder}: the files are not parallel, their numbers of lines differ: {counts}.")
    items, dropped, voices = [], [], {}
    for code in dict.fromkeys(languages):
        voices[code] = choose_voices(synthesizer, code, draw.voices_per_gender, draw.voices)
        for target in (other for other in dict.fromkeys(target_languages) if other != code):
            pairs = list(zip(texts[code], texts[target], strict=True))
            full = [place for place, pair in enumerate(pairs) if all(pair)]
            names = [f"{code}-{target}-{place + 1}" for place in range(len(pairs))]
            dropped += [Dropped(names[place], code, "empty_line") for place in set(range(len(pairs))) - set(full)]
            chosen, rest = draw.choose([str(place) for place in full])
            dropped += [Dropped(names[full[place]], code, "not_drawn") for place in rest]
            for place in (full[place] for place in chosen):
                text, translation = pairs[place]
                slot = _spoken(text, code, voices[code], draw.seed, f"{code}-{place + 1}")
                values = {"recording": f"{code}-{place + 1}", **_translation(target, translation)}
                items.append(Item(names[place], code, (slot,), values))
    settings = {"languages": list(languages), "target_languages": list(target_languages)}
    return _translation_plan(folder, draw, items, dropped, settings, voices=voices)


def plan_classification(
    tasks: Sequence[LabelledTask],
    draw: Draw,
    synthesizer: Synthesizer,
    languages: Sequence[str] = ("en",),
    source: str | None = None,
    split: str | None = None,
    max_characters: int | None = 400,
) -> Plan:
    """
    Labelled texts, synthesised, each column in an audio of its own.

    Args:
        languages: of the texts; prompts and labels are English, as BLOOMZ's are.
        source, split: as in `read_labelled`.
        max_characters: rows with a longer text are left out, and counted; None is no limit.

    Raises:
        FileNotFoundError, ValueError: as `read_labelled` and `choose_voices` do.
    """
    items, dropped, seen = [], [], set()
    voices = {
        code: choose_voices(synthesizer, code, draw.voices_per_gender, draw.voices)
        for code in dict.fromkeys(languages)
    }
    alone = len({base_code(code) for code in voices}) == 1
    for task in tasks:
        for code in voices:
            rows, labels = read_labelled(task, code, source, split, alone)
            usable = []
            for row in rows:
                reason, detail = _objection(row, max_characters)
                if reason:
                    dropped.append(Dropped(row.id, code, reason, detail))
                elif row.id in seen:
                    dropped.append(Dropped(row.id, code, "id_stands_twice"))
                else:
                    seen.add(row.id)
                    usable.append(row)
            chosen, rest = draw.choose([row.id for row in usable])
            dropped += [Dropped(usable[place].id, code, "not_drawn") for place in rest]
            for row in (usable[place] for place in chosen):
                slots = tuple(
                    _spoken(text, code, voices[code], draw.seed, f"{row.id}.{name}")
                    for name, text in row.texts.items()
                )
                values = {
                    "task": task.name,
                    "prompt_kind": "unseen_task",
                    "messages": spoken_chat(task.prompt),
                    "label": row.label,
                    "labels": labels,
                    "metric": METRICS["classify"],
                }
                items.append(Item(row.id, code, slots, values))
    names = [source_name(source)] if source is not None else sorted({task.source for task in tasks})
    return Plan(
        name="bloomzmms/classify",
        task="classify",
        title="BLOOMZMMS, spoken classification",
        description=PAPER
        + "Texts of classification sets, read aloud, one audio per text in a prompt. `label` is one of `labels`.",
        source=", ".join(names),
        license=draw.license,
        items=items,
        dropped=dropped,
        settings={
            "tasks": [task.name for task in tasks],
            "prompts": [task.prompt for task in tasks],
            "languages": list(voices),
            "split": split,
            "max_characters": max_characters,
            **_drawn(draw),
        },
        several=True,
        voices=voices,
    )


def _objection(row: LabelledText, limit: int | None) -> tuple[str, str]:
    """Why a row cannot be an item: a reason to count by and a detail; empty if it can."""
    if row.language is None:
        return "no_language", ""
    if row.label is None:
        return "no_label", ""
    if not all(row.texts.values()):
        return "empty_text", ""
    longest = max(map(len, row.texts.values()))
    return ("text_too_long", f"{longest} characters") if limit is not None and longest > limit else ("", "")


def _spoken(text: str, language: str, voices: Sequence[Voice], seed: int, name: str) -> Spoken:
    """A text with a voice that depends on seed and name alone."""
    return Spoken(text, language, random.Random(f"{seed}|voice|{name}").choice(list(voices)).name)


@functools.cache
def _translation_prompt() -> Prompt:
    """The first wording of the templates."""
    (task,) = [task for task in load_tasks(TEMPLATE_FOLDER) if task.name == "template_translate"]
    return task.prompts[0]


def _translation(target: str, reference: str) -> dict:
    """The columns of a translation."""
    prompt = _translation_prompt()
    name = prompt.language_names.get(base_code(target))
    if name is None:
        known = ", ".join(prompt.language_names)
        raise ValueError(f"The prompts have no name for the language {target!r} to translate to. Known: {known}.")
    return {
        "task": "translate",
        "prompt_kind": "seen",
        "prompt_id": prompt.id,
        "messages": user_turn(prompt.text.replace(LANGUAGE, name), 1),
        "target_language": target,
        "reference": reference,
        "metric": METRICS["translate"],
    }


def _translation_plan(source: str, draw: Draw, items: list, dropped: list, settings: dict, **rest) -> Plan:
    return Plan(
        name="bloomzmms/translate",
        task="translate",
        title="BLOOMZMMS, speech translation",
        description=PAPER + "`reference` is the translation, `target_language` its language.",
        source=source_name(source),
        license=draw.license,
        items=items,
        dropped=dropped,
        settings={**settings, **_drawn(draw)},
        **rest,
    )


def _drawn(draw: Draw) -> dict:
    return {"items": draw.items, "seed": draw.seed, "voices_per_gender": draw.voices_per_gender}


def _lines(folder: Path, code: str) -> list[str]:
    """The sentences of a language."""
    file = folder.expanduser() / f"{code}.txt"
    if not file.is_file():
        there = ", ".join(path.name for path in sorted(folder.expanduser().glob("*.txt"))) or "nothing of the kind"
        raise FileNotFoundError(f"{file}: no such file; {folder} has {there}. Give a file per language, as de.txt.")
    return [line.strip() for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
