"""Answers tell whether they were said to their end or cut."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig, pipeline

from processing_speechllm.finish_reasons import finish_reasons
from speechllm import NANO
from speechllm_cli.main import main

END, PAD = 7, 0


@pytest.mark.parametrize(
    ("tokens", "options", "reason"),
    [
        ([1, 2, 3], {"max_new_tokens": 3}, "length"),
        ([1, 2, END], {"max_new_tokens": 3}, "stop"),
        ([1, END, PAD], {"max_new_tokens": 3}, "stop"),
        ([1, 2, 5], {"max_new_tokens": 3, "stop_strings": ["fi"]}, "stop"),
        ([1, 2, PAD], {"max_new_tokens": 3, "max_time": 1.0}, "stop"),
        ([1, 2, PAD], {"max_new_tokens": 3}, "length"),  # nothing pads a row without an end, so it was said
        ([1, 2, END], {"max_new_tokens": 3, "eos_token_id": None}, "length"),
        ([1, 2, 3], {"max_new_tokens": 4}, "stop"),  # a criterion of one's own
        ([1, 2, 3], {"max_length": 13}, "length"),  # ten are the prompt's
        ([1, 2, 3], {"generation_config": GenerationConfig(max_new_tokens=3)}, "length"),
        ([1, 2, 3], {"generation_config": GenerationConfig(max_new_tokens=9), "max_new_tokens": 3}, "length"),
        ([1, 2, 3], {"max_new_tokens": 3, "eos_token_id": [3, END]}, "stop"),
    ],
)
def test_the_limit_counts_where_no_end_was_said(tokens, options, reason):
    config = GenerationConfig(eos_token_id=END, pad_token_id=PAD)
    words = SimpleNamespace(decode=lambda ids: " ".join({1: "one", 2: "two", 5: "five"}.get(i, "") for i in ids))
    assert finish_reasons(config, options, torch.tensor([[tokens]]), 10, words) == [[reason]]


@pytest.fixture(scope="module")
def pipe():
    return pipeline("speech-instruct", model=str(NANO))


def example(language: str) -> str:
    return f"{NANO}/examples/{language}.wav"


def test_each_answer_of_a_batch_has_its_own_reason(pipe):
    asked = {"instruction": "Transcribe.", "return_finish_reason": True}
    whole = [pipe(example(language), **asked)[0] for language in ("en", "zh")]
    assert [row["finish_reason"] for row in whole] == ["stop", "stop"]
    tokens = [len(pipe.tokenizer(row["generated_text"], add_special_tokens=False)["input_ids"]) for row in whole]
    assert tokens[0] != tokens[1]  # else a limit could not part them
    rows = pipe([example("en"), example("zh")], batch_size=2, max_new_tokens=min(tokens) + 1, **asked)
    assert [row[0]["finish_reason"] for row in rows] == ["stop" if n == min(tokens) else "length" for n in tokens]
    assert "finish_reason" not in pipe(example("en"))[0]


def test_each_returned_sequence_has_its_own(pipe):
    asked = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4, "return_finish_reason": True}
    rows = pipe(example("en"), instruction="Transcribe.", return_tensors=True, **asked)
    ends = pipe.model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else ends
    expected = ["stop" if set(ends) & set(row["generated_token_ids"].tolist()) else "length" for row in rows]
    assert [row["finish_reason"] for row in rows] == expected and "length" in expected
    (row,) = pipe(example("en"), max_new_tokens=1, return_dict_in_generate=True, return_finish_reason=True)
    assert row["finish_reason"] == "length"


def test_ask_says_that_an_answer_was_cut(capsys):
    arguments = ["ask", example("en"), "Transcribe.", "--model", "nano", "--json"]
    assert main([*arguments, "--max-new-tokens", "1"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["finish_reason"] == "length"
    assert "en.wav: the answer was cut" in said.err and "--max-new-tokens" in said.err
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["finish_reason"] == "stop" and "cut" not in said.err
