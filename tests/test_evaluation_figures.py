"""What a run of `speechllm evaluate` has figures for, why others are missing, and rows of several sources."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from factories_processing import encoded
from factories_training import tone

from speechllm.evaluation.config import EvaluationConfig
from speechllm.evaluation.report import build_tables, in_terminal
from speechllm.evaluation.rows import Rows, load_evaluation_rows, make_items
from speechllm.evaluation.scoring import Answers, Scores, score


def config(**changes) -> EvaluationConfig:
    settings = {"dataset": ["x"], "model": "m", "output_dir": "o", "bootstrap_samples": 20}
    return EvaluationConfig(**settings | changes)


def rows_of(settings: EvaluationConfig, rows: list[dict]) -> Rows:
    common = {"duration": 1.0, "audio": {"bytes": b"x", "path": None}}
    numbered = [{"id": f"row-{number}"} | common | row for number, row in enumerate(rows)]
    found = make_items(Dataset.from_list(numbered), settings)
    assert not found.bad
    return found


def scores_of(settings: EvaluationConfig, rows: list[dict], **answers: list) -> Scores:
    """Scores of systems' answers: texts, or lines as a run writes them."""
    lines = {
        system: Answers([{"finish_reason": "stop"} | (a if isinstance(a, dict) else {"answer": a}) for a in given])
        for system, given in answers.items()
    }
    return score(rows_of(settings, rows).items, lines, settings)


def shown(scores: Scores) -> str:
    text = in_terminal(build_tables(scores), scores.hints)
    assert max(map(len, text.splitlines())) <= 80
    return text


# Target languages


def test_from_one_language_into_several_is_scored_by_target_language():
    references = {"de": "guten Tag dir heute", "fr": "bonjour à toi aujourd'hui", "zh": "你好吗今天"}
    rows = [{"language": "en", "target_language": code, "reference": text} for code, text in references.items()]
    settings = config(task="translate")
    scores = scores_of(settings, rows, speech=list(references.values()))
    assert "target_language" in scores.groups and "language" not in scores.groups
    by_target = scores.groups["target_language"]
    assert {code: by_target[code]["speech"]["bleu"].value for code in references} == pytest.approx(
        dict.fromkeys(references, 100)
    )
    text = shown(scores)
    assert "BLEU by target language" in text
    assert "BLEU has no value over target languages of different tokenisers (13a: de, fr; zh: zh)" in " ".join(
        text.split()
    )
    scores = scores_of(settings, rows[:2], speech=list(references.values())[:2])
    assert scores.overall["speech"]["bleu"].value == pytest.approx(100) and not scores.hints


def test_target_languages_that_are_those_spoken_are_no_grouping_of_their_own():
    rows = [{"language": code, "text": "hello world"} for code in ("de", "en")]
    scores = scores_of(config(task="transcribe"), rows, speech=["hello world"] * 2)
    assert "language" in scores.groups and "target_language" not in scores.groups


# Recognisers


def test_a_cascade_s_error_rate_is_over_the_rows_with_a_transcript():
    rows = [{"reference": "one", "text": text} for text in ("one two", None, "three four")]
    heard = [{"answer": "one", "heard": text} for text in ("one two", "whatever", "three for")]
    settings = config(task="question")
    scores = scores_of(settings, rows, speech=["one"] * 3, cascade=heard)
    found = scores.overall["cascade"]["heard_wer"]
    assert (found.value, found.rows) == (25, 2)
    scores = scores_of(settings, [row | {"text": None} for row in rows], speech=["one"] * 3, cascade=heard)
    assert "heard_wer" not in scores.overall["cascade"]


# Hints


def test_instructions_without_anything_to_score_by_say_what_would():
    rows = [{"instruction": "Reply."}] * 2
    scores = scores_of(config(task="instruct"), rows, speech=["yes", "no"])
    text = shown(scores)
    assert text.startswith("No scores") and "--judge" in text and "a reference or a form" in " ".join(text.split())
    scores = scores_of(config(task="instruct"), [row | {"reference": "yes"} for row in rows], speech=["yes", "no"])
    assert scores.overall["speech"]["exact"].value == 50 and not scores.hints


LOOP = "no no no no no no"


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([{"answer": "one two", "finish_reason": "length"}] + ["one two"] * 3, ["25 % of the answers are cut at 200"]),
        ([{"answer": "one two", "finish_reason": "length"}] + ["one two"] * 4, []),
        (
            [{"answer": LOOP, "finish_reason": "length"}] * 2 + ["one two"] * 2,
            ["50 % of the answers repeat themselves"],
        ),
    ],
)
def test_answers_that_are_cut_or_repeat_themselves_are_hinted_at(answers, found):
    scores = scores_of(config(task="transcribe"), [{"text": "one two"}] * len(answers), speech=answers)
    assert [hint[: len(start)] for hint, start in zip(scores.hints, found, strict=True)] == found
    assert all(hint in " ".join(shown(scores).split()) for hint in scores.hints)


def test_a_text_bound_that_cannot_write_is_hinted_at():
    rows = [{"text": "one two"}] * 2
    scores = scores_of(config(task="transcribe"), rows, speech=["x"] * 2, text_bound=["one two", "x y z"])
    assert ["75 % word errors" in hint for hint in scores.hints] == [True]
    scores = scores_of(config(task="transcribe"), rows, speech=["x"] * 2, text_bound=["one two", "one x"])
    assert not scores.hints


# Several sources


def write_source(folder: Path, **columns) -> str:
    """A folder with two recordings and a manifest that has no ids."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(2):
        (folder / f"{number}.wav").write_bytes(encoded(tone(number, 0.4)))
        row = {"audio": f"{number}.wav", "text": f"{folder.name} {number}"}
        lines.append(json.dumps(row | {name: values[number] for name, values in columns.items()}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.mark.parametrize(
    ("folders", "ids"),
    [
        (["a", "b"], ["a/0.wav", "a/1.wav", "b/0.wav", "b/1.wav"]),
        (["a/test", "b/test"], ["1/0.wav", "1/1.wav", "2/0.wav", "2/1.wav"]),
        (["a"], ["0.wav", "1.wav"]),
    ],
)
def test_files_of_the_same_names_in_several_sources_have_ids_of_their_own(tmp_path, folders, ids):
    settings = config(task="transcribe", dataset=[write_source(tmp_path / folder) for folder in folders])
    rows = load_evaluation_rows(settings, None)
    assert [item.id for item in rows.items] == ids and not rows.bad
    assert len({item.recording for item in rows.items}) == len(ids)


def test_ids_that_do_not_meet_stay_as_they_are(tmp_path):
    sources = [write_source(tmp_path / name, id=[f"{name}-0", f"{name}-1"]) for name in ("a", "b")]
    rows = load_evaluation_rows(config(task="transcribe", dataset=sources), None)
    assert [item.id for item in rows.items] == ["a-0", "a-1", "b-0", "b-1"]
    twice = write_source(tmp_path / "c", id=["same", "same"])
    with pytest.raises(ValueError, match="its id stands twice"):
        load_evaluation_rows(config(task="transcribe", dataset=[sources[0], twice]), None)
