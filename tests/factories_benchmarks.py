"""A synthesizer without speech, and tiny sources, for the tests of the benchmark builders."""

import hashlib
import json
from pathlib import Path

import numpy as np
from factories_processing import encoded, sine

from speechllm.speech_synthesis import SAMPLING_RATE, SynthesisError, Voice


class Tones:
    """Says a text as a tone: its length is that of the text, its frequency tells voice and text."""

    name, concurrency = "tones 1", 2

    def __init__(self, fails_on: str = "", stops_after: int | None = None, languages: tuple[str, ...] = ("en", "de")):
        self.fails_on, self.stops_after, self.languages, self.said = fails_on, stops_after, languages, []

    def voices(self, language):
        if language not in self.languages:
            raise ValueError(f"tones cannot speak {language}")
        return [Voice(f"{language}-{gender}{n}", gender) for n in range(3) for gender in ("female", "male")]

    def speak(self, text, voice, seed=0):
        self.said.append((text, voice))
        if self.stops_after is not None and len(self.said) > self.stops_after:
            raise KeyboardInterrupt
        if self.fails_on and self.fails_on in text:
            raise SynthesisError(f"cannot say {text!r}")
        frequency = 200 + int(hashlib.sha256(f"{voice}|{text}".encode()).hexdigest(), 16) % 2000
        times = np.arange(int(0.02 * SAMPLING_RATE * len(text))) / SAMPLING_RATE
        return (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def squad(questions: list[tuple[str, str, str, list[str]]]) -> dict:
    """SQuAD's JSON of (id, question, context, answers)."""
    paragraphs = [
        {
            "context": context,
            "qas": [{"id": key, "question": text, "answers": [{"text": a, "answer_start": 0} for a in answers]}],
        }
        for key, text, context, answers in questions
    ]
    return {"data": [{"title": "t", "paragraphs": paragraphs}]}


def write_squad(folder: Path, count: int = 12) -> Path:
    """Parallel questions in English and German; number 0 has a long text in German, number 1 no answer."""
    folder.mkdir(parents=True, exist_ok=True)
    for language, words in (("en", "What is number"), ("de", "Was ist Nummer")):
        rows = [(f"q{n}", f"{words} {n}?", f"Text {n}.", [str(n), str(n)]) for n in range(count)]
        rows[0] = (*rows[0][:2], "lang " * (100 if language == "de" else 1), rows[0][3])
        rows[1] = (*rows[1][:3], [])
        (folder / f"set.{language}.json").write_text(json.dumps(squad(rows)), encoding="utf-8")
    return folder


def write_recordings(folder: Path, rows: list[dict]) -> Path:
    """A manifest with a tone per row (`text`, `language`, ...)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        (folder / f"{number}.wav").write_bytes(encoded(sine(0.3, frequency=300 + 10 * number)))
        lines.append(json.dumps({"audio": f"{number}.wav", **row}, ensure_ascii=False) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
