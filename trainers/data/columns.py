"""Names of columns: those that people use for ours, and renaming by settings."""

from collections.abc import Sequence

# In this order, where a row has several: what stands there is what is said, as it is said.
KNOWN_NAMES = {
    "audio": ("audio_filepath", "audio_path", "audio_file", "file_name", "filename", "path", "file", "wav", "speech"),
    "text": ("sentence", "transcription", "transcript", "normalized_text", "raw_text", "raw_transcription"),
    "language": ("locale", "lang"),
}
CHATS = ("messages", "conversations")


def check_renaming(columns: dict[str, str], found: Sequence[str], name: str) -> None:
    """Refuse to rename what is not there, or to a name that is taken."""
    for old, new in columns.items():
        if old not in found:
            raise ValueError(f"{name}: no column {old!r} to rename; found {', '.join(found)}. Check `columns`.")
        if new in found and new not in columns:
            raise ValueError(
                f"{name}: column {old!r} cannot become {new!r}, which is there already. Take it out of `columns`, or "
                f'rename the other too: "{new}": "other_{new}".'
            )


def renaming(
    columns: dict[str, str], found: Sequence[str], name: str, find_names: bool = True
) -> tuple[dict[str, str], list[str]]:
    """
    Old names -> new ones: those of the settings, and for what is still missing a name that is known for it.

    Args:
        columns: the settings'.
        found: names in the data.
        name: of the data, for messages.
        find_names: whether known names are looked for.

    Returns:
        the whole renaming, and what was found by a known name, to be said.

    Raises:
        ValueError: settings that do not fit.
    """
    check_renaming(columns, found, name)
    now = {columns.get(old, old): old for old in found}
    chat = any(column in now for column in CHATS)
    whole, notes = dict(columns), []
    for ours, known in KNOWN_NAMES.items() if find_names else ():
        if ours in now or (chat and ours != "language"):
            continue
        there = [old for old in known if old in now and old not in columns]
        if there:
            whole[there[0]] = ours
            notes.append(f"{ours} from {there[0]}")
    return whole, notes


__all__ = ["CHATS", "check_renaming", "renaming"]
