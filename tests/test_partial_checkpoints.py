"""Checkpoints of what differs from the parents: nothing that was changed is lost, nothing asked is dropped."""

import json
import shutil

import pytest
import torch
from conftest import random_audio, scatter_weights, text_config, whisper_config
from factories_processing import make_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    GenerationConfig,
    LlamaForCausalLM,
    WhisperForConditionalGeneration,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_speechllm import SpeechLLMForConditionalGeneration, SpeechLLMModel
from modeling_speechllm.partial_checkpoints import digest

FOR_LOADING = (SpeechLLMForConditionalGeneration, AutoModelForMultimodalLM, AutoModelForCausalLM)


@pytest.fixture
def parents(tmp_path):
    """Folders of a whole Whisper checkpoint and of a small LLM with its tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "llm")
    scatter_weights(LlamaForCausalLM(text_config(vocab_size=len(tokenizer))), 2).save_pretrained(tmp_path / "llm")
    scatter_weights(WhisperForConditionalGeneration(whisper_config()), 1).save_pretrained(tmp_path / "whisper")
    return str(tmp_path / "whisper"), str(tmp_path / "llm")


def joined(parents, **settings):
    torch.manual_seed(0)
    model = SpeechLLMForConditionalGeneration.from_parts(*parents, connector={"stride": 4}, **settings)
    scatter_weights(model.model.multi_modal_projector, 3)
    return model


def answer(model):
    features, mask = random_audio(model, [16])
    ids = torch.tensor([[5, model.config.audio_token_id, model.config.audio_token_id, 6]])
    with torch.no_grad():
        return model(input_ids=ids, input_features=features, input_features_mask=mask).logits


def saved_groups(folder):
    names = {"audio_tower": "encoder", "multi_modal_projector": "connector", "language_model": "llm"}
    keys = load_file(folder / "trained.safetensors")
    return {names.get(key.split(".")[1], "llm") for key in keys}


def merge_adapter(model):
    peft = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    assert peft.merge_and_unload() is model


def train_and_freeze(model):
    model.unfreeze("llm")
    with torch.no_grad():  # one weight of one row, as little as a step can do
        model.model.language_model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    model.freeze("llm")


def swap_two_rows(model):
    weight = model.model.language_model.get_input_embeddings().weight
    weight.data[[7, 9]] = weight.data[[9, 7]].clone()


def resize(model):
    model.resize_token_embeddings(model.config.text_config.vocab_size + 3)


def train_the_encoder(model):
    model.model.audio_tower.encoder.layers[0].fc1.weight.data.mul_(1.5)


CHANGES = {
    "nothing": (lambda model: None, {"connector"}),
    "frozen connector": (lambda model: model.freeze("connector"), {"connector"}),
    "adapter merged": (merge_adapter, {"connector", "llm"}),
    "trained, then frozen": (train_and_freeze, {"connector", "llm"}),
    "rows swapped": (swap_two_rows, {"connector", "llm"}),
    "resized": (resize, {"connector", "llm"}),
    "encoder": (train_the_encoder, {"connector", "encoder"}),
    "unfrozen": (lambda model: model.unfreeze("llm"), {"connector", "llm"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_all_that_differs_from_the_parents_is_saved_and_nothing_else(parents, tmp_path, what):
    model = joined(parents)
    change, groups = CHANGES[what]
    change(model)
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    assert saved_groups(tmp_path / "trained") == groups
    expected = answer(model)
    for auto in FOR_LOADING:
        assert torch.equal(answer(auto.from_pretrained(tmp_path / "trained")), expected)
    # Saved again after loading it is the same checkpoint: what differs is judged by the parents, not by the last load.
    again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained")
    again.save_pretrained(tmp_path / "again", trained_only=True)
    assert saved_groups(tmp_path / "again") == (groups if what != "unfrozen" else {"connector"})
    assert torch.equal(answer(SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "again")), expected)


def test_a_model_loaded_whole_or_joined_of_objects_is_compared_with_its_parents(parents, tmp_path):
    model = joined(parents)
    model.save_pretrained(tmp_path / "whole")
    whole = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "whole")
    whole.freeze("encoder", "llm")
    whole.save_pretrained(tmp_path / "trained", trained_only=True)
    assert saved_groups(tmp_path / "trained") == {"connector"}
    llm = LlamaForCausalLM.from_pretrained(parents[1])
    llm.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    of_objects = SpeechLLMForConditionalGeneration.from_parts(
        WhisperEncoder.from_pretrained(parents[0]), llm, connector={"stride": 4}
    )
    of_objects.save_pretrained(tmp_path / "objects", trained_only=True)
    # WhisperEncoder alone does not find its weights in a whole checkpoint, so the encoder differs too.
    assert saved_groups(tmp_path / "objects") == {"connector", "encoder", "llm"}
    expected = answer(of_objects)
    assert torch.equal(answer(SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "objects")), expected)


@pytest.mark.parametrize("before, after", [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float32")])
def test_another_precision_alone_is_no_difference(parents, tmp_path, before, after):
    model = joined(parents, dtype=getattr(torch, before)).to(getattr(torch, after))
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    assert saved_groups(tmp_path / "trained") == {"connector"}
    reloaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained")
    assert {parameter.dtype for parameter in reloaded.parameters()} == {getattr(torch, after)}
    model.lm_head.weight.data[5, 7] += 0.25
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    assert saved_groups(tmp_path / "trained") == {"connector", "llm"}


def test_adapters_that_are_not_merged_are_refused(parents, tmp_path):
    model = joined(parents)
    get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj"))
    with pytest.raises(ValueError, match="llm's weights are not named as its parent's.*merge_and_unload"):
        model.save_pretrained(tmp_path / "trained", trained_only=True)


def test_digests_see_every_change_and_no_layout():
    torch.manual_seed(0)
    for tensor in (torch.randn(300, 40), torch.randn(7), torch.randn(()), torch.randn(5, 3).half(), torch.arange(9)):
        known = digest(tensor)
        assert known == digest(tensor.clone())
        if tensor.ndim == 2:
            assert known == digest(tensor.t().contiguous().t())
            rows = tensor[torch.arange(len(tensor)).roll(1)]
            assert known != digest(rows) and known != digest(tensor[:, torch.arange(tensor.shape[1]).roll(1)])
            assert known != digest(tensor.flip(0)) and known != digest(tensor.reshape(-1))
        flat = tensor.clone()
        flat.view(-1)[-1] += 1
        assert known != digest(flat)
    assert digest(torch.empty(3, device="meta")) is None


# --- What loading and saving are asked ---


def test_what_loading_is_asked_reaches_the_model(parents, tmp_path):
    model = joined(parents)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    for auto in FOR_LOADING:
        loaded = auto.from_pretrained(tmp_path / "trained", pad_to_window=True, audio_window=10)
        assert loaded.config.pad_to_window and loaded.model.audio_tower.pad_to_window
        assert (loaded.config.audio_window, loaded.model.audio_tower.window) == (10, 10)
        assert loaded.generation_config.max_new_tokens == 7  # the checkpoint's, not the LLM's
        assert loaded.config.name_or_path == str(tmp_path / "trained")
        given = auto.from_pretrained(tmp_path / "trained", generation_config=GenerationConfig(max_new_tokens=9))
        assert given.generation_config.max_new_tokens == 9
        with pytest.raises(TypeError, match="takes no argument no_such_setting"):
            auto.from_pretrained(tmp_path / "trained", no_such_setting=3)


def test_trust_remote_code_reaches_the_parent(parents, tmp_path):
    """An LLM whose code lies in its folder."""
    model = joined(parents)
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    config = json.loads((tmp_path / "llm" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own_llm.OwnLlama"}
    (tmp_path / "llm" / "config.json").write_text(json.dumps(config))
    (tmp_path / "llm" / "own_llm.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\nclass OwnLlama(LlamaForCausalLM):\n    seen = True\n"
    )
    seen = []
    original = AutoModelForCausalLM.from_pretrained

    class Spy:
        @staticmethod
        def from_pretrained(*args, **kwargs):
            seen.append(kwargs.get("trust_remote_code"))
            return original(*args, **kwargs)

    from modeling_speechllm import parents as module

    module.AutoModelForCausalLM, before = Spy, module.AutoModelForCausalLM
    try:
        SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained", trust_remote_code=True)
    finally:
        module.AutoModelForCausalLM = before
    assert seen == [True]


def test_settings_of_the_llm_come_back_with_the_trained_part(parents, tmp_path):
    model = joined(parents)
    model.config.text_config.pad_token_id = 3
    model.config.text_config.final_logit_softcapping = 5.0
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    loaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained")
    assert loaded.config.text_config.pad_token_id == 3


def test_what_saving_is_asked_is_done(parents, tmp_path, monkeypatch):
    model = joined(parents)
    model.save_pretrained(tmp_path / "none", trained_only=True, is_main_process=False)
    assert not (tmp_path / "none").exists()
    state = {key: value + 1 if "linear_2" in key else value for key, value in model.state_dict().items()}
    settings = {"state_dict": state, "variant": "half", "max_shard_size": "1GB"}
    model.save_pretrained(tmp_path / "other", trained_only=True, **settings)
    assert (tmp_path / "other" / "trained.half.safetensors").exists()
    loaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "other", variant="half")
    key = "model.multi_modal_projector.linear_2.weight"
    assert torch.equal(loaded.state_dict()[key], state[key])
    with pytest.raises(TypeError, match="takes no shard_count without push_to_hub"):
        model.save_pretrained(tmp_path / "other", trained_only=True, shard_count=3)

    from modeling_speechllm import partial_checkpoints

    uploads = []
    monkeypatch.setattr(
        partial_checkpoints, "create_repo", lambda name, **kwargs: type("Repo", (), {"repo_id": f"me/{name}"})
    )
    monkeypatch.setattr(
        model, "_upload_modified_files", lambda folder, repo, stamps, **kwargs: uploads.append((repo, kwargs))
    )
    model.save_pretrained(tmp_path / "up", trained_only=True, push_to_hub=True, commit_message="trained", private=True)
    assert uploads == [("me/up", {"token": None, "commit_message": "trained"})]


def test_a_whole_checkpoint_leaves_no_trained_part_beside_it(parents, tmp_path):
    model = joined(parents)
    model.save_pretrained(tmp_path / "one", trained_only=True)
    model.save_pretrained(tmp_path / "one")
    assert not (tmp_path / "one" / "trained.safetensors").exists()
    assert torch.equal(answer(SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "one")), answer(model))


def test_the_base_model_saves_no_trained_part(parents, tmp_path):
    model = joined(parents)
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    base = SpeechLLMModel.from_pretrained(tmp_path / "trained")
    with pytest.raises(ValueError, match="needs the model with its head"):
        base.save_pretrained(tmp_path / "base", trained_only=True)


# --- Where the parents are ---


def test_parents_are_found_from_any_folder(parents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = joined(("whisper", "./llm"))
    assert [model.config.parents[part]["id"] for part in ("audio", "text")] == list(parents)
    model.save_pretrained("trained", trained_only=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained")
    assert torch.equal(answer(loaded), answer(model))


def test_parents_inside_the_checkpoint_move_with_it(parents, tmp_path):
    folder = tmp_path / "all"
    for name in ("whisper", "llm"):
        shutil.move(tmp_path / name, folder / name)
    model = joined((folder / "whisper", folder / "llm"))
    model.save_pretrained(folder, trained_only=True)
    written = json.loads((folder / "config.json").read_text())["parents"]
    assert [written[part]["id"] for part in ("audio", "text")] == ["./whisper", "./llm"]
    shutil.move(folder, tmp_path / "moved")
    loaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "moved")
    assert torch.equal(answer(loaded), answer(model))
    assert loaded.config.parents["text"]["id"] == str(tmp_path / "moved" / "llm")


def test_a_parent_that_is_gone_is_named(parents, tmp_path):
    joined(parents).save_pretrained(tmp_path / "trained", trained_only=True)
    shutil.move(tmp_path / "llm", tmp_path / "renamed")
    for auto in FOR_LOADING:
        with pytest.raises(OSError, match=f"LLM '{parents[1]}': there is no such folder.*Correct the path"):
            auto.from_pretrained(tmp_path / "trained")
    shutil.move(tmp_path / "renamed", tmp_path / "llm")
    shutil.move(tmp_path / "whisper", tmp_path / "renamed")
    with pytest.raises(OSError, match=f"Speech encoder '{parents[0]}': there is no such folder"):
        SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained")


@pytest.mark.parametrize("name", ["whispr", "./whispr", "me/whispr"])
def test_a_mistyped_name_is_named(parents, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for audio, text, what in ((name, parents[1], "Speech encoder"), (parents[0], name, "LLM")):
        with pytest.raises(OSError, match=f"^{what} '{name}'.*no such folder.*Correct the"):
            SpeechLLMForConditionalGeneration.from_parts(audio, text)
    with pytest.raises(OSError, match=f"^SpeechLLM '{name}'.*no such folder.*Correct the"):
        SpeechLLMForConditionalGeneration.from_pretrained(name)
    with pytest.raises(OSError, match=f"^Whisper decoder '{name}'.*no such folder"):
        connector = {"type": "whisper_qformer", "decoder": name}
        SpeechLLMForConditionalGeneration.from_parts(*parents, connector=connector)


DAMAGES = {
    "trained.safetensors": "trained' could not be loaded: a file of its weights is damaged .* download it again",
    "generation_config.json": "generation_config.json' is not a valid JSON file",
    "config.json": "config.json' is not a valid JSON file",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_half_a_file_is_named(parents, tmp_path, name):
    joined(parents).save_pretrained(tmp_path / "trained", trained_only=True)
    file = tmp_path / "trained" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(OSError, match=DAMAGES[name]):
        SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained")


def test_half_a_file_of_a_whole_checkpoint_or_a_parent_is_named(parents, tmp_path):
    model = joined(parents)
    model.save_pretrained(tmp_path / "trained", trained_only=True)
    model.save_pretrained(tmp_path / "whole")
    for folder in (tmp_path / "whole", tmp_path / "llm"):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:5000])
    for folder, named in (("whole", "SpeechLLM .*whole'"), ("trained", "LLM .*llm'")):
        with pytest.raises(OSError, match=f"^{named} could not be loaded: a file of its weights is damaged"):
            SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / folder)


def test_an_adapter_of_a_loaded_model_names_it(parents, tmp_path):
    """So that Auto classes and PEFT's own find the model again from the adapter's folder."""
    joined(parents).save_pretrained(tmp_path / "trained", trained_only=True)
    model = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained")
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "trained")


@pytest.mark.parametrize("trained_only", [True, False])
def test_a_folder_without_a_config_is_refused(parents, tmp_path, trained_only):
    """transformers would take the defaults, a model of 7 billion random weights."""
    joined(parents).save_pretrained(tmp_path / "trained", trained_only=trained_only)
    (tmp_path / "trained" / "config.json").unlink()
    with pytest.raises(OSError, match="there is no config.json in .* Give the folder that save_pretrained wrote"):
        SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained")
