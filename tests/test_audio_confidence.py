"""The signal that an audio was not made out: the score, what the pipeline gives of it, and what `ask` says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from factories_processing import RATE, encoded, sine
from test_pipeline import ASK, chat, clip, make_pipe

import speechllm
from processing_speechllm import SpeechLLMProcessor
from processing_speechllm.confidence import audio_confidences
from speechllm_cli.demo import load_examples
from speechllm_cli.loading import load_pipeline
from speechllm_cli.main import main


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


def confidence(pipe, inputs, **options) -> list[dict]:
    (answer,) = pipe(inputs, return_confidence=True, **options)
    return answer["confidence"]


def test_the_score_is_the_mean_cosine_to_the_nearest_token():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(40, 8, generator=generator)
    counts = [3, 1, 200]
    embeds = torch.randn(sum(counts), 8, generator=generator)
    embeds[3] = 7 * table[5]  # a token's own embedding, whatever its length
    expected, start = [], 0
    for count in counts:
        rows = embeds[start : start + count]
        expected.append(
            np.mean([max(float(torch.cosine_similarity(row, each, dim=0)) for each in table) for row in rows])
        )
        start += count
    assert audio_confidences(embeds, counts, table) == pytest.approx(expected, abs=1e-5)
    assert expected[1] == pytest.approx(1.0)
    assert audio_confidences(embeds[:3], [0, 3, 0], table) == pytest.approx([0.0, expected[0], 0.0], abs=1e-5)
    assert audio_confidences(embeds.bfloat16(), counts, table.bfloat16()) == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_audio_has_its_score_whatever_is_asked_and_beside_whatever(pipe, batch_size):
    clips = [clip(0.3), clip(1.1, 900.0), clip(0.5, 300.0)]
    alone = [confidence(pipe, one, instruction=ASK)[0]["score"] for one in clips]
    assert len({round(score, 4) for score in alone}) == 3
    batch = pipe(clips, instruction="hello", return_confidence=True, batch_size=batch_size)
    assert [row[0]["confidence"][0]["score"] for row in batch] == pytest.approx(alone, abs=1e-5)
    together = confidence(pipe, {"audio": clips, "instruction": ASK})
    assert [each["score"] for each in together] == pytest.approx(alone, abs=1e-5)
    assert confidence(pipe, {"instruction": ASK}) == []
    assert [each["score"] for each in confidence(pipe, chat(*clips[:2]))] == pytest.approx(alone[:2], abs=1e-5)


def test_the_answer_stays_as_it_is(pipe):
    (plain,) = pipe(clip(), instruction=ASK)
    (told,) = pipe(clip(), instruction=ASK, return_confidence=True)
    assert set(told) - set(plain) == {"confidence"} and told["generated_text"] == plain["generated_text"]


def test_the_checkpoint_says_how_sure_is_sure_enough(tmp_path):
    pipe = make_pipe()
    (heard,) = confidence(pipe, clip())
    assert heard["understood"] is None
    for least, understood in [(heard["score"] - 0.01, True), (heard["score"] + 0.01, False)]:
        pipe.processor.min_audio_confidence = least
        assert confidence(pipe, clip()) == [{"score": heard["score"], "understood": understood}]
    pipe.processor.save_pretrained(tmp_path)
    assert SpeechLLMProcessor.from_pretrained(tmp_path).min_audio_confidence == pipe.processor.min_audio_confidence


# --- The embedded model ---


def foreign(kind: str) -> np.ndarray:
    draw = np.random.default_rng(3)
    time = np.arange(2 * RATE) / RATE
    return {
        "silence": np.zeros(2 * RATE),
        "hiss": 1e-4 * draw.standard_normal(2 * RATE),
        "noise": 0.2 * draw.standard_normal(2 * RATE),
        "tone": sine(2.0),
        "siren": 0.3 * np.sin(2 * np.pi * (600 * time + 300 * np.sin(3 * time))),
        "chord": 0.1 * sum(np.sin(2 * np.pi * pitch * time) for pitch in (220, 277, 330, 440)),
    }[kind].astype(np.float32)


@pytest.fixture(scope="module")
def embedded():
    return load_pipeline("nano")


def test_the_embedded_model_makes_its_own_examples_out(embedded):
    for example in load_examples(Path(speechllm.NANO) / "examples"):
        (heard,) = confidence(embedded, example["file"], max_new_tokens=1)
        assert heard["understood"], example["file"]


@pytest.mark.filterwarnings("ignore:.*digital silence")
@pytest.mark.parametrize("kind", ["silence", "hiss", "noise", "tone", "siren", "chord"])
def test_the_embedded_model_does_not_make_out_what_is_no_speech(embedded, kind):
    (heard,) = confidence(embedded, (foreign(kind), RATE), max_new_tokens=1)
    assert heard["understood"] is False


def test_ask_says_which_recording_could_not_be_made_out(embedded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("speechllm_cli.ask.load_pipeline", lambda model: embedded)
    noise, known = tmp_path / "noise.wav", f"{speechllm.NANO}/examples/en.wav"
    noise.write_bytes(encoded(foreign("noise")))
    assert main(["ask", str(noise), known, "Transcribe the speech.", "--json"]) == 0
    output = capsys.readouterr()
    rows = [json.loads(line) for line in output.out.splitlines()]
    assert [row["understood"] for row in rows] == [False, True]
    (line,) = output.err.splitlines()
    assert line.startswith(f"speechllm: {noise}: I could not make that out (confidence 0.")
    assert "the answer is a guess" in line
    assert main(["ask", str(noise), known, "Transcribe the speech.", "--together"]) == 0
    assert capsys.readouterr().err.count("could not make that out") == 1
    assert main(["ask", str(noise), "Transcribe the speech.", "--stream"]) == 0
    assert capsys.readouterr().err == line + "\n"
