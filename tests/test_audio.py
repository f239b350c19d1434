"""Decoding, mixing and resampling: every accepted form of one audio gives the same samples."""

import io
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset
from factories_processing import RATE, encoded, sine

from processing_speechllm.audio import AudioError, as_audio_list, load_audio
from processing_speechllm.mp3_frames import frame_size, walk, with_length_header
from processing_speechllm.ogg_pages import pages

NOISE = np.random.default_rng(0).standard_normal


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(sine(), subtype="FLOAT"))
    return path


def decoder(samples: np.ndarray, rate: int) -> SimpleNamespace:
    """Stands in for torchcodec's AudioDecoder, which needs FFmpeg to build."""
    data = torch.from_numpy(samples)[None]
    return SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=data, sample_rate=rate))


@pytest.mark.parametrize(
    "form",
    [
        lambda path: str(path),
        lambda path: path,
        lambda path: path.read_bytes(),
        lambda path: bytearray(path.read_bytes()),
        lambda path: path.open("rb"),
        lambda path: {"path": str(path)},
        lambda path: {"bytes": path.read_bytes(), "path": None},
        lambda path: {"bytes": None, "path": str(path)},
        lambda path: {"url": str(path)},
        lambda path: (sine(), RATE),
        lambda path: (sine().tolist(), RATE),
        lambda path: (torch.from_numpy(sine()), np.int64(RATE)),
        lambda path: {"array": sine(), "sampling_rate": RATE},
        lambda path: {"array": sine().astype(np.float64), "sampling_rate": float(RATE), "path": "clip.wav"},
        lambda path: decoder(sine(), RATE),
    ],
)
def test_every_form_of_one_audio_gives_the_same_samples(form, wav):
    loaded = load_audio(form(wav))
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, sine())


def test_a_bare_array_takes_its_rate_from_the_call():
    np.testing.assert_array_equal(load_audio(sine(), source_rate=RATE), sine())


@pytest.mark.parametrize(("format", "tolerance"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.02), ("MP3", 0.02)])
def test_files_decode_to_what_was_recorded(format, tolerance):
    loaded = load_audio(encoded(sine(1.0), format=format))
    assert len(loaded) == RATE
    # Lossy codecs smear the ends.
    np.testing.assert_allclose(loaded[1000:-1000], sine(1.0)[1000:-1000], atol=tolerance)


def fake_torchcodec(monkeypatch, decoder_class) -> None:
    """Puts a decoder in the place of torchcodec's, which needs FFmpeg."""
    module = SimpleNamespace(AudioDecoder=decoder_class)
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=module))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)


def test_what_soundfile_cannot_read_goes_to_torchcodec(monkeypatch):
    contents = []

    class AudioDecoder:
        def __init__(self, content):
            contents.append(content)
            self.metadata = SimpleNamespace(duration_seconds_from_header=0.5)

        def get_all_samples(self):
            return SimpleNamespace(data=torch.from_numpy(np.stack([sine(), sine() / 3])), sample_rate=RATE)

    fake_torchcodec(monkeypatch, AudioDecoder)
    m4a = b"\x00\x00\x00\x1cftypM4A \x00\x00\x02\x00" + bytes(range(256))
    np.testing.assert_allclose(load_audio(m4a), sine() * 2 / 3, atol=1e-6)
    with pytest.raises(AudioError, match="0.5 s of audio are over the limit of 0.4 s"):
        load_audio(m4a, max_seconds=0.4)
    assert contents == [m4a, m4a]


def test_what_neither_can_read_is_refused(monkeypatch):
    def refuse(content):
        raise RuntimeError("moov atom not found\nand so on")

    fake_torchcodec(monkeypatch, refuse)
    with pytest.raises(AudioError, match=r"neither soundfile .* nor torchcodec \(moov atom not found\).*Export"):
        load_audio(b"\x00\x00\x00\x1cftypM4A \xff\xfe\xfd\xfc")


@pytest.mark.parametrize(
    "told",
    [
        "Could not load libtorchcodec. Likely causes:\n  1. FFmpeg is not installed",
        "Could not load libtorchcodec:\n1.",
    ],
)
def test_a_torchcodec_that_cannot_be_loaded_is_named_without_a_list_that_is_cut_off(monkeypatch, told):
    def refuse(content):
        raise RuntimeError(told)

    fake_torchcodec(monkeypatch, refuse)
    with pytest.raises(AudioError, match=r"\(Could not load libtorchcodec\)\. Convert it to WAV"):
        load_audio(b"\x00\x00\x00\x1cftypM4A \xff\xfe\xfd\xfc")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "float16", "float32", "float64"])
def test_sample_types_share_one_scale(dtype):
    wave = sine(amplitude=0.5)
    if dtype.startswith("float"):
        samples = wave.astype(dtype)
    elif dtype == "uint8":
        samples = np.round(wave * 128 + 128).astype(dtype)
    else:
        samples = np.round(wave * -float(np.iinfo(dtype).min)).astype(dtype)
    step = {"int8": 1 / 128, "uint8": 1 / 128, "float16": 1e-3}.get(dtype, 1e-4)
    np.testing.assert_allclose(load_audio((samples, RATE)), wave, atol=step)


def test_a_bfloat16_tensor_is_taken():
    np.testing.assert_allclose(load_audio((torch.from_numpy(sine()).bfloat16(), RATE)), sine(), atol=2e-3)


@pytest.mark.parametrize("shape", ["channels first", "samples first", "file"])
def test_channels_are_averaged(shape):
    channels = np.stack([sine(amplitude=0.6), sine(amplitude=0.2)])
    source = {
        "channels first": (channels, RATE),
        "samples first": (channels.T, RATE),
        "file": encoded(channels.T, subtype="FLOAT"),
    }[shape]
    np.testing.assert_allclose(load_audio(source), sine(amplitude=0.4), atol=1e-6)


def test_a_stereo_file_shorter_than_its_channels_keeps_its_axes():
    assert len(load_audio(encoded(np.ones((1, 2), dtype=np.float32) * 0.5, subtype="FLOAT"))) == 1


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_pitch_and_duration(rate):
    loaded = load_audio((sine(1.0, rate=rate), rate))
    assert abs(len(loaded) - RATE) <= 1
    np.testing.assert_allclose(loaded[800:15000], sine(1.0)[800:15000], atol=1e-3)


def test_resampling_lets_nothing_alias():
    assert np.abs(load_audio((sine(1.0, rate=48000, frequency=11000.0), 48000))[100:-100]).max() < 1e-3


def test_silence_is_a_warning_and_is_returned():
    with pytest.warns(UserWarning, match=r"audio array of shape \(1600,\): all 1600 samples are zero.*microphone"):
        assert len(load_audio((np.zeros(1600, np.float32), RATE))) == 1600


def test_sound_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio((sine(), RATE))


def serve_audio(monkeypatch, content: bytes) -> list[str]:
    """Every web address gives this content, in pieces; returns the list in which those asked for will be."""
    calls = []

    def stream(method, url, **kwargs):
        calls.append(url)
        pieces = (content[start : start + 1000] for start in range(0, len(content), 1000))
        return nullcontext(SimpleNamespace(iter_bytes=lambda: pieces, raise_for_status=lambda: None))

    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(stream=stream))
    return calls


def test_an_address_is_fetched_only_when_given_as_url(monkeypatch):
    calls = serve_audio(monkeypatch, encoded(sine(), subtype="FLOAT"))
    with pytest.raises(AudioError, match="not fetched unasked.*Pass"):
        load_audio("https://example.org/clip.wav")
    assert calls == []
    np.testing.assert_array_equal(load_audio({"url": "https://example.org/clip.wav"}), sine())
    assert calls == ["https://example.org/clip.wav"]


def test_an_address_that_does_not_end_is_left(monkeypatch):
    serve_audio(monkeypatch, bytes(10_000))
    monkeypatch.setattr("processing_speechllm.audio_addresses.MAX_DOWNLOAD", 5000)
    with pytest.raises(AudioError, match="https://example.org/radio: is larger than.*Give"):
        load_audio({"url": "https://example.org/radio"})


def test_an_address_that_drips_is_left(monkeypatch):
    serve_audio(monkeypatch, bytes(10_000))
    monkeypatch.setattr("processing_speechllm.audio_addresses.MAX_SECONDS", -1)
    with pytest.raises(AudioError, match="https://example.org/radio: cannot be downloaded .*MiB after .* no end"):
        load_audio({"url": "https://example.org/radio"})


def test_an_address_that_cannot_be_reached_is_named():
    with pytest.raises(AudioError, match="http://localhost:9/clip.wav: cannot be downloaded.*Check the address"):
        load_audio({"url": "http://localhost:9/clip.wav"})


@pytest.mark.parametrize(
    ("given", "count"),
    [(None, 0), ("a.wav", 1), (["a.wav", "b.wav"], 2), ((sine(), RATE), 1), ([0.0, 0.1, 0.2], 1), (sine(), 1)],
)
def test_one_audio_is_told_from_several(given, count):
    assert len(as_audio_list(given)) == count


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_without_a_length_header_is_read_to_its_end(rate, channels):
    noise = 0.1 * NOISE((3 * rate, channels)).astype(np.float32)
    content = encoded(noise, rate, format="MP3", bitrate_mode="VARIABLE")
    first = walk(content)[0]
    bare = content[first + frame_size(content[first : first + 4])[0] :]  # its first frame holds the header
    assert b"Xing" in content and b"Xing" not in bare
    frame = 576 if rate < 32000 else 1152
    assert 0 <= len(load_audio(bare, sampling_rate=rate)) - 3 * rate < 4 * frame  # the encoder's own padding


def test_mp3_frames_are_counted_behind_and_before_tags():
    content = encoded(sine(1.0), format="MP3")
    first, frames, samples, missing = walk(content)
    assert (first, samples, missing) == (0, 576, 0)
    assert 0 <= frames * samples - RATE < 5 * 576
    tagged = b"ID3\x03\0\0\0\0\0\x10" + bytes(16) + content + b"TAG" + bytes(125)
    assert walk(tagged) == (26, frames, samples, 0)
    assert walk(content[:-10])[1:] == (frames - 1, samples, 10)
    assert walk(with_length_header(content, first, frames))[1] == frames + 1
    assert walk(b"not an mp3 at all")[:2] == (-1, 0)


@pytest.mark.parametrize("peak", [1.0, 1.5, 30.0])
def test_amplitudes_that_decoders_and_normalising_give_are_taken(peak):
    samples = sine() * peak / 0.3
    np.testing.assert_array_equal(load_audio((samples, RATE)), samples)


def test_an_mp3_that_ends_a_percent_early_is_used_with_a_warning():
    content = encoded(0.1 * NOISE(20 * RATE).astype(np.float32), format="MP3")
    whole = load_audio(content)
    with pytest.warns(UserWarning, match=r"ends 0\.16 s \(0\.8 %\) before the length.*copy or export"):
        early = load_audio(content[: int(len(content) * 0.99)])
    assert 0 < len(whole) - len(early) < 0.01 * len(whole)
    np.testing.assert_array_equal(early, whole[: len(early)])
    with pytest.raises(AudioError, match="truncated MP3: the header announces 320000 samples"):
        load_audio(content[: int(len(content) * 0.98)])


def pages_of(content: bytes) -> list[bytes]:
    return [content[start : start + size] for start, size in pages(content)]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_without_its_end_mark_is_used_with_a_warning(recwarn, subtype):
    content = encoded(0.1 * NOISE(20 * RATE).astype(np.float32), format="OGG", subtype=subtype)
    whole = load_audio(content)
    assert not recwarn
    parts = pages_of(content)
    assert len(parts) > 4 and b"".join(parts) == content
    with pytest.warns(UserWarning, match="the Ogg has no mark of its end.*copy or export"):
        early = load_audio(b"".join(parts[:-1]))
    assert 0 < len(early) < len(whole)


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda c, p: c[:-1], "truncated Ogg: its last page is not whole"),
        (lambda c, p: c[: len(p[0]) + 9], "truncated Ogg: its last page is not whole"),
        (lambda c, p: c[: len(c) // 2] + bytes(len(c) // 2), "damaged Ogg: the checksum of page"),
        (lambda c, p: c[:-9] + bytes([c[-9] ^ 1]) + c[-8:], "damaged Ogg: the checksum of page"),
        (lambda c, p: b"".join(p[:3] + p[4:]), "damaged Ogg: pages before page 4 are missing"),
        (lambda c, p: b"".join(p[:4]) + p[4][:3], "after page 4 comes something else"),
        (lambda c, p: c + c, "several recordings, one behind the other"),
    ],
)
def test_an_ogg_of_which_libsndfile_would_leave_something_out_is_refused(damage, finding):
    content = encoded(0.1 * NOISE(20 * RATE).astype(np.float32), format="OGG", subtype="VORBIS")
    damaged = damage(content, pages_of(content))
    for form in (damaged, bytearray(damaged)):
        with pytest.raises(AudioError, match=f"{finding}.*Copy or export"):
            load_audio({"bytes": form, "path": None})


def test_a_whole_ogg_may_be_a_bytearray_with_something_behind_it(recwarn):
    content = encoded(sine(1.0), format="OGG")
    whole = load_audio(content)
    for behind in (b"", bytes(100), b"TAG" + bytes(125)):
        np.testing.assert_array_equal(load_audio({"bytes": bytearray(content + behind), "path": None}), whole)
    assert not recwarn


def test_a_header_that_announces_more_than_any_memory_holds_costs_none():
    content = bytearray(encoded(sine(), format="FLAC"))
    content[22:26] = b"\xff\xff\xff\xff"  # 2**32 and more samples, 17 GB
    with pytest.raises(AudioError, match="FLAC.*export the file again"):
        load_audio(bytes(content))


def test_a_column_of_a_dataset_is_many_audios():
    audios = [{"bytes": encoded(sine(seconds), subtype="FLOAT"), "path": None} for seconds in (0.2, 0.3)]
    column = Dataset.from_dict({"audio": audios}).cast_column("audio", Audio(decode=False))["audio"]
    assert not isinstance(column, list)
    assert [len(load_audio(audio)) for audio in as_audio_list(column)] == [3200, 4800]


def test_a_file_object_is_read_from_where_it_stands():
    np.testing.assert_array_equal(load_audio(io.BytesIO(encoded(sine(), subtype="FLOAT"))), sine())
