"""Every layout gives the same rows and is said in one line; what fits none is refused with what would."""

import io
import json
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from datasets import Dataset, DatasetDict

from trainers.data.loading import load_rows, with_durations

RATE = 16000
TEXTS = ["one", 'he said "two', "three"]  # an open quotation mark, as read sentences have them
SECONDS = [0.5, 0.75, 1.0]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def samples(number: int) -> np.ndarray:
    """A tone whose pitch and length tell the clip."""
    time = np.arange(round(SECONDS[number] * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 200 * (number + 1) * time)).astype(np.float32)


def write(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples(number), RATE)
    return path


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def common_voice(root: Path) -> None:
    header = "client_id\tpath\tsentence\tup_votes\tlocale"
    rows = [f"s{i}\tclip_{i}.flac\t{TEXTS[i]}\t2\tde" for i in range(3)]
    write_text(root / "train.tsv", header, *rows)
    write_text(root / "dev.tsv", header, rows[0])
    for i in range(3):
        write(root / "clips" / f"clip_{i}.flac", i)


def librispeech(root: Path) -> None:
    for i in range(3):
        chapter = root / f"train-clean-{100 + i // 2}" / f"{i}" / "1"
        write(chapter / f"{i}-1-0000.flac", i)
        write_text(chapter / f"{i}-1.trans.txt", f"{i}-1-0000 {TEXTS[i]}")


def mls(root: Path) -> None:
    for i in range(3):
        write(root / "train" / "audio" / f"{i}" / "9" / f"{i}_9_000.flac", i)
    write_text(root / "train" / "transcripts.txt", *(f"{i}_9_000\t{TEXTS[i]}" for i in range(3)))


def ljspeech(root: Path) -> None:
    for i in range(3):
        write(root / "wavs" / f"LJ-{i}.wav", i)
    write_text(root / "metadata.csv", *(f"LJ-{i}|raw {i}|{TEXTS[i]}" for i in range(3)))


def kaldi(root: Path) -> None:
    folder = root / "train"
    for i in range(3):
        write(root / "audio" / f"{i}.wav", i)
    write_text(folder / "wav.scp", f"u0 {root}/audio/0.wav", "u1 flac -c -d -s audio/1.wav |", "u2 ../audio/2.wav")
    write_text(folder / "text", *(f"u{i} {TEXTS[i]}" for i in range(3)))
    write_text(folder / "utt2spk", *(f"u{i} s{i}" for i in range(3)))


def kaldi_segments(root: Path) -> None:
    soundfile.write(root / "long.wav", np.concatenate([samples(i) for i in range(3)]), RATE)
    write_text(root / "wav.scp", "recording long.wav")
    write_text(root / "segments", "u0 recording 0 0.5", "u1 recording 0.5 1.25", "u2 recording 1.25 2.25")
    write_text(root / "text", *(f"u{i} {TEXTS[i]}" for i in range(3)))


def nemo(root: Path) -> None:
    rows = [{"audio_filepath": str(write(root / f"{i}.wav", i)), "text": TEXTS[i], "duration": 1} for i in range(3)]
    write_text(root / "train_manifest.json", *map(json.dumps, rows))


def nemo_offsets(root: Path) -> None:
    soundfile.write(root / "long.wav", np.concatenate([samples(i) for i in range(3)]), RATE)
    rows = [
        {"audio_filepath": "long.wav", "text": TEXTS[i], "offset": sum(SECONDS[:i]), "duration": SECONDS[i]}
        for i in range(3)
    ]
    write_text(root / "train.json", *map(json.dumps, rows))


def json_list(root: Path) -> None:
    rows = [{"audio": str(write(root / f"{i}.wav", i).name), "text": TEXTS[i]} for i in range(3)]
    write_text(root / "data.json", json.dumps({"data": rows}, indent=1))


def voxpopuli(root: Path) -> None:
    header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender"
    write_text(root / "asr_train.tsv", header, *(f"2010-{i}\t\t{TEXTS[i]}\t{i}\ttrain\tf" for i in range(3)))
    for i in range(3):
        write(root / "train" / "part_0" / f"2010-{i}.wav", i)


def fleurs(root: Path) -> None:
    rows = [f"{7}\t{i}00.wav\tRaw {i}.\t{TEXTS[i]}\to n e |\t8000\tMALE" for i in range(3)]
    write_text(root / "train.tsv", *rows)
    for i in range(3):
        write(root / "audio" / "train" / f"{i}00.wav", i)


def webdataset(root: Path) -> None:
    shards(root, lambda i: {"txt": TEXTS[i].encode()})


def webdataset_json(root: Path) -> None:
    shards(root, lambda i: {"json": json.dumps({"text": TEXTS[i], "language": "de"}).encode()})


def shards(root: Path, fields) -> None:
    root.mkdir(exist_ok=True)
    for shard, numbers in enumerate([(0, 1), (2,)]):
        with tarfile.open(root / f"train-{shard:04d}.tar", "w") as archive:
            for number in numbers:
                content = io.BytesIO()
                soundfile.write(content, samples(number), RATE, format="FLAC")
                for kind, data in ({"flac": content.getvalue()} | fields(number)).items():
                    member = tarfile.TarInfo(f"clip-{number}.{kind}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def lhotse_cuts(root: Path) -> None:
    from lhotse import CutSet

    cutset(root).to_file(root / "train_cuts.jsonl.gz")
    assert len(CutSet.from_file(root / "train_cuts.jsonl.gz")) == 1


def lhotse_manifests(root: Path) -> None:
    recordings, supervisions, _ = cutset(root).decompose(verbose=False)
    recordings.to_file(root / "recordings_train.jsonl.gz")
    supervisions.to_file(root / "supervisions_train.jsonl.gz")


def cutset(root: Path):
    """One long recording with three supervisions."""
    from lhotse import CutSet, Recording, SupervisionSegment

    soundfile.write(root / "long.wav", np.concatenate([samples(i) for i in range(3)]), RATE)
    cut = Recording.from_file(root / "long.wav").to_cut()
    cut.supervisions = [
        SupervisionSegment(f"u{i}", cut.recording.id, sum(SECONDS[:i]), SECONDS[i], text=TEXTS[i]) for i in range(3)
    ]
    return CutSet.from_cuts([cut])


def pairs(root: Path) -> None:
    for i in range(3):
        write(root / "wav" / f"s{i}" / f"clip{i}.wav", i)
        write_text(root / "txt" / f"s{i}" / f"clip{i}.txt", TEXTS[i])


def rows_of(root: Path) -> Dataset:
    files = [{"bytes": write(root / f"{i}.wav", i).read_bytes(), "path": f"{i}.wav"} for i in range(3)]
    for i in range(3):
        (root / f"{i}.wav").unlink()
    return Dataset.from_dict({"audio": files, "sentence": TEXTS}).cast_column("audio", datasets.Audio())


def saved(root: Path) -> None:
    rows_of(root).save_to_disk(root / "saved")
    for path in (root / "saved").iterdir():
        path.rename(root / path.name)


def saved_splits(root: Path) -> None:
    rows = rows_of(root)
    DatasetDict(train=rows, validation=rows.select([0])).save_to_disk(root)


def parquet(root: Path) -> None:
    (root / "data").mkdir()
    rows_of(root).select([0, 1]).to_parquet(root / "data" / "train-00000-of-00002.parquet")
    rows_of(root).select([2]).to_parquet(root / "data" / "train-00001-of-00002.parquet")


def audiofolder(root: Path) -> None:
    names = [write(root / f"{i}.wav", i).name for i in range(3)]
    rows = [{"file_name": name, "text": text} for name, text in zip(names, TEXTS, strict=True)]
    write_text(root / "metadata.jsonl", *map(json.dumps, rows))


def split_manifests(root: Path) -> None:
    names = [write(root / f"{i}.wav", i).name for i in range(3)]
    write_text(root / "train.csv", "file;transcript", *map(";".join, zip(names, ["one", "two", "three"], strict=True)))
    write_text(root / "dev.csv", "file;transcript", "0.wav;one")


LAYOUTS = {
    common_voice: "Common Voice folder, split train, 3 clips",
    librispeech: "LibriSpeech folder, split train-clean-100, train-clean-101, 3 clips",
    mls: "MLS folder, split train, 3 clips",
    ljspeech: "LJSpeech folder, split train, 3 clips, text from the third column",
    kaldi: "Kaldi folder, split train, 3 clips",
    kaldi_segments: "Kaldi folder, split train, 3 clips, cut by segments",
    nemo: "manifest, split train, 3 clips, audio from audio_filepath",
    nemo_offsets: "manifest, split train, 3 clips, audio from audio_filepath, cut by offset",
    json_list: "manifest, split train, 3 clips",
    voxpopuli: "VoxPopuli folder, split train, 3 clips, text from normalized_text",
    fleurs: "FLEURS folder, split train, 3 clips, text from transcription",
    webdataset: "WebDataset shards, split train, 3 clips, audio from flac",
    webdataset_json: "WebDataset shards, split train, 3 clips, audio from flac",
    lhotse_cuts: "lhotse manifests, split train, 3 clips",
    lhotse_manifests: "lhotse manifests, split train, 3 clips",
    pairs: "recordings with text files, split train, 3 clips",
    saved: "saved dataset, split train, 3 clips, text from sentence",
    saved_splits: "saved dataset, split train, 3 clips, text from sentence",
    parquet: "Parquet folder, split train, 3 clips, text from sentence",
    audiofolder: "audiofolder, split train, 3 clips",
    split_manifests: "manifest, split train, 3 clips, audio from file, text from transcript",
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_layout_is_recognised_said_and_read(layout, tmp_path, monkeypatch):
    root = tmp_path / "corpus"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    layout(root)
    said = []
    rows = load_rows(root, say=said.append)
    assert said == [f"{root}: {LAYOUTS[layout]}"]
    rows = with_durations(rows.remove_columns([name for name in ("duration",) if name in rows.column_names]))
    found = {row["text"]: row["duration"] for row in rows}
    texts = TEXTS if layout is not split_manifests else ["one", "two", "three"]
    assert found == {text: pytest.approx(seconds, abs=1e-3) for text, seconds in zip(texts, SECONDS, strict=True)}
    assert len(set(rows["id"][:])) == 3 and all(rows["id"][:])
    streamed = list(load_rows(root, streaming=True, say=said.append))
    assert sorted(row["text"] for row in streamed) == sorted(texts)
    assert said[1].split(", ")[1:3] == said[0].replace("3 clips", "streamed").split(", ")[1:3]


@pytest.mark.parametrize("layout", [kaldi_segments, nemo_offsets, lhotse_cuts], ids=lambda layout: layout.__name__)
def test_a_part_of_a_recording_is_its_samples(layout, tmp_path):
    layout(tmp_path)
    (row,) = (row for row in load_rows(tmp_path) if row["text"] == TEXTS[1])
    heard, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
    stored, _ = soundfile.read(tmp_path / "long.wav", dtype="float32")
    assert rate == RATE and np.array_equal(heard, stored[8000:20000])


def test_splits_have_their_usual_names_and_slices(tmp_path):
    common_voice(tmp_path)
    assert load_rows(tmp_path, split="validation")["text"][:] == TEXTS[:1]
    assert load_rows(tmp_path, split="train[1:]")["text"][:] == TEXTS[1:]
    assert load_rows(tmp_path / "dev.tsv")["text"][:] == TEXTS[:1]
    with pytest.raises(ValueError, match="no split 'other'; there is dev, train"):
        load_rows(tmp_path, split="other")
    row = load_rows(tmp_path)[0]
    assert (row["language"], row["speaker"], row["id"]) == ("de", "s0", "clips/clip_0.flac")


def test_a_table_that_has_changed_is_read_again(tmp_path):
    ljspeech(tmp_path)
    load_rows(tmp_path)
    write_text(tmp_path / "metadata.csv", "LJ-0|other")
    assert load_rows(tmp_path)["text"][:] == ["other"]


def test_rows_that_do_not_tell_their_language_may_be_told(tmp_path):
    ljspeech(tmp_path / "a")
    assert load_rows(tmp_path / "a", language="en")["language"][:] == ["en"] * 3
    common_voice(tmp_path / "b")
    assert load_rows(tmp_path / "b", language="en")["language"][:] == ["de"] * 3


def test_what_is_not_recognised_says_what_was_found_and_what_is_needed(tmp_path):
    write(tmp_path / "a" / "x.wav", 0)
    write(tmp_path / "a" / "y.wav", 1)
    with pytest.raises(ValueError) as error:
        load_rows(tmp_path)
    text = str(error.value)
    assert "Found: 2 .wav; folders a." in text and "nothing that says what is spoken" in text
    for name in ("Common Voice", "LibriSpeech", "Kaldi", "WebDataset", "lhotse", "manifest.jsonl", "NAME.txt"):
        assert name in text
    common_voice(tmp_path / "de")
    common_voice(tmp_path / "en")
    with pytest.raises(ValueError, match="de, en: each a Common Voice folder. Give these."):
        load_rows(tmp_path)


def test_recordings_alone_are_rows_where_no_transcripts_are_needed(tmp_path):
    write(tmp_path / "a" / "x.wav", 0)
    rows = load_rows(tmp_path, transcribed=False)
    assert (rows["id"][:], rows.column_names) == (["a/x.wav"], ["audio", "id"])


def test_recordings_whose_transcripts_lie_below_are_not_taken_without_them(tmp_path):
    manifest = json.dumps({"audio": write(tmp_path / "one" / "x.wav", 0).name, "text": "one"})
    write_text(tmp_path / "one" / "manifest.jsonl", manifest)
    with pytest.raises(ValueError, match="one: each a manifest. Give these."):
        load_rows(tmp_path, transcribed=False)


def test_recordings_without_a_text_file_are_counted(tmp_path):
    pairs(tmp_path)
    (tmp_path / "txt" / "s0" / "clip0.txt").unlink()
    said = []
    assert len(load_rows(tmp_path, say=said.append)) == 2
    assert said[0].endswith("2 clips, 1 recordings without a .txt left out")


def test_what_a_builder_of_datasets_stumbles_over_is_said(tmp_path):
    Dataset.from_dict({"audio": ["a.wav"], "text": ["one"]}).to_parquet(tmp_path / "0.parquet")
    Dataset.from_dict({"audio": ["a.wav"], "label": [3]}).to_parquet(tmp_path / "1.parquet")
    with pytest.raises(ValueError, match="(?s)cast.*column names don.t match|1 new columns"):
        load_rows(tmp_path)


@pytest.mark.parametrize("layout", [kaldi, librispeech, common_voice], ids=lambda layout: layout.__name__)
def test_tables_as_windows_writes_them_and_lines_that_only_python_ends(layout, tmp_path):
    layout(tmp_path)
    for path in [*tmp_path.rglob("text"), *tmp_path.rglob("*.trans.txt"), *tmp_path.rglob("*.tsv")]:
        text = path.read_text(encoding="utf-8").replace(" one", " o\u2028ne").replace("\tone", "\to\u2028ne")
        path.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    assert sorted(load_rows(tmp_path)["text"][:]) == sorted(["o\u2028ne", *TEXTS[1:]])


@pytest.mark.parametrize("layout", [kaldi, librispeech, common_voice, pairs], ids=lambda layout: layout.__name__)
def test_a_table_in_another_encoding_is_named_with_the_line(layout, tmp_path):
    layout(tmp_path)
    for path in [*tmp_path.rglob("text"), *tmp_path.rglob("*.t*t"), *tmp_path.rglob("*.tsv")]:
        path.write_bytes(path.read_bytes() + b"caf\xe9")
    with pytest.raises(ValueError, match=r"line \d: not UTF-8"):
        load_rows(tmp_path)


def test_links_are_followed_once_and_one_to_nothing_is_a_row_that_cannot_be_read(tmp_path):
    pairs(tmp_path / "elsewhere")
    root = tmp_path / "corpus"
    write(root / "own.wav", 0)
    write_text(root / "own.txt", "own")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    write_text(root / "gone.txt", "gone")
    rows = load_rows(root)
    assert sorted(rows["text"][:]) == sorted([*TEXTS, "own", "gone"])
    assert sorted(with_durations(rows)["text"][:]) == sorted([*TEXTS, "own"])


@pytest.mark.parametrize("layout", [parquet, audiofolder, webdataset, pairs], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_a_folder_may_be_named_like_a_pattern(layout, streaming, tmp_path):
    root = tmp_path / "corpus [2024] ünï*"
    root.mkdir()
    layout(root)
    rows = list(with_durations(load_rows(root, streaming=streaming)))
    assert sorted(row["text"] for row in rows) == sorted(TEXTS)


def test_a_file_name_that_is_no_text_is_named(tmp_path):
    write(tmp_path / "a.wav", 0).rename(tmp_path / "a\udce9.wav")
    write_text(tmp_path / "b.txt", "one")
    with pytest.raises(ValueError, match=r"a\\xe9.wav'?: the name of the file is not UTF-8"):
        load_rows(tmp_path, transcribed=False)


@pytest.mark.parametrize(
    ("entry", "finding"),
    [
        ("u0 sox a.wav -t wav - speed 1.1 |", "commands are not run"),
        ("u0 /data/wav.1.ark:35", "inside the archive"),
    ],
)
def test_kaldi_commands_and_archives_are_refused(entry, finding, tmp_path):
    write_text(tmp_path / "wav.scp", entry)
    write_text(tmp_path / "text", "u0 one")
    with pytest.raises(ValueError, match=finding):
        load_rows(tmp_path)


def test_lhotse_that_is_not_installed_is_named(tmp_path, monkeypatch):
    lhotse_cuts(tmp_path)
    monkeypatch.setitem(sys.modules, "lhotse", None)
    with pytest.raises(ImportError, match="pip install lhotse"):
        load_rows(tmp_path)


def test_an_unfinished_targets_folder_is_refused_and_what_was_cut_is_said(tmp_path):
    from factories_targets import Echo, config, source

    from trainers.targets.backends import Answer
    from trainers.targets.generate import generate_targets

    class Cut(Echo):
        @staticmethod
        def reply(question):
            return Answer("and so on", "length" if question.seed % 2 else "stop")

    with pytest.raises(KeyboardInterrupt):
        generate_targets(config(tmp_path), source(9), Echo(fail_at=2))
    with pytest.raises(
        ValueError, match="unfinished run: 1 of 3 shards are written. Give the command .* again, it goes on"
    ):
        load_rows(tmp_path)
    said = []
    load_rows(tmp_path / "data", say=said.append)
    assert said[0].endswith("split train, 3 rows, 1 of 3 shards")
    report = generate_targets(config(tmp_path / "whole"), source(9), Cut())
    load_rows(tmp_path / "whole", say=said.append)
    assert f"targets, split train, 9 rows, {report['cut_at_limit']} answers (" in said[1]
    assert "max_new_tokens" in said[1]
