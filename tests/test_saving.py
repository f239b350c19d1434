"""Checkpoints: whole ones, the trained part alone, and loudness about every key."""

import json

import pytest
import torch
from conftest import VOCABULARY, random_audio, scatter_weights, text_config, tiny_speechllm, whisper_config
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperForConditionalGeneration,
)

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration, SpeechLLMModel
from modeling_speechllm import parents as parents_of_models


@pytest.fixture
def parents(tmp_path):
    """Folders of a whole Whisper checkpoint and of a small LLM with its tokenizer."""
    scatter_weights(WhisperForConditionalGeneration(whisper_config()), 1).save_pretrained(tmp_path / "whisper")
    scatter_weights(LlamaForCausalLM(text_config()), 2).save_pretrained(tmp_path / "llm")
    vocabulary = {f"w{i}": i for i in range(VOCABULARY - 2)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w3")))
    tokenizer.save_pretrained(tmp_path / "llm")
    return str(tmp_path / "whisper"), str(tmp_path / "llm")


def answer(model):
    features, mask = random_audio(model, [16])
    ids = torch.tensor([[5, model.config.audio_token_id, model.config.audio_token_id, 6]])
    model = model if hasattr(model, "model") else model
    output = model(input_ids=ids, input_features=features, input_features_mask=mask)
    return output.logits if "logits" in output else output.last_hidden_state


def test_from_parts_takes_folders_and_freezes_the_parents(parents):
    audio, text = parents
    model = SpeechLLMForConditionalGeneration.from_parts(audio=audio, text=text)
    assert (model.config.connector["type"], model.config.connector["stride"]) == ("stack_mlp", 8)
    assert model.config.audio_token_id == VOCABULARY - 2  # the first id after the tokenizer's
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {"multi_modal_projector"}
    assert model.config.parents == {"audio": {"id": audio, "revision": None}, "text": {"id": text, "revision": None}}
    llm = AutoModelForCausalLM.from_pretrained(text)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=ids).logits, llm(input_ids=ids).logits)
    half = SpeechLLMForConditionalGeneration.from_parts(
        audio=audio, text=text, connector={"stride": 4}, dtype=torch.bfloat16
    )
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert answer(half).dtype == torch.bfloat16


def test_from_parts_passes_loading_arguments_on(parents, monkeypatch):
    seen, load = {}, AutoModelForCausalLM.from_pretrained

    def spy(*args, **kwargs):
        seen.update(kwargs)
        kwargs.pop("quantization_config")
        return load(*args, **kwargs)

    monkeypatch.setattr(parents_of_models.AutoModelForCausalLM, "from_pretrained", spy)
    quantization = {"quant_method": "a method"}
    model = SpeechLLMForConditionalGeneration.from_parts(
        *parents,
        torch_dtype="bfloat16",
        device_map={"": "cpu"},
        quantization_config=quantization,
        attn_implementation={"audio_config": "eager", "text_config": "sdpa"},
    )
    assert seen["quantization_config"] is quantization and seen["device_map"] == {"": "cpu"}
    assert model.dtype == torch.bfloat16 and model.device == torch.device("cpu")
    assert model.config.audio_config._attn_implementation == "eager"
    assert model.config.text_config._attn_implementation == "sdpa"


def test_whole_round_trip_through_every_auto_class(tmp_path):
    model = tiny_speechllm()
    model.save_pretrained(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".safetensors"]
    expected = answer(model)
    for auto in (AutoModelForMultimodalLM, AutoModelForCausalLM):
        reloaded = auto.from_pretrained(tmp_path)
        assert isinstance(reloaded, SpeechLLMForConditionalGeneration)
        assert torch.equal(answer(reloaded), expected)
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, SpeechLLMModel)
    assert torch.equal(
        base.language_model.layers[0].mlp.up_proj.weight, model.model.language_model.layers[0].mlp.up_proj.weight
    )


@pytest.mark.parametrize("groups", [("connector",), ("connector", "encoder"), ("connector", "llm")])
def test_trained_part_alone_merges_with_its_parents(parents, tmp_path, groups):
    model = SpeechLLMForConditionalGeneration.from_parts(*parents, connector={"type": "stack_mlp", "stride": 4})
    model.unfreeze(*groups)
    for number, group in enumerate(groups):
        for module in model.group_modules()[group]:
            scatter_weights(module, seed=10 + number)
    folder = tmp_path / "trained"
    model.save_pretrained(folder, trained_only=True)
    saved = load_file(folder / "trained.safetensors")
    assert ("encoder" in groups) == any("audio_tower" in key for key in saved)
    assert ("llm" in groups) == any("language_model" in key for key in saved)
    assert not (folder / "model.safetensors").exists()
    expected = answer(model)
    for load in (SpeechLLMForConditionalGeneration, AutoModelForMultimodalLM, AutoModelForCausalLM):
        assert torch.equal(answer(load.from_pretrained(folder)), expected)
    assert isinstance(AutoModel.from_pretrained(folder), SpeechLLMModel)
    half = SpeechLLMForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    names = json.loads((folder / "config.json").read_text())
    assert [part["id"] for part in names.pop("parents").values()] == list(parents)
    assert str(tmp_path) not in json.dumps(names)  # no other word of where the parts lay
    # A whole checkpoint of the merged model needs its parents no more.
    SpeechLLMForConditionalGeneration.from_pretrained(folder).save_pretrained(tmp_path / "whole")
    assert torch.equal(answer(AutoModelForMultimodalLM.from_pretrained(tmp_path / "whole")), expected)


def edit(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


NORM = "model.multi_modal_projector.norm.weight"
CHANGES = {
    "missing": (lambda state: state.pop(NORM), rf"is missing 1 weights \({NORM}\)"),
    "unexpected": (lambda state: state.update(stray=torch.zeros(1)), r"has unexpected 1 weights \(stray\)"),
    "mismatched": (lambda state: state.update({NORM: torch.zeros(3)}), rf"has wrongly shaped 1 weights \({NORM}\)"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("kind", ["whole", "trained"])
def test_wrong_keys_are_refused_by_name(parents, tmp_path, kind, what):
    model = SpeechLLMForConditionalGeneration.from_parts(*parents)
    model.save_pretrained(tmp_path / "c", trained_only=kind == "trained")
    change, message = CHANGES[what]
    edit(tmp_path / "c" / ("model.safetensors" if kind == "whole" else "trained.safetensors"), change)
    for load in (AutoModelForMultimodalLM, SpeechLLMForConditionalGeneration):
        with pytest.raises(ValueError, match=message + ".*Use a complete checkpoint that matches its config.json"):
            load.from_pretrained(tmp_path / "c")


def test_an_incomplete_parent_is_refused(parents):
    audio, text = parents
    edit(f"{audio}/model.safetensors", lambda state: state.pop("model.encoder.conv1.weight"))
    with pytest.raises(ValueError, match="lacks 1 encoder weights, the first: conv1.weight"):
        SpeechLLMForConditionalGeneration.from_parts(audio, text)


def test_trained_only_needs_parents():
    with pytest.raises(ValueError, match="parents are unknown.*from_parts"):
        tiny_speechllm().save_pretrained("nowhere", trained_only=True)


def test_no_tokenizer_asks_for_the_placeholder_id(parents, tmp_path):
    LlamaForCausalLM(text_config()).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="No tokenizer was found.*Pass audio_token_id"):
        SpeechLLMForConditionalGeneration.from_parts(parents[0], str(tmp_path / "bare"))
    model = SpeechLLMForConditionalGeneration.from_parts(parents[0], str(tmp_path / "bare"), audio_token_id=63)
    assert model.config.audio_token_id == 63


def test_config_errors_name_finding_and_remedy(tmp_path):
    whisper, llama = whisper_config(), text_config()
    with pytest.raises(ValueError, match="Unknown connector 'magic'. Known connectors: .*stack_mlp"):
        SpeechLLMConfig.from_parts(whisper, llama, {"type": "magic"})
    with pytest.raises(ValueError, match="Connector 'stack_mlp' has no setting strid. Its settings: .*stride"):
        SpeechLLMConfig.from_parts(whisper, llama, {"type": "stack_mlp", "strid": 4})
    with pytest.raises(ValueError, match="stride=4, width=2 would skip frames. Use .*width >= stride"):
        SpeechLLMConfig.from_parts(whisper, llama, {"type": "stack_mlp", "stride": 4, "width": 2})
    with pytest.raises(ValueError, match="No audio tower for model type 'llama'. Supported families: whisper"):
        SpeechLLMConfig(audio_config=llama, text_config=llama)
    with pytest.raises(ValueError, match="'hubert' has no window to pad to. Leave it False"):
        SpeechLLMConfig(audio_config={"model_type": "hubert"}, text_config=llama, pad_to_window=True)
    with pytest.raises(ValueError, match="audio_window=21 frames must be from 1 to 20"):
        SpeechLLMConfig.from_parts(whisper, llama, audio_window=21)
    SpeechLLMConfig.from_parts(whisper, llama).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"conector": {}}))
    with pytest.raises(ValueError, match="no field conector. Its fields: .*connector.*Remove or correct"):
        SpeechLLMConfig.from_pretrained(tmp_path)


def test_config_round_trip_keeps_everything(tmp_path):
    config = SpeechLLMConfig.from_parts(
        whisper_config(), text_config(), {"stride": 3, "width": 5}, audio_token_id=7, audio_window=10
    )
    config.save_pretrained(tmp_path)
    again = SpeechLLMConfig.from_pretrained(tmp_path)
    assert again.connector == config.connector and again.connector["width"] == 5
    assert again.audio_stages == config.audio_stages and again.connector_stages == config.connector_stages
    assert (again.audio_token_id, again.audio_window, again.audio_window_inputs) == (7, 10, 20)
    assert again.to_dict() == config.to_dict()
