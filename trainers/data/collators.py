"""Rows to batches: decoded audio, prompts of student and teacher, labels, and the counts that losses are divided by.

What is unusual here:
- A row that cannot be used (audio missing, broken, too short or too long) is left out, recorded by `BadRows` and
  counted; the batch goes on without it.
- Every batch has audio: one of text rows alone gets a moment of silence (`dummy_audio`), so that under FSDP and ZeRO-3
  all processes run the same modules.
- The teacher's prompt is the student's with the transcript in place of the audio, rendered by the same template.
"""

import copy
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from trl import SFTConfig

from processing_speechllm import AudioError, SpeechLLMProcessor, stage_length

from .augmentation import AugmentationSettings, augment_samples, mask_features
from .bad_rows import BadRows
from .interleaving import AudioSegment, Segment, at_speed, keep_mask
from .loading import source_name


@dataclass
class Utterance:
    """One audio of a row: its source, what is said in it, its row's source of chance, and what became of it."""

    source: Any
    text: str | None
    language: int
    rng: random.Random
    words: list[dict] | None = None
    samples: np.ndarray | None = None
    frames: torch.Tensor | None = None
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class Example:
    """One row of a batch: its audios, its chat if it has one, and its own source of chance."""

    id: str
    row: dict[str, Any]
    rng: random.Random
    utterances: list[Utterance] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """Transcripts of its audios.

        Raises:
            ValueError: one is missing, which a row with a chat of its own may lack as long as none is asked for.
        """
        if any(not isinstance(utterance.text, str) for utterance in self.utterances):
            raise ValueError(no_transcript(self.id))
        return [utterance.text for utterance in self.utterances]


def no_transcript(row_id: str) -> str:
    """What is said of a row whose transcript is needed and missing."""
    return (
        f"Row {row_id} has no transcript in its column 'text', which this training needs: only answers of `messages` "
        "(imitation without a divergence) are learned without."
    )


class SpeechCollator:
    """
    Base of the collators; a subclass adds the prompts of its objective.

    Args:
        processor: the model's processor.
        args: the trainer's `SpeechTrainingConfig`.
        languages: names of the connector's languages, or how many they are (then rows carry numbers).
        frames_cache: encoder outputs, in place of audio.
        bad_rows: where unusable rows are recorded; without it they raise.
        training: whether audio is augmented and interleaved.
    """

    runs_llm = True  # on all audios of a row in one prompt

    def __init__(
        self,
        processor: SpeechLLMProcessor,
        args: SFTConfig,
        languages: list[str] | int | None = None,
        frames_cache: Any = None,
        bad_rows: BadRows | None = None,
        training: bool = True,
    ):
        self.processor, self.args, self.languages = processor, args, languages
        self.frames_cache, self.bad_rows, self.training = frames_cache, bad_rows, training
        self.seed = args.data_seed if args.data_seed is not None else args.seed
        self.augmentation = AugmentationSettings(**args.augmentation or {})

    def for_evaluation(self) -> "SpeechCollator":
        """The same without augmentation and interleaving."""
        other = copy.copy(self)
        other.training = False
        return other

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch; keys as the trainers read them, tensors on the CPU, padded to the right. No rows, which stand for a
        batch of a stream that a resumed run has had, give nothing."""
        if not rows:
            return {}
        examples, bad = [], 0
        for row in rows:
            try:
                examples.append(self.read(row))
            except AudioError as error:
                if self.bad_rows is None:
                    raise
                self.bad_rows.record(row_id(row), source_name(row.get("audio")), str(error))
                bad += 1
        utterances = [utterance for example in examples for utterance in example.utterances]
        batch = self.audio_inputs(utterances)
        batch |= self.prompts(examples)
        batch["ids"] = [example.id for example in examples]
        batch["language"] = torch.tensor([u.language for u in utterances] or [-1])
        batch["counts"] |= {
            "rows": len(examples),
            "bad_rows": bad,
            "utterances": len(utterances),
            "labelled": sum(utterance.language >= 0 for utterance in utterances),
            "audio_seconds": sum(utterance.seconds for utterance in utterances),
        }
        return batch

    def read(self, row: dict[str, Any]) -> Example:
        """A row with its audios decoded (and augmented), or their cached frames.

        Raises:
            AudioError: an audio that cannot be used.
            ValueError: a row without transcript.
        """
        epoch, index = row["draw"]
        example = Example(row_id(row), row, random.Random(f"{self.seed}|{epoch}|{index}"))
        if row.get("audio") is None:
            return example
        several = isinstance(row["audio"], list)
        columns = {name: row.get(name) for name in ("audio", "text", "language", "words")}
        if not several:
            columns = {name: [value] for name, value in columns.items()}
        count = len(columns["audio"])
        for name, value in columns.items():  # one value for all audios, or none
            columns[name] = value if isinstance(value, list) else [value] * count
            if len(columns[name]) != count:
                raise ValueError(f"Row {example.id} has {count} audios, but {len(value)} of {name!r}. Give as many.")
        for number, source in enumerate(columns["audio"]):
            text, language, words = (columns[name][number] for name in ("text", "language", "words"))
            if not isinstance(text, str) and not row.get("messages"):
                raise ValueError(no_transcript(example.id))
            utterance = Utterance(source, text, self.language_index(language), example.rng, words)
            if self.frames_cache is not None:
                key = f"{example.id}/{number}" if several else example.id
                utterance.frames = self.frames_cache.frames(key)
                utterance.tokens = stage_length(len(utterance.frames), self.processor.connector_stages)
                utterance.seconds = self.frames_cache.seconds(key)
            else:
                self.decode(utterance)
            example.utterances.append(utterance)
        self.check_room(example)
        return example

    def check_room(self, example: Example) -> None:
        """Raises an AudioError for a row whose audios do not fit into the LLM's positions together."""
        room, tokens = self.processor.audio_room, [utterance.tokens for utterance in example.utterances]
        if self.runs_llm and room is not None and len(tokens) > 1 and sum(tokens) > room:
            raise AudioError(
                f"its {len(tokens)} audios are {sum(tokens)} tokens together; the LLM has "
                f"{self.processor.max_position_embeddings} positions, of which audio may take {room}. Give the row "
                "fewer or shorter audios."
            )

    def decode(self, utterance: Utterance) -> None:
        """Reads, and in training augments, an utterance's samples."""
        rate = self.processor.feature_extractor.sampling_rate
        samples = self.processor.load_audio(utterance.source)
        if self.training:
            length = len(samples)
            slower = min(self.augmentation.speed_factors) < 1
            longest = self.processor.audio_limit.seconds if slower else None
            samples = augment_samples(samples, rate, utterance.rng, self.augmentation, longest)
            if utterance.words is not None and len(samples) != length:
                utterance.words = at_speed(utterance.words, length / len(samples))
        utterance.samples, utterance.seconds = samples, len(samples) / rate
        utterance.tokens = self.processor.audio_token_count(len(samples))

    def language_index(self, language: str | int | None) -> int:
        """A row's language as an index into the connector's languages, -1 if it has none or one that is not listed."""
        if language is None or not self.languages:
            return -1
        if isinstance(self.languages, int):
            if not isinstance(language, int) or language >= self.languages:
                raise ValueError(
                    f"The connector has {self.languages} languages without names, so rows need numbers below that, "
                    f"not {language!r}. Name the connector's languages, or map the column."
                )
            return language
        return self.languages.index(language) if language in self.languages else -1

    def audio_inputs(self, utterances: list[Utterance]) -> dict[str, Any]:
        """The audio part of a batch."""
        if not utterances and self.frames_cache is not None:  # no process runs the encoder
            return {"dummy_audio": True, "encoder_frames": None, "encoder_lengths": None}
        if not utterances:
            silence = np.zeros(self.processor.min_samples, dtype=np.float32)
            inputs = self.processor.audio_inputs([silence])
            batch = {"dummy_audio": True}
        elif self.frames_cache is not None:
            lengths = torch.tensor([len(utterance.frames) for utterance in utterances])
            frames = pad_sequence([utterance.frames.float() for utterance in utterances], batch_first=True)
            return {"dummy_audio": False, "encoder_frames": frames, "encoder_lengths": lengths}
        else:
            inputs = self.processor.audio_inputs([utterance.samples for utterance in utterances])
            batch = {"dummy_audio": False}
        features = torch.from_numpy(inputs["input_features"])
        mask = torch.from_numpy(inputs["input_features_mask"])
        if self.training:
            for row, length, utterance in zip(features, mask.sum(-1).tolist(), utterances, strict=False):
                row[..., :length] = mask_features(row[..., :length], utterance.rng, self.augmentation)
        return batch | {"input_features": features, "input_features_mask": mask}

    def prompts(self, examples: list[Example]) -> dict[str, Any]:
        """The text part of a batch, with its own `counts`."""
        raise NotImplementedError

    def transcripts(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """Tokens of every utterance's transcript: `transcript_ids` (audios, tokens) and `transcript_lengths`."""
        texts = [text for example in examples for text in example.texts]
        options = {"add_special_tokens": False, "split_special_tokens": True}  # one that is spelled stays text
        rows = [self.processor.tokenizer(text, **options)["input_ids"] for text in texts] or [[]]
        lengths = torch.tensor([len(row) for row in rows])
        padded = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
        return {"transcript_ids": padded, "transcript_lengths": lengths}


def row_id(row: dict[str, Any]) -> str:
    """A row's id, or its number where it has none."""
    return str(row["draw"][1] if row.get("id") is None else row["id"])


def keep_masks(segments: list[list[Segment]], tokens: list[int]) -> torch.Tensor:
    """(audios, tokens) bool: which of each audio's tokens stand in the prompts."""
    rows = [torch.tensor(keep_mask(row, count)) for row, count in zip(segments, tokens, strict=True)]
    return pad_sequence(rows, batch_first=True)


def whole(utterance: Utterance) -> list[Segment]:
    """An utterance that is heard from beginning to end."""
    return [AudioSegment(0, utterance.tokens)]


__all__ = ["Example", "SpeechCollator", "Utterance", "keep_masks", "whole"]
