"""The model of people's speech in the package: what it is made of, and that it hears."""

import json
from pathlib import Path

import numpy as np
import pytest

import speechllm
from benchmarks.small.corpora import normalized
from benchmarks.small.shipping import LIMIT, NO_SPEECH
from speechllm_cli.demo import load_examples
from speechllm_cli.loading import load_pipeline
from speechllm_cli.main import main

SMALL = Path(speechllm.SMALL)
RATE = 16_000


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline(None)


def test_it_is_the_default_and_whole_and_of_the_size_that_was_promised():
    files = [path for path in SMALL.rglob("*") if path.is_file()]
    assert str(SMALL) == speechllm.MODELS[speechllm.DEFAULT]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    names = {str(path.relative_to(SMALL)) for path in files}
    assert {"LICENSE.whisper-base", "LICENSE.smollm2-135m-instruct", "README.md", "trained.safetensors"} <= names
    parents = json.loads((SMALL / "config.json").read_text(encoding="utf-8"))["parents"]
    assert (SMALL / parents["text"]["id"] / parents["text"]["gguf_file"]).is_file()
    assert (SMALL / parents["text"]["adapter"] / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_it_writes_down_what_six_people_say_but_for_a_word(pipe):
    rows = load_examples(SMALL / "examples")
    answers = pipe([row["file"] for row in rows], instruction="Transcribe the speech.")
    wrong = {}
    for row, (answer,) in zip(rows, answers, strict=True):
        assert answer["no_speech"] is False
        if normalized(answer["generated_text"]) != normalized(row["text"]):
            wrong[Path(row["file"]).stem] = answer["generated_text"]
    # Read without an error, and written down with one: what an LLM of this size does.
    assert len(rows) == 6
    assert wrong == {"seasons": "The short takes play between the second and third seasons."}


@pytest.mark.slow
def test_its_demo_is_as_expected(pipe, monkeypatch, capsys):
    monkeypatch.setattr("speechllm_cli.demo.load_pipeline", lambda model: pipe)
    assert main(["demo"]) == 0
    output = capsys.readouterr().out
    assert "✗" not in output and output.count("✓") >= 10 and max(map(len, output.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*digital silence")
@pytest.mark.parametrize("level", [0.0, 1e-3, 0.05])
def test_it_says_that_nobody_speaks(pipe, level):
    noise = (level * np.random.default_rng(0).normal(size=2 * RATE)).astype(np.float32)
    (answer,) = pipe((noise, RATE), instruction="What does the speaker want?")
    assert answer == {"generated_text": NO_SPEECH, "no_speech": True}
