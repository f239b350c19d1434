"""Data sets for the Hub: recordings inside, counts that are those of the rows, overlap with evaluation rows."""

import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Audio, Dataset, load_dataset
from factories_processing import RATE
from factories_targets import Echo, config
from factories_training import TEXTS, tone, tone_rows
from huggingface_hub import DatasetCard

from hub_cards.contamination import audio_digest, find_overlap, plain_sentence
from hub_cards.dataset_card import export_dataset, render_dataset_card, write_overlap
from hub_cards.facts import read_facts
from speechllm_cli.main import main
from trainers.targets.generate import generate_targets


@pytest.fixture
def recordings(tmp_path):
    """A folder with a manifest of three recordings."""
    folder = tmp_path / "speech"
    folder.mkdir()
    lines = []
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", tone(number, 0.5), RATE)
        lines.append({"audio": f"{number}.wav", "text": TEXTS[number], "language": ["en", "de"][number % 2]})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture
def targets(tmp_path, recordings):
    """Targets whose rows name recordings on this machine; one transcript is empty, so its question has no row."""
    rows = Dataset.from_list(
        [
            {"audio": str(recordings / f"{n}.wav"), "text": text, "language": "en", "duration": 0.5, "id": f"r{n}"}
            for n, text in enumerate(["hello", "world", " "])
        ]
    ).cast_column("audio", Audio(decode=False))
    settings = config(tmp_path / "targets", target_set="BI", rows_per_shard=2, source_license="cc0-1.0")
    generate_targets(settings, rows, Echo())
    return tmp_path / "targets"


def test_recordings_are_put_into_the_files_and_no_path_of_this_machine_stays(targets, tmp_path, capsys):
    assert main(["check", str(targets)]) == 1
    output = capsys.readouterr().out
    assert re.search(r"FAIL  rows +2 of 2 recordings are not in the files\n +-> put .*speechllm export", output)
    assert main(["export", str(targets), str(tmp_path / "out")]) == 0
    assert main(["check", str(tmp_path / "out")]) == 0
    assert "Ready to be published." in capsys.readouterr().out
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    audio = rows.cast_column("audio", Audio(decode=False))["audio"]
    names = ["0.wav", "1.wav"]
    assert [a["bytes"] for a in audio] == [(tmp_path / "speech" / name).read_bytes() for name in names]
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), path


def test_the_card_counts_rows_drops_languages_and_names_the_llm(targets, tmp_path):
    out = export_dataset(targets, tmp_path / "out", name="Answers")
    card = (out / "README.md").read_text(encoding="utf-8")
    data = DatasetCard(card).data
    assert (data.pretty_name, data.license, data.language) == ("Answers", "cc0-1.0", ["en"])
    assert data.size_categories == ["n<1K"] and data.task_categories == ["audio-text-to-text"]
    assert "| rows | 2 |" in card and "en 1 s" in card
    assert "Of 3 questions about 3 utterances 2 became rows. Dropped: 1 for no transcript." in card
    assert "By some/llm, revision unknown" in card and '"target_set": "BI"' in card
    assert card == render_dataset_card(read_facts(out))
    rows = pq.read_table(out / "data")
    asked = rows["messages"][0].as_py()[0]["content"][-1]["text"].strip()
    assert asked in card  # the prompts themselves
    assert read_facts(out)["sample"][0]["text"] == "hello"


def test_a_manifest_with_its_recordings_becomes_a_data_set(recordings, tmp_path, capsys):
    assert main(["export", str(recordings), str(tmp_path / "out"), "--license", "cc-by-4.0"]) == 0
    assert main(["check", str(tmp_path / "out")]) == 0
    facts = read_facts(tmp_path / "out")
    assert facts["data"][0]["rows"] == 3 and set(facts["data"][0]["languages"]) == {"de", "en"}
    assert "automatic-speech-recognition" in (tmp_path / "out" / "README.md").read_text()


def test_what_is_unfinished_or_gone_is_refused(targets, recordings, tmp_path):
    (recordings / "1.wav").unlink()
    with pytest.raises(FileNotFoundError, match="1.wav.*Run where the recordings lie"):
        export_dataset(targets, tmp_path / "out")
    manifest = json.loads((targets / "manifest.json").read_text())
    manifest["report"]["complete"] = False
    (targets / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is not finished. Give the same speechllm targets command again"):
        export_dataset(targets, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_targets_carry_a_card_as_soon_as_they_are_finished(recordings, tmp_path):
    options = ["--target_set", "T", "--dataset", str(recordings), "--output_dir", str(tmp_path / "made")]
    assert main(["targets", *options]) == 0
    card = (tmp_path / "made" / "README.md").read_text(encoding="utf-8")
    assert card == render_dataset_card(read_facts(tmp_path / "made"))
    assert "rows by target set | T 3" in card and str(tmp_path) not in card
    assert len(load_dataset(str(tmp_path / "made"), split="train", cache_dir=str(tmp_path / "cache"))) == 3


@pytest.mark.parametrize("other", ["hello, World!", "HELLO  world", "ｈｅｌｌｏ world"])
def test_sentences_are_compared_without_case_punctuation_and_forms(other):
    assert plain_sentence(other) == plain_sentence("Hello world.") == "hello world"
    assert plain_sentence("你好，世界") == "你好 世界"


def test_recordings_are_compared_by_their_samples():
    samples = tone(1, 0.3)
    padded = np.concatenate([np.zeros(100), samples, np.zeros(50)])
    assert audio_digest(samples) == audio_digest(padded) != audio_digest(tone(2, 0.3))


def test_overlap_counts_evaluation_rows_that_training_has():
    training, rows = tone_rows(6), tone_rows(8).select([4, 5, 6, 7])
    found = find_overlap(training, rows, "a", "b", audio=True)
    assert (found["training_rows"], found["evaluation_rows"]) == (6, 4)
    assert (found["sentences"], found["audio"]) == (2, 2)
    assert found["examples"] == [TEXTS[4], TEXTS[5]]
    with pytest.raises(ValueError, match="b has no column text"):
        find_overlap(training, rows.remove_columns("text"), "a", "b")


def test_overlap_is_written_on_both_cards(recordings, tmp_path, capsys):
    assert main(["export", str(recordings), str(tmp_path / "out"), "--license", "cc0-1.0"]) == 0
    for _ in range(2):  # the second time replaces the first
        arguments = ["--training", str(tmp_path / "out"), "--evaluation", str(recordings), "--audio"]
        assert main(["overlap", *arguments, "--card", str(tmp_path / "out")]) == 0
    assert "of 3 rows 3 sentences are in out, train (3 rows); recordings: 3" in capsys.readouterr().out
    assert len(read_facts(tmp_path / "out")["contamination"]) == 1
    assert "| out | speech | 3 and 3 | 3 (100.0 %) | 3 (100.0 %) |" in (tmp_path / "out" / "README.md").read_text()
    assert main(["check", str(tmp_path / "out")]) == 0


def test_overlap_compares_the_test_split_of_a_layout_and_names_the_splits(tmp_path, capsys):
    (tmp_path / "cv" / "clips").mkdir(parents=True)
    for number, split in enumerate(("train", "test", "test")):
        soundfile.write(tmp_path / "cv" / "clips" / f"{number}.mp3", tone(number, 0.5), RATE)
        path = tmp_path / "cv" / f"{split}.tsv"
        with path.open("a", encoding="utf-8") as file:
            file.write("" if file.tell() else "path\tsentence\n")
            file.write(f"{number}.mp3\t{TEXTS[number]}\n")
    assert main(["overlap", "--training", str(tmp_path / "cv"), "--evaluation", str(tmp_path / "cv")]) == 0
    assert "cv, test: of 2 rows 0 sentences are in cv, train (1 rows)" in capsys.readouterr().out


CARD = ["--summary", "Mine.", "--repository", "me/set", "--languages", "fr", "--license", "other", "--name", "Set"]


def test_a_data_set_s_card_takes_the_options_that_fit_it(targets, tmp_path, capsys):
    assert main(["export", str(targets), str(tmp_path / "out"), *CARD]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "# Set\n\nMine." in card and 'load_dataset("me/set"' in card and "--dataset me/set" in card
    assert DatasetCard(card).data.language == ["fr"]
    assert main(["check", str(tmp_path / "out")]) == 1
    assert "licence other, without its name and link" in capsys.readouterr().out
    link = ["--license_name", "Own terms", "--license_link", "https://example.org/terms"]
    assert main(["export", str(targets), str(tmp_path / "linked"), *CARD, *link]) == 0
    assert main(["check", str(tmp_path / "linked")]) == 0
    assert "This data set: Own terms." in (tmp_path / "linked" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options",
    [
        ["--merge"],
        ["--connector_only"],
        ["--dtype", "float16"],
        ["--base", "x"],
        ["--max_shard_size", "1GB"],
        ["--example", "x.wav", "what"],
        ["--results", "results.json"],
    ],
)
def test_what_only_a_model_has_is_refused_by_name_for_a_data_set(targets, tmp_path, capsys, options):
    assert main(["export", str(targets), str(tmp_path / "out"), *options]) == 2
    assert f"is a data set, for which {options[0]} means nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_overlap_loses_no_words_and_makes_no_folder(recordings, tmp_path, capsys):
    arguments = ["overlap", "--training", str(recordings), "--evaluation", str(recordings), "--card"]
    assert main([*arguments, str(tmp_path / "nowhere")]) == 2
    assert "nowhere has no facts.json" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()
    folder = export_dataset(recordings, tmp_path / "set", license="mit", rows=tone_rows(2))
    text = (folder / "README.md").read_text(encoding="utf-8") + "\nWords of mine.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    assert main([*arguments, str(folder)]) == 2
    assert "README.md was edited by hand" in capsys.readouterr().err
    assert (folder / "README.md").read_text(encoding="utf-8") == text


def test_a_card_that_others_made_stays_and_takes_the_overlap(recordings, tmp_path):
    folder = export_dataset(recordings, tmp_path / "mine", license="mit", rows=tone_rows(2))
    (folder / "facts.json").unlink()
    (folder / "data" / "train-00000-of-00001.parquet").rename(folder / "data" / "test-00000-of-00001.parquet")
    own = "---\nlicense: mit\nlanguage: en\n---\n\n# A benchmark\n\nWords of its own.\n"
    (folder / "README.md").write_text(own, encoding="utf-8")
    with pytest.raises(ValueError, match="stays as it is, so license would be lost. Write them into that card"):
        export_dataset(folder, tmp_path / "out", license="mit")
    assert main(["export", str(folder), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == own
    for rows in (1, 2):
        entry = find_overlap(tone_rows(rows), tone_rows(2), "a", "b")
        write_overlap(tmp_path / "out", [entry])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith(own) and card.count("## Overlap") == 1 and "| a | b | 2 and 2 | 2 (100.0 %)" in card
    assert main(["check", str(tmp_path / "out")]) == 0


def test_splits_are_those_of_the_files(recordings, tmp_path):
    folder = export_dataset(recordings, tmp_path / "mine", license="mit", rows=tone_rows(2))
    shutil.copyfile(folder / "data" / "train-00000-of-00001.parquet", folder / "data" / "test-00000-of-00001.parquet")
    files = DatasetCard.load(export_dataset(folder, tmp_path / "out") / "README.md").data.configs[0]["data_files"]
    assert [item["split"] for item in files] == ["test", "train"]
