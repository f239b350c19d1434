"""The nano world: what must hold of its grammar, tasks, splits and token ids. No training, no speech."""

import json
import random
from collections import Counter

import pytest

from benchmarks.nanoworld.card import evaluation_facts
from benchmarks.nanoworld.conversations import IGNORED, Conversation, Encoder, draw_conversation
from benchmarks.nanoworld.prompts import PROMPTS
from benchmarks.nanoworld.questions import questions_about
from benchmarks.nanoworld.speech import VARIANTS, utterances
from benchmarks.nanoworld.tasks import TASKS, draw, join, tasks_for
from benchmarks.nanoworld.tokenizer import build_tokenizer
from benchmarks.nanoworld.world import LANGUAGES, RENDERERS, SPLITS, Frame, frames, frames_by_kind, frames_of


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_world_has_the_frames_that_the_grammar_counts():
    kinds = Counter(frame.kind for frame in frames())
    assert set(kinds) == set(RENDERERS)
    assert kinds["sum"] == (81 + 36) * 4
    assert kinds["switch"] == 2 * 6 * 8 * 2
    assert kinds["number"] == 28
    assert len(frames()) == len(set(frames()))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_has_one_meaning(language):
    texts = Counter(frame.text(language) for frame in frames())
    assert max(texts.values()) == 1


def test_splits_share_no_sentence_and_no_voice():
    texts = {split: {frame.text(lang) for frame in frames_of(split) for lang in LANGUAGES} for split in SPLITS}
    voices = {split: set(VARIANTS[split]) for split in SPLITS}
    used = {split: {utterance.voice.split("+")[1] for utterance in utterances(split)} for split in SPLITS}
    for left, right in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not texts[left] & texts[right]
        assert not voices[left] & voices[right]
        assert not used[left] & used[right]


def test_polite_form_stays_in_the_split_of_its_frame():
    for frame in frames():
        assert Frame(frame.kind, frame.slots, not frame.please).split == frame.split


def test_every_kind_but_bare_numbers_is_tested():
    empty = [kind for kind, members in frames_by_kind("test").items() if not members]
    assert empty == ["number"]


def test_every_task_has_prompts_in_every_language_and_one_held_out():
    assert len(TASKS) >= 10
    for prompts in PROMPTS.values():
        trained = [prompt for prompt in prompts if not prompt.held_out]
        assert len(trained) >= 6
        assert {prompt.language for prompt in trained} == set(LANGUAGES)
        assert sum(prompt.held_out for prompt in prompts) == 1
        assert len({prompt.text for prompt in prompts}) == len(prompts)


def test_translation_is_the_same_frame_in_the_other_language():
    frame = Frame("switch", ("on", "light", "kitchen"))
    rng = random.Random(0)
    answers = {draw("translate", frame, "en", rng).answer for _ in range(200)}
    assert answers == {frame.text(language) for language in LANGUAGES if language != "en"}
    assert frame.text("de") == "schalte das Licht in der Küche ein"


def test_answers_agree_with_the_sentence():
    rng = random.Random(0)
    for frame in rng.sample(frames(), 300):
        for language in LANGUAGES:
            text = frame.text(language)
            for task in tasks_for(frame, language):
                answer = draw(task, frame, language, rng).answer
                assert answer
                if task in ("device", "place", "colour", "day", "first_word", "last_word"):
                    assert answer in text, (task, text)
                if task == "transcribe":
                    assert answer == text


def test_context_holds_the_answer_once():
    rng = random.Random(0)
    frame = Frame("search", ("key", 0))
    for _ in range(50):
        example = draw("context", frame, "en", rng)
        assert example.instruction.count(example.answer) == 1


def test_drawing_is_deterministic():
    first, second = (draw_conversation("train", random.Random(5)) for _ in range(2))
    assert first == second


def test_samples_equal_the_chat_template(tokenizer, monkeypatch):
    monkeypatch.setattr("benchmarks.nanoworld.conversations.SPACED_SHARE", 0.0)
    monkeypatch.setattr("benchmarks.nanoworld.conversations.NO_LINE_BREAK_SHARE", 0.0)
    encoder, rng = Encoder(tokenizer), random.Random(0)
    for _ in range(50):
        conversation: Conversation = draw_conversation("train", rng)
        messages = []
        for number, example in enumerate(conversation.examples):
            first = join(example.instruction, conversation.request, conversation.request_first)
            messages.append({"role": "user", "content": example.instruction if number else first})
            messages.append({"role": "assistant", "content": example.answer})
        expected = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, labels = encoder.sample(conversation, rng)
        assert ids == expected["input_ids"]
        masked = [token if kept else IGNORED for token, kept in zip(ids, expected["assistant_masks"], strict=True)]
        assert labels == masked


def test_requests_survive_the_tokenizer(tokenizer):
    for frame in frames()[::7]:
        for language in LANGUAGES:
            assert tokenizer.decode(tokenizer(frame.text(language))["input_ids"]) == frame.text(language)


def test_test_questions_are_those_of_the_world_whatever_else_is_asked():
    (utterance, *_) = utterances("test")
    (request,) = [
        f for f in frames_of("test") if (f.key, f.text(utterance.language)) == (utterance.key, utterance.text)
    ]
    seen, unseen = (questions_about(7, utterance, request, held_out) for held_out in (False, True))
    assert [row["task"] for row in seen] == [row["task"] for row in unseen] == tasks_for(request, utterance.language)
    assert {row["prompt_kind"] for row in seen} == {"seen"} and {row["prompt_kind"] for row in unseen} == {
        "unseen_prompt"
    }
    assert {row["id"] for row in seen} == {f"00007-{row['task']}" for row in seen}
    transcribe = next(row for row in seen if row["task"] == "transcribe")
    assert transcribe["reference"] == transcribe["text"] == utterance.text
    assert {row["target_language"] for row in seen if row["task"] in ("intent", "language")} == {"en"}
    assert transcribe["target_language"] == utterance.language
    translate = next(row for row in seen if row["task"] == "translate")
    assert translate["reference"] == request.text(translate["target_language"]) != utterance.text
    assert seen == questions_about(7, utterance, request, False)


def test_the_card_takes_its_figures_from_the_results_of_evaluate(tmp_path):
    figure = {"value": 50.0, "low": 40.0, "high": 61.0, "rows": 3}
    systems = {way: {"exact": figure, "f1": figure} for way in ("speech", "text_bound", "cascade")}
    systems["cascade"]["heard_wer"] = figure | {"value": 5.0}
    metric = {"title": "exact answers", "unit": "%", "higher_is_better": True, "note": ""}
    results = {
        "headline": "exact",
        "metrics": {"exact": metric, "f1": metric | {"title": "F1"}},
        "overall": systems,
        "groups": {"task": {"first_word": systems, "sum": systems}},
        "means": {"task": {way: figure for way in systems}},
        "rows": {"scored": 3},
        "settings": {"task": "question"},
    }
    for kind in ("seen", "unseen"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "results.json").write_text(json.dumps(results))
    entries = evaluation_facts(tmp_path)
    assert [entry["task"] for entry in entries[:4]] == ["question", "task: first_word", "task: sum", "task: mean"]
    assert len(entries) == 2 * 4 + 1 and {entry["metric"] for entry in entries[:-1]} == {"exact answers"}
    assert entries[0]["dataset"]["name"] == "nano world" != entries[4]["dataset"]["name"]
    assert entries[0]["systems"]["speech"] == {"value": 50.0, "low": 40.0, "high": 61.0}
    assert entries[-1]["systems"] == {"cascade": {"value": 5.0, "low": 40.0, "high": 61.0}}
