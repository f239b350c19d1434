"""Frozen-encoder outputs and teacher states, read from disk in place of being computed in every epoch.

    folder/frames/    frames of each audio, (frames, [layers,] dim)
    folder/teacher/   the LLM's states for each row, if asked for
    folder/bad_rows/  the rows whose audio could not be used

A cache is a fact about one encoder, one feature extractor and one set of rows: [`FrameCache.check`] refuses another
model, and a row that was not encoded is an error; one that was set aside is bad audio here as it was there.
"""

from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from modeling_speechllm.audio_families import audio_layer_count
from processing_speechllm import AudioError, stage_length

from ..data.bad_rows import BadRows
from .fingerprint import check_parts, encoder_fingerprint, teacher_fingerprint, teacher_settings
from .store import ShardReader

FRAMES, TEACHER = "frames", "teacher"  # folders of a cache
BAD_ROWS, UNREADABLE_ROWS = "bad_rows", "unreadable_rows"  # lists of what could not be encoded


def audio_keys(row_id: str, audio: Any) -> list[str]:
    """Keys of a row's audios: its id, or `id/0`, `id/1`, ... where its `audio` is a list; none without audio."""
    if isinstance(audio, list):
        return [f"{row_id}/{number}" for number in range(len(audio))]
    return [] if audio is None else [row_id]


def pad_frames(frames: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames `(frames, [layers,] dim)` of several audios -> `(audios, frames, [layers,] dim)`, zero past each length,
    and lengths `(audios,)`: what a connector takes."""
    return pad_sequence(frames, batch_first=True), torch.tensor([len(audio) for audio in frames])


def audio_token_count(processor: Any, frames: int) -> int:
    """How many placeholders an audio of so many encoder frames takes."""
    return stage_length(frames, processor.connector_stages)


class FrameCache:
    """A folder that `speechllm encode` has written.

    Args:
        folder (`str` or `Path`): of the cache.

    Raises:
        ValueError: no finished cache there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._frames = ShardReader(self.folder / FRAMES)
        has_teacher = (self.folder / TEACHER).is_dir()
        self._teacher = ShardReader(self.folder / TEACHER) if has_teacher else None
        self._selected: list[int] | int | None = None
        lists = [BadRows(self.folder / name, 1.0, 1).read() for name in (BAD_ROWS, UNREADABLE_ROWS)]
        self._bad = {row["id"]: row["finding"] for rows in lists for row in rows}

    @property
    def layers(self) -> list[int]:
        """Encoder layers that are stored, empty for the encoder's output alone."""
        stored = self._frames.parts["layers"]
        return [] if stored == "output" else [int(layer) for layer in stored.split()]

    def __len__(self) -> int:
        return len(self._frames.items)

    def __contains__(self, key: str) -> bool:
        return key in self._frames.items

    def check(self, model: Any, processor: Any) -> None:
        """Refuses a model whose encoder would give other frames, and chooses the layers that its connector reads.

        Call it before adapters are added or the model is sharded.

        Args:
            model: a `SpeechLLMForConditionalGeneration`.
            processor: its `SpeechLLMProcessor`.

        Raises:
            ValueError: the encoder is trained, or a part of the fingerprint differs; which, and the remedy.
        """
        if any(parameter.requires_grad for parameter in model.model.audio_tower.parameters()):
            raise ValueError(
                f"The encoder is trained, so its frames change and cannot come from the cache {self.folder}. Freeze "
                'it (model.freeze("encoder")), or train without a cache.'
            )
        remedy = (
            "Take the model, precision and processor that it was made with, or run `speechllm encode` with these into "
            "another folder."
        )
        check_parts(str(self.folder), self._frames.parts, encoder_fingerprint(model, processor), remedy)
        self._selected = self._select(model.config.audio_layers, audio_layer_count(model.config.audio_config))

    def _select(self, wanted: list[int], last: int) -> list[int] | int | None:
        """Index into the stored layers that gives the `wanted` ones; the last layer is the encoder's output."""
        stored = self.layers
        if wanted == stored:
            return None
        if not set(wanted or [last]) <= set(stored):
            raise ValueError(
                f"The cache {self.folder} holds the encoder's layers {stored or 'output alone'}, the connector reads "
                f"{wanted or 'its output alone'}. Run `speechllm encode` with these layers into another folder, or "
                "set the connector's layers."
            )
        return [stored.index(layer) for layer in wanted] if wanted else stored.index(last)

    def frames(self, key: str) -> torch.Tensor:
        """Frames `(frames, [layers,] dim)` of one audio, in the precision stored.

        Raises:
            AudioError: it could not be encoded, and was set aside then.
            KeyError: it was not encoded.
        """
        row_id = next((name for name in (key, key.rpartition("/")[0]) if name in self._bad), None)
        if key not in self and row_id is not None:
            raise AudioError(f"{self._bad[row_id]} (Set aside when the cache {self.folder} was written.)")
        frames = self._frames.read(key, "frames")
        return frames if self._selected is None else frames[:, self._selected]

    def frame_count(self, key: str) -> int:
        """How many frames an audio has, without reading them; raises as `frames`."""
        return self._frames.location(key)[1]

    def seconds(self, key: str) -> float:
        """How long an audio is, in seconds; raises as `frames`."""
        return self._frames.location(key)[2]

    def check_teacher(
        self,
        model: Any,
        processor: Any,
        teacher: str,
        instruction: str | None = None,
        top_k: int = 64,
        temperature: float = 1.0,
    ) -> None:
        """Refuses teacher states that were stored of another LLM, prompt or loss; arguments as in `EncodeConfig`.

        Raises:
            ValueError: none are stored, or a part of the fingerprint differs; which, and the remedy.
        """
        remedy = "Run `speechllm encode` with these settings into another folder, or compute the teacher on line."
        if self._teacher is None:
            raise ValueError(f"The cache {self.folder} holds no teacher states. {remedy}")
        given = teacher_fingerprint(model, processor, instruction)
        given["teacher"] = teacher_settings(teacher, top_k, temperature)
        check_parts(str(self.folder / TEACHER), self._teacher.parts, given, remedy)

    def teacher(self, row_id: str) -> dict[str, torch.Tensor]:
        """The teacher's states for a row: `hidden` `(dim,)`, or `log_probabilities` (float32) and `indices`
        `(label positions, top_k)`, the likeliest first.

        Raises:
            KeyError: none are stored for this row.
        """
        if self._teacher is None:
            raise KeyError(f"The cache {self.folder} holds no teacher states. Encode with `--teacher`.")
        hidden = self._teacher.parts["teacher"] == "hidden"
        names = ("hidden",) if hidden else ("log_probabilities", "indices")
        return {name: self._teacher.read(row_id, name) for name in names}


__all__ = ["FrameCache", "audio_keys", "audio_token_count", "pad_frames"]
