"""Columns made from columns, while audio that is embedded in the others is not copied."""

from collections.abc import Callable
from typing import Any

from datasets import Dataset, Features, concatenate_datasets
from datasets import IterableDataset as Stream


def with_mapped(
    rows: Dataset | Stream,
    function: Callable[[dict[str, Any]], dict[str, Any]],
    replaced: list[str],
    features: Features,
    also_read: tuple[str, ...] = (),
) -> Dataset | Stream:
    """
    Rows with new columns in place of others.

    Args:
        rows: the rows.
        function: a row's old columns -> its new ones.
        replaced: columns that go; read by the function. New ones may have the same names.
        features: types of the new columns.
        also_read: further columns that the function reads.
    """
    if isinstance(rows, Stream):
        kept = None
        if rows.features is not None:
            rest = {name: kind for name, kind in rows.features.items() if name not in {*replaced, *features}}
            kept = Features({**rest, **features})
        return rows.map(function, remove_columns=[name for name in replaced if name not in features], features=kept)
    new = rows.select_columns([*replaced, *also_read]).map(
        function, remove_columns=[*replaced, *also_read], features=features, desc="Reading columns"
    )
    rest = rows.remove_columns([name for name in {*replaced, *features} if name in rows.column_names])
    return concatenate_datasets([rest, new], axis=1) if rest.column_names else new


__all__ = ["with_mapped"]
