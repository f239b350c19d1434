"""From a run to a model that anyone loads, and to the table that says whether it is good enough."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from conftest import random_audio, scatter_weights, whisper_config
from factories_gguf import write_gguf
from factories_processing import CHATML, make_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from benchmarks.small import acceptance_rows, accepting, shipping
from benchmarks.small.corpora import split_of
from benchmarks.small.reading import ReadingSettings, new_connector
from benchmarks.small.vocabulary import Vocabulary
from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.audio_encoders import load_encoder
from modeling_speechllm.parents import load_causal_lm
from processing_speechllm import SpeechLLMProcessor

SETTINGS = ReadingSettings(hidden_size=16, blocks=1, heads=2)
IDS = [20, 21, 25, 30]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A run and the parents that it was trained between, all tiny."""
    monkeypatch.setattr("benchmarks.small.reading.AUDIO_SIZE", 16)
    monkeypatch.setattr("benchmarks.small.reading.TEXT_SIZE", 64)
    parents, run = tmp_path / "parents", tmp_path / "run"
    whisper, llm = parents / shipping.ENCODER, parents / shipping.LLM
    scatter_weights(WhisperForConditionalGeneration(whisper_config()), 1).save_pretrained(whisper)
    WhisperFeatureExtractor(feature_size=8).save_pretrained(whisper)
    make_tokenizer(CHATML).save_pretrained(llm)
    write_gguf(llm / "tiny.gguf", make_tokenizer(CHATML))
    (llm / "LICENSE").write_text("free")
    run.mkdir()
    vocabulary = Vocabulary(IDS, ["a", "b", " a", " b"])
    vocabulary.save(run / "vocabulary.json")
    write_settings(run)
    connector = scatter_weights(new_connector(vocabulary, SETTINGS), 3)
    table = load_causal_lm(str(llm), gguf_file="tiny.gguf", dtype=torch.float32).get_input_embeddings().weight
    connector.load_vocabulary(torch.tensor(IDS), table)
    save_file({key: value.half() if value.is_floating_point() else value
               for key, value in connector.state_dict().items()}, run / "connector.safetensors")  # fmt: skip
    return run, parents


def write_settings(run, **changes):
    (run / "settings.json").write_text(json.dumps({**vars(SETTINGS), **changes}))


def add_adapters(run, parents):
    """LoRA on the LLM and a trained encoder, as stages 2 and 1 leave them."""
    llm = load_causal_lm(str(parents / shipping.LLM), gguf_file="tiny.gguf", dtype=torch.float32)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(llm, lora).save_pretrained(run / "adapter")
    encoder = scatter_weights(load_encoder(str(parents / shipping.ENCODER), dtype=torch.float32), 7)
    encoder.config.save_pretrained(run / "encoder")
    save_file(encoder.half().state_dict(), run / "encoder/model.safetensors")


def logits(model):
    features, mask = random_audio(model, [40])
    with torch.no_grad():
        return model.get_audio_features(features, mask).connector.ctc_logits


@pytest.mark.parametrize("adapted", [False, True])
def test_the_trained_part_names_its_parents_on_the_hub_and_loads_on_local_ones(places, tmp_path, adapted):
    run, parents = places
    if adapted:
        add_adapters(run, parents)
    shipping.ship_trained(run, parents, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["parents"]["audio"]["id"] == "openai/whisper-base"
    assert config["parents"]["text"]["id"].startswith("QuantFactory/")
    assert config["trained_groups"] == (["encoder", "connector"] if adapted else ["connector"])
    located = shipping.located(tmp_path / "out", parents)
    model = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "out", config=located)
    whole, _ = shipping.assemble(run, parents, adapter=run / "adapter" if adapted else None)
    torch.testing.assert_close(logits(model), logits(whole), atol=1e-2, rtol=1e-2)
    for key, value in whole.model.language_model.state_dict().items():  # the adapter is in half precision
        torch.testing.assert_close(model.model.language_model.state_dict()[key], value, atol=1e-3, rtol=1e-3)
    processor = SpeechLLMProcessor.from_pretrained(tmp_path / "out")
    assert processor.no_speech_answer and processor.audio_token_id == model.config.audio_token_id


def test_the_whole_needs_nothing_else(places, tmp_path):
    run, parents = places
    add_adapters(run, parents)
    expected, _ = shipping.assemble(run, parents, adapter=run / "adapter")
    sizes = shipping.ship_whole(run, parents, tmp_path / "out", parents / shipping.LLM / "tiny.gguf")
    assert {"llm/tiny.gguf", "trained.safetensors", "adapter/adapter_model.safetensors"} <= sizes.keys()
    assert f"LICENSE.{shipping.LLM}" in sizes
    shutil.rmtree(parents)
    shutil.rmtree(run)
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    model = SpeechLLMForConditionalGeneration.from_pretrained(moved)
    assert model.dtype == torch.float32
    torch.testing.assert_close(logits(model), logits(expected), atol=0.1, rtol=0.1)
    query = "layers.1.self_attn.q_proj.weight"
    found, wanted = (each.model.language_model.state_dict()[query] for each in (model, expected))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert SpeechLLMProcessor.from_pretrained(moved).tokenizer("hello").input_ids


def test_too_large_a_whole_says_what_it_is_made_of(places, tmp_path, monkeypatch):
    run, parents = places
    monkeypatch.setattr(shipping, "LIMIT", 1000)
    with pytest.raises(ValueError, match="MB, more than 0"):
        shipping.ship_whole(run, parents, tmp_path / "out", parents / shipping.LLM / "tiny.gguf")


def test_a_trained_encoder_is_found_and_a_foreign_table_refused(places, tmp_path):
    run, parents = places
    add_adapters(run, parents)
    start = tmp_path / "start"
    start.mkdir()
    (run / "encoder").rename(start / "encoder")
    shipping.ship_trained(run, parents, tmp_path / "out", start)
    assert "encoder" in json.loads((tmp_path / "out/config.json").read_text())["trained_groups"]
    write_gguf(parents / shipping.LLM / "tiny.gguf", make_tokenizer(CHATML), seed=5)
    with pytest.raises(ValueError, match="table is not that of the LLM"):
        shipping.ship_trained(run, parents, tmp_path / "other", start)


@pytest.fixture
def data(tmp_path):
    """A folder with one recording of each of many speakers."""
    folder = tmp_path / "data/common_voice_en"
    folder.mkdir(parents=True)
    soundfile.write(folder / "a.ogg", 0.1 * np.sin(np.arange(16000) / 9), 16000, format="OGG", subtype="OPUS")
    rows = [{"audio": f"{n}.ogg", "text": f"sentence {n}", "speaker": f"speaker {n}"} for n in range(60)]
    for row in rows:
        shutil.copyfile(folder / "a.ogg", folder / row["audio"])
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def test_words_are_of_test_speakers_alone(data):
    rows = acceptance_rows.words(data, "cv_en", 100)
    assert 3 < len(rows) < 30
    assert all(split_of("cv_en", {"speaker": row["text"].replace("sentence", "speaker")}) == "test" for row in rows)
    assert len(acceptance_rows.words(data, "cv_en", 3)) == 3


def test_behaviour_asks_seen_and_unseen_prompts_about_each_recording(data):
    rows = acceptance_rows.behaviour(data, 3)
    assert len(rows) == 12 and len({row["id"] for row in rows}) == 12
    kinds = [row["prompt_kind"] for row in rows[:4]]
    assert kinds == ["seen", "seen", "unseen_prompt", "unseen_task"]
    assert rows == acceptance_rows.behaviour(data, 3)
    prompts = {prompt.text for task in acceptance_rows.load_tasks() for prompt in task.prompts}
    assert set(acceptance_rows.FORMS) <= prompts  # else a wording has changed and is not checked any more


@pytest.mark.slow
def test_sounds_without_speech_are_made_once_and_alike(tmp_path):
    rows = acceptance_rows.no_speech(tmp_path / "a", 2)
    assert {row["task"] for row in rows} == set(acceptance_rows.SOUNDS) and len(rows) == 10
    again = acceptance_rows.no_speech(tmp_path / "b", 2)
    for one, other in zip(rows, again, strict=True):
        first, second = (soundfile.read(row["audio"])[0] for row in (one, other))
        assert np.array_equal(first, second) and 16000 <= len(first) <= 160000
        assert np.abs(first).max() < (0.01 if one["task"] == "silence" else 0.8)
    stamp = (tmp_path / "a" / "hum_000.ogg").stat().st_mtime_ns
    acceptance_rows.no_speech(tmp_path / "a", 2)
    assert (tmp_path / "a" / "hum_000.ogg").stat().st_mtime_ns == stamp


def test_conditions_do_what_they_say():
    rng = np.random.default_rng(0)
    time = np.arange(32000) / 16000
    speech = (np.sin(2 * np.pi * 1000 * time) + np.sin(2 * np.pi * 6000 * time)).astype(np.float32)
    noise = acceptance_rows.noisy(speech, rng) - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(noise**2)) == pytest.approx(10, abs=0.01)
    spectrum = np.abs(np.fft.rfft(acceptance_rows.telephone(speech, rng)))
    assert spectrum[12000] < 0.01 * spectrum[2000]  # 6 kHz is gone, 1 kHz is there
    assert spectrum[2000] > 0.7 * np.abs(np.fft.rfft(speech))[2000]
    assert len(acceptance_rows.CONDITIONS["speed 0.9"](speech, rng)) == pytest.approx(32000 / 0.9, abs=2)


def test_a_part_that_is_done_is_not_done_again(places, tmp_path, monkeypatch, capsys):
    run, parents = places
    shipping.ship_trained(run, parents, tmp_path / "model")
    calls, results = [], {"speech": [50.0, 40.0, 60.0, 9], "cascade": [0.0, None, None, 9]}

    def part(name, fails=False):
        def run_part(acceptance):
            calls.append(name)
            assert SpeechLLMForConditionalGeneration.from_pretrained(acceptance.model) is not None  # parents are found
            if fails and calls.count(name) == 1:
                raise KeyboardInterrupt
            return [accepting.line(name, "accuracy", results, "at least 45", True)]

        return run_part

    monkeypatch.setattr(accepting, "PARTS", {"one": part("one"), "two": part("two", True), "three": part("three")})
    arguments = (tmp_path / "model", parents, tmp_path, tmp_path / "out", 5)
    with pytest.raises(KeyboardInterrupt):
        accepting.accept(*arguments, parts=("one", "two"))
    accepting.accept(*arguments, parts=("one", "two"))
    assert calls == ["one", "two", "two"]
    table = (tmp_path / "out/acceptance.md").read_text()
    assert "| two | accuracy | 50.0 [40.0, 60.0] |  | 0.0 | 9 | at least 45 | yes |" in table and "three" not in table
    assert (tmp_path / "out/acceptance.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="has the acceptance of"):
        accepting.accept(*arguments[:-1], 6, parts=("one",))
