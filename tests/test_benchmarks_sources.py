"""What sources of the benchmark builders say: languages, splits and labels are taken at their word, or refused."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from factories_benchmarks import Tones, squad, write_recordings

from speechllm.evaluation.benchmarks import bloomzmms, labelled
from speechllm.evaluation.benchmarks.audio_mlqa import AudioMLQASettings, plan_audio_mlqa
from speechllm.evaluation.benchmarks.mtbi import MTBISettings, plan_mtbi
from speechllm.evaluation.benchmarks.recordings import Utterance

INTENTS = labelled.find_task("intents", "{text}\nWhich intent?", "intent")


def write_table(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def classify(source, languages=("en",), task=INTENTS, split=None):
    draw = bloomzmms.Draw(items=None, voices_per_gender=1)
    return bloomzmms.plan_classification([task], draw, Tones(), languages, source and str(source), split)


def spoken(plan) -> set[tuple[str, str]]:
    return {(item.language, slot.text) for item in plan.items for slot in item.slots}


def dropped(plan) -> set[tuple[str, str]]:
    return {(entry.id, entry.reason) for entry in plan.dropped}


# --- Locale codes ---


def asked(tmp_path, text, language) -> list[dict]:
    rows = [{"text": text, "language": language} for _ in range(30)]
    source = str(write_recordings(tmp_path / language, rows))
    return [item.values for plan in plan_mtbi(MTBISettings(source, split="train")) for item in plan.items]


@pytest.mark.parametrize(
    ("text", "language"),
    [("今日は雨です。", "ja_JP"), ("今天下雨。", "zh_CN"), ("วันนี้ฝนตก", "th_TH"), ("今天下雨。", "ZH-CN")],
)
def test_locale_codes_of_writings_without_word_marks_get_no_questions_about_words(tmp_path, text, language):
    assert not {"first_word", "last_word", "count_words"} & {
        values["task"] for values in asked(tmp_path, text, language)
    }


def test_a_locale_code_is_asked_in_its_language_about_it_and_for_others(tmp_path):
    rows = asked(tmp_path, "Heute regnet es.", "de_DE")
    assert {values["prompt_id"].split("/")[1] for values in rows} == {"de"}
    assert ["Deutsch"] in [values["references"] for values in rows if values["task"] == "language"]
    assert "de" not in {values["target_language"] for values in rows if values["task"] == "translate"}
    prose = [values for values in rows if values["task"] == "summarise"]
    assert prose and all(json.loads(values["form"])["language"] == "de_DE" for values in prose)


def test_a_locale_code_can_be_translated_to_and_has_its_instruction(tmp_path):
    rows = [{"text": "It rains.", "language": "en", "translation": "Es regnet."}]
    source = str(write_recordings(tmp_path / "r", rows))
    (item,) = bloomzmms.plan_recorded_translation(source, bloomzmms.Draw(), "de_DE", split="train").items
    assert item.values["messages"][0]["content"][0]["text"] == "Translate to German: "
    (tmp_path / "q.json").write_text(json.dumps(squad([("q1", "Wer?", "Ann kam.", ["Ann"])])))
    settings = AudioMLQASettings(str(tmp_path / "q.json"), ("de_DE",), voices_per_gender=1)
    (item,) = plan_audio_mlqa(settings, Tones(languages=("de_DE",))).items
    assert item.values["instruction"].startswith("Beantworte")


# --- Languages of labelled texts ---


def test_a_column_language_says_which_texts_are_read_in_which_language(tmp_path):
    rows = [
        {"text": "Play.", "intent": "play", "language": "en"},
        {"text": "Halt.", "intent": "stop", "language": "de_DE"},
    ]
    source = write_table(tmp_path / "intents.jsonl", [*rows, {"text": "?", "intent": "play", "language": None}])
    for place in (source, tmp_path):
        plan = classify(place, ["en", "de"])
        assert spoken(plan) == {("en", "Play."), ("de", "Halt.")}
        assert dropped(plan) == {("intents-en-2", "no_language"), ("intents-de-2", "no_language")}
        assert all(item.values["labels"] == ["play", "stop"] for item in plan.items)
    assert {item.id for item in classify(source, ["en", "de"]).items} == {"intents-en-0", "intents-de-1"}
    with pytest.raises(ValueError, match="no rows in fr; the column 'language' has de_DE, en"):
        labelled.read_labelled(INTENTS, "fr", source)


def test_texts_of_one_unsaid_language_are_not_those_of_several(tmp_path):
    source = write_table(tmp_path / "intents.jsonl", [{"text": "Play.", "intent": "play"}])
    Dataset.from_list([{"text": "Play.", "intent": "play"}]).to_parquet(tmp_path / "intents.parquet")
    assert spoken(classify(source, ["de"])) == {("de", "Play.")}
    for place in (source, tmp_path, tmp_path / "intents.parquet"):
        with pytest.raises(ValueError, match="nothing says in which language.*Add a column 'language'"):
            classify(place, ["en", "de"])
    write_table(tmp_path / "intents.en.jsonl", [{"text": "Play on.", "intent": "play"}])
    with pytest.raises(ValueError, match="nothing says in which language"):
        classify(tmp_path, ["en", "de"])
    write_table(tmp_path / "intents-de.jsonl", [{"text": "Spiel.", "intent": "play"}])
    assert spoken(classify(tmp_path, ["en", "de"])) == {("en", "Play on."), ("de", "Spiel.")}


def hub(monkeypatch, **columns):
    """Stands in for the Hub, and keeps what it was asked for."""
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        return Dataset.from_dict(columns)

    monkeypatch.setattr(labelled, "load_dataset", load)
    return asked


def test_glue_is_read_in_english_alone(monkeypatch):
    asked = hub(monkeypatch, sentence=["Fine."], label=[1])
    assert spoken(classify(None, ["en"], labelled.TASKS["sst2"])) == {("en", "Fine.")}
    with pytest.raises(ValueError, match="texts of sst2 are in en, not in de.*labelled_source"):
        classify(None, ["de"], labelled.TASKS["sst2"])
    assert asked == [("nyu-mll/glue", "sst2", "validation")]


def test_hub_sets_say_their_language_by_configuration(monkeypatch):
    asked = hub(monkeypatch, premise=["P."], hypothesis=["H."], label=[1])
    assert len(classify(None, ["en", "de"], labelled.TASKS["xnli"]).items) == 2
    assert [config for _, config, _ in asked] == ["en", "de"]
    hub(monkeypatch, text=["Play."], intent=["play"])
    with pytest.raises(ValueError, match="someone/intents: nothing says in which language"):
        classify("someone/intents", ["en", "de"])


# --- Splits ---


def test_a_split_is_taken_by_the_column_of_a_table_or_refused(tmp_path, monkeypatch):
    splits = ("train", "dev", "test")
    rows = [{"text": f"Play {split}.", "intent": split[0], "split": split} for split in splits]
    source = write_table(tmp_path / "intents.jsonl", rows)
    for word in ("dev", "devel", "validation"):
        assert spoken(classify(source, split=word)) == {("en", "Play dev.")}
    assert spoken(classify(tmp_path, split="test")) == {("en", "Play test.")}
    assert len(classify(source).items) == 3
    with pytest.raises(ValueError, match="no rows of the split 'holdout'; there is dev, test, train"):
        classify(source, split="holdout")
    plain = write_table(tmp_path / "plain.jsonl", [{"text": "Play.", "intent": "play"}])
    with pytest.raises(ValueError, match="labelled_split is for Hub datasets and for tables with a column 'split'"):
        classify(plain, split="test")
    asked = hub(monkeypatch, text=["Play."], intent=["play"])
    classify("someone/intents", split="dev")
    assert asked == [("someone/intents", None, "dev")]


# --- Labels, ids and cells ---


def test_a_label_of_minus_one_is_none_only_where_it_means_so(tmp_path):
    rows = [{"text": f"Play {label}.", "intent": label} for label in (-1, 0)]
    plan = classify(write_table(tmp_path / "own.jsonl", rows))
    assert {item.values["label"] for item in plan.items} == {"-1", "0"} and not plan.dropped
    features = Features({"text": Value("string"), "intent": ClassLabel(names=["play", "stop"])})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "own.parquet")
    plan = classify(tmp_path / "own.parquet")
    assert [item.values["label"] for item in plan.items] == ["play"] and dropped(plan) == {
        ("intents-en-0", "no_label")
    }
    (tmp_path / "sst2.csv").write_text("sentence,label\nFine.,1\nBad.,-1\n")
    plan = classify(tmp_path / "sst2.csv", task=labelled.TASKS["sst2"])
    assert [item.values["label"] for item in plan.items] == ["positive"] and dropped(plan) == {
        ("sst2-en-1", "no_label")
    }


def test_labels_are_stripped_and_those_that_scoring_confuses_are_refused(tmp_path):
    rows = [{"text": f"Play {n}.", "intent": label} for n, label in enumerate(("play", " play ", "stop\n", "  "))]
    plan = classify(write_table(tmp_path / "own.jsonl", rows))
    assert [item.values["label"] for item in plan.items].count("play") == 2
    assert plan.items[0].values["labels"] == ["play", "stop"] and dropped(plan) == {("intents-en-3", "no_label")}
    for labels in ((-1, 0, 1), ("Play", "play.")):
        rows = [{"text": f"Play {n}.", "intent": label} for n, label in enumerate(labels)]
        with pytest.raises(ValueError, match="the labels '.*', '.*' of intents differ in case or punctuation only"):
            classify(write_table(tmp_path / "own.jsonl", rows))


def test_an_id_that_stands_twice_is_left_out_and_counted(tmp_path):
    rows = [{"text": f"Play {n}.", "intent": "play", "id": key} for n, key in enumerate(("a", "a", None, None))]
    plan = classify(write_table(tmp_path / "own.jsonl", rows))
    assert {item.id for item in plan.items} == {"intents-en-a", "intents-en-2", "intents-en-3"}
    assert dropped(plan) == {("intents-en-a", "id_stands_twice")}
    assert ("en", "Play 0.") in spoken(plan)
    questions = [("q1", "Who?", "Ann came.", ["Ann"]), ("q1", "Who else?", "Bob came.", ["Bob"])]
    (tmp_path / "q.json").write_text(json.dumps(squad(questions)))
    plan = plan_audio_mlqa(AudioMLQASettings(str(tmp_path / "q.json"), ("en",), voices_per_gender=1), Tones())
    assert spoken(plan) == {("en", "Who?")} and dropped(plan) == {("en-q1", "id_stands_twice")}


def test_columns_that_are_not_text_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="the column 'text' holds int64, not text"):
        classify(write_table(tmp_path / "own.jsonl", [{"text": 7, "intent": "play"}]))
    with pytest.raises(ValueError, match="the column 'text' holds List, not text"):
        classify(write_table(tmp_path / "own.jsonl", [{"text": ["Play."], "intent": "play"}]))
    source = str(write_recordings(tmp_path / "r", [{"text": "Eins.", "language": "de", "translation": 1}]))
    with pytest.raises(ValueError, match="the column 'translation' holds int64, not text"):
        bloomzmms.plan_recorded_translation(source, bloomzmms.Draw(), "en", split="train")


def test_a_language_that_is_named_twice_is_spoken_once(tmp_path):
    for code in ("en", "de"):
        (tmp_path / f"{code}.txt").write_text("One.\n")
    draw = bloomzmms.Draw(voices_per_gender=1)
    plan = bloomzmms.plan_spoken_translation(str(tmp_path), draw, Tones(), ["de", "de"], ["en", "en"])
    assert [item.id for item in plan.items] == ["de-en-1"]


# --- Planning is linear ---


def test_translations_are_planned_without_comparing_rows_or_reading_the_templates_again(tmp_path, monkeypatch):
    rows = [{"text": f"Satz {n}.", "language": "de", "translation": f"Line {n}." if n % 2 else ""} for n in range(20)]
    source = str(write_recordings(tmp_path / "r", rows))
    reads, load_tasks = [], bloomzmms.load_tasks
    monkeypatch.setattr(bloomzmms, "load_tasks", lambda folder: reads.append(folder) or load_tasks(folder))
    monkeypatch.setattr(Utterance, "__eq__", lambda *members: pytest.fail("utterances are compared"))
    plan = bloomzmms.plan_recorded_translation(source, bloomzmms.Draw(), "en", split="train")
    assert len(plan.items) == 10 and len(plan.dropped) == 10 and len(reads) <= 1
