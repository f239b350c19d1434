"""What training and evaluation data share: sentences, and recordings.

A sentence counts as the same without case, punctuation and the forms of characters (NFKC); a recording by its decoded
samples, so that a file in another container is found, one that was encoded anew with losses is not.
"""

import hashlib
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np

from .rows import column_batches

RATE = 16000  # Hz at which samples are compared
SHOWN = 5


def plain_sentence(text: str) -> str:
    """A sentence as it is compared: NFKC, case folded, letters and digits only, single spaces.

    >>> plain_sentence("What's  the time?")
    'what s the time'
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = (character if unicodedata.category(character)[0] in "LNM" else " " for character in text)
    return " ".join("".join(kept).split())


def audio_digest(samples: np.ndarray) -> str:
    """A recording as it is compared: samples (samples,) in 16 bits, silence of zeros cut off at both ends."""
    values = np.round(np.asarray(samples, dtype=np.float64) * 32767).astype(np.int16)
    heard = np.flatnonzero(values)
    values = values[heard[0] : heard[-1] + 1] if len(heard) else values[:0]
    return hashlib.sha256(values.tobytes()).hexdigest()


def find_overlap(
    training: Any, evaluation: Any, training_name: str, evaluation_name: str, audio: bool = False
) -> dict[str, Any]:
    """
    An entry of the section `contamination` of the facts.

    Args:
        training, evaluation: `datasets.Dataset`s with `text`, and with `audio` undecoded (`Audio(decode=False)`) if
            recordings are compared.
        training_name, evaluation_name: how the card calls them.
        audio: compare recordings too; all of both are decoded.

    Returns:
        `dict`: rows of both, and how many evaluation rows have a sentence (`sentences`) or recording (`audio`, None
        if not compared) that is in training; up to `SHOWN` `examples` of such sentences.

    Raises:
        ValueError: a data set without `text`, or an audio that cannot be read.
    """
    for rows, name in ((training, training_name), (evaluation, evaluation_name)):
        if "text" not in rows.column_names:
            raise ValueError(f"{name} has no column text, so its sentences cannot be compared. Name it by columns.")
    known = {plain_sentence(text) for text in _texts(training)}
    known.discard("")
    shared = [text for text in _texts(evaluation) if plain_sentence(text) in known]
    found = {
        "training": training_name,
        "evaluation": evaluation_name,
        "training_rows": len(training),
        "evaluation_rows": len(evaluation),
        "sentences": len(shared),
        "audio": None,
        "examples": list(dict.fromkeys(shared))[:SHOWN],
    }
    if audio:
        heard = set(_digests(training))
        found["audio"] = sum(digest in heard for digest in _digests(evaluation))
    return found


def _texts(rows: Any) -> Iterable[str]:
    """Transcripts; those of a row with several utterances one by one."""
    for batch in column_batches(rows, ["text"]):
        for text in batch["text"]:
            yield from [part or "" for part in text] if isinstance(text, list) else [text or ""]


def _digests(rows: Any) -> Iterable[str]:
    from tqdm.auto import tqdm

    from processing_speechllm import load_audio

    for row in tqdm(rows.select_columns(["audio"]), desc="recordings", unit=" rows"):
        sources = row["audio"] if isinstance(row["audio"], list) else [row["audio"]]
        for source in sources:
            yield audio_digest(load_audio(source, sampling_rate=RATE))


__all__ = ["audio_digest", "find_overlap", "plain_sentence"]
