"""When each word of a transcript is spoken, from a CTC by forced alignment (Viterbi, `torchaudio`'s `forced_align`).

The CTC is the connector's own, over the LLM's vocabulary (`ConnectorCTC`), or that of any transformers checkpoint for
CTC whose vocabulary covers the text (`CheckpointCTC`). Words are what stands between white space, without the
punctuation around it; in scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character is one.
A row that cannot be aligned says why, and keeps no words.
"""

import hashlib
import json
import math
import os
import re
import shutil
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from torchaudio.functional import forced_align
from tqdm import tqdm

from processing_speechllm import AudioError, load_audio

# Thai, Lao, Burmese, Khmer, iteration marks, kana, Han.
UNSPACED_RANGES = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_RANGES)
_MARKS = "".join(  # vowel signs and tone marks above, below and beside their letter
    chr(code) for first, last in UNSPACED_RANGES[:7] for code in range(first, last) if unicodedata.combining(chr(code))
    or unicodedata.category(chr(code)).startswith("M")
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
    position, hop = 0.0, 1
    for stage in reversed(stages):
        position = position * stage["stride"] + (stage["kernel"] - 1) / 2 - stage.get("padding", 0)
        hop *= stage["stride"]
    rate = processor.feature_extractor.sampling_rate
    return TokenTimes((position + 0.5) / rate, hop / rate, stages[-1].get("tokens", 1) if stages else 1)


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
        AlignmentError: fewer frames than the targets need.
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
    path, _ = forced_align(emissions[None].contiguous(), places[None, 1:], blank=int(places[0]))
    spans, last = [], places[0]
    for frame, label in enumerate(path[0]):
        if label != places[0]:
            start = spans.pop()[0] if label == last else frame
            spans.append((start, frame + 1))
        last = label
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
        `[{"start": seconds, "end": seconds, "word": as in the text}]`.

    Raises:
        AlignmentError: no words in the text, a word that `tokens` leave out, or fewer frames than tokens.
    """
    words = split_words(text)
    if not words:
        raise AlignmentError("no words", f"The transcript {text!r} has no words. Leave the row out.")
    starts = [start for start, _ in words]
    owned: list[list[int]] = [[] for _ in words]
    for index, (_, first, last) in enumerate(tokens):
        spoken = first + len(text[first:last]) - len(text[first:last].lstrip())
        owned[max(bisect_right(starts, spoken) - 1, 0)].append(index)
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
        {"start": span[0], "end": span[1], "word": text[start:end]}
        for (start, end, _), span in zip(joined, spans, strict=True)
    ]


def text_tokens(tokenizer: Any, text: str) -> list[Token]:
    """Tokens of a text with their characters; special tokens spelled in it stay text. Needs a fast tokenizer."""
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    return [(token, *span) for token, span in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)]


class ConnectorCTC:
    """The CTC of a SpeechLLM's connector over the LLM's vocabulary, as `SpeechAlignmentTrainer` trains it.

    Args:
        model (`SpeechLLMForConditionalGeneration`): in evaluation mode.
        processor (`SpeechLLMProcessor`): its own; the connector must follow time, see `token_times`.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.name, self.blank, self.times = model.config.name_or_path, model.model.ctc_blank, token_times(processor)

    def load(self, source: Any) -> np.ndarray:
        """Samples `(samples,)` of an audio."""
        return self.processor.load_audio(source)

    def tokens(self, text: str) -> list[Token]:
        """The LLM's tokens of the transcript."""
        return text_tokens(self.processor.tokenizer, text)

    @torch.no_grad()
    def __call__(self, audio: list[np.ndarray]) -> Iterator[tuple[torch.Tensor, TokenTimes]]:
        """For each audio log-probabilities `(audio tokens, vocabulary)` and when the tokens sound."""
        rate = self.processor.feature_extractor.sampling_rate
        inputs = self.processor(audio=audio, sampling_rate=rate, return_tensors="pt").to(self.model.device)
        features = inputs["input_features"].to(self.model.dtype)
        output = self.model.model.get_ctc_logits(features, inputs["input_features_mask"])
        for logits, length in zip(output.logits, output.lengths.tolist(), strict=True):
            yield logits[:length].float().log_softmax(-1), self.times


class CheckpointCTC:
    """A transformers checkpoint for CTC (wav2vec2, MMS, HuBERT, Parakeet, ...) and its processor.

    Tokens are those of its tokenizer if that tells their characters, else the characters themselves, in upper or lower
    case where only that is known. Characters that its vocabulary lacks are left out and counted in `skipped`; a word of
    which nothing is left cannot be aligned. Audios are heard one by one, since many such models hear padding.

    Args:
        model (`PreTrainedModel`): of `AutoModelForCTC`, in evaluation mode; its blank is `config.pad_token_id`.
        processor (`ProcessorMixin`): with `feature_extractor` and `tokenizer`.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.name, self.blank = model.config.name_or_path, model.config.pad_token_id
        self.skipped: Counter[str] = Counter()

    def load(self, source: Any) -> np.ndarray:
        """Samples `(samples,)` of an audio."""
        return load_audio(source, sampling_rate=self.processor.feature_extractor.sampling_rate)

    def tokens(self, text: str) -> list[Token]:
        """Tokens of the transcript in the checkpoint's vocabulary."""
        tokenizer = self.processor.tokenizer
        if tokenizer.is_fast:
            tokens = text_tokens(tokenizer, text)
        else:
            tokens = [(self._character(text, place), place, place + 1) for place in range(len(text))]
        unknown = [token for token in tokens if token[0] in (None, tokenizer.unk_token_id)]
        spelled = "".join(text[first:last] for _, first, last in unknown)
        self.skipped.update(letter for letter in spelled if letter.isalnum())
        return [token for token in tokens if token not in unknown]

    def _character(self, text: str, place: int) -> int | None:
        """Id of one character, or None."""
        tokenizer, letter = self.processor.tokenizer, text[place]
        if letter.isspace():  # one separator between words, none at the ends
            inside = text[:place].strip() and text[place:].strip() and not text[place - 1].isspace()
            forms = [getattr(tokenizer, "word_delimiter_token", None) or " "] if inside else []
        else:
            forms = [letter, letter.upper(), letter.lower()]
        vocabulary = tokenizer.get_vocab()
        return next((vocabulary[form] for form in forms if form in vocabulary), None)

    @torch.no_grad()
    def __call__(self, audio: list[np.ndarray]) -> Iterator[tuple[torch.Tensor, TokenTimes]]:
        """For each audio log-probabilities `(frames, vocabulary)` and when the frames sound."""
        extractor = self.processor.feature_extractor
        for samples in audio:
            inputs = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            inputs = inputs.to(self.model.device, self.model.dtype)
            logits = self.model(**inputs).logits[0]
            step = len(samples) / extractor.sampling_rate / len(logits)
            yield logits.float().log_softmax(-1), TokenTimes(step / 2, step)


Aligner = ConnectorCTC | CheckpointCTC


def align_rows(rows: Iterable[dict], aligner: Aligner, batch_size: int = 8) -> Iterator[dict]:
    """
    Rows with their word times.

    Args:
        rows: each with `audio` and `text` of one utterance; `words` that are there already are kept.
        aligner: `ConnectorCTC` or `CheckpointCTC`.
        batch_size: audios heard at once.

    Yields:
        each row with `words` and `words_missing`: None, or why `words` is None ("audio", "no words", "not in the
        vocabulary", "too few frames").

    Raises:
        ValueError: a row of several utterances.
    """
    batch: list[dict] = []
    for row in rows:
        batch.append(row)
        if len(batch) == batch_size:
            yield from _align_batch(batch, aligner)
            batch = []
    yield from _align_batch(batch, aligner)


def _align_batch(rows: list[dict], aligner: Aligner) -> list[dict]:
    rows = [{**row, "words": row.get("words"), "words_missing": None} for row in rows]
    heard, audio = [], []
    for row in rows:
        if not isinstance(row["text"], str):
            raise ValueError(
                f"Row {row.get('id')!r} has several utterances. Add word times before utterances are joined."
            )
        if row["words"] is None:
            try:
                audio.append(aligner.load(row["audio"]))
                heard.append(row)
            except AudioError:
                row["words_missing"] = "audio"
    for row, (log_probabilities, times) in zip(heard, aligner(audio) if audio else [], strict=True):
        try:
            tokens = aligner.tokens(row["text"])
            row["words"] = align_words(row["text"], tokens, log_probabilities, aligner.blank, times)
        except AlignmentError as error:
            row["words_missing"] = error.reason
    return rows


WORD_FEATURES = Features(
    {
        "words": List({"start": Value("float64"), "end": Value("float64"), "word": Value("string")}),
        "words_missing": Value("string"),
    }
)


def add_word_times(
    dataset: Dataset, aligner: Aligner, folder: str | Path, batch_size: int = 8, shard_size: int = 1000
) -> tuple[Dataset, Counter]:
    """
    A dataset with the columns `words` and `words_missing` of `align_rows`, kept in `folder`.

    They are written in shards, each when it is whole, so a call that was interrupted goes on where it stopped, and a
    later call reads them: a resumed training sees the words of the first run, whatever its connector learned since.

    Args:
        dataset: rows with `audio` and `text` of one utterance.
        aligner, batch_size: see `align_rows`.
        folder: for the shards; made if missing.
        shard_size: rows per shard.

    Returns:
        the dataset, and how many rows have no words, by reason.

    Raises:
        ValueError: `folder` holds the word times of other rows or from another model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256("\0".join(map(str, dataset["text"])).encode()).hexdigest()
    about = {"model": aligner.name, "rows": len(dataset), "shard_size": shard_size, "texts": digest}
    if (folder / "about.json").exists():
        written = json.loads((folder / "about.json").read_text())
        if written != about:
            differs = ", ".join(key for key in about if written.get(key) != about[key])
            raise ValueError(f"{folder} holds word times of another {differs}. Choose a new folder or delete this one.")
    else:
        (folder / "about.json.partial").write_text(json.dumps(about, indent=2))
        os.replace(folder / "about.json.partial", folder / "about.json")
    shards = []
    with tqdm(total=len(dataset), desc="word times", unit="row") as progress:
        for first in range(0, len(dataset), shard_size):
            rows = dataset.select(range(first, min(first + shard_size, len(dataset))))
            shard = folder / f"words-{first // shard_size:05d}"
            if not shard.exists():
                aligned = []
                for row in align_rows(rows, aligner, batch_size):
                    aligned.append({name: row[name] for name in WORD_FEATURES})
                    progress.update()
                partial = shard.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                Dataset.from_list(aligned, features=WORD_FEATURES).save_to_disk(partial)
                os.replace(partial, shard)
            else:
                progress.update(len(rows))
            shards.append(load_from_disk(shard))
    times = concatenate_datasets(shards) if shards else Dataset.from_list([], features=WORD_FEATURES)
    rest = dataset.remove_columns([name for name in WORD_FEATURES if name in dataset.column_names])
    missing = Counter(reason for reason in times["words_missing"] if reason is not None)
    return concatenate_datasets([rest, times], axis=1), missing


__all__ = [
    "AlignmentError",
    "CheckpointCTC",
    "ConnectorCTC",
    "TokenTimes",
    "add_word_times",
    "align_rows",
    "align_tokens",
    "align_words",
    "split_words",
    "text_tokens",
    "token_times",
]
