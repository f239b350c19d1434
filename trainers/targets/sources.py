"""The source of targets: a dataset of utterances, read as Arrow data so that audio stays as it is, path or bytes."""

import hashlib
import json
import os
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Audio, Dataset, Features, List, Value

from .prompts import nearest

PIECE = 100  # rows at a time: an Arrow array holds 2 GB of audio at most


def prepare_source(dataset: Dataset, generated: Features) -> Dataset:
    """The dataset with audio undecoded; `generated` columns are yet to come.

    Raises:
        ValueError: no rows, missing columns, transcripts that are no text, columns named as the new ones.
    """
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise ValueError(f"The source must be one split with known rows, not {kind}. Choose a split, do not stream.")
    if len(dataset) == 0:
        raise ValueError("The source has no rows. Check dataset_split and filters.")
    for name in ("audio", "text"):
        if name not in dataset.column_names:
            near = nearest(name, dataset.column_names)
            raise ValueError(f'The source has no column {name!r}.{near} Set columns={{"its name": "{name}"}}.')
    taken = sorted(set(generated) & set(dataset.column_names))
    if taken:
        raise ValueError(
            f"The source has columns of names that this command writes: {', '.join(taken)}. Rename them, or give the "
            "data that it was made of."
        )
    if isinstance(dataset.features["text"], List):
        raise ValueError("The transcripts are lists, as of chats. Give rows of one audio each and its text.")
    if dataset.features["text"] not in (Value("string"), Value("large_string")):
        raise ValueError(f"The column of transcripts must be text, not {dataset.features['text']}. Set `columns`.")
    audio = dataset.features["audio"]
    rate = audio.sampling_rate if isinstance(audio, Audio) else None
    return dataset.cast_column("audio", Audio(sampling_rate=rate, decode=False))


def describe_source(source: Dataset) -> dict[str, Any]:
    """What tells a source from another: columns, number of rows, and a digest of the texts and the audios' names and
    sizes. Not where it lies, so a folder may move between runs."""
    digest = hashlib.sha256()
    names = [name for name in ("audio", "text", "language", "id") if name in source.column_names]
    for batch in source.select_columns(names).with_format("arrow").iter(batch_size=PIECE):
        for name in names[1:]:
            digest.update(json.dumps(batch[name].to_pylist()).encode())
        for audio in batch["audio"].chunks:
            paths = [path and os.path.basename(path) for path in pc.struct_field(audio, "path").to_pylist()]
            sizes = pc.binary_length(pc.struct_field(audio, "bytes")).to_pylist()
            digest.update("".join(f"{path} {size}\n" for path, size in zip(paths, sizes, strict=True)).encode())
    return {"rows": len(source), "columns": sorted(source.column_names), "content": digest.hexdigest()[:16]}


def read_groups(source: Dataset, start: int, stop: int, size: int) -> pa.Table:
    """Groups `start` to `stop` of `size` consecutive rows; for `size` 1 the rows themselves.

    A group's columns are lists, but its `id` is the members' joined by "+" and its `duration` their sum.
    """
    pieces = range(start, stop, PIECE)
    return pa.concat_tables([_read_piece(source, piece, min(piece + PIECE, stop), size) for piece in pieces])


def _read_piece(source: Dataset, start: int, stop: int, size: int) -> pa.Table:
    first, last = start * size, min(stop * size, len(source))
    table = source.with_format("arrow")[first:last]
    features = Features(source.features)
    if "id" not in table.column_names:
        table = table.append_column("id", pa.array([str(index) for index in range(first, last)]))
        features["id"] = Value("string")
    if size > 1:
        offsets = pa.array([*range(0, last - first, size), last - first], pa.int32())
        columns = {}
        for name in table.column_names:
            if name == "id":
                values = table[name].to_pylist()
                columns[name] = pa.array(
                    ["+".join(map(str, values[i : i + size])) for i in range(0, len(values), size)]
                )
                features[name] = Value("string")
            elif name == "duration":
                values = table[name].to_pylist()
                columns[name] = pa.array(
                    [_sum(values[i : i + size]) for i in range(0, len(values), size)], pa.float64()
                )
                features[name] = Value("float64")
            else:
                columns[name] = pa.ListArray.from_arrays(offsets, table[name].combine_chunks())
                features[name] = List(features[name])
        table = pa.table(columns)
    features = Features({name: features[name] for name in table.column_names})
    return table.cast(features.arrow_schema)


def _sum(values: list[float | None]) -> float | None:
    return None if None in values else float(sum(values))
