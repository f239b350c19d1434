"""An LLM in a GGUF file as a parent: its weights, its tokenizer, and finding both again."""

import json

import gguf
import pytest
import torch
from conftest import random_audio, scatter_weights, whisper_config
from factories_gguf import gguf_config, write_gguf
from factories_processing import CHATML, make_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_modeling import prompt
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    LlamaConfig,
    LlamaForCausalLM,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    pipeline,
)

import speechllm
from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.gguf_files import quick_reader
from modeling_speechllm.parents import load_causal_lm
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


def test_a_file_is_read_quicker_and_gives_what_transformers_gives(parents, monkeypatch):
    _, text, _, _ = parents
    own = AutoModelForCausalLM.from_pretrained(text, gguf_file="tiny.gguf", dtype=torch.float32)
    names, reads = [], []
    get_names, fields = gguf.get_tensor_name_map, gguf.GGUFReader._build_fields
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *of: names.append(of) or get_names(*of))
    monkeypatch.setattr(gguf.GGUFReader, "_build_fields", lambda *of: reads.append(of) or fields(*of))
    quick = load_causal_lm(text, own.config, gguf_file="tiny.gguf", dtype=torch.float32)
    assert len(names) == len(reads) == 1  # of 2 + 20 modules, of config and weights
    assert quick.config.to_dict() | {"quantization_config": own.config.to_dict()["quantization_config"]} == (
        own.config.to_dict()
    )
    assert quick.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in quick.state_dict().items())


def test_the_quick_reader_takes_a_file_apart_as_gguf_s_own(parents):
    path = f"{parents[1]}/tiny.gguf"
    own, quick = gguf.GGUFReader(path), quick_reader()(path)
    assert list(quick.fields) == list(own.fields) and quick.data_offset == own.data_offset
    for name, field in own.fields.items():
        found = quick.fields[name]
        assert (found.offset, found.types, found.data) == (field.offset, field.types, field.data)
        assert [(part.dtype, part.tobytes()) for part in found.parts] == [
            (part.dtype, part.tobytes()) for part in field.parts
        ]


def test_an_adapter_of_the_llm_is_merged_recorded_and_found_again(parents, tmp_path):
    audio, text, _, _ = parents
    folder = tmp_path / "trained"
    adapted = get_peft_model(
        load_causal_lm(text, gguf_file="tiny.gguf", dtype=torch.float32),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(folder / "adapter")
    model = SpeechLLMForConditionalGeneration.from_parts(
        audio, text, gguf_file="tiny.gguf", text_adapter=folder / "adapter", dtype=torch.float32
    )
    expected = adapted.merge_and_unload().state_dict()
    query = model.model.language_model.layers[1].self_attn.q_proj.weight
    assert torch.equal(query, expected["model.layers.1.self_attn.q_proj.weight"])
    assert not torch.allclose(query, joined(audio, text).model.language_model.layers[1].self_attn.q_proj.weight)
    model.save_pretrained(folder, trained_only=True)  # the LLM with its adapter is the parent, and is not saved
    assert {key.split(".")[1] for key in load_file(folder / "trained.safetensors")} == {"multi_modal_projector"}
    assert json.loads((folder / "config.json").read_text())["parents"]["text"]["adapter"] == "./adapter"
    moved = folder.rename(tmp_path / "moved")
    assert torch.equal(answer(SpeechLLMForConditionalGeneration.from_pretrained(moved)), answer(model))


def test_an_adapter_that_does_not_fit_is_named(parents, tmp_path):
    audio, text, _, _ = parents
    with pytest.raises(OSError, match="Adapter .*nowhere"):
        SpeechLLMForConditionalGeneration.from_parts(audio, text, gguf_file="tiny.gguf", text_adapter="./nowhere")
    wide = LlamaForCausalLM(LlamaConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
    get_peft_model(wide, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match="Adapter .*wide.* does not fit"):
        SpeechLLMForConditionalGeneration.from_parts(
            audio, text, gguf_file="tiny.gguf", text_adapter=tmp_path / "wide"
        )
    llm = load_causal_lm(text, gguf_file="tiny.gguf")
    with pytest.raises(TypeError, match="text_adapter: arguments of loading"):
        SpeechLLMForConditionalGeneration.from_parts(audio, llm, text_adapter=tmp_path / "wide")
