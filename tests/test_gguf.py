"""An LLM in a GGUF file as a parent: its weights, its tokenizer, and finding both again."""

import json

import pytest
import torch
from conftest import random_audio, scatter_weights, whisper_config
from factories_gguf import gguf_config, write_gguf
from factories_processing import CHATML, make_tokenizer
from safetensors.torch import load_file
from test_modeling import prompt
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForMultimodalLM,
    LlamaForCausalLM,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    pipeline,
)

import speechllm
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from processing_speechllm.gguf_tokenizer import gguf_tokenizer, pre_tokenizer
from trainers.cache.config import EncodeConfig
from trainers.commands.arguments import ScriptArguments
from trainers.commands.inputs import load_speech_model
from trainers.targets.backends import load_llm

TEXTS = ["hello world, what is said?", "<|im_start|>user\nhello<|im_end|>", "  two  spaces 12345 don't </s>"]


@pytest.fixture
def parents(tmp_path):
    """Folders of a Whisper checkpoint and of a GGUF file with nothing beside it; the weights and tokenizer in it."""
    folder, tokenizer = tmp_path / "llm", make_tokenizer(CHATML)
    folder.mkdir()
    weights = write_gguf(folder / "tiny.gguf", tokenizer)
    scatter_weights(WhisperForConditionalGeneration(whisper_config()), 1).save_pretrained(tmp_path / "whisper")
    WhisperFeatureExtractor(feature_size=8).save_pretrained(tmp_path / "whisper")
    return str(tmp_path / "whisper"), str(folder), weights, tokenizer


def joined(audio, text):
    torch.manual_seed(0)
    model = SpeechLLMForConditionalGeneration.from_parts(
        audio, text, connector={"stride": 4}, gguf_file="tiny.gguf", dtype=torch.float32
    )
    scatter_weights(model.model.multi_modal_projector, 3)
    return model


def answer(model):
    features, mask = random_audio(model, [16])
    ids = torch.tensor([prompt(model, [16])])
    with torch.no_grad():
        return model(input_ids=ids, input_features=features, input_features_mask=mask).logits


def test_the_weights_are_those_of_the_file(parents):
    audio, text, weights, tokenizer = parents
    model = joined(audio, text)
    assert model.config.audio_token_id == len(tokenizer)
    state = model.model.language_model.state_dict()
    assert torch.equal(state["embed_tokens.weight"], torch.tensor(weights["token_embd.weight"]))
    assert torch.equal(state["layers.1.mlp.up_proj.weight"], torch.tensor(weights["blk.1.ffn_up.weight"]))
    assert torch.equal(model.lm_head.weight, torch.tensor(weights["output.weight"]))
    assert model.config.parents["text"] == {"id": text, "revision": None, "gguf_file": "tiny.gguf"}
    assert model.config.text_config.hidden_size == gguf_config(len(tokenizer)).hidden_size


def test_a_trained_part_reloads_on_the_same_weights_by_every_way(parents, tmp_path):
    audio, text, _, tokenizer = parents
    model = joined(audio, text)
    processor = SpeechLLMProcessor.from_parts(audio, text, model.config, gguf_file="tiny.gguf")
    folder = tmp_path / "trained"
    model.save_pretrained(folder, trained_only=True)
    processor.save_pretrained(folder)
    assert {key.split(".")[1] for key in load_file(folder / "trained.safetensors")} == {"multi_modal_projector"}
    assert json.loads((folder / "config.json").read_text())["parents"]["text"]["gguf_file"] == "tiny.gguf"
    expected = answer(model)
    for auto in (SpeechLLMForConditionalGeneration, AutoModelForMultimodalLM):
        assert torch.equal(answer(auto.from_pretrained(folder)), expected)
    way = {"pipeline_class": speechllm.SpeechInstructPipeline, "device": "cpu"}
    pipe = pipeline("speech-instruct", model=str(folder), **way)
    assert torch.equal(answer(pipe.model), expected)
    again, _ = load_speech_model(ScriptArguments(model=str(folder), dataset=["x"]), ["connector"])
    assert torch.equal(answer(again), expected)
    model.save_pretrained(tmp_path / "whole")  # an ordinary model, which needs the file no more
    assert torch.equal(answer(AutoModelForMultimodalLM.from_pretrained(tmp_path / "whole")), expected)


def test_the_tokenizer_is_the_file_s(parents):
    _, text, _, tokenizer = parents
    read = gguf_tokenizer(text, "tiny.gguf")
    assert len(read) == len(tokenizer) and read.eos_token == tokenizer.eos_token
    assert read.chat_template == CHATML
    for words in TEXTS:
        assert read(words).input_ids == tokenizer(words).input_ids
        assert read.decode(read(words).input_ids) == tokenizer.decode(tokenizer(words).input_ids)


def test_files_of_a_tokenizer_beside_it_come_first(parents):
    audio, text, _, _ = parents
    own = make_tokenizer(CHATML)
    own.add_tokens(["one more"])
    own.save_pretrained(text)
    model = joined(audio, text)
    processor = SpeechLLMProcessor.from_parts(audio, text, model.config, gguf_file="tiny.gguf")
    assert model.config.audio_token_id == processor.audio_token_id == len(own)


def test_text_is_split_as_the_file_says(parents, tmp_path, caplog):
    pieces = [piece for piece, _ in pre_tokenizer("smollm").pre_tokenize_str("in 2024")]
    assert pieces == ["in", "Ġ", "2", "0", "2", "4"]
    pieces = [piece for piece, _ in pre_tokenizer("llama-bpe").pre_tokenize_str("in 20245")]
    assert pieces == ["in", "Ġ", "202", "45"]
    assert [piece for piece, _ in pre_tokenizer("qwen2").pre_tokenize_str("it's 24")] == ["it", "'s", "Ġ", "2", "4"]
    assert isinstance(pre_tokenizer("gpt-2"), pre_tokenizers.ByteLevel) and pre_tokenizer("of tomorrow") is None
    write_gguf(tmp_path / "other.gguf", make_tokenizer(), splitting="of tomorrow")
    gguf_tokenizer(str(tmp_path), "other.gguf")
    assert "may split words or special tokens otherwise" in caplog.text


def test_commands_take_the_file(parents):
    audio, text, weights, tokenizer = parents
    settings = {"audio": audio, "text": text, "gguf_file": "tiny.gguf", "connector": "stack_mlp"}
    for arguments in (ScriptArguments(dataset=["x"], **settings), EncodeConfig(**settings)):
        model, processor = load_speech_model(arguments)
        assert torch.equal(model.lm_head.weight.float(), torch.tensor(weights["output.weight"]))
        assert processor.audio_token_id == len(tokenizer)
    with pytest.raises(ValueError, match="gguf_file is a file of `text`"):
        ScriptArguments(dataset=["x"], model="m", gguf_file="tiny.gguf")
    llm, read = load_llm(text, gguf_file="tiny.gguf")
    assert isinstance(llm, LlamaForCausalLM) and len(read) == len(tokenizer)


def test_a_file_that_is_not_there_is_named(parents):
    audio, text, _, _ = parents
    with pytest.raises(OSError, match=f"LLM '{text}'.*other.gguf"):
        SpeechLLMForConditionalGeneration.from_parts(audio, text, gguf_file="other.gguf")
