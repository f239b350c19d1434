"""The facts file: what is joined, carried on and refused, and entries read from results of other forms."""

import json

import pytest

from hub_cards.evaluations import results_facts
from hub_cards.facts import FACTS_FILE, merge_facts, read_facts, update_facts, without_places


def test_what_a_step_adds_is_joined_with_what_was_there(tmp_path):
    update_facts(tmp_path, {"model": {"name": "a", "license": "mit"}, "limits": ["one"]})
    facts = update_facts(tmp_path, {"model": {"name": "b", "dtype": None}, "limits": ["two"]})
    assert facts["model"] == {"name": "b", "license": "mit", "dtype": None}
    assert facts["limits"] == ["two"]
    assert read_facts(tmp_path) == facts and facts["schema"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [FACTS_FILE]


def test_none_replaces_nothing():
    assert merge_facts({"a": 1, "b": {"c": 2}}, {"a": None, "b": {"c": None, "d": None}}) == {
        "a": 1,
        "b": {"c": 2, "d": None},
    }


def test_a_folder_without_facts_has_none(tmp_path):
    assert read_facts(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON.*export anew"),
        ('{"schema": 2}', "schema 2, this version reads 1. Update speechllm"),
        ('{"modle": {}}', "no section modle. Sections: schema,.* model"),
        ('{"training": {}}', "section training must be a list, not dict"),
        ('{"evaluation": [{"metric": "wer"}]}', "needs dataset, metric and systems, not \\['metric'\\]"),
        ("[]", "holds a list, not sections"),
    ],
)
def test_what_is_no_facts_file_is_refused_by_name(tmp_path, content, message):
    (tmp_path / FACTS_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_facts(tmp_path)


ENTRY = {"dataset": "a set", "metric": "wer", "systems": {"speech": 4.5, "cascade": {"value": 5, "interval": [4, 6]}}}


@pytest.mark.parametrize("results", [[ENTRY], {"evaluation": [ENTRY]}, {"results": [ENTRY], "version": 1}])
def test_results_of_an_evaluation_are_read_in_any_of_their_forms(results):
    (entry,) = results_facts(json.loads(json.dumps(results)))["evaluation"]
    assert entry["dataset"] == {"name": "a set"}
    assert entry["systems"] == {"speech": {"value": 4.5}, "cascade": {"value": 5, "low": 4, "high": 6}}


def estimate(value):
    return {"value": value, "low": value - 1, "high": value + 1, "rows": 40}


RUN = {
    "settings": {"dataset": ["google/fleurs"], "task": "transcribe", "bootstrap_samples": 1000},
    "models": {"cascade": ["openai/whisper-base", "abc"]},
    "decoding": "greedy, at most 64 new tokens",
    "headline": "wer",
    "metrics": {
        "wer": {"title": "word error rate", "unit": "%", "higher_is_better": False, "note": ""},
        "length": {"title": "words per answer", "unit": "", "higher_is_better": None, "note": ""},
    },
    "overall": {
        "speech": {"wer": estimate(9.0), "length": estimate(7.0)},
        "text_bound": {"wer": estimate(1.0)},
        "text_before": {"wer": estimate(2.0)},
    },
    "groups": {"language": {"de": {"speech": {"wer": estimate(8.0)}}, "en": {"speech": {"wer": estimate(10.0)}}}},
    "means": {"language": {"speech": estimate(9.5)}},
}


def test_a_run_of_evaluate_gives_scores_overall_and_by_language_and_text_ability():
    found = results_facts(RUN)
    lines = [(e["language"], e["metric"], e["systems"]["speech"]["value"], e["headline"]) for e in found["evaluation"]]
    name = "word error rate"
    assert lines == [("all", name, 9.0, True), ("de", name, 8.0, False), ("en", name, 10.0, False)] + [
        ("mean", name, 9.5, False)
    ]
    first = found["evaluation"][0]
    assert first["dataset"] == {"name": "google/fleurs", "id": "google/fleurs"} and first["n"] == 40
    assert first["systems"]["text_bound"] == {"value": 1.0, "low": 0.0, "high": 2.0}
    assert "openai/whisper-base" in first["note"] and "1000 samples" in first["interval"]
    (ability,) = found["text_ability"]
    assert (ability["before"]["value"], ability["after"]["value"]) == (2.0, 1.0)


def test_other_results_are_refused():
    with pytest.raises(ValueError, match="no list of entries with systems"):
        results_facts({"wer": 4.5})


def test_places_of_this_machine_are_left_out():
    facts = {"a": "/home/somebody/model", "b": ["/x/y.json", "owner/name", "a /b c"], "c": 1, "d": "/a\nline"}
    assert without_places(facts) == {"a": "model", "b": ["y.json", "owner/name", "a /b c"], "c": 1, "d": "/a\nline"}
