"""The judge: its prompt, what is read of its judgements, endpoints that fail in all the ways that real ones do."""

import json

import pytest
from datasets import Dataset
from factories_training import tiny_parts, tone_rows
from test_target_endpoint import serve  # noqa: F401  a fixture

from speechllm.evaluation import judge as judging
from speechllm.evaluation.config import EvaluationConfig
from speechllm.evaluation.judge import judge_answers, judge_question, parse_judgement
from speechllm.evaluation.rows import make_items
from speechllm.evaluation.run import evaluate
from speechllm.evaluation.store import Lines
from trainers.targets.backends import Answer
from trainers.targets.endpoints import BackendError


def make_item(**columns):
    row = {"id": "a", "duration": 1.0, "audio": {"bytes": b"x", "path": None}, "instruction": "Reply.", **columns}
    settings = EvaluationConfig(dataset=["x"], model="m", output_dir="o", task="instruct")
    (item,) = make_items(Dataset.from_list([row]), settings).items
    return item


def prompt_of(item, answer: str) -> str:
    (block,) = judge_question(item, answer).chat[0]["content"]
    return block["text"]


def test_the_prompt_shows_transcript_reference_and_answer():
    prompt = prompt_of(make_item(text="turn on {answer}", reference="done"), "the {reference} is on")
    assert "«turn on {answer}»\nReply." in prompt
    assert "[Reference answer]\ndone" in prompt and "[Answer of the assistant]\nthe {reference} is on" in prompt
    without = prompt_of(make_item(), "")
    assert "[speech]\nReply." in without and "(none)" in without and "(empty)" in without


@pytest.mark.parametrize(
    ("text", "score", "followed"),
    [
        ("Right and short.\nScore: 5\nInstruction followed: yes", 5, True),
        ("**Score:** 0 / 5\n**Instruction followed:** No.", 0, False),
        ("score: 3\nScore: 3\ninstruction followed: yes", 3, True),
        ("Score: 3\nScore: 4\nInstruction followed: yes", None, True),
        ("I would give it a Score: 4 perhaps", None, None),
        ("Score: 7\nInstruction followed: maybe", None, None),
        ("Score: 4.5\nInstruction followed: no", None, False),
        ("Score: -3\nInstruction followed: yes", None, True),
        ("Score: − 3", None, None),
        ("Score: .5", None, None),
        ("Score: **`3`**", 3, None),
        ("4", None, None),
        ("", None, None),
    ],
)
def test_a_judgement_is_read_or_has_no_score(text, score, followed):
    assert parse_judgement(text) == {"score": score, "followed": followed}


class Scripted:
    """Gives its judgements in turn."""

    def __init__(self, *texts: str):
        self.texts, self.asked = list(texts), 0

    def answer(self, questions, progress):
        progress(len(questions))
        self.asked += len(questions)
        return [Answer(self.texts.pop(0), "stop") for _ in questions]


def test_judgements_are_kept_as_they_came_and_not_asked_for_twice(tmp_path):
    item = make_item()
    wanted = [(item, "speech", "a"), (item, "text_bound", "b")]
    judge = Scripted("Score: 4\nInstruction followed: yes", "nonsense")
    judge_answers(judge, wanted, Lines(tmp_path, "judgements"), lambda count: None)
    store = Lines(tmp_path, "judgements")
    assert store.lines["text_bound", "a"]["judgement"] == "nonsense"
    assert store.lines["text_bound", "a"]["score"] is None and store.lines["speech", "a"]["score"] == 4
    judge_answers(judge, wanted, store, lambda count: None)
    assert judge.asked == 2


@pytest.fixture
def settings(tmp_path, monkeypatch) -> EvaluationConfig:
    monkeypatch.setattr("speechllm.evaluation.report.draw", lambda table, folder: [])
    model, processor = tiny_parts()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    rows = tone_rows(4, instruction=["what is said"] * 4, reference=["hello"] * 4)
    rows.to_parquet(str(tmp_path / "data" / "train-0.parquet"))
    return EvaluationConfig(
        dataset=[str(tmp_path / "data")],
        model=str(tmp_path / "model"),
        task="instruct",
        text_bound=True,
        output_dir=str(tmp_path / "out"),
        max_new_tokens=4,
        bootstrap_samples=20,
        judge="some/judge",
        concurrency=1,
        retries=1,
    )


def judgement(text: str) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})


def test_parse_failures_are_counted_and_never_scored(settings, tmp_path, serve):  # noqa: F811
    texts = ["Score: 5\nInstruction followed: yes", "Score: 2\nInstruction followed: no", "what?", "Score: 6"]
    settings.judge_base_url = serve(lambda number, body: judgement(texts[number % 4])).url
    result = evaluate(settings)
    speech = result["overall"]["speech"]
    assert speech["judge_score"]["value"] == 3.5
    assert speech["judge_form"]["value"] == 50 and speech["judge_unread"]["value"] == 50
    lines = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and [line["judgement"] for line in lines[:4]] == texts
    assert result["judge"]["model"] == "some/judge" and result["judge"]["prompt"].startswith("sha256:")
    assert result["headline"] == "judge_score"


@pytest.mark.slow
def test_a_dead_endpoint_ends_the_run_and_a_living_one_resumes_it(settings, serve, monkeypatch):  # noqa: F811
    monkeypatch.setattr(judging, "CHUNK", 2)
    good = judgement("Score: 1\nInstruction followed: no")
    server = serve(lambda number, body: (503, "gone") if number >= 5 else good)
    settings.judge_base_url = server.url
    with pytest.raises(BackendError, match="HTTP 503 gone.*it resumes"):
        evaluate(settings)
    settings.judge = "other/judge"
    with pytest.raises(ValueError, match="judge.model was 'some/judge' and is 'other/judge'"):
        evaluate(settings)
    alive = serve(lambda number, body: good)
    settings.judge, settings.judge_base_url = "some/judge", alive.url
    assert evaluate(settings)["overall"]["speech"]["judge_score"]["value"] == 1
    assert len(alive.requests) == 4  # the first two pairs were judged before


def test_a_local_judge_that_cannot_hold_the_prompt_gives_no_score_and_says_why(settings, tmp_path):
    settings.judge, settings.judge_max_new_tokens = settings.model, 4
    result = evaluate(settings)
    assert result["overall"]["speech"]["judge_unread"]["value"] == 100
    assert result["overall"]["speech"]["judge_score"]["value"] is None
    line = json.loads((tmp_path / "out" / "judgements.jsonl").read_text().splitlines()[0])
    assert line["finish_reason"] == "too_long" and "512 positions" in line["detail"]
    assert any("8 of 8 judgements" in note for note in result["notes"])
