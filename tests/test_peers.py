"""The speed benchmark beside peers: every system runs at tiny sizes, results resume, goals are judged."""

import pytest
import torch
from conftest import text_config
from factories_processing import CHATML_MARKED, make_tokenizer
from transformers import AutoModelForCausalLM, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from benchmarks.peers import first_token, parts, report, training
from benchmarks.peers.__main__ import Case, Results, turns

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny():
    tokenizer = make_tokenizer(CHATML_MARKED)
    tokenizer.pad_token = "<|im_start|>"
    whisper = WhisperConfig(
        **{"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 8, "encoder_ffn_dim": 64},
        **{"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "num_mel_bins": 80},
    )
    llm = text_config(vocab_size=len(tokenizer) + 8, pad_token_id=tokenizer.pad_token_id)
    llm = AutoModelForCausalLM.from_config(llm)
    whisper = WhisperForConditionalGeneration(whisper)
    return parts.Parts(whisper.eval(), llm.eval(), tokenizer, WhisperFeatureExtractor(feature_size=80), "tiny")


@pytest.mark.parametrize("system", first_token.SYSTEMS)
def test_every_system_gives_a_first_token(system, tiny):
    answer = first_token.make_system(system, tiny, torch.bfloat16, "cpu")
    assert len(answer([parts.noise(0.5, number) for number in range(2)])) == 2
    assert len(first_token.measure(answer, 0.5, 1, 2, "cpu")) == 2


@pytest.mark.parametrize(
    ("loss", "loop"), [(loss, loop) for loss in training.LOSSES for loop in training.LOSSES[loss]]
)
def test_every_loop_trains(loss, loop, tiny, tmp_path):
    work = training.Work(tiny, parts.noise_rows(6, (0.5, 1.0), 0), 2, 2, torch.bfloat16, "cpu")
    cache = training.make_cache(work, tmp_path / "cache") if loop == training.CACHED else None
    found = training.measure(loop, loss, work, cache, 0)
    assert found["steps"] == 2 and found["samples_per_second"] > 0


def test_what_is_measured_is_not_measured_again_and_other_settings_are_refused(tmp_path):
    case, facts = Case("training", "speechllm", "divergence", "bf16"), {"settings": {"batch": 8}}
    results = Results(tmp_path / "results.json", facts)
    assert list(turns([case], 2, results)) == [(0, case), (1, case)]
    results.add(case, {"samples_per_second": 2.0})
    again = Results(tmp_path / "results.json", facts)
    assert list(turns([case], 2, again)) == [(1, case)]
    with pytest.raises(SystemExit, match="other settings"):
        Results(tmp_path / "results.json", {"settings": {"batch": 4}})


def test_the_report_has_medians_ratios_and_goals(tmp_path):
    figures = {"speechllm": [2.0, 4.0], "Ultravox's form": [1.0, 4.0], "Trainer, our model": [2.0, 2.0]}
    measured = {
        f"training | cross-entropy | bf16 | {system}": [{"samples_per_second": value, "load": 1.5} for value in values]
        for system, values in figures.items()
    }
    measured["first token | 3 s, batch 1 | bf16 | speechllm"] = [{"seconds": [0.1, 0.3, 0.2], "load": 1.0}]
    measured["first token | 3 s, batch 1 | bf16 | Voxtral"] = [{"seconds": [0.4], "load": 1.0}]
    facts = {"processor": "CPU", "cores": 2, "device": "cpu", "begun": "now", "settings": {"batch": 8}}
    facts["versions"] = {"torch": "2", "transformers": "5"}
    text = report.write_report(tmp_path, facts, measured, {"training | x": "ImportError: trl"})
    assert "| Ultravox's form | 2.5 | 1 to 4 | 1.50 |" in text
    assert "speechllm / Ultravox's form >= 1.3 | 1.50 | yes" in text
    assert "speechllm / Voxtral <= 0.5 | 0.50 | yes" in text and "ImportError: trl" in text
    assert (tmp_path / "report.png").stat().st_size > 1000
