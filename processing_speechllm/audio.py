"""Any audio a user may hand over -> checked float32 mono samples at the model's rate.

What is unusual here:
- Nothing passes silently: a file cut short, a missing rate, NaNs, integers as floats or a 3-D array raise
  `AudioError`, whose message names the source, the finding and the remedy. Only all-zero audio is a warning, as
  silence is legal input.
- Nothing but `AudioError` is raised for what a user hands over, so that one bad audio ends nothing else.
- Nothing is truncated: longer than `max_seconds` is an error.
- No hidden network: an http(s) address is fetched only when it is given as `{"url": ...}`.
"""

import numbers
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .audio_addresses import from_base64, read_address
from .audio_decoding import NO_LIMIT, AudioError, AudioLimit, check_rate, decode, decoded_by_torchcodec

MAX_CHANNELS = 16  # a 2-D array whose short side is longer is not channels x samples
MAX_PEAK = 100.0  # full scale is 1.0; decoders overshoot it a little, and normalised audio has peaks of some tens
INTEGER_SCALES = {"int8": 2.0**7, "int16": 2.0**15, "int32": 2.0**31}
SOURCES = (
    'a path, bytes, Base64 or a data: address, an (array, rate) pair, {"array", "sampling_rate"}, {"path"}, '
    '{"bytes"}, {"url"}, an array or tensor with its sampling rate, or a torchcodec AudioDecoder'
)


@dataclass(frozen=True)
class LoadedAudio:
    """What `load_audio` gave, float32 samples (samples,): `load_audio` takes them as they are."""

    samples: np.ndarray
    sampling_rate: int


def load_audio(
    source: Any,
    sampling_rate: int = 16000,
    source_rate: float | None = None,
    max_seconds: float | AudioLimit | None = None,
    min_samples: int = 1,
    allow_local_files: bool = True,
) -> np.ndarray:
    """
    Decode, check, mix to mono and resample one audio.

    Args:
        source: path, `bytes`, binary file object, Base64 text, `data:` or `file:` address, `(array, rate)`,
            `{"array", "sampling_rate"}`, `{"bytes", "path"}` (`datasets` with `Audio(decode=False)`), `{"url"}`,
            OpenAI's `{"data", "format"}`, torchcodec `AudioDecoder` (`datasets` with `Audio()`), or a bare NumPy
            array, torch tensor or list of floats together with `source_rate`. Arrays are float (16, 32, 64 bit; full
            scale is 1.0) or integer samples (int8, int16, int32, uint8; scaled to 1.0), shaped `(samples,)`,
            `(channels, samples)` or `(samples, channels)`: the shorter side is the channels. Channels are averaged.
        sampling_rate (`int`, *optional*, defaults to 16000): rate wanted, in Hz.
        source_rate (`float`, *optional*): rate in Hz of a bare array. Files and pairs bring their own.
        max_seconds (`float` or `AudioLimit`, *optional*): longer audio is an error.
        min_samples (`int`, *optional*, defaults to 1): fewer samples, counted at `sampling_rate`, is an error.
        allow_local_files (`bool`, *optional*, defaults to `True`): whether a path may be read, however it is given.

    Returns:
        `np.ndarray`: float32 samples at `sampling_rate`, shape `(samples,)`.

    Raises:
        AudioError: the audio cannot be read or used as it stands.
    """
    if isinstance(source, LoadedAudio) and source.sampling_rate == sampling_rate:
        return source.samples
    limit = max_seconds if isinstance(max_seconds, AudioLimit) else NO_LIMIT
    if isinstance(max_seconds, numbers.Real):
        limit = AudioLimit(max_seconds, remedy="raise `max_seconds`")
    name, samples, rate = _Reader(limit, allow_local_files).read(source, source_rate)
    samples = _to_mono(name, samples)
    limit.check(name, len(samples) / rate)
    _check_amplitude(name, samples)
    samples = samples.astype(np.float32)
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
    if not isinstance(audio, Sequence) or isinstance(audio, (str, bytes, bytearray, memoryview)):
        return [audio]  # a sequence beside list and tuple is the column of a `datasets.Dataset`
    if len(audio) > 0 and all(isinstance(value, numbers.Number) for value in audio):
        return [np.asarray(audio)]  # one audio as a list of samples
    return list(audio)


class _Reader:
    """Sources in any accepted form -> (name for messages, float samples of any shape, rate in Hz)."""

    def __init__(self, limit: AudioLimit, allow_local_files: bool):
        self.limit = limit
        self.allow_local_files = allow_local_files

    def read(self, source: Any, rate: Any) -> tuple[str, np.ndarray, float]:
        if isinstance(source, dict):
            return self.read_dict(source, rate)
        if isinstance(source, (str, os.PathLike)):
            return self.read_address(source)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return self.decode(f"audio bytes ({len(source)} bytes)", bytes(source))
        if callable(getattr(source, "read", None)):
            return self.read_file_object(source)
        if callable(getattr(source, "get_all_samples", None)):  # torchcodec AudioDecoder, also the one of `datasets`
            name = "audio decoder"
            return name, *decoded_by_torchcodec(name, source)
        if isinstance(source, tuple) and len(source) == 2:
            array, rate = source
            if isinstance(array, numbers.Number) and np.ndim(rate) > 0:
                raise AudioError("an (array, rate) pair came as (rate, array). Swap the two.")
            return self.read(array, check_rate(_array_name(array), rate))
        if source is None or isinstance(source, (bool, numbers.Number)):
            raise AudioError(f"audio is {source!r}, which is no audio. Pass {SOURCES}.")
        name, samples = _array_name(source), _as_array(source)
        return name, samples, check_rate(name, rate)

    def read_dict(self, source: dict, rate: Any) -> tuple[str, np.ndarray, float]:
        """The dict forms; keys whose value is None do not count, as `datasets` writes {"bytes": None, "path": ...}."""
        given = {key: value for key, value in source.items() if value is not None}
        if "array" in given:
            return self.read(given["array"], given.get("sampling_rate", rate))
        if "bytes" in given:
            return self.decode(str(given.get("path") or "audio bytes"), given["bytes"])
        if "path" in given:
            return self.read_address(given["path"])
        if "url" in given:
            return self.read_address(given["url"], fetch=True)
        for key in ("data", "base64"):  # OpenAI's `input_audio`, transformers' blocks
            if key in given:
                name = f"audio in Base64 ({len(given[key]) if hasattr(given[key], '__len__') else 0} characters)"
                return self.decode(name, from_base64(name, given[key]))
        raise AudioError(f"audio dict with keys {sorted(map(str, source))} holds no audio. Pass {SOURCES}.")

    def read_address(self, address: Any, fetch: bool = False) -> tuple[str, np.ndarray, float]:
        if not isinstance(address, (str, os.PathLike)):
            raise AudioError(f"audio path or url is a {type(address).__name__}, not text. Pass {SOURCES}.")
        return self.decode(*read_address(address, self.allow_local_files, fetch))

    def read_file_object(self, source: Any) -> tuple[str, np.ndarray, float]:
        name = str(getattr(source, "name", "file object"))
        try:
            content = source.read()
        except Exception as error:  # any object with a `read`
            raise AudioError(f"{name}: cannot be read ({error}). Open the audio file again.") from error
        if not isinstance(content, bytes):
            raise AudioError(f"{name}: reads text, not bytes. Open the audio file in binary mode ('rb').")
        return self.decode(f"{name} ({len(content)} bytes)", content)

    def decode(self, name: str, content: Any) -> tuple[str, np.ndarray, float]:
        return name, *decode(name, content, self.limit)


def _array_name(source: Any) -> str:
    shape = getattr(source, "shape", None)
    if shape is None:
        return f"audio {type(source).__name__}" + (f" of {len(source)} values" if hasattr(source, "__len__") else "")
    return f"audio array of shape {tuple(shape)}"


def _as_array(source: Any) -> np.ndarray:
    """A bare array, tensor or list -> float array in full scale 1.0, of the same shape."""
    try:
        if hasattr(source, "detach"):  # torch tensor; bfloat16 has no NumPy type
            source = source.detach().cpu()
            source = source.float().numpy() if source.is_floating_point() else source.numpy()
        array = np.asarray(source)
    except Exception as error:  # lists of unequal lengths; whatever an object raises that is asked for its array
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
    """Float samples of any accepted shape -> shape (samples,), in at least single precision."""
    if samples.size == 0:
        raise AudioError(f"{name}: holds zero samples. Record again, or drop this audio.")
    if samples.ndim not in (1, 2):
        raise AudioError(
            f"{name}: has {samples.ndim} dimensions. Pass one audio as (samples,) or (channels, samples); several "
            "audios go in a list."
        )
    if samples.ndim == 1:
        return samples.astype(np.float32) if samples.dtype == np.float16 else samples
    channels = min(samples.shape)
    if samples.shape[0] == samples.shape[1] and channels > 1 or channels > MAX_CHANNELS:
        raise AudioError(
            f"{name}: which side is the channels cannot be told from the shape {samples.shape}. Mix it to mono or "
            "pass (samples,)."
        )
    return samples.mean(axis=int(np.argmin(samples.shape)), dtype=np.float64)


def _check_amplitude(name: str, samples: np.ndarray) -> None:
    """Refuse samples (samples,) that are not finite, or not of full scale 1.0."""
    finite = np.isfinite(samples)
    if not finite.all():
        raise AudioError(
            f"{name}: {int((~finite).sum())} of {len(samples)} samples are NaN or infinite. Repair or re-export the "
            "audio; `np.nan_to_num` would replace them if that is what you want."
        )
    low, high = float(samples.min()), float(samples.max())
    peak = max(-low, high)
    if peak <= 1 or peak <= MAX_PEAK and (samples % 1).any():
        return
    bits = next((bits for bits in (8, 16, 24, 32) if peak <= 2.0 ** (bits - 1)), None)
    remedy = "No recording has such amplitudes: repair or export it again"
    if bits is not None:
        scale = f"{bits}-bit integers"
        remedy = f"If these are {scale}, divide by 2**{bits - 1}" + f" or pass them as int{bits}" * (bits != 24)
    raise AudioError(
        f"{name}: the samples range from {low:g} to {high:g}, but float audio has a full scale of 1.0. {remedy}."
    )
