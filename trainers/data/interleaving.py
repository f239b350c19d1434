"""Speech and text interleaved in one prompt, with the same answer (MTBI, Xie et al. 2025, arXiv 2505.18644).

Aligned: some words of an utterance stand as text, and the audio tokens that sound meanwhile are left out. The paper
does not tell unit and share; ours are contiguous spans of words (`choose_spans`) and a share of the words. Needs word
times and a connector that follows time.
Alignment-free: of several utterances in a row some stand as text as a whole (`choose_speech`). Needs neither.

What the LLM reads is a list of segments, audio tokens or text, in place of the audio. Together they always hold the
whole transcript, each word once, so the answer stays the same. Every choice is a function of the random state given,
and a probability of 0 leaves that alone.
"""

import random
import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from .ctc_alignment import TokenTimes


@dataclass(frozen=True)
class AudioSegment:
    """The audio tokens from `first` to the one before `last`."""

    first: int
    last: int


@dataclass(frozen=True)
class TextSegment:
    """A part of the transcript, with the white space that belongs to it."""

    text: str


Segment = AudioSegment | TextSegment


def choose_spans(
    words: int, rng: random.Random, probability: float, span_lengths: tuple[int, int] = (1, 4)
) -> list[tuple[int, int]]:
    """
    Which words of an utterance stand as text.

    `probability` x `words` of them do, rounded up or down at random so that the expected share is `probability`; but
    one word always stays speech, so an utterance of one word is never text. Span lengths are drawn evenly, the last
    one takes what is left. Spans are kept apart; where there are too few spoken words for that, some meet and make a
    longer one.

    Args:
        words: how many words the utterance has.
        rng: random state; untouched if `probability` is 0.
        probability: expected share of words that are text, from 0 to 1.
        span_lengths: fewest and most words of a span.

    Returns:
        spans (first word, word after the last), in order.
    """
    low, high = span_lengths
    _check_probability(probability)
    if not 1 <= low <= high:
        raise ValueError(f"span_lengths={span_lengths} must be two numbers of words, 1 <= fewest <= most.")
    if probability == 0 or words < 2:
        return []
    text = min(int(words * probability + rng.random()), words - 1)
    lengths: list[int] = []
    while sum(lengths) < text:
        lengths.append(min(rng.randint(low, high), text - sum(lengths)))
    gaps = words - text + 1  # before, between and after the spoken words
    places = (
        rng.sample(range(gaps), len(lengths)) if len(lengths) <= gaps else rng.choices(range(gaps), k=len(lengths))
    )
    text_in_gap: Counter[int] = Counter()
    for gap, length in zip(places, lengths, strict=True):
        text_in_gap[gap] += length
    spans, done = [], 0
    for gap, length in sorted(text_in_gap.items()):
        spans.append((gap + done, gap + done + length))
        done += length
    return spans


def choose_speech(utterances: int, rng: random.Random, probability: float) -> list[bool]:
    """
    Which of several utterances are heard; the others are read.

    Args:
        utterances: how many, at least one.
        rng: random state; untouched if `probability` is 0.
        probability: for each utterance, to stand as text. If all would, one of them, drawn evenly, is heard after all.

    Returns:
        True for speech, one per utterance.
    """
    _check_probability(probability)
    if probability == 0:
        return [True] * utterances
    speech = [rng.random() >= probability for _ in range(utterances)]
    if not any(speech):
        speech[rng.randrange(utterances)] = True
    return speech


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"The interleaving probability is {probability}. Use 0 (off) to 1.")


def split_transcript(text: str, words: list[dict]) -> list[str]:
    """
    The part of the transcript that belongs to each word; joined they are the transcript.

    White space belongs to the word after it, as in the tokens of most LLMs, punctuation to the word it touches, and
    between touching words to the one before.

    Args:
        text: the transcript.
        words: `[{"word": ...}]` in order, in upper or lower case, with or without punctuation.

    Raises:
        ValueError: words that are not those of the transcript, all and in order.
    """
    cuts, end = [0], 0
    for index, word in enumerate(words):
        spelled = word["word"].strip()
        found = re.compile(re.escape(spelled), re.IGNORECASE).search(text, end) if spelled else None
        if found is None or _has_letters(text[end : found.start()]):
            raise ValueError(
                f"Word {index} ({word['word']!r}) is not the next in the transcript, which goes on with "
                f"{text[end:]!r}. Let `words` hold the transcript's own words, all and in order, or leave them out "
                "and add them with `add_word_times`."
            )
        if index:
            space = re.search(r"\s", text[end : found.start()])
            cuts.append(end + space.start() if space else found.start())
        end = found.end()
    if _has_letters(text[end:]):
        raise ValueError(
            f"The transcript goes on with {text[end:]!r} after its last word. Let `words` hold all of its words, or "
            "leave them out and add them with `add_word_times`."
        )
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _has_letters(text: str) -> bool:
    return any(character.isalnum() for character in text)


def interleave(
    text: str, words: list[dict] | None, spans: list[tuple[int, int]], audio_tokens: int, times: TokenTimes | None
) -> list[Segment]:
    """
    An utterance with some of its words as text.

    Its time is shared out among the words: a pause is divided in the middle, what is before the first word and after
    the last is theirs. A token belongs to the word in whose time its centre lies. Tokens of words in `spans` are left
    out and the words' part of the transcript stands there; all other tokens are kept, once and in order. Words too
    short for a token of their own stand as text all the same; a stretch of speech between spans that has no token is
    text too, so that no word is lost.

    Args:
        text: the transcript.
        words: `[{"start": seconds, "end": seconds, "word": ...}]` in the audio as it is heard (`at_speed`).
        spans: words that are text, as from `choose_spans`. Without any, `words` and `times` are not read.
        audio_tokens: how many tokens the connector makes of the audio.
        times: when they sound, see `token_times`.

    Returns:
        segments; all audio without spans, the transcript alone if all words are text.

    Raises:
        ValueError: words that are out of order or not in the transcript, spans that overlap or pass the last word.
    """
    if not spans:
        return [AudioSegment(0, audio_tokens)]
    bounds = [bound for span in spans for bound in span]
    if bounds != sorted(bounds) or bounds[0] < 0 or bounds[-1] > len(words):
        raise ValueError(f"Spans {spans} must be in order, apart, and within the {len(words)} words.")
    parts, first_tokens = split_transcript(text, words), _first_tokens(words, audio_tokens, times)
    is_text = [any(first <= word < last for first, last in spans) for word in range(len(words))]
    for first, last in _runs(is_text):
        if first_tokens[first] == first_tokens[last]:  # speech without a token, or text already
            is_text[first:last] = [True] * (last - first)
    return [
        TextSegment("".join(parts[first:last]))
        if is_text[first]
        else AudioSegment(first_tokens[first], first_tokens[last])
        for first, last in _runs(is_text)
    ]


def _first_tokens(words: list[dict], audio_tokens: int, times: TokenTimes) -> list[int]:
    """The first token of each word's time, and the number of tokens."""
    starts, ends = ([word[name] for word in words] for name in ("start", "end"))
    after = times.span(0, audio_tokens)[1]
    if starts != sorted(starts) or ends != sorted(ends) or starts[-1] > after + times.step:
        raise ValueError(
            f"The times of the words {words} are not in order within the audio's {after:.2f} s. Give them in seconds, "
            "divided by the speed at which the audio is played (`at_speed`)."
        )
    middles = [(end + start) / 2 for end, start in zip(ends, starts[1:], strict=False)]
    return [0, *(bisect_left(range(audio_tokens), middle, key=times.centre) for middle in middles), audio_tokens]


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Stretches of equal flags, (first, after the last)."""
    edges = [0, *(place for place in range(1, len(flags)) if flags[place] != flags[place - 1]), len(flags)]
    return list(pairwise(edges))


def at_speed(words: list[dict], speed: float) -> list[dict]:
    """Word times of an audio played `speed` times as fast (speed augmentation)."""
    return [{**word, "start": word["start"] / speed, "end": word["end"] / speed} for word in words]


def segment_blocks(segments: list[Segment]) -> list[dict]:
    """Segments as content blocks of a chat, in place of the audio's block. The audio's features are given apart; text
    that spells a special token stays text, as in any text block."""
    return [
        {"type": "text", "text": segment.text}
        if isinstance(segment, TextSegment)
        else {"type": "audio", "tokens": segment.last - segment.first}
        for segment in segments
    ]


def render_segments(segments: list[Segment], audio_token: str) -> str:
    """Segments as one string, with a placeholder per audio token. To look at; chats are made of `segment_blocks`."""
    return "".join(
        segment.text if isinstance(segment, TextSegment) else audio_token * (segment.last - segment.first)
        for segment in segments
    )


def keep_mask(segments: list[Segment], audio_tokens: int) -> list[bool]:
    """Which of the connector's `audio_tokens` the segments keep, (audio tokens,)."""
    keep = [False] * audio_tokens
    for segment in segments:
        if isinstance(segment, AudioSegment):
            keep[segment.first : segment.last] = [True] * (segment.last - segment.first)
    return keep


__all__ = [
    "AudioSegment",
    "Segment",
    "TextSegment",
    "at_speed",
    "choose_spans",
    "choose_speech",
    "interleave",
    "keep_mask",
    "render_segments",
    "segment_blocks",
    "split_transcript",
]
