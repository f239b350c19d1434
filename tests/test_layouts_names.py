"""What names tell of splits, and which recording a text belongs to: none is taken for another, or left out unsaid."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset
from test_layouts import shards, write, write_text

from trainers.data.layouts.layout import split_name, split_word
from trainers.data.layouts.recognition import local_splits
from trainers.data.loading import load_rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def texts(source: Path, split: str = "train") -> dict[str, str]:
    """Texts by the end of the recording's path."""
    rows = load_rows(source, split)
    return {"/".join(Path(row["audio"]["path"]).parts[-2:]): row["text"] for row in rows}


def test_a_split_is_a_word_of_a_name():
    names = ["Train", "cv-test-000", "train-clean-100", "v1.0_dev", "latest", "trained", "contest-a"]
    assert [split_word(name) for name in names] == ["train", "test", "train", "dev", None, None, None]
    assert [split_name(name) for name in names[:4]] == ["train", "test", "train-clean-100", "dev"]


@pytest.mark.parametrize("names", [("train_0", "test_0", "dev_0"), ("cv-train", "cv-test", "cv-dev")])
def test_parquet_files_of_other_splits_are_not_trained_on(names, tmp_path):
    for name in names:
        Dataset.from_list([{"audio": f"{name}.wav", "text": name}]).to_parquet(tmp_path / f"{name}.parquet")
    assert [load_rows(tmp_path, split)["text"][:] for split in ("train", "test", "validation")] == [[n] for n in names]


def test_shards_of_other_splits_are_not_trained_on(tmp_path):
    shards(tmp_path / "a", lambda number: {"txt": b"a"})
    for number, split in enumerate(("train", "test")):
        (tmp_path / "a" / f"train-{number:04d}.tar").rename(tmp_path / f"cv-{split}-000.tar")
    (tmp_path / "a").rmdir()
    assert [len(load_rows(tmp_path, split)) for split in ("train", "test")] == [2, 1]


@pytest.mark.parametrize("folders", [("Train", "Test"), ("train-a", "test-a"), ("cv-train", "cv-test")])
def test_folders_of_other_splits_are_not_trained_on(folders, tmp_path):
    for number, folder in enumerate(folders):
        write(tmp_path / folder / f"{number}.wav", number)
        write_text(tmp_path / folder / f"{number}.txt", folder)
    assert list(texts(tmp_path).values()) == [folders[0]]
    assert list(texts(tmp_path, "test").values()) == [folders[1]]


def test_manifests_of_one_split_are_read_one_after_the_other(tmp_path):
    write(tmp_path / "a.wav", 0)
    for name in ("train.en.jsonl", "train.de.jsonl", "v1.0_dev.json"):
        write_text(tmp_path / name, json.dumps({"audio": "a.wav", "text": name}))
    assert sorted(load_rows(tmp_path)["text"][:]) == ["train.de.jsonl", "train.en.jsonl"]
    assert load_rows(tmp_path, "validation")["text"][:] == ["v1.0_dev.json"]
    write_text(tmp_path / "train.en.csv", "audio,text", "a.wav,again")
    with pytest.raises(ValueError, match="train.en.csv.* may hold the same rows of split train.en"):
        load_rows(tmp_path)


def test_recordings_of_one_name_have_the_texts_of_their_own_folders(tmp_path):
    for number, speaker in enumerate(("s0", "s1", "s2")):
        write(tmp_path / "wav" / speaker / "001.wav", number)
    for speaker in ("s0", "s1"):
        write_text(tmp_path / "txt" / speaker / "001.txt", speaker)
    said = []
    load_rows(tmp_path, say=said.append)
    assert texts(tmp_path) == {"s0/001.wav": "s0", "s1/001.wav": "s1"}
    assert "1 recordings without a .txt left out" in said[0]


def test_two_microphones_may_share_a_text_but_two_texts_no_recording(tmp_path):
    for number, place in enumerate(("near", "far")):
        write(tmp_path / "both" / place / "001.wav", number)
    write_text(tmp_path / "both" / "txt" / "001.txt", "shared")
    assert texts(tmp_path / "both") == {"near/001.wav": "shared", "far/001.wav": "shared"}
    write(tmp_path / "one" / "wav" / "001.wav", 0)
    for place in ("a", "b"):
        write_text(tmp_path / "one" / place / "001.txt", place)
    with pytest.raises(ValueError, match="001.wav: its text may be .*a/001.txt or .*b/001.txt"):
        load_rows(tmp_path / "one")


def test_ljspeech_names_may_have_folders_and_must_mean_one_recording(tmp_path):
    for number, speaker in enumerate(("anna", "bert")):
        write(tmp_path / "wavs" / speaker / "001.wav", number)
    write_text(tmp_path / "metadata.csv", "anna/001.wav|Hello.", "bert/001|Bye.")
    assert texts(tmp_path) == {"anna/001.wav": "Hello.", "bert/001.wav": "Bye."}
    assert load_rows(tmp_path)["id"][:] == ["anna/001", "bert/001"]
    write_text(tmp_path / "metadata.csv", "001|Hello.", "001|Bye.")
    with pytest.raises(ValueError, match="'001' may be .*anna/001.wav or .*bert/001.wav"):
        load_rows(tmp_path)


def test_a_table_with_a_header_is_no_ljspeech(tmp_path):
    write(tmp_path / "wavs" / "x.wav", 0)
    write_text(tmp_path / "metadata.csv", "audio_file|text|speaker_name", "wavs/x.wav|Hello there.|anna")
    said = []
    (row,) = load_rows(tmp_path, say=said.append)
    assert row["text"] == "Hello there." and row["speaker_name"] == "anna" and "manifest" in said[0]


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_texts_of_an_audiofolder_stay_as_they_are(streaming, tmp_path):
    said = ["null", "None", "007"]
    names = ["test_001.wav", "train-station.wav", "hello.wav"]
    for number, name in enumerate(names):
        write(tmp_path / name, number)
    rows = [f"{name},{text},nan" for name, text in zip(names, said, strict=True)]
    write_text(tmp_path / "metadata.csv", "file_name,text,language", *rows)
    found = list(load_rows(tmp_path, streaming=streaming))
    assert [row["text"] for row in found] == said and {row["language"] for row in found} == {"nan"}


@pytest.mark.parametrize("tables", ["above", "inside"])
def test_splits_of_an_audiofolder_are_its_folders(tables, tmp_path):
    for number, split in enumerate(("train", "test")):
        write(tmp_path / split / f"{number}.wav", number)
        inside = json.dumps({"file_name": f"{number}.wav", "sentence": split})
        above = json.dumps({"file_name": f"{split}/{number}.wav", "sentence": split})
        if tables == "inside":
            write_text(tmp_path / split / "metadata.jsonl", inside)
        else:
            path = tmp_path / "metadata.jsonl"
            write_text(path, *([path.read_text().strip()] if path.exists() else []), above)
    assert local_splits(tmp_path) == ["test", "train"]
    assert texts(tmp_path) == {"train/0.wav": "train"} and texts(tmp_path, "test") == {"test/1.wav": "test"}


def test_targets_of_which_files_are_missing_are_refused(tmp_path):
    from factories_targets import Echo, config, source

    from trainers.targets.generate import generate_targets

    generate_targets(config(tmp_path), source(9), Echo())
    assert len(load_rows(tmp_path)) == 9
    sorted((tmp_path / "data").glob("*.parquet"))[1].unlink()
    with pytest.raises(ValueError, match="its files hold 6 rows, the run wrote 9"):
        load_rows(tmp_path)
    assert len(load_rows(tmp_path / "data")) == 6
