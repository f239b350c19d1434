"""Rows follow the recordings that are there, and are the part, the channel and the file that the data name."""

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile
import torch
from test_layouts import (
    RATE,
    SECONDS,
    TEXTS,
    fleurs,
    kaldi_segments,
    lhotse_cuts,
    librispeech,
    ljspeech,
    mls,
    nemo_offsets,
    samples,
    voxpopuli,
    write,
    write_text,
)

from processing_speechllm.audio import AudioError, load_audio
from trainers.data.bad_rows import BadRows
from trainers.data.loading import load_rows, with_durations

SEGMENTED = [kaldi_segments, nemo_offsets, lhotse_cuts]
M4A = b"\x00\x00\x00\x1cftypM4A \x00\x00\x02\x00" + bytes(range(256))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def names(layout) -> str:
    return layout.__name__


def corpus(layout, tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    root.mkdir()
    layout(root)
    return root


def durations(root: Path) -> dict[str, float]:
    """Text -> seconds of the rows whose audio can be read, measured on the audio itself."""
    rows = load_rows(root)
    if "duration" in rows.column_names:
        rows = rows.remove_columns("duration")
    return {row["text"]: round(row["duration"], 3) for row in with_durations(rows)}


def fake_torchcodec(monkeypatch, decoder) -> None:
    """Puts a decoder in the place of torchcodec's, which needs FFmpeg; `datasets` looks for the other too."""
    module = SimpleNamespace(AudioDecoder=decoder, VideoDecoder=type("VideoDecoder", (), {}))
    monkeypatch.setitem(sys.modules, "torchcodec", SimpleNamespace(decoders=module))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)


def heard(audio: dict) -> np.ndarray:
    return soundfile.read(io.BytesIO(audio["bytes"]), dtype="float32")[0]


# What is there


def test_recordings_that_come_after_their_manifest_or_change_are_measured(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_text(path, *(json.dumps({"audio": f"{i}.wav", "text": TEXTS[i]}) for i in range(3)))
    with pytest.raises(ValueError, match="None of the 3 rows has audio"):
        durations(path)
    write(tmp_path / "0.wav", 0)
    assert durations(path) == {TEXTS[0]: 0.5}
    write(tmp_path / "1.wav", 1)
    write(tmp_path / "2.wav", 2)
    assert durations(path) == dict(zip(TEXTS, SECONDS, strict=True))
    write(tmp_path / "0.wav", 2)
    assert durations(path)[TEXTS[0]] == 1.0


def test_what_could_not_be_decoded_once_is_tried_again(tmp_path, monkeypatch):
    (tmp_path / "0.m4a").write_bytes(M4A)
    write(tmp_path / "1.wav", 1)
    write_text(tmp_path / "rows.csv", "audio,text", "0.m4a,one", "1.wav,two")
    fake_torchcodec(monkeypatch, decoders(None))
    assert durations(tmp_path / "rows.csv") == {"two": 0.75}
    fake_torchcodec(monkeypatch, decoders(samples(0)))
    assert durations(tmp_path / "rows.csv") == {"one": 0.5, "two": 0.75}


@pytest.mark.parametrize("layout", [librispeech, mls, ljspeech, voxpopuli, fleurs], ids=names)
def test_recordings_that_are_looked_up_may_move_and_come_back(layout, tmp_path):
    root = corpus(layout, tmp_path)
    whole = durations(root)
    assert len(whole) == 3
    for path in [*root.rglob("*.wav"), *root.rglob("*.flac")]:
        moved = root / "train" if layout is fleurs else path.parent / "moved"
        moved.mkdir(exist_ok=True)
        path.rename(moved / path.name)
    assert all(Path(row["audio"]["path"]).is_file() for row in load_rows(root))
    assert durations(root) == whole


def test_a_kaldi_recording_may_come_to_any_of_its_places(tmp_path):
    write_text(tmp_path / "data" / "train" / "wav.scp", "u0 wav/0.wav")
    write_text(tmp_path / "data" / "train" / "text", "u0 one")
    with pytest.raises(ValueError, match="None of the 1 rows"):
        durations(tmp_path / "data" / "train")
    write(tmp_path / "wav" / "0.wav", 0)
    assert durations(tmp_path / "data" / "train") == {"one": 0.5}


@pytest.mark.parametrize("layout", SEGMENTED, ids=names)
def test_parts_follow_their_recording(layout, tmp_path):
    root = corpus(layout, tmp_path)
    elsewhere = tmp_path / "elsewhere.wav"
    for path in root.iterdir():  # so that no folder of the layout tells that it changed
        if path.suffix != ".wav" and path.suffix != ".gz":
            path.write_text(path.read_text().replace("long.wav", str(elsewhere)))
    if layout is lhotse_cuts:
        (root / "long.wav").rename(elsewhere)
        (root / "long.wav").symlink_to(elsewhere)
    else:
        (root / "long.wav").rename(elsewhere)
    first = {row["text"]: row["audio"] for row in load_rows(root)}
    soundfile.write(elsewhere, -soundfile.read(elsewhere)[0], RATE)
    os.utime(elsewhere, ns=(1, 1))
    for row in load_rows(root):
        np.testing.assert_array_equal(heard(row["audio"]), -heard(first[row["text"]]))


# Parts


def decoders(whole: np.ndarray | None):
    """A decoder that finds these samples in any file, or none at all; with `made`, how often it was asked."""

    class Decoder:
        made = 0
        metadata = SimpleNamespace(duration_seconds_from_header=1.0)

        def __init__(self, content):
            Decoder.made += 1
            if whole is None:
                raise ValueError("moov atom not found")

        def get_all_samples(self):
            return SimpleNamespace(data=torch.from_numpy(whole)[None], sample_rate=RATE)

    return Decoder


def in_format(root: Path, suffix: str, content: bytes | None) -> None:
    """Give the recording of `kaldi_segments` or `nemo_offsets` another suffix and content, or take it away."""
    (root / "long.wav").unlink()
    for path in root.iterdir():
        path.write_text(path.read_text().replace("long.wav", f"long{suffix}"))
    if content is not None:
        (root / f"long{suffix}").write_bytes(content)


@pytest.mark.parametrize("layout", [kaldi_segments, nemo_offsets], ids=names)
def test_parts_are_cut_out_of_what_soundfile_does_not_know(layout, tmp_path, monkeypatch):
    whole = np.concatenate([samples(i) for i in range(3)])
    decoder = decoders(whole)
    fake_torchcodec(monkeypatch, decoder)
    root = corpus(layout, tmp_path)
    in_format(root, ".m4a", M4A)
    found = {row["text"]: heard(row["audio"]) for row in load_rows(root)}
    for number, text in enumerate(TEXTS):
        np.testing.assert_array_equal(found[text], samples(number))
    assert decoder.made == 1


@pytest.mark.parametrize("layout", [kaldi_segments, nemo_offsets], ids=names)
@pytest.mark.parametrize(
    ("content", "finding"),
    [(None, "no such file"), (M4A, "moov atom not found"), (b"only words, no sound", "is a text file")],
    ids=["absent", "damaged", "text"],
)
def test_a_part_of_what_cannot_be_read_is_never_the_whole(layout, content, finding, tmp_path, monkeypatch):
    fake_torchcodec(monkeypatch, decoders(None))
    root = corpus(layout, tmp_path)
    in_format(root, ".m4a", content)
    row = next(iter(load_rows(root, streaming=True)))
    soundfile.write(root / "long.m4a", np.ones(3 * RATE) / 2, RATE, format="WAV")  # arrives too late for this row
    with pytest.raises(AudioError, match=rf"long\.m4a: .*{finding}"):
        load_audio(row["audio"])
    bad_rows = BadRows(None, 1.0, 1)
    stream = (
        datasets.Dataset.from_list([row]).remove_columns([n for n in ("duration",) if n in row]).to_iterable_dataset()
    )
    assert list(with_durations(stream, bad_rows)) == []
    assert finding in bad_rows.read()[0]["finding"]
    assert len(load_rows(root)) == 3 and all(row["audio"]["bytes"] for row in load_rows(root))


@pytest.mark.parametrize("times", ["3 4", "1.5 1.5", "3 -1"])
def test_a_part_without_samples_is_a_bad_row(times, tmp_path):
    root = corpus(kaldi_segments, tmp_path)
    write_text(root / "segments", "u0 recording 0 0.5", "u1 recording 0.5 1.25", f"u2 recording {times}")
    row = load_rows(root)[2]
    with pytest.raises(AudioError, match=r"long\.wav: lasts 2.25 s and has nothing from [\d.]+ s .*Its part u2"):
        load_audio(row["audio"])


def test_an_empty_offset_is_none_and_one_that_is_no_number_is_named(tmp_path):
    write(tmp_path / "0.wav", 1)
    path = tmp_path / "rows.csv"
    write_text(path, "audio,text,offset,duration", "0.wav,whole,,", "0.wav,part,0.25,0.25")
    rows = load_rows(path)
    assert rows[0]["audio"] == {"bytes": None, "path": str(tmp_path / "0.wav")}
    np.testing.assert_allclose(heard(rows[1]["audio"]), samples(1)[4000:8000], atol=1e-4)
    for wrong in ("a quarter", "nan", "-1"):
        write_text(path, "audio,text,offset,duration", "0.wav,whole,,", f"0.wav,part,{wrong},0.25")
        with pytest.raises(ValueError, match=rf"rows.csv, line 3: offset '{wrong}' is not seconds"):
            load_rows(path)


def test_columns_that_are_named_offset_and_duration_are_seconds(tmp_path):
    write(tmp_path / "0.wav", 1)
    write_text(tmp_path / "rows.csv", "audio,text,begin,length", "0.wav,part,0.25,0.25")
    (row,) = load_rows(tmp_path / "rows.csv", columns={"begin": "offset", "length": "duration"})
    np.testing.assert_allclose(heard(row["audio"]), samples(1)[4000:8000], atol=1e-4)


# Commands and channels


def kaldi_stereo(root: Path, command: str, segments: bool = False) -> None:
    """A recording of which the left channel is clip 0 and the right one half as loud and of the other sign."""
    soundfile.write(root / "two.wav", np.stack([samples(0), -samples(0) / 2], axis=1), RATE)
    write_text(root / "wav.scp", f"r0 {command}")
    write_text(root / "text", "r0 one" if not segments else "u0 one")
    if segments:
        write_text(root / "segments", "u0 r0 0.125 0.25")


@pytest.mark.parametrize("segments", [False, True], ids=["whole", "segments"])
@pytest.mark.parametrize("channel", [1, 2])
def test_sph2pipe_takes_one_channel(channel, segments, tmp_path):
    root = corpus(lambda root: kaldi_stereo(root, f"sph2pipe -f wav -p -c {channel} two.wav |", segments), tmp_path)
    (row,) = load_rows(root)
    left = samples(0)[2000:4000] if segments else samples(0)
    np.testing.assert_allclose(heard(row["audio"]), left if channel == 1 else -left / 2, atol=1e-4)


@pytest.mark.parametrize(
    "command",
    ["sph2pipe -f wav two.wav |", "/opt/bin/sph2pipe -f wav -p two.wav |", "flac -cds two.wav |", "cat two.wav |"]
    + ["flac -c -d --silent two.wav |", "flac --stdout --decode -s 'two.wav' |", "cat two.wav - |"],
)
def test_commands_that_only_decode_are_the_file(command, tmp_path):
    root = corpus(lambda root: kaldi_stereo(root, command), tmp_path)
    assert load_rows(root)[0]["audio"] == {"bytes": None, "path": str(root / "two.wav")}


@pytest.mark.parametrize(
    ("command", "finding"),
    [
        ("flac -c -d -s --skip=0:10 two.wav |", "'--skip=0:10' of flac"),
        ("flac -cdF two.wav |", "'-cdF' of flac"),
        ("sph2pipe -f wav -t 1:2 two.wav |", "'-t 1:2' of sph2pipe"),
        ("sph2pipe -f wav -c 3 two.wav |", "'-c 3' of sph2pipe"),
        ("cat one.wav two.wav |", "one.wav, two.wav"),
        ("cat < two.wav |", "<, two.wav"),
        ("cat two.wav|sox - - |", "commands are not run"),
        ("cat |", "no file"),
        ("|", "commands are not run"),
        ("cat 'two.wav |", "commands are not run"),
    ],
)
def test_what_a_command_does_beside_decoding_is_refused_by_name(command, finding, tmp_path):
    root = corpus(lambda root: kaldi_stereo(root, command), tmp_path)
    with pytest.raises(ValueError, match="wav.scp: r0 .*") as error:
        load_rows(root)
    assert finding in str(error.value) and "Write the recordings to files" in str(error.value)


def test_a_channel_that_is_not_there_is_a_bad_row(tmp_path, monkeypatch):
    fake_torchcodec(monkeypatch, decoders(samples(0)))
    root = corpus(lambda root: kaldi_stereo(root, "sph2pipe -f wav -c 2 two.wav |"), tmp_path)
    soundfile.write(root / "two.wav", samples(0), RATE)
    with pytest.raises(AudioError, match=r"two\.wav: the number of its channels is 1, so channel 2 cannot"):
        load_audio(load_rows(root)[0]["audio"])
    (root / "two.wav").write_bytes(M4A)
    with pytest.raises(AudioError, match=r"two\.wav: soundfile cannot read it, so its channel 2"):
        load_audio(load_rows(root)[0]["audio"])


@pytest.mark.parametrize("channel", [0, 1])
def test_a_lhotse_cut_of_one_channel_is_that_channel(channel, tmp_path):
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    root = corpus(lambda root: kaldi_stereo(root, "two.wav"), tmp_path)
    recording = Recording.from_file(root / "two.wav")
    told = SupervisionSegment("u0", recording.id, 0, recording.duration, channel=channel, text="one")
    cut = MonoCut("c0", 0, recording.duration, channel, supervisions=[told], recording=recording)
    for path in [root / "wav.scp", root / "text"]:
        path.unlink()
    CutSet.from_cuts([cut]).to_file(root / "train_cuts.jsonl.gz")
    (row,) = load_rows(root)
    np.testing.assert_allclose(load_audio(row["audio"]), [samples(0), -samples(0) / 2][channel], atol=1e-4)


def test_a_lhotse_cut_of_a_recording_that_is_not_there_is_a_bad_row_until_it_comes(tmp_path):
    root = corpus(lhotse_cuts, tmp_path)
    content = (root / "long.wav").read_bytes()
    (root / "long.wav").unlink()
    for row in load_rows(root):
        with pytest.raises(AudioError, match=r"long\.wav: lhotse cannot read it \(.*Its part u\d"):
            load_audio(row["audio"])
    (root / "long.wav").write_bytes(content)
    assert durations(root) == dict(zip(TEXTS, SECONDS, strict=True))
