"""Several data sets as one: ids that stay unique."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets


def join_sources(parts: Sequence[Dataset], sources: Sequence[str]) -> Dataset:
    """
    All rows, those of one source as they are.

    Where sources share ids, as those made of file names, every id gets the name of its source in front of it
    (`test/000.wav`), or the source's number where names are the same.

    Args:
        parts: rows of each source, with `id`.
        sources: folders, files or Hub ids.

    Raises:
        ValueError: rows with columns of different kinds.
    """
    if len(parts) == 1:
        return parts[0]
    if _share_ids(parts):
        names = [Path(source).name for source in sources]
        if not all(names) or len(set(names)) < len(names):
            names = [str(number) for number in range(1, len(sources) + 1)]
        parts = [_with_prefix(part, name) for part, name in zip(parts, names, strict=True)]
    try:
        return concatenate_datasets(list(parts))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The datasets {', '.join(sources)} do not fit together: {error}. Evaluate them one by one."
        ) from error


def _share_ids(parts: Sequence[Dataset]) -> bool:
    ids = [set(filter(None, part["id"][:])) for part in parts]
    return len(set().union(*ids)) < sum(map(len, ids))


def _with_prefix(part: Dataset, name: str) -> Dataset:
    ids = [f"{name}/{one}" if one else one for one in part["id"][:]]
    return part.remove_columns("id").add_column("id", ids, feature=part.features["id"])


__all__ = ["join_sources"]
