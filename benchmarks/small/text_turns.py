"""Turns from text alone, for an LLM whose connector reads with Whisper's decoder.

Such a connector gives nearly one of the LLM's own embeddings per token that Whisper wrote, so what it gives of speech
can be had from text, as TASU has it with simulated CTC posteriors (arXiv 2511.03310).
"""

from pathlib import Path
from random import Random

import torch
from transformers import AutoTokenizer

from benchmarks.small.acceptance_rows import label_of
from benchmarks.small.corpora import recordings
from benchmarks.small.hearing import load_readings, trustworthy
from benchmarks.small.reader import shared_tokens
from benchmarks.small.speaking import sentences

END = 50257  # of Whisper's text tokens
QUESTIONS = {  # other wordings than those of the acceptance
    "slurp": ("Which topic is this about?", "Which kind of request is this?", "What is the topic?"),
    "clinc": ("Which intent is this?", "What is asked for?", "What does this person ask?", "Name the request."),
}
NAMED = ("Which of these words is in it?", "Which of these is said?", "What is mentioned?", "Which one is named?")
DOUBT, LEAST = 0.15, 0.5  # share of tokens that are mixed with another, and the least part that stays


class Hearing:
    """Texts as the connector would give them.

    Args:
        whisper, llm: folders of the two tokenizers.
        table: the LLM's input embeddings (vocabulary, size).
        most: tokens that the reader may write, as `ship --tokens`.
    """

    def __init__(self, whisper: Path, llm: Path, table: torch.Tensor, most: int):
        self.tokenizer, self.table = AutoTokenizer.from_pretrained(whisper), table
        self.shared = shared_tokens(whisper, llm, END, most)
        self.pieces = {piece: self.shared[id] for piece, id in self.tokenizer.get_vocab().items() if id in self.shared}
        self.every = list(self.shared.values())

    def ids(self, text: str) -> list[int]:
        """The LLM's tokens that Whisper would write, the others spelled by the longest that there are."""
        found = []
        for piece in self.tokenizer.tokenize(" " + text):
            while piece:
                size = next((size for size in range(len(piece), 0, -1) if piece[:size] in self.pieces), None)
                if size is not None:
                    found.append(self.pieces[piece[:size]])
                piece = piece[size or 1 :]
        return found

    def __call__(self, text: str, rng: Random | None = None) -> torch.Tensor:
        """Embeddings (tokens, size); with `rng`, some of tokens that Whisper would not be sure of."""
        rows = self.table[torch.tensor(self.ids(text), dtype=torch.long)]
        if rng is not None:
            sure = [rng.uniform(LEAST, 1) if rng.random() < DOUBT else 1.0 for _ in rows]
            other = self.table[torch.tensor([rng.choice(self.every) for _ in rows], dtype=torch.long)]
            kept = torch.tensor(sure)[:, None]
            rows = kept * rows + (1 - kept) * other
        return rows


def pairs(data: Path, readings: Path) -> list[tuple[str, str, str]]:
    """(id, what Whisper read, the transcript or else the reading) of recordings for training."""
    known, found = load_readings(readings), []
    for source in ("cv_en", "cv_unlabelled"):
        for recording in recordings(data, source):
            read = known.get(recording.id)
            if read is None or recording.split != "train" or not read["text"]:
                continue
            if recording.text is not None or trustworthy({"read": read}, recording.seconds()):
                found.append((recording.id, read["text"], recording.text or read["text"]))
    return found


def cut(text: str, rng: Random, most: int = 4) -> str:
    """A few words out of a text: recordings of a word or two are what an LLM forgets to write down."""
    words = text.split()
    count = rng.randint(1, most)
    start = rng.randint(0, max(len(words) - count, 0))
    return " ".join(words[start : start + count])


class Choices:
    """Instructions to choose one of several labels, with the text and the right one: SLURP's scenarios, CLINC's
    intents, or a word that is in the text among others that are not. Sentences of the training alone."""

    def __init__(self, data: Path):
        self.rows = {corpus: [] for corpus in QUESTIONS}
        for row in sentences(data):
            if row["split"] == "train" and row["corpus"] in self.rows and row["label"] != "oos":
                self.rows[row["corpus"]].append((row["text"], label_of(row)))
        self.labels = {corpus: sorted({label for _, label in rows}) for corpus, rows in self.rows.items()}
        self.texts = [text for rows in self.rows.values() for text, _ in rows]
        self.words = sorted({word for text in self.texts for word in text.split() if len(word) > 3})

    def __call__(self, rng: Random) -> tuple[str, str, str]:
        """(text, instruction, answer)."""
        corpus = rng.choice([*QUESTIONS, "words"])
        if corpus == "words":
            text = rng.choice(self.texts)
            inside = [word for word in text.split() if len(word) > 3]
            if not inside:
                return self(rng)
            span, question = rng.choice(inside), rng.choice(NAMED)
            every = [word for word in rng.sample(self.words, 12) if word not in text]
        else:
            text, span = rng.choice(self.rows[corpus])
            question = rng.choice(QUESTIONS[corpus])
            every = [label for label in self.labels[corpus] if label != span]
        labels = sorted([span, *rng.sample(every, min(rng.randint(1, 8), len(every)))])
        return text, f"{question} Choose one: {', '.join(labels)}.", span
