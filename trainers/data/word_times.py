"""When each word of a transcript is spoken, for rows that do not tell: forced alignment over a CTC.

Two sources of a CTC: the connector's own over the LLM's vocabulary (`ConnectorCTC`), and any transformers checkpoint
whose vocabulary covers the text (`CheckpointCTC`), for example the one that the model's encoder was taken from.
CTC is free to emit a token long before or after it is spoken where it attends to the whole utterance. Compare some
times with the audio before training on them. A row that cannot be aligned says why, and keeps no words.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from tqdm import tqdm

from processing_speechllm import AudioError, load_audio

from .ctc_alignment import AlignmentError, Token, TokenTimes, align_words, text_tokens, token_times

Emissions = Iterator[tuple[torch.Tensor, TokenTimes]]


class ConnectorCTC:
    """
    The CTC of a SpeechLLM's connector over the LLM's vocabulary, as `SpeechAlignmentTrainer` trains it. A connector
    trained otherwise gives times that mean nothing.

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
    def __call__(self, audio: list[np.ndarray]) -> Emissions:
        """For each audio log-probabilities `(audio tokens, vocabulary)` and when the tokens sound."""
        rate = self.processor.feature_extractor.sampling_rate
        inputs = self.processor(audio=audio, sampling_rate=rate, return_tensors="pt").to(self.model.device)
        features = inputs["input_features"].to(self.model.dtype)
        output = self.model.model.get_ctc_logits(features, inputs["input_features_mask"])
        for logits, length in zip(output.logits, output.lengths.tolist(), strict=True):
            yield logits[:length].float().log_softmax(-1), self.times


class CheckpointCTC:
    """
    A transformers checkpoint for CTC (wav2vec2, MMS, HuBERT, Parakeet, ...) and its processor.

    Tokens are those of its tokenizer if that tells their characters, else the characters themselves, in upper or
    lower case where only that is known. Letters that its vocabulary lacks are left out and counted in `skipped`; a
    word of which nothing is left cannot be aligned. Audios are heard one by one, since many such models hear padding.

    Args:
        model (`PreTrainedModel`): of `AutoModelForCTC`, in evaluation mode; its blank is `config.pad_token_id`.
        processor (`ProcessorMixin`): with `feature_extractor` and `tokenizer`.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.name, self.blank = model.config.name_or_path, model.config.pad_token_id
        self.vocabulary: dict[str, int] = processor.tokenizer.get_vocab()
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
        letter = text[place]
        if letter.isspace():  # one separator between words, none at the ends
            inside = text[:place].strip() and text[place:].strip() and not text[place - 1].isspace()
            forms = ["|", " "] if inside else []
        else:
            forms = [letter, letter.upper(), letter.lower()]
        return next((self.vocabulary[form] for form in forms if form in self.vocabulary), None)

    @torch.no_grad()
    def __call__(self, audio: list[np.ndarray]) -> Emissions:
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
            raise ValueError(
                f"{folder} holds word times of another {differs}. Choose a new folder or delete this one."
            )
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


__all__ = ["CheckpointCTC", "ConnectorCTC", "add_word_times", "align_rows"]
