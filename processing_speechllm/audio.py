"""Any audio a user may hand over -> checked float32 mono samples at the model's rate.

What is unusual here:
- Nothing passes silently: a file cut short, a missing rate, NaNs or a 3-D array raise `AudioError`, whose message
  names the source, the finding and the remedy. Only all-zero audio is a warning, as silence is legal input.
- Nothing is truncated: longer than `max_seconds` is an error.
- No hidden network: an http(s) address is fetched only when it is given as `{"url": ...}`.
- soundfile decodes first (WAV, FLAC, OGG, MP3); torchcodec is imported only for what soundfile cannot read.
"""

import io
import math
import numbers
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .mp3_frames import walk, with_length_header

MAX_CHANNELS = 16  # a 2-D array whose short side is longer is not channels x samples
MP3_FRAME = 1152  # samples; an MP3's announced length may be off by one frame of encoder padding
INTEGER_SCALES = {"int8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}
SOURCES = (
    'a path, bytes, an (array, rate) pair, {"array", "sampling_rate"}, {"path"}, {"bytes"}, {"url"}, an array or '
    "tensor with its sampling rate, or a torchcodec AudioDecoder"
)


class AudioError(ValueError):
    """Audio that cannot be used. The message names the source, the finding and the remedy."""


def load_audio(
    source: Any,
    sampling_rate: int = 16000,
    source_rate: float | None = None,
    max_seconds: float | None = None,
    min_samples: int = 1,
) -> np.ndarray:
    """
    Decode, check, mix to mono and resample one audio.

    Args:
        source: path, `bytes`, binary file object, `(array, rate)`, `{"array", "sampling_rate"}`, `{"bytes", "path"}`
            (`datasets` with `Audio(decode=False)`), `{"url"}`, torchcodec `AudioDecoder` (`datasets` with `Audio()`),
            or a bare NumPy array, torch tensor or list of floats together with `source_rate`. Arrays are float
            (16, 32, 64 bit; full scale is 1.0) or integer samples (int8, int16, int32, uint8; scaled to 1.0), shaped
            `(samples,)`, `(channels, samples)` or `(samples, channels)`: the shorter side is the channels. Channels
            are averaged.
        sampling_rate (`int`, *optional*, defaults to 16000): rate wanted, in Hz.
        source_rate (`float`, *optional*): rate in Hz of a bare array. Files and pairs bring their own.
        max_seconds (`float`, *optional*): longer audio is an error.
        min_samples (`int`, *optional*, defaults to 1): fewer samples, counted at `sampling_rate`, is an error.

    Returns:
        `np.ndarray`: float32 samples at `sampling_rate`, shape `(samples,)`.

    Raises:
        AudioError: the audio cannot be read or used as it stands.
    """
    name, samples, rate = _read(source, source_rate, max_seconds)
    samples = _to_mono(name, samples)
    _check_length(name, len(samples) / rate, max_seconds)
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise AudioError(
            f"{name}: {bad} of {len(samples)} samples are NaN or infinite. Repair or re-export the audio; "
            "`np.nan_to_num` would replace them if that is what you want."
        )
    if rate != sampling_rate:
        import soxr

        samples = soxr.resample(samples, rate, sampling_rate, quality="HQ")
    if len(samples) < min_samples:
        raise AudioError(
            f"{name}: {len(samples)} samples ({1000 * len(samples) / sampling_rate:.1f} ms) at {sampling_rate} Hz are "
            f"shorter than one encoder frame. Give at least {min_samples} samples "
            f"({1000 * min_samples / sampling_rate:.1f} ms), or pad the audio with zeros to that length."
        )
    if not samples.any():
        warnings.warn(
            f"{name}: all {len(samples)} samples are zero (digital silence). Check the microphone or the export; "
            "the model will answer about silence.",
            stacklevel=2,
        )
    return np.ascontiguousarray(samples, dtype=np.float32)


def as_audio_list(audio: Any) -> list:
    """One audio or several, in any form of `load_audio` -> a list of audios; None -> an empty list."""
    if audio is None:
        return []
    if isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[1], numbers.Number):
        return [audio]
    if not isinstance(audio, (list, tuple)):
        return [audio]
    if len(audio) > 0 and all(isinstance(value, numbers.Number) for value in audio):
        return [np.asarray(audio)]  # one audio as a list of samples
    return list(audio)


def check_rate(name: str, rate: Any) -> float:
    """`rate` in Hz as a number, or an `AudioError` that says what is wrong with it; `name` is the audio's."""
    if rate is None:
        raise AudioError(
            f"{name}: the sampling rate is missing. An array alone does not tell its rate: pass (array, rate), "
            '{"array": array, "sampling_rate": rate} or sampling_rate=...'
        )
    if isinstance(rate, np.ndarray) and rate.ndim == 0:
        rate = rate.item()
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
        raise AudioError(f"{name}: the sampling rate {rate!r} is not a number. Pass it in Hz, for example 16000.")
    if not math.isfinite(rate) or rate <= 0:
        raise AudioError(f"{name}: the sampling rate {rate} is not positive. Pass it in Hz, for example 16000.")
    return rate


def _check_length(name: str, seconds: float, max_seconds: float | None) -> None:
    if max_seconds is not None and seconds > max_seconds:
        raise AudioError(
            f"{name}: {seconds:.1f} s of audio are over the limit of {max_seconds:g} s. Nothing is cut silently: "
            "split the audio, or raise `max_audio_seconds` of the processor if the model can take it."
        )


def _read(source: Any, rate: Any, max_seconds: float | None) -> tuple[str, np.ndarray, float]:
    """`source` in any accepted form -> (name for messages, float samples of any shape, rate in Hz)."""
    if isinstance(source, dict):
        return _read_dict(source, rate, max_seconds)
    if isinstance(source, (str, os.PathLike)):
        return _read_file(source, max_seconds)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(f"audio bytes ({len(source)} bytes)", bytes(source), max_seconds)
    if callable(getattr(source, "read", None)):
        content = source.read()
        if not isinstance(content, bytes):
            raise AudioError(f"{source!r}: reads text, not bytes. Open the audio file in binary mode ('rb').")
        return _decode(f"{getattr(source, 'name', 'file object')} ({len(content)} bytes)", content, max_seconds)
    if callable(getattr(source, "get_all_samples", None)):  # torchcodec AudioDecoder, also the one of `datasets`
        name = "audio decoder"
        try:
            decoded = source.get_all_samples()
        except (RuntimeError, OSError, ValueError) as error:
            raise AudioError(f"{name}: torchcodec cannot decode it ({error}). Export the file again.") from error
        return name, decoded.data.numpy().mean(axis=0), check_rate(name, decoded.sample_rate)
    if isinstance(source, tuple) and len(source) == 2:
        array, rate = source
        if isinstance(array, numbers.Number) and np.ndim(rate) > 0:
            raise AudioError("an (array, rate) pair came as (rate, array). Swap the two.")
        return _read(array, check_rate(_array_name(array), rate), max_seconds)
    if source is None or isinstance(source, (bool, numbers.Number)):
        raise AudioError(f"audio is {source!r}, which is no audio. Pass {SOURCES}.")
    name, samples = _array_name(source), _as_array(source)
    return name, samples, check_rate(name, rate)


def _read_dict(source: dict, rate: Any, max_seconds: float | None) -> tuple[str, np.ndarray, float]:
    """The dict forms; keys whose value is None do not count, as `datasets` writes {"bytes": None, "path": ...}."""
    given = {key: value for key, value in source.items() if value is not None}
    if "array" in given:
        return _read(given["array"], given.get("sampling_rate", rate), max_seconds)
    if "bytes" in given:
        name, samples, rate = _decode(str(given.get("path") or "audio bytes"), given["bytes"], max_seconds)
        return name, samples, rate
    if "path" in given:
        return _read_file(given["path"], max_seconds)
    if "url" in given:
        url = str(given["url"])
        return _decode(url, _fetch(url), max_seconds) if _is_url(url) else _read_file(url, max_seconds)
    raise AudioError(f"audio dict with keys {sorted(map(str, source))} holds no audio. Pass {SOURCES}.")


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _fetch(url: str) -> bytes:
    """The content behind an http(s) address that the user gave as a url."""
    from huggingface_hub.utils import get_session

    try:
        response = get_session().get(url, follow_redirects=True, timeout=30)
        response.raise_for_status()
    except Exception as error:  # httpx has a tree of errors; any of them means that there is no audio
        raise AudioError(f"{url}: cannot be downloaded ({error}). Check the address and the network.") from error
    return response.content


def _read_file(path: str | os.PathLike, max_seconds: float | None) -> tuple[str, np.ndarray, float]:
    name = os.fspath(path)
    if isinstance(name, str) and _is_url(name):
        raise AudioError(f'{name}: a web address is not fetched unasked. Pass {{"url": "{name}"}} to download it.')
    file = Path(os.fsdecode(name)).expanduser()
    if file.is_dir():
        raise AudioError(f"{name}: is a directory. Pass an audio file inside it.")
    if not file.exists():
        raise AudioError(f"{name}: no such file. Check the path (relative to {os.getcwd()}).")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise AudioError(f"{name}: cannot be read ({error.strerror}). Check its permissions.") from error
    return _decode(str(name), content, max_seconds)


def _decode(name: str, content: bytes, max_seconds: float | None) -> tuple[str, np.ndarray, float]:
    """An encoded file's content -> (name, float32 mono samples (samples,), rate in Hz)."""
    import soundfile

    if not isinstance(content, (bytes, bytearray)):
        raise AudioError(f'{name}: "bytes" holds a {type(content).__name__}. Pass the content of an audio file.')
    if not content:
        raise AudioError(f"{name}: the file is empty (0 bytes). Record or copy it again.")
    _check_wav_is_whole(name, content)
    try:
        file = soundfile.SoundFile(io.BytesIO(content))
    except soundfile.LibsndfileError as error:
        return _decode_with_torchcodec(name, content, max_seconds, reason=str(error))
    with file:
        rate, announced, container = file.samplerate, file.frames, file.format
        _check_length(name, announced / rate if announced < 2**62 else 0.0, max_seconds)
        if container == "MP3":
            whole = _whole_mp3(name, content, announced)
            if whole is not content:
                return _decode(name, whole, max_seconds)
        try:
            samples = file.read(dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{name}: the {container} data is truncated or damaged ({error}). Copy or export the file again."
            ) from error
    missing = announced - len(samples)
    if announced < 2**62 and missing > (MP3_FRAME if container == "MP3" else 0):
        raise AudioError(
            f"{name}: truncated {container}: the header announces {announced} samples but only {len(samples)} can be "
            "decoded. Copy or export the file again."
        )
    return name, samples.mean(axis=1) if len(samples) else samples, rate


def _whole_mp3(name: str, content: bytes, announced: int) -> bytes:
    """The MP3 itself if libsndfile will read all of it, else the same with a header that makes it do so."""
    first, frames, samples, missing = walk(content)
    if missing:
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


def _decode_with_torchcodec(
    name: str, content: bytes, max_seconds: float | None, reason: str
) -> tuple[str, np.ndarray, float]:
    """What soundfile cannot read: MP4, M4A, WebM and whatever else the installed FFmpeg knows."""
    if _looks_like_text(content):
        raise AudioError(f"{name}: is a text file ({content[:24]!r}...), not audio. Pass an audio file such as WAV.")
    try:
        from torchcodec.decoders import AudioDecoder
    except (ImportError, RuntimeError, OSError) as error:
        raise AudioError(
            f"{name}: soundfile cannot read this format ({reason}) and torchcodec is not usable here "
            f"({str(error).splitlines()[0]}). Convert the file to WAV, FLAC, OGG or MP3, or install torchcodec and "
            "FFmpeg."
        ) from error
    try:
        decoder = AudioDecoder(content)
        announced = decoder.metadata.duration_seconds_from_header
        _check_length(name, announced or 0.0, max_seconds)
        decoded = decoder.get_all_samples()
    except AudioError:
        raise
    except Exception as error:  # torchcodec raises RuntimeError, ValueError or IndexError on damaged input
        raise AudioError(
            f"{name}: neither soundfile ({reason}) nor torchcodec ({str(error).splitlines()[0]}) can decode it: "
            "not audio, or truncated or damaged. Export it again, best as WAV or FLAC."
        ) from error
    return name, decoded.data.numpy().mean(axis=0), decoded.sample_rate


def _looks_like_text(content: bytes) -> bool:
    try:
        text = content[:512].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < min(len(content), 512) - 4:  # not just a character cut at byte 512
            return False
        text = content[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\r\n\t" for character in text)


def _array_name(source: Any) -> str:
    shape = getattr(source, "shape", None)
    if shape is None:
        return f"audio {type(source).__name__}" + (f" of {len(source)} values" if hasattr(source, "__len__") else "")
    return f"audio array of shape {tuple(shape)}"


def _as_array(source: Any) -> np.ndarray:
    """A bare array, tensor or list -> float array in full scale 1.0, of the same shape."""
    if hasattr(source, "detach"):  # torch tensor; bfloat16 has no NumPy type
        source = source.detach().cpu()
        source = source.float().numpy() if source.is_floating_point() else source.numpy()
    try:
        array = np.asarray(source)
    except ValueError as error:  # lists of unequal lengths
        raise AudioError(
            f"{_array_name(source)}: is no regular array ({error}). Pass one audio at a time, as {SOURCES}."
        ) from error
    if array.ndim == 0:
        raise AudioError(f"audio is a {type(source).__name__}, which is no audio. Pass {SOURCES}.")
    kind = array.dtype.name
    if kind == "uint8":
        return (array.astype(np.float32) - 128) / 128
    if kind in INTEGER_SCALES:
        return array / INTEGER_SCALES[kind]
    if kind not in ("float16", "float32", "float64"):
        raise AudioError(
            f"{_array_name(source)}: dtype {kind} is not audio. Pass one audio, as float samples in [-1, 1] or as "
            "int16, int32 or uint8 samples."
        )
    return array


def _to_mono(name: str, samples: np.ndarray) -> np.ndarray:
    """Float samples of any accepted shape -> float32, shape (samples,)."""
    if samples.size == 0:
        raise AudioError(f"{name}: holds zero samples. Record again, or drop this audio.")
    if samples.ndim not in (1, 2):
        raise AudioError(
            f"{name}: has {samples.ndim} dimensions. Pass one audio as (samples,) or (channels, samples); several "
            "audios go in a list."
        )
    if samples.ndim == 1:
        return samples.astype(np.float32)
    channels = min(samples.shape)
    if samples.shape[0] == samples.shape[1] and channels > 1 or channels > MAX_CHANNELS:
        raise AudioError(
            f"{name}: which side is the channels cannot be told from the shape {samples.shape}. Mix it to mono or "
            "pass (samples,)."
        )
    return samples.mean(axis=int(np.argmin(samples.shape)), dtype=np.float64).astype(np.float32)
