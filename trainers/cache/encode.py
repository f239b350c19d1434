"""Writing a cache: the frozen parts run once over a data set.

What is unusual here:
- A row is encoded whole or not at all, and its audios come to lie in one shard, so a run that was killed goes on with
  the rows that no shard holds: none is lost or doubled.
- Rows are read in windows and sorted by length inside them; the cache is keyed, so their order means nothing.
- Values that the storage's precision cannot hold stop the run; they would be infinite in the training.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from modeling_speechllm.attention_backends import attention_for_any_length
from modeling_speechllm.audio_families import audio_layer_count

from ..data.bad_rows import ROWS_BEFORE_JUDGING, BadRows
from ..data.loading import source_name
from ..objectives.teacher import teacher_states
from .config import EncodeConfig
from .fingerprint import encoder_fingerprint, teacher_fingerprint, teacher_settings
from .frame_cache import BAD_ROWS, FRAMES, TEACHER, audio_keys
from .prepared_rows import (
    PreparedRow,
    batches_by_length,
    in_threads,
    numbered_rows,
    pad_features,
    prepare_row,
    reserve,
    windows_of,
)
from .store import PARTIAL, ShardWriter, read_shards, write_index

TeacherInputs = Callable[[list[dict]], dict[str, torch.Tensor]]
BATCHES_PER_WINDOW = 8
# The probability that the teacher's likeliest tokens leave of 1 would be lost in half precision.
EXACT = {"log_probabilities": torch.float32, "indices": torch.int32}
OTHER_FOLDER = "Encode into another folder, or delete this one first."


@dataclass
class EncodeReport:
    """What a run did.

    Args:
        rows: rows gone through.
        kept: rows that the cache held already.
        bad: rows set aside, listed in the folder's `bad_rows`.
        without_audio: rows of text only.
        audios, audio_seconds: encoded by this run.
        teacher_rows: rows whose teacher states this run stored.
        bytes_written: in shards.
        seconds: that the slowest process took.
    """

    rows: int = 0
    kept: int = 0
    bad: int = 0
    without_audio: int = 0
    audios: int = 0
    audio_seconds: float = 0.0
    teacher_rows: int = 0
    bytes_written: int = 0
    seconds: float = 0.0

    def __add__(self, other: "EncodeReport") -> "EncodeReport":
        total = {name: value + getattr(other, name) for name, value in asdict(self).items()}
        return EncodeReport(**total | {"seconds": max(self.seconds, other.seconds)})


def stored_layers(model: Any, layers: str | list[int] | None) -> list[int]:
    """`layers` of [`EncodeConfig`] as numbers from 0, empty for the encoder's output alone.

    Raises:
        ValueError: layers that the encoder lacks.
    """
    count = audio_layer_count(model.config.audio_config) + 1
    if layers is None:
        return model.config.audio_layers
    if layers == "all":
        return list(range(count))
    if not all(-count <= layer < count for layer in layers):
        raise ValueError(f"layers={layers} are not all from 0 to {count - 1}, which this encoder has.")
    return [layer % count for layer in layers]


@torch.no_grad()
def encode_frames(model: Any, rows: list[PreparedRow], layers: list[int]) -> Iterator[torch.Tensor]:
    """Frames `(frames, [layers,] dim)` of each audio of a batch of rows, in order."""
    tower = model.model.audio_tower
    device = next(tower.parameters()).device
    features = pad_features([feature for row in rows for feature in row.features.values()]).to(device)
    masks = pad_features([mask for row in rows for mask in row.masks]).to(device)
    output = tower(features, masks, layers)
    lengths = output.lengths.tolist()
    return (frames[:length] for frames, length in zip(output.last_hidden_state, lengths, strict=True))


class RowEncoder:
    """Runs the frozen parts on rows and writes what they give; one process's run.

    Args:
        model, processor, config, teacher_inputs: as in [`encode_dataset`].
        process: number of the process.

    Raises:
        ValueError: the folder holds a cache of another encoder or with other settings.
    """

    def __init__(
        self, model: Any, processor: Any, config: EncodeConfig, teacher_inputs: TeacherInputs | None, process: int
    ):
        if config.teacher != "none" and teacher_inputs is None:
            raise ValueError(
                f"teacher={config.teacher!r} needs teacher_inputs, which makes of rows what the LLM reads. Pass it, "
                'or leave teacher at "none".'
            )
        self.model, self.processor, self.config, self.teacher_inputs = model.eval(), processor, config, teacher_inputs
        self.layers = stored_layers(model, config.layers)
        self.dtype = getattr(torch, config.storage_dtype)
        strides = [stage["stride"] for stage in processor.feature_stages]
        self.batch_positions = config.batch_seconds * processor.feature_extractor.sampling_rate / math.prod(strides)
        self.report = EncodeReport()
        self.finished = 0  # rows
        self.seen: set[str] = set()
        parts = {FRAMES: encoder_fingerprint(model, processor)}
        parts[FRAMES]["layers"] = " ".join(map(str, self.layers)) or "output"
        if config.teacher != "none":
            parts[TEACHER] = teacher_fingerprint(model, processor, config.instruction)
            parts[TEACHER]["teacher"] = teacher_settings(config.teacher, config.top_k, config.temperature)
        self.stored: dict[str, set[str]] = {}
        self.writers: dict[str, ShardWriter] = {}
        for name in parts:
            folder = Path(config.output_dir) / name
            folder.mkdir(parents=True, exist_ok=True)
            parts[name]["storage dtype"] = config.storage_dtype
            self.stored[name] = set(read_shards(folder, OTHER_FOLDER, parts[name])["items"])
            self.writers[name] = ShardWriter(folder, process, parts[name], config.shard_bytes, config.shard_seconds)

    def rows_left(self, rows: Iterable[dict], process: int, processes: int) -> Iterator[tuple[str, dict, bool]]:
        """The rows of this process that the cache does not hold whole: id, row, and whether frames are missing.

        Raises:
            ValueError: a row without `audio`, or a key that two rows have.
        """
        for row_id, read in numbered_rows(rows, self.seen, process, processes):
            self.report.rows += 1
            if all(row_id in stored for stored in self.stored.values()):
                self.report.kept += 1
                self.finished += 1
                continue
            row = read()
            if "audio" not in row:
                found = ", ".join(sorted(row))
                raise ValueError(f"Row {row_id!r} has no column `audio`, only {found}. Rename the audio's column.")
            keys = audio_keys(row_id, row["audio"])
            for key in keys if keys != [row_id] else []:
                reserve(key, self.seen)
            unheard = any(key not in self.stored[FRAMES] for key in keys)
            untaught = TEACHER in self.stored and row_id not in self.stored[TEACHER]
            self.report.without_audio += not keys
            if unheard or untaught:
                yield row_id, row, unheard
            else:
                self.report.kept += bool(keys)
                self.finished += 1

    def encode(self, rows: list[PreparedRow]) -> Iterator[None]:
        """Encodes a window of usable rows, a batch at every step."""
        for batch in batches_by_length([row for row in rows if row.features], self.batch_positions):
            frames = encode_frames(self.model, batch, self.layers)
            for row in batch:
                self.add(FRAMES, row, {key: {"frames": next(frames)} for key in row.features})
                self.report.audios += len(row.features)
                self.report.audio_seconds += sum(row.seconds.values())
            self.finished += len(batch)
            yield
        self.finished += sum(not row.features for row in rows)
        if TEACHER in self.stored:
            self.read_texts([row for row in rows if row.id not in self.stored[TEACHER]])

    def read_texts(self, rows: list[PreparedRow]) -> None:
        """Stores the teacher's states of rows.

        Raises:
            ValueError: a row without an answer, where answers are to be predicted.
        """
        config = self.config
        rows = sorted(rows, key=lambda row: -len(str(row.row.get("messages") or row.row.get("text"))))
        for start in range(0, len(rows), config.teacher_batch_size):
            batch = rows[start : start + config.teacher_batch_size]
            inputs = self.teacher_inputs([row.row for row in batch])
            if config.teacher == "top_k":
                for row, labels in zip(batch, inputs["labels"], strict=True):
                    if (labels[1:] == -100).all():
                        raise ValueError(
                            f"Row {row.id!r} has no answer that the teacher could predict. Give its `messages` an "
                            "answer, or filter such rows."
                        )
            states = teacher_states(self.model, inputs, config.teacher, config.top_k, config.temperature)
            for row, state in zip(batch, states, strict=True):
                self.add(TEACHER, row, {row.id: state})
                self.report.teacher_rows += 1

    def add(self, name: str, row: PreparedRow, items: dict[str, dict[str, torch.Tensor]]) -> None:
        """Adds all items of a row to a store, each field in its precision.

        Raises:
            ValueError: values that it cannot hold.
        """
        for fields in items.values():
            for field, tensor in fields.items():
                fields[field] = tensor.to("cpu", EXACT.get(field, self.dtype), copy=True).contiguous()
                if not fields[field].isfinite().all():
                    raise ValueError(
                        f"The {field} of row {row.id!r} reach {tensor.float().abs().max():.4g}, which "
                        f"{self.config.storage_dtype} cannot hold. Set storage_dtype to bfloat16 or float32; if the "
                        "number itself is not finite, check the weights and the audio."
                    )
        self.stored[name].update(items)
        self.writers[name].add(items, row.seconds if name == FRAMES else {})

    def write(self) -> None:
        """Writes what is held."""
        for writer in self.writers.values():
            writer.flush()
        self.report.bytes_written = sum(writer.written for writer in self.writers.values())


@attention_for_any_length()
def encode_share(
    model: Any,
    processor: Any,
    rows: Iterable[dict],
    config: EncodeConfig,
    teacher_inputs: TeacherInputs | None = None,
    process: int = 0,
    processes: int = 1,
) -> EncodeReport:
    """One process's part of [`encode_dataset`]: every `processes`-th row, in shards of its own, without the index."""
    start = time.monotonic()
    encoder = RowEncoder(model, processor, config, teacher_inputs, process)
    report = encoder.report
    left = encoder.rows_left(rows, process, processes)
    prepared = in_threads(lambda item: prepare_row(processor, *item), left, config.decoding_threads)
    total = -(-len(rows) // processes) if hasattr(rows, "__len__") else None
    bad_rows = BadRows(Path(config.output_dir) / BAD_ROWS, config.max_bad_share, ROWS_BEFORE_JUDGING)
    with tqdm(total=total, desc="encode", unit="row", disable=process != 0) as bar:
        for window in windows_of(prepared, BATCHES_PER_WINDOW * config.batch_seconds):
            for row in window:
                if row.error is not None:
                    bad_rows.record(row.id, source_name(row.row["audio"]), row.error)
                    report.bad += 1
                    encoder.finished += 1
            bad_rows.check(report.rows, report.bad)
            for _ in encoder.encode([row for row in window if row.error is None]):
                bar.update(encoder.finished - bar.n)
        bar.update(encoder.finished - bar.n)
    encoder.write()
    report.seconds = time.monotonic() - start
    return report


def clean(folder: Path) -> None:
    """Removes what a killed run left half done, and the list of bad rows, which are tried again."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (f"{FRAMES}/*{PARTIAL}", f"{TEACHER}/*{PARTIAL}", f"{BAD_ROWS}/rank-*.jsonl"):
        for path in folder.glob(pattern):
            path.unlink()


def write_indexes(folder: Path) -> None:
    """Writes the index of what all processes have encoded."""
    for name in (FRAMES, TEACHER):
        write_index(folder / name)


def encode_dataset(
    model: Any,
    processor: Any,
    rows: Iterable[dict],
    config: EncodeConfig,
    teacher_inputs: TeacherInputs | None = None,
) -> EncodeReport:
    """
    Writes the encoder's frames of all rows, and the teacher's states if asked for, to `config.output_dir`.

    Rows that are there already are kept, so a run that was killed is started again with the same arguments. Under
    Accelerate every process encodes a part of the rows. The model is put in evaluation mode.

    Args:
        model: a `SpeechLLMForConditionalGeneration` on its devices, without adapters and not sharded.
        processor: its `SpeechLLMProcessor`.
        rows: a `datasets.Dataset`, a stream or any iterable of rows with `id` (text, of its own) and `audio`. A row is
            known by its id alone: changed audio needs another id or another folder.
        config: settings.
        teacher_inputs: rows -> `input_ids`, `attention_mask` and, for `top_k`, `labels`, all
            `(batch, sequence)`: the text that the LLM reads in place of the audio, as in training.

    Raises:
        ValueError: a cache of another encoder or with other settings is there; ids that are missing or not unique;
            values that the storage's precision cannot hold.
        RuntimeError: too many rows cannot be used.
        OSError: a shard cannot be written.
    """
    state, folder = PartialState(), Path(config.output_dir)
    if state.is_main_process:
        clean(folder)
    state.wait_for_everyone()
    report = encode_share(model, processor, rows, config, teacher_inputs, state.process_index, state.num_processes)
    reports = gather_object([report])
    if state.is_main_process:
        write_indexes(folder)
    state.wait_for_everyone()
    return sum(reports[1:], reports[0])


__all__ = ["EncodeReport", "encode_dataset", "encode_share", "stored_layers", "write_indexes"]
