"""Which frames of a CTC speak which word: forced alignment (Viterbi, `torchaudio`'s `forced_align`) and token times.

Words are what stands between white space, without the punctuation around it; in scripts without spaces (Chinese,
Japanese, Thai, Lao, Khmer, Burmese) every character is one.
"""

import math
import re
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import torch
from torchaudio.functional import forced_align

# Thai, Lao, Burmese, Khmer, iteration marks, kana, Han.
UNSPACED_RANGES = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_RANGES)
_MARKS = "".join(  # vowel signs and tone marks above, below and beside their letter
    chr(code)
    for first, last in UNSPACED_RANGES[:7]
    for code in range(first, last)
    if unicodedata.category(chr(code)).startswith("M")
)
_UNIT = re.compile(f"[{_UNSPACED}][{_MARKS}]*|[^\\s{_UNSPACED}]+")

Token = tuple[int, int, int]  # id, first character, character after the last


class AlignmentError(ValueError):
    """A transcript that cannot be aligned; `reason` is short and the same for all of a kind, to be counted."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class TokenTimes:
    """
    When audio tokens sound. The `group` queries that a window Q-Former makes of one window share the window's time.

    Args:
        first: seconds at the centre of the first token.
        step: seconds from one token (or group) to the next.
        group: tokens that share one place.
    """

    first: float
    step: float
    group: int = 1

    def centre(self, token: int) -> float:
        """Seconds at the centre of a token."""
        return self.first + token // self.group * self.step

    def span(self, first: int, last: int) -> tuple[float, float]:
        """Seconds from the beginning of token `first` to the end of the one before `last`."""
        return max(self.centre(first) - self.step / 2, 0.0), self.centre(last - 1) + self.step / 2


def token_times(processor: Any) -> TokenTimes:
    """
    When the audio tokens of a `SpeechLLMProcessor` sound, by its stages.

    Raises:
        ValueError: a connector that makes a fixed number of tokens of each whole encoder window.
    """
    encoder_hop = math.prod(stage["stride"] for stage in processor.audio_stages)
    window = processor.audio_window // encoder_hop
    for stage in processor.connector_stages:
        if stage["kernel"] >= window:
            raise ValueError(
                f"The connector makes {stage.get('tokens', 1)} tokens of each window of {window} encoder frames "
                "(whisper_qformer does); no time belongs to one of them, so words cannot be cut out. Use interleaving "
                "of whole utterances, or a connector that follows time."
            )
    stages = [*processor.feature_stages, *processor.audio_stages, *processor.connector_stages]
    position, hop = 0.0, 1  # of the samples that the first token sees the middle one; samples to the next token
    for stage in reversed(stages):
        position = position * stage["stride"] + (stage["kernel"] - 1) / 2 - stage.get("padding", 0)
        hop *= stage["stride"]
    rate = processor.feature_extractor.sampling_rate
    return TokenTimes((position + 0.5) / rate, hop / rate, math.prod(stage.get("tokens", 1) for stage in stages))


def align_tokens(log_probabilities: torch.Tensor, targets: list[int], blank: int) -> list[tuple[int, int]]:
    """
    The most probable CTC path through `targets`.

    Args:
        log_probabilities (`torch.Tensor` of shape `(frames, vocabulary)`): normalised over the vocabulary.
        targets: token ids, without blanks.
        blank: id of the blank.

    Returns:
        for each target the frames (first, after the last) at which the path emits it.

    Raises:
        AlignmentError: fewer frames than the targets need, or a target of probability 0 in all of them.
        ValueError: a target that is the blank or outside the vocabulary.
    """
    frames, vocabulary = log_probabilities.shape
    if blank in targets or not all(0 <= target < vocabulary for target in targets):
        raise ValueError(
            f"CTC targets must be ids from 0 to {vocabulary - 1} without the blank {blank}, not {targets}. "
            "Tokenize the transcript without special tokens, with the tokenizer that the CTC was trained with."
        )
    needed = len(targets) + sum(left == right for left, right in zip(targets, targets[1:], strict=False))
    if frames < needed:
        raise AlignmentError(
            "too few frames",
            f"{frames} CTC frames cannot hold {len(targets)} tokens: {needed} are needed, one per token and one "
            "between equal ones. Use a CTC with a shorter stride, or check that text and audio belong together.",
        )
    if not targets:
        return []
    # Only the columns of the transcript, so that a large vocabulary is neither copied nor moved.
    ids, places = torch.tensor([blank, *targets]).unique(return_inverse=True)
    emissions = log_probabilities[:, ids.to(log_probabilities.device)].float().cpu()
    if emissions[:, places[1:]].isneginf().all(0).any():
        raise AlignmentError(
            "not in the vocabulary",
            "The CTC cannot write some of the transcript's tokens: its connector reads a vocabulary of its own. Load "
            "one that has them (load_vocabulary), or leave the row out.",
        )
    path, _ = forced_align(emissions[None].contiguous(), places[None, 1:], blank=int(places[0]))
    spans: list[tuple[int, int]] = []
    last = None
    for frame, token in enumerate(ids[path[0].long()].tolist()):
        if token != blank:
            start = spans.pop()[0] if token == last else frame
            spans.append((start, frame + 1))
        last = token
    if len(spans) != len(targets):
        raise AlignmentError("no path", "No path through the CTC's frames writes the transcript. Leave the row out.")
    return spans


def split_words(text: str) -> list[tuple[int, int]]:
    """Characters (first, after the last) of each word of `text`, see the module's docstring."""
    words = []
    for unit in _UNIT.finditer(text):
        spoken = [place for place in range(*unit.span()) if unicodedata.category(text[place])[0] not in "PSZC"]
        if spoken:
            words.append((spoken[0], spoken[-1] + 1))
    return words


def align_words(
    text: str, tokens: list[Token], log_probabilities: torch.Tensor, blank: int, times: TokenTimes
) -> list[dict]:
    """
    When each word of a transcript is spoken.

    Args:
        text: the transcript.
        tokens: its tokens with the characters that each stands for. A token of several words counts for the first,
            and words without a token of their own join it ("你好" as one token is one word).
        log_probabilities (`torch.Tensor` of shape `(frames, vocabulary)`): of a CTC.
        blank: id of its blank.
        times: when its frames sound.

    Returns:
        `[{"start": seconds, "end": seconds, "word": as in the text}]`, times to the millisecond.

    Raises:
        AlignmentError: no words in the text, a word that `tokens` leave out, or fewer frames than tokens.
    """
    words = split_words(text)
    if not words:
        raise AlignmentError("no words", f"The transcript {text!r} has no words. Leave the row out.")
    starts = [start for start, _ in words]
    owned: list[list[int]] = [[] for _ in words]
    for index, (_, first, last) in enumerate(tokens):
        spelled = text[first:last].lstrip()
        if spelled:  # white space is nobody's
            owned[max(bisect_right(starts, last - len(spelled)) - 1, 0)].append(index)
    joined: list[tuple[int, int, list[int]]] = []
    for (start, end), indices in zip(words, owned, strict=True):
        if indices:
            joined.append((start, end, indices))
        elif joined and tokens[joined[-1][2][-1]][2] > start:
            joined[-1] = (joined[-1][0], end, joined[-1][2])
        else:
            raise AlignmentError(
                "not in the vocabulary",
                f"The word {text[start:end]!r} has no token in the CTC's vocabulary. Spell it out (numbers in "
                "words), or use a CTC whose vocabulary covers the language.",
            )
    frames = align_tokens(log_probabilities, [token for token, _, _ in tokens], blank)
    spans = [times.span(frames[indices[0]][0], frames[indices[-1]][1]) for _, _, indices in joined]
    return [
        {"start": round(span[0], 3), "end": round(span[1], 3), "word": text[start:end]}
        for (start, end, _), span in zip(joined, spans, strict=True)
    ]


def text_tokens(tokenizer: Any, text: str) -> list[Token]:
    """Tokens of a text with their characters; special tokens spelled in it stay text. Needs a fast tokenizer."""
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    return [(token, *span) for token, span in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)]


__all__ = [
    "AlignmentError",
    "Token",
    "TokenTimes",
    "align_tokens",
    "align_words",
    "split_words",
    "text_tokens",
    "token_times",
]
