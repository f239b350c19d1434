"""The form of a benchmark's rows, and the plan of one before it has audio.

    id, language (of the speech)
    audio, text, voice, duration     the speech, its transcript, who says it, seconds; the first three are lists where
                                     a prompt has several audios
    recording                        what rows about the same recording share
    task, prompt_kind, prompt_id     name of what is asked (`keywords`, `xnli`), as in generated targets; seen,
                                     unseen_prompt or unseen_task; the prompt in its pool
    instruction, or messages         the question in words; `messages` is a chat with a block per audio
    context                          text that stands beside the speech
    target_language                  of the answer
    reference, references or label + labels    what answers are compared with; none where only a judge can tell
    metric                           what scores the row: wer, bleu, squad, accuracy, judge
    form                             a JSON object of checks of the answer's form, for the instruction-following rate

All rows of a folder are scored by one task of `speechllm evaluate`, one of `METRICS`. Its files have only those
columns that one of its rows fills.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from datasets import Audio, Dataset, Features, List, Value

from processing_speechllm.audio import AudioError, load_audio
from speechllm.speech_synthesis import SAMPLING_RATE, SynthesisError, Synthesizer

PROMPT_KINDS = {"train": "seen", "unseen_prompts": "unseen_prompt", "unseen_tasks": "unseen_task"}  # by split
# By the task of `speechllm evaluate` that scores a row.
METRICS = {"transcribe": "wer", "translate": "bleu", "question": "squad", "classify": "accuracy", "instruct": "judge"}
MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
TEXT, TEXTS = Value("string"), List(Value("string"))
COLUMNS = {  # in this order; audio, text, voice and duration stand for themselves
    "recording": TEXT,
    "task": TEXT,
    "prompt_kind": TEXT,
    "prompt_id": TEXT,
    "instruction": TEXT,
    "messages": MESSAGES,
    "context": TEXT,
    "target_language": TEXT,
    "reference": TEXT,
    "references": TEXTS,
    "label": TEXT,
    "labels": TEXTS,
    "metric": TEXT,
    "form": TEXT,
}


@dataclass(frozen=True)
class Spoken:
    """A text that is to be synthesised."""

    text: str
    language: str
    voice: str


@dataclass(frozen=True)
class Recorded:
    """A recording with its transcript: a row of a transcribed set."""

    row: int
    text: str


@dataclass(frozen=True)
class Item:
    """A row to be: everything but the sound. `values` are columns of `COLUMNS`."""

    id: str
    language: str
    slots: tuple[Spoken | Recorded, ...]
    values: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Dropped:
    """What could have been a row and is none, and why; `reason` is counted, `detail` says more."""

    id: str
    language: str
    reason: str
    detail: str = ""


def source_name(source: str | Path) -> str:
    """How a card names a source: a Hub id as it is, a file or folder by its name alone."""
    path = Path(source).expanduser()
    return f"{path.name} (a local copy)" if path.exists() else str(source)


def draw_order(seed: int, names: Iterable[str]) -> list[int]:
    """Places of names in a random order that depends on seed and name alone, so that sets with the same ids in several
    languages give the same items, and one name more or less changes nothing else."""
    names = list(names)
    keys = [hashlib.sha256(f"{seed}|{name}".encode()).hexdigest() for name in names]
    return sorted(range(len(names)), key=lambda place: (keys[place], place))


def make_row(
    item: Item, synthesizer: Synthesizer | None, recordings: Dataset | None, several: bool
) -> dict[str, Any] | Dropped:
    """The item with its audio as FLAC bytes, mono, 16 bit, 16 kHz; or why there is no row.

    Args:
        several: the benchmark's rows have lists of audios.
    """
    audios, seconds = [], 0.0
    for number, slot in enumerate(item.slots):
        try:
            samples = _samples(slot, synthesizer, recordings)
        except SynthesisError as error:
            return Dropped(item.id, item.language, "not_synthesised", str(error))
        except AudioError as error:
            return Dropped(item.id, item.language, "unreadable_audio", str(error))
        if not samples.any():
            return Dropped(item.id, item.language, "silent_audio", f"slot {number}")
        name = f"{item.id}.{number}.flac" if several else f"{item.id}.flac"
        audios.append({"bytes": flac(samples), "path": name.replace("/", "_")})
        seconds += len(samples) / SAMPLING_RATE
    texts = [slot.text for slot in item.slots]
    voices = [slot.voice if isinstance(slot, Spoken) else None for slot in item.slots]
    sound = {"audio": audios, "text": texts, "voice": voices}
    sound = sound if several else {name: values[0] for name, values in sound.items()}
    return {"id": item.id, "language": item.language, "duration": round(seconds, 3), **sound, **item.values}


def _samples(slot: Spoken | Recorded, synthesizer: Synthesizer | None, recordings: Dataset | None) -> np.ndarray:
    if isinstance(slot, Spoken):
        return synthesizer.speak(slot.text, slot.voice)
    return load_audio(recordings[slot.row]["audio"], SAMPLING_RATE)


def flac(samples: np.ndarray) -> bytes:
    """float32 samples (samples,) as FLAC, 16 bit at 16 kHz; what resampling carried beyond full scale is clipped."""
    stream = io.BytesIO()
    soundfile.write(stream, np.clip(samples, -1, 1), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def row_features(items: Sequence[Item], several: bool) -> Features:
    """The columns of a benchmark with these items."""
    filled = {name for item in items for name, value in item.values.items() if value is not None}
    unknown = filled - set(COLUMNS)
    if unknown:
        raise ValueError(f"Items have columns that rows do not: {', '.join(sorted(unknown))}.")
    audio, text = Audio(sampling_rate=SAMPLING_RATE), TEXT
    spoken = any(isinstance(slot, Spoken) for item in items for slot in item.slots)
    return Features(
        {
            "id": TEXT,
            "audio": List(audio) if several else audio,
            "text": List(text) if several else text,
            "language": TEXT,
            **({"voice": List(text) if several else text} if spoken else {}),
            "duration": Value("float64"),
            **{name: feature for name, feature in COLUMNS.items() if name in filled},
        }
    )
