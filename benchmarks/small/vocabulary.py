"""The tokens that the connector reads: those of the LLM that occur often enough, and words spelled in them."""

import json
from collections import Counter
from pathlib import Path

from transformers import PreTrainedTokenizerBase

LEAST = 4  # occurrences of a token in the training texts
LETTERS = "abcdefghijklmnopqrstuvwxyz'"


class Vocabulary:
    """A choice of the LLM's tokens as classes 0, 1, ...; texts are normalized (`corpora.normalized`) and begin with a
    space.

    Args:
        token_ids: the LLM's ids, in order of the classes.
        pieces: their texts, `" the"`, `"ing"`.
    """

    def __init__(self, token_ids: list[int], pieces: list[str]):
        self.token_ids, self.pieces = token_ids, pieces
        self.classes = {piece: index for index, piece in enumerate(pieces)}
        self.longest = max(map(len, pieces))
        self.words: dict[str, list[int]] = {}

    @classmethod
    def of_texts(cls, texts: list[str], tokenizer: PreTrainedTokenizerBase, least: int = LEAST) -> "Vocabulary":
        """All single letters, and tokens with at least `least` occurrences."""
        counts: Counter[int] = Counter()
        for ids in tokenizer([" " + text for text in texts], add_special_tokens=False).input_ids:
            counts.update(ids)
        for letter in LETTERS:
            for piece in (letter, " " + letter):
                ids = tokenizer(piece, add_special_tokens=False).input_ids
                if len(ids) == 1:
                    counts[ids[0]] += least
        known = sorted(token for token, count in counts.items() if count >= least)
        pieces = [tokenizer.decode([token]) for token in known]
        kept = [(token, piece) for token, piece in zip(known, pieces, strict=True) if set(piece) <= set(LETTERS + " ")]
        return cls([token for token, _ in kept], [piece for _, piece in kept])

    def spell(self, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
        """Classes of a text: each word as the LLM tokenizes it where all its tokens are known, else by longest match.
        None where a character is unknown."""
        spelled: list[int] = []
        for word in text.split():
            if word not in self.words:
                pieces = [
                    tokenizer.decode([token]) for token in tokenizer(" " + word, add_special_tokens=False).input_ids
                ]
                known = all(piece in self.classes for piece in pieces)
                self.words[word] = (
                    [self.classes[piece] for piece in pieces] if known else self.longest_match(" " + word)
                )
            if not self.words[word]:
                return None
            spelled += self.words[word]
        return spelled

    def longest_match(self, word: str) -> list[int]:
        """Classes of a word with its space; none where a character is unknown."""
        classes, start = [], 0
        while start < len(word):
            ends = range(min(len(word), start + self.longest), start, -1)
            end = next((end for end in ends if word[start:end] in self.classes), None)
            if end is None:
                return []
            classes.append(self.classes[word[start:end]])
            start = end
        return classes

    def text(self, classes: list[int]) -> str:
        """What classes spell."""
        return "".join(self.pieces[index] for index in classes).strip()

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"token_ids": self.token_ids, "pieces": self.pieces}), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        return cls(**json.loads(path.read_text(encoding="utf-8")))
