"""The content of an audio file, in any container that is known here -> mono samples and their rate.

What is unusual here:
- Whatever a decoder raises on a damaged file comes out as an `AudioError` with the file's name: no file ends a
  training or the answers about other files.
- A file that holds less than its header announces is an error, never silently short. An MP3 may lack one per cent,
  with a warning: many encoders and downloads end so. So may an Ogg lack its end mark, as live recordings do, but no
  page (`ogg_pages`).
- Samples are read in blocks, as a damaged header may announce more than any memory holds.
- soundfile decodes first (WAV, FLAC, OGG, MP3); torchcodec is imported only for what soundfile cannot read.
"""

import io
import math
import numbers
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .mp3_frames import walk, with_length_header
from .ogg_pages import examine

BLOCK = 1 << 20  # samples of all channels that are decoded at once
MP3_FRAME = 1152  # samples; an MP3's announced length may be off by one frame of encoder padding
LONGEST_MP3_FRAME = 1441  # bytes
MP3_LACK = 0.01  # share of its announced length that an MP3 may lack
RATES = (1000, 1_000_000)  # Hz; from the slowest telephone to ultrasound


class AudioError(ValueError):
    """Audio that cannot be used. The message names the source, the finding and the remedy."""


@dataclass(frozen=True)
class AudioLimit:
    """
    The longest audio that is taken.

    Args:
        seconds: its length; 0 if there is no room for any.
        reason: what sets it, for the error.
        remedy: what else than a shorter audio would help, for the error.
    """

    seconds: float
    reason: str = ""
    remedy: str = ""

    def check(self, name: str, seconds: float) -> None:
        """Raise an `AudioError` if the audio `name` of so many seconds is over the limit."""
        if self.seconds <= 0:
            raise AudioError(
                f"{name}: no audio can be taken, however short{self.reason and f' ({self.reason})'}."
                f"{self.remedy and f' {self.remedy[:1].upper()}{self.remedy[1:]}.'}"
            )
        if seconds > self.seconds:
            raise AudioError(
                f"{name}: {seconds:.1f} s of audio are over the limit of {math.floor(self.seconds * 10) / 10:g} s"
                f"{self.reason and f' ({self.reason})'}. Nothing is cut silently: split the audio"
                f"{self.remedy and f', or {self.remedy}'}."
            )


NO_LIMIT = AudioLimit(math.inf)


def check_rate(name: str, rate: Any) -> float:
    """`rate` in Hz as a number, or an `AudioError` that says what is wrong with it; `name` is the audio's."""
    if rate is None:
        raise AudioError(
            f"{name}: the sampling rate is missing. An array alone does not tell its rate: pass (array, rate), "
            '{"array": array, "sampling_rate": rate} or sampling_rate=...'
        )
    if getattr(rate, "ndim", None) == 0 and hasattr(rate, "item"):  # an array or tensor of one number
        rate = rate.item()
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
        raise AudioError(f"{name}: the sampling rate {rate!r} is not a number. Pass it in Hz, for example 16000.")
    if not math.isfinite(rate) or rate <= 0:
        raise AudioError(f"{name}: the sampling rate {rate} is not positive. Pass it in Hz, for example 16000.")
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(
            f"{name}: a sampling rate of {rate:g} Hz is none of audio ({RATES[0]} to {RATES[1]} Hz). Pass it in Hz, "
            "for example 16000; if a file says so, its header is damaged: export it again."
        )
    return rate


def decode(name: str, content: Any, limit: AudioLimit = NO_LIMIT) -> tuple[np.ndarray, float]:
    """
    An encoded file's content -> (float mono samples (samples,), rate in Hz).

    Raises:
        AudioError: not audio, damaged, cut short, or over the limit; `name` begins the message.
    """
    if not isinstance(content, (bytes, bytearray)):
        raise AudioError(f'{name}: "bytes" holds a {type(content).__name__}. Pass the content of an audio file.')
    if not content:
        raise AudioError(f"{name}: the file is empty (0 bytes). Record or copy it again.")
    _check_wav_is_whole(name, content)
    fault, ended = examine(content)
    if fault:
        raise AudioError(f"{name}: {fault}. Copy or export the file again.")
    decoded = _decode_container(name, content, limit)
    if not ended:
        warnings.warn(
            f"{name}: the Ogg has no mark of its end, so it may have been cut. What is there is used; copy or export "
            "the file again if its last words matter.",
            stacklevel=2,
        )
    return decoded


def _decode_container(name: str, content: bytes, limit: AudioLimit) -> tuple[np.ndarray, float]:
    import soundfile

    try:
        file = soundfile.SoundFile(_Content(content))
    except Exception as error:  # soundfile has errors of its own, and passes on others
        return _decode_with_torchcodec(name, bytes(content), limit, reason=_first_line(error))
    with file:
        if file.format != "MP3":
            return _decode_with_soundfile(name, file, limit)
        whole = _whole_mp3(name, content, file.frames)
        if whole is content:
            return _decode_with_soundfile(name, file, limit)
    try:
        file = soundfile.SoundFile(_Content(whole))
    except Exception as error:
        raise _damaged(name, "MP3", error) from error
    with file:
        return _decode_with_soundfile(name, file, limit)


class _Content(io.BytesIO):
    """A file's content for libsndfile. A seek to before its start, as damaged headers ask for, stays where it is."""

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _decode_with_soundfile(name: str, file: Any, limit: AudioLimit) -> tuple[np.ndarray, float]:
    """An open `soundfile.SoundFile` -> (mono samples, rate), checked against the length that its header announces."""
    rate, announced, container = check_rate(name, file.samplerate), file.frames, file.format
    known = announced < 2**62  # else written to a pipe
    limit.check(name, announced / rate if known else 0.0)
    blocks, count = [], 0
    try:
        for block in _blocks(file):
            blocks.append(block)
            count += len(block)
            limit.check(name, count / rate)
    except AudioError:
        raise
    except Exception as error:  # LibsndfileError, and what soundfile itself stumbles over
        raise _damaged(name, container, error) from error
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    missing = announced - count if known else 0
    if container == "MP3" and MP3_FRAME < missing <= MP3_LACK * announced:
        warnings.warn(
            f"{name}: ends {missing / rate:.2f} s ({100 * missing / announced:.1f} %) before the length that its "
            "header announces. What is there is used; copy or export the file again if its last words matter.",
            stacklevel=2,
        )
    elif missing > (MP3_FRAME if container == "MP3" else 0):
        raise AudioError(
            f"{name}: truncated {container}: the header announces {announced} samples but only {count} can be "
            "decoded. Copy or export the file again."
        )
    return samples, rate


def _blocks(file: Any) -> Iterator[np.ndarray]:
    """The mono samples of an open file, block by block. Double precision is kept until the amplitudes are checked."""
    dtype = "float64" if file.subtype == "DOUBLE" else "float32"
    frames = max(BLOCK // file.channels, 1)
    while len(block := file.read(frames=frames, dtype=dtype, always_2d=True)):
        yield block[:, 0].copy() if file.channels == 1 else block.mean(axis=1, dtype=np.float64).astype(dtype)


def _damaged(name: str, container: str, error: Exception) -> AudioError:
    return AudioError(
        f"{name}: the {container} data is truncated or damaged ({_first_line(error)}). Copy or export the file again."
    )


def _first_line(error: Exception) -> str:
    """What an error says, on one line: libsndfile's own words without the Python object that it was given, and
    torchcodec's without "Likely causes:", which stand on further lines."""
    text = str(getattr(error, "error_string", None) or error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return re.sub(r"(?<=[.!?])\s+[^.!?]*:$", "", line).rstrip(".:")


def _whole_mp3(name: str, content: bytes, announced: int) -> bytes:
    """The MP3 itself if libsndfile will read all of it, else the same with a header that makes it do so."""
    first, frames, samples, missing = walk(content)
    tells_length = re.search(b"Xing|Info", content[max(first, 0) : max(first, 0) + LONGEST_MP3_FRAME])
    if missing and not tells_length:  # with a length, it is compared after decoding
        raise AudioError(
            f"{name}: truncated MP3: {missing} bytes of its last frame are missing. Copy or export the file again."
        )
    # An encoder adds up to a few frames of silence at the ends, which a header then takes off again.
    return content if frames * samples - announced <= 4 * samples else with_length_header(content, first, frames)


def _check_wav_is_whole(name: str, content: bytes) -> None:
    """libsndfile silently shortens a WAV whose data ends early, so compare its data chunk with the file's size."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(content):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        if content[position : position + 4] == b"data":
            present = len(content) - position - 8
            if size >= 0x7FFFFFFF:  # length unknown: written to a pipe
                return
            if present < size:
                raise AudioError(
                    f"{name}: truncated WAV: the header announces {size} bytes of samples but the file holds "
                    f"{present}. Copy or export the file again."
                )
            return
        position += 8 + size + size % 2
    raise AudioError(f"{name}: truncated WAV: the file ends before its samples begin. Copy or export it again.")


def _decode_with_torchcodec(name: str, content: bytes, limit: AudioLimit, reason: str) -> tuple[np.ndarray, float]:
    """What soundfile cannot read: MP4, M4A, WebM and whatever else the installed FFmpeg knows."""
    if _looks_like_text(content):
        raise AudioError(f"{name}: is a text file ({content[:24]!r}...), not audio. Pass an audio file such as WAV.")
    try:
        from torchcodec.decoders import AudioDecoder

        decoder = AudioDecoder(content)
        limit.check(name, decoder.metadata.duration_seconds_from_header or 0.0)
    except AudioError:
        raise
    except Exception as error:  # torchcodec raises RuntimeError, ValueError or IndexError on damaged input
        if isinstance(error, (ImportError, OSError)) or "libtorchcodec" in str(error):
            raise AudioError(
                f"{name}: soundfile cannot read this format ({reason}) and torchcodec is not usable here "
                f"({_first_line(error)}). Convert it to WAV, FLAC, OGG or MP3 if it is audio and whole, or install "
                "torchcodec and FFmpeg."
            ) from error
        raise AudioError(
            f"{name}: neither soundfile ({reason}) nor torchcodec ({_first_line(error)}) can decode it: "
            "not audio, or truncated or damaged. Export it again, best as WAV or FLAC."
        ) from error
    return decoded_by_torchcodec(name, decoder)


def decoded_by_torchcodec(name: str, decoder: Any) -> tuple[np.ndarray, float]:
    """A torchcodec `AudioDecoder`, also the one of `datasets` -> (mono samples, rate)."""
    try:
        decoded = decoder.get_all_samples()
        samples = decoded.data.numpy()
    except Exception as error:
        raise AudioError(f"{name}: torchcodec cannot decode it ({_first_line(error)}). Export the file again.") from (
            error
        )
    return samples.mean(axis=0), check_rate(name, decoded.sample_rate)


def _looks_like_text(content: bytes) -> bool:
    try:
        text = content[:512].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < min(len(content), 512) - 4:  # not just a character cut at byte 512
            return False
        text = content[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t" for character in text)


__all__ = ["AudioError", "AudioLimit", "check_rate", "decode"]
