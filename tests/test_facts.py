"""The facts file: what is joined, carried on and refused, and entries read from results of other forms."""

import json

import pytest

from hub_cards.facts import FACTS_FILE, evaluation_entries, merge_facts, read_facts, update_facts, without_places


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
    (entry,) = evaluation_entries(json.loads(json.dumps(results)))
    assert entry["dataset"] == {"name": "a set"}
    assert entry["systems"] == {"speech": {"value": 4.5}, "cascade": {"value": 5, "low": 4, "high": 6}}


def test_other_results_are_refused():
    with pytest.raises(ValueError, match="no list of entries with systems"):
        evaluation_entries({"wer": 4.5})


def test_places_of_this_machine_are_left_out():
    facts = {"a": "/home/somebody/model", "b": ["/x/y.json", "owner/name", "a /b c"], "c": 1, "d": "/a\nline"}
    assert without_places(facts) == {"a": "model", "b": ["y.json", "owner/name", "a /b c"], "c": 1, "d": "/a\nline"}
