"""Rows from every source come in one form; what is left out is counted and listed."""

import gzip
import io
import itertools
import json
import logging
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, List
from torch.utils.data import DataLoader

from trainers.data.bad_rows import BadRows
from trainers.data.filters import FilterSettings, filter_rows
from trainers.data.loading import dataset_fingerprint, load_rows, with_durations
from trainers.data.sampling import StreamBatches

RATE = 16000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def sound(seconds: float = 0.5, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(int(seconds * RATE)) / 20), RATE, format=kind)
    return file.getvalue()


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Two clips of 0.5 and 1 second below `clips`, and nothing else."""
    folder = tmp_path / "corpus"
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / "a.wav").write_bytes(sound(0.5))
    (folder / "clips" / "b.flac").write_bytes(sound(1.0, "FLAC"))
    return folder


def write_lines(path: Path, *rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS = (
    {"audio": "clips/a.wav", "text": "one"},
    {"audio": "clips/b.flac", "text": "two", "language": "en", "words": [{"start": 0.0, "end": 0.5, "word": "two"}]},
)


def manifest(corpus: Path) -> Path:
    return write_lines(corpus / "manifest.jsonl", *ROWS)


def table(corpus: Path) -> Path:
    path = corpus / "rows.csv"
    path.write_text("audio,text\nclips/a.wav,one\nclips/b.flac,two\n", encoding="utf-8")
    return path


def parquet(corpus: Path) -> Path:
    (corpus / "targets").mkdir()
    rows = load_rows(manifest(corpus))
    rows.select([0]).to_parquet(corpus / "targets" / "MI-00000.parquet")
    rows.select([1]).to_parquet(corpus / "targets" / "MI-00001.parquet")
    (corpus / "targets" / "MI-00002.parquet.partial").write_bytes(b"half")
    (corpus / "targets" / "progress.json").write_text("{}")
    return corpus / "targets"


def audiofolder(corpus: Path) -> Path:
    (corpus / "metadata.csv").write_text("file_name,text\nclips/a.wav,one\nclips/b.flac,two\n", encoding="utf-8")
    return corpus


def loaded(corpus: Path) -> Dataset:
    paths = [str(corpus / "clips" / name) for name in ("a.wav", "b.flac")]
    return Dataset.from_dict({"audio": paths, "text": ["one", "two"]}).cast_column("audio", Audio())


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
@pytest.mark.parametrize(
    "source",
    [manifest, lambda corpus: manifest(corpus).parent, table, parquet, audiofolder],
    ids=["manifest", "its folder", "table", "parquet", "audiofolder"],
)
def test_every_source_gives_the_same_rows(source, streaming, corpus):
    rows = list(load_rows(source(corpus), streaming=streaming))
    assert [row["text"] for row in rows] == ["one", "two"]
    assert [row["id"] for row in rows] == ["clips/a.wav", "clips/b.flac"]
    for row, name in zip(rows, ("a.wav", "b.flac"), strict=True):
        assert row["audio"] == {"bytes": None, "path": str(corpus / "clips" / name)}


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_a_loaded_dataset_is_not_decoded_either(streaming, corpus):
    source = loaded(corpus)
    rows = list(load_rows(source.to_iterable_dataset() if streaming else source))
    assert [row["id"] for row in rows] == ["a.wav", "b.flac"]
    assert rows[1]["audio"] == {"bytes": None, "path": str(corpus / "clips" / "b.flac")}


def test_optional_columns_may_first_appear_late(corpus):
    rows = load_rows(write_lines(corpus / "late.jsonl", *[ROWS[0]] * 1500, ROWS[1]))
    assert rows[0]["language"] is None and rows[1500]["language"] == "en"
    assert rows[1500]["words"] == ROWS[1]["words"]


def test_text_of_a_table_stays_as_it_is(corpus):
    path = corpus / "rows.tsv"
    path.write_text("audio\ttext\tid\tduration\nclips/a.wav\tNA\t007\t0.5\nclips/b.flac\tnull\t1e3\t\n")
    rows = load_rows(path)
    assert rows["text"][:] == ["NA", "null"]
    assert rows["id"][:] == ["007", "1e3"]
    assert rows["duration"][:] == [0.5, None]


def test_a_changed_manifest_is_read_again(corpus):
    path = write_lines(corpus / "rows.jsonl", ROWS[0])
    assert load_rows(path)["text"][:] == ["one"]
    write_lines(path, ROWS[0] | {"text": "other"})
    assert load_rows(path)["text"][:] == ["other"]


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_a_row_may_have_several_utterances(streaming, corpus):
    row = {"audio": ["clips/a.wav", "clips/b.flac"], "text": ["one", "two"]}
    rows = with_durations(load_rows(write_lines(corpus / "pairs.jsonl", row), streaming=streaming))
    found = next(iter(rows))
    assert [Path(part["path"]).name for part in found["audio"]] == ["a.wav", "b.flac"]
    assert found["id"] == "clips/a.wav+clips/b.flac"
    assert found["duration"] == 1.5


def test_columns_are_renamed_and_a_missing_one_is_named_with_those_found(corpus):
    path = write_lines(corpus / "rows.jsonl", {"clip": "clips/a.wav", "said": "one"})
    rows = load_rows(path, columns={"clip": "audio", "said": "text"})
    assert rows[0]["text"] == "one" and rows[0]["id"] == "clips/a.wav"
    with pytest.raises(ValueError, match="no column 'text'; found audio, said"):
        load_rows(path, columns={"clip": "audio"})
    with pytest.raises(ValueError, match="no column 'txt' to rename; found clip, said"):
        load_rows(path, columns={"txt": "text"})
    both = write_lines(corpus / "both.jsonl", {"audio": "clips/a.wav", "text": "one", "sentence": "two"})
    with pytest.raises(ValueError, match="'sentence' cannot become 'text', which is there already"):
        load_rows(both, columns={"sentence": "text"})
    assert load_rows(both, columns={"sentence": "text", "text": "raw"})[0]["text"] == "two"


def test_rows_that_share_a_path_or_have_none_get_ids_of_their_own(corpus):
    rows = load_rows(write_lines(corpus / "rows.jsonl", ROWS[0], ROWS[1], ROWS[0]))
    assert rows["id"][:] == ["clips/a.wav#0", "clips/b.flac", "clips/a.wav#2"]
    embedded = Dataset.from_dict({"audio": [sound(), sound()], "text": ["one", "two"]})
    assert load_rows(embedded)["id"][:] == ["00000000", "00000001"]
    null = Dataset.from_dict({"audio": [sound(), sound()], "text": ["one", "two"], "id": [None, "b"]})
    assert load_rows(null)["id"][:] == ["00000000", "b"]
    assert "None" not in [row["id"] for row in load_rows(null.to_iterable_dataset())]
    kept = Dataset.from_dict({"audio": [sound()], "text": ["one"], "id": [7]})
    assert load_rows(kept)["id"][:] == ["7"]
    assert next(iter(load_rows(kept.to_iterable_dataset())))["id"] == "7"


def test_streamed_rows_without_a_path_keep_their_ids_in_any_order():
    rows = Dataset.from_dict({"audio": [sound(0.1), sound(0.2), sound(0.3)], "text": list("abc")})
    ids = {row["text"]: row["id"] for row in load_rows(rows.to_iterable_dataset())}
    shuffled = {row["text"]: row["id"] for row in load_rows(rows.select([2, 0, 1]).to_iterable_dataset())}
    assert shuffled == ids and len(set(ids.values())) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_manifest_streams_through_filters_into_batches(workers, corpus):
    lines = [{"audio": f"clips/{'a.wav' if i % 2 else 'b.flac'}", "text": f"row {i}"} for i in range(20)]
    path = write_lines(corpus / "rows.jsonl", *lines, {"audio": "clips/nowhere.wav", "text": "gone"})
    rows = with_durations(load_rows(path, streaming=True), BadRows(corpus / "bad", 0.5, 1))
    rows, report = filter_rows(rows, FilterSettings(max_seconds=0.8))
    batches = StreamBatches(rows, lambda row: row["duration"], budget=2.0, buffer_rows=8, seed=0, rank=0, world_size=1)
    found = list(itertools.islice(DataLoader(batches, batch_size=None, num_workers=workers), 4))
    texts = sorted(row["text"] for batch in found for row in batch if row["draw"][0] == 0)
    assert texts == sorted(f"row {i}" for i in range(1, 20, 2))
    assert max(len(batch) for batch in found) == 4
    assert [row["id"] for row in BadRows(corpus / "bad", 0.5, 1).read()] == ["clips/nowhere.wav"]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"audio": "a.wav", "text": "one"}\n{"audio": "a.wav" "text"}\n', r"rows\.jsonl, line 2: not JSON"),
        ('["a.wav", "one"]\n', "line 1: a list, not an object"),
        ('{"audio": "a.wav", "text": "x"}\n{"audio": ["a.wav"], "text": "x"}\n', "'audio' are not of one kind"),
        ("", "holds no rows"),
        ('{"audio": 3, "text": "x"}\n', "'audio' holds"),
        ('{"audio": "a.wav", "text": 3}\n', "'text' holds .*int64.*no transcript"),
        ('{"audio": "a.wav", "text": "x", "duration": NaN}\n', "line 1: duration nan is not seconds"),
        ('{"id": "1"}\n{"id": "\\ud800", "audio": "a.wav"}\n', r"jsonl, line 2: 'id' holds half of a surrogate pair"),
    ],
)
def test_a_broken_manifest_is_named_with_the_line(content, message, corpus):
    path = corpus / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_rows(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ('audio,text\na.wav,one\na.wav,"two\na.wav,three\n', "line 3: unexpected end of data. A cell that begins"),
        ('audio,text\na.wav,"two" words\n', "line 2: .* expected after .* A cell that begins"),
        ("audio,audio,text\na.wav,b.wav,one\n", "more than one column is named audio"),
        ("audio,text\na.wav,one\na.wav,caf\u00e9\n", "line 3: not UTF-8"),
    ],
)
def test_a_broken_table_is_named_with_the_line(content, message, corpus):
    path = corpus / "rows.csv"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=rf"rows\.csv.*{message}"):
        load_rows(path)


def test_a_cut_archive_is_named(corpus):
    path = corpus / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"audio": "a.wav", "text": "one"}')[:-9])
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: cannot be unpacked"):
        load_rows(path)


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_a_row_with_an_empty_path_is_a_row_without_audio(streaming, corpus):
    path = corpus / "rows.csv"
    path.write_text("audio,text\n,one\n")
    (row,) = load_rows(path, streaming=streaming)
    assert (row["audio"], row["text"]) == (None, "one")


def test_sources_that_are_none_are_named(corpus):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl: no such file"):
        load_rows(corpus / "nowhere.jsonl")
    with pytest.raises(ValueError, match="a manifest is one split"):
        load_rows(manifest(corpus), split="test")
    with pytest.raises(ValueError, match="no split 'test'"):
        load_rows(parquet(corpus), split="test")
    with pytest.raises(ValueError, match="has splits .train."):
        load_rows(datasets.DatasetDict(train=loaded(corpus)))
    with pytest.raises(ValueError, match="'audio' holds .*which is no audio"):
        load_rows(Dataset.from_dict({"audio": [[0.1, 0.2]], "text": ["samples"]}))


def test_splits_of_a_parquet_folder_are_its_folders(corpus):
    rows = load_rows(manifest(corpus))
    for split, index in [("train", 0), ("test", 1)]:
        (corpus / "both" / split).mkdir(parents=True)
        rows.select([index]).to_parquet(corpus / "both" / split / "0.parquet")
    assert load_rows(corpus / "both", split="test")["text"][:] == ["two"]
    assert load_rows(corpus / "both", split="train[:1]")["text"][:] == ["one"]


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_paths_in_parquet_start_at_its_folder(streaming, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    (folder / "clips").mkdir(parents=True)
    Dataset.from_list([{"audio": f"clips/{name}.wav", "text": "a"} for name in "ab"]).to_parquet(folder / "a.parquet")
    for place in (folder / "clips/a.wav", tmp_path / "clips/b.wav"):
        place.parent.mkdir(exist_ok=True)
        soundfile.write(place, np.zeros(1600), 16000)
    monkeypatch.chdir(tmp_path)  # where the second file is
    for source in (folder / "a.parquet", folder):
        rows = list(load_rows(source, streaming=streaming))
        assert [row["audio"]["path"] for row in rows] == [str(folder / "clips/a.wav"), "clips/b.wav"]
    pairs = Dataset.from_list([{"audio": ["clips/a.wav", "clips/a.wav"], "text": ["a", "b"]}])
    pairs.to_parquet(tmp_path / "data/a.parquet")
    (row,) = load_rows(folder / "a.parquet")
    assert [audio["path"] for audio in row["audio"]] == [str(folder / "clips/a.wav")] * 2


def test_a_hub_dataset_is_asked_for_by_id_name_and_split(corpus, monkeypatch):
    asked = []

    def answer(*arguments, **options):
        asked.append((arguments, options))
        return loaded(corpus)

    monkeypatch.setattr("trainers.data.loading.load_dataset", answer)
    assert load_rows("owner/speech", split="test", name="de", columns={"text": "text"})["text"][:] == ["one", "two"]
    assert asked == [(("owner/speech", "de"), {"split": "test", "streaming": False, "revision": None})]


def test_streamed_audio_inside_a_repository_comes_with_its_bytes():
    with fsspec.open("memory://repository/a.wav", "wb") as file:
        file.write(sound())
    stream = Dataset.from_dict({"audio": ["memory://repository/a.wav"], "text": ["one"]}).to_iterable_dataset()
    row = next(iter(load_rows(stream)))
    assert row["audio"] == {"bytes": sound(), "path": "memory://repository/a.wav"}


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_durations_are_those_of_the_samples_from_paths_and_from_bytes(kind, corpus):
    (corpus / "clips" / "c").write_bytes(sound(2.0, kind))
    rows = load_rows(Dataset.from_dict({"audio": [str(corpus / "clips" / "c")], "text": ["x"]}))
    embedded = load_rows(Dataset.from_dict({"audio": [sound(2.0, kind)], "text": ["x"]}))
    for found in (with_durations(rows), with_durations(embedded)):
        assert found["duration"][0] == pytest.approx(2.0, abs=0.2 if kind == "MP3" else 1e-6)  # MP3 pads
        assert found.column_names == ["audio", "text", "id", "duration"]


def faulty(corpus: Path) -> Dataset:
    (corpus / "clips" / "text.wav").write_text("no sound at all, only words")
    names = ["a.wav", "text.wav", "nowhere.wav", "b.flac"]
    return load_rows(write_lines(corpus / "rows.jsonl", *({"audio": f"clips/{n}", "text": n} for n in names)))


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_rows_whose_audio_cannot_be_read_are_set_aside_counted_and_listed(streaming, corpus, caplog):
    rows = faulty(corpus)
    bad_rows = BadRows(corpus / "bad", max_share=0.9, minimum=1)
    with caplog.at_level(logging.WARNING):
        rows = list(with_durations(rows.to_iterable_dataset() if streaming else rows, bad_rows))
    assert [(row["text"], row["duration"]) for row in rows] == [("a.wav", 0.5), ("b.flac", 1.0)]
    assert "finding" not in rows[0]
    listed = bad_rows.read()
    assert [row["id"] for row in listed] == ["clips/text.wav", "clips/nowhere.wav"]
    assert "is a text file" in listed[0]["finding"] and "no such file" in listed[1]["finding"]
    assert "left out" in caplog.text and (streaming or "2 of 4 rows" in caplog.text)


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_too_many_unreadable_rows_stop_the_run(streaming, corpus):
    rows = faulty(corpus)
    with pytest.raises(RuntimeError, match=r"\d of \d rows .*cannot be used"):
        list(with_durations(rows.to_iterable_dataset() if streaming else rows, BadRows(None, 0.2, minimum=2)))


def test_durations_that_are_given_are_kept(corpus):
    rows = ({"audio": "clips/a.wav", "text": "x", "duration": 9.0}, {"audio": "clips/b.flac", "text": "x"})
    found = with_durations(load_rows(write_lines(corpus / "rows.jsonl", *rows)))
    assert found["duration"][:] == [9.0, 1.0]


def test_several_processes_read_the_same_durations(corpus):
    rows = load_rows(manifest(corpus))
    assert with_durations(rows, num_proc=2)["duration"][:] == with_durations(rows)["duration"][:] == [0.5, 1.0]


def test_text_only_rows_last_no_time():
    rows = Dataset.from_dict({"audio": [None], "text": ["x"], "messages": [[{"role": "user", "content": "hello"}]]})
    rows = with_durations(load_rows(rows.cast_column("audio", Audio(decode=False))))
    assert rows["duration"][:] == [0.0]


def test_a_fingerprint_tells_content_and_order_and_nothing_else(corpus):
    def rows(texts=("one", "two", "three"), **columns):
        return Dataset.from_dict({"audio": ["a", "b", "c"], "text": list(texts), "id": ["1", "2", "3"]} | columns)

    fingerprint = dataset_fingerprint(rows())
    assert dataset_fingerprint(rows()) == fingerprint
    assert dataset_fingerprint(rows().select([0, 1, 2])) == fingerprint
    assert dataset_fingerprint(rows(audio=["elsewhere/a", "b", "c"])) == fingerprint
    others = [rows(("one", "two", "four")), rows().select([1, 0, 2]), rows().select([0, 1]), rows(duration=[1, 2, 3])]
    found = {fingerprint} | {dataset_fingerprint(other) for other in others}
    assert len(found) == 5
    stream = rows().to_iterable_dataset()
    assert dataset_fingerprint(stream) == dataset_fingerprint(stream) != dataset_fingerprint(stream.skip(1))


def test_a_streamed_row_of_several_utterances_keeps_its_form(corpus):
    paths = [[str(corpus / "clips" / "a.wav")] * 2]
    rows = Dataset.from_dict({"audio": paths, "text": [["x", "y"]]}).cast_column("audio", List(Audio()))
    row = next(iter(load_rows(rows.to_iterable_dataset())))
    assert row["audio"] == [{"bytes": None, "path": paths[0][0]}] * 2


def test_a_name_that_is_nowhere_says_that_there_is_no_such_folder():
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder here, and the Hub could not be"):
        load_rows("nowhere")
