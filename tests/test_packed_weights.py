"""Trained parts in fewer bits: what is lost is bounded, what is left out comes back."""

import shutil

import pytest
import torch
from conftest import random_audio, scatter_weights, text_config, whisper_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, WhisperForConditionalGeneration

from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.packed_weights import pack, unpack

TABLE = "model.multi_modal_projector.table.weight"


def test_eight_bits_lose_at_most_half_a_step():
    torch.manual_seed(0)
    weights = {"a": torch.randn(7, 5, 3) * 3, "b": torch.zeros(40, 2), "norm": torch.randn(9), "ids": torch.arange(4)}
    weights["b"][0, 0] = -2.0
    packed = pack(weights, "int8")
    assert packed["a"].dtype == torch.int8 and packed["a.scales"].shape == (4,)  # of 105 values
    found = unpack(packed)
    assert found.keys() == weights.keys()
    assert torch.equal(found["norm"], weights["norm"]) and torch.equal(found["ids"], weights["ids"])
    assert (found["b"] != 0).sum() == 1 and found["b"][0, 0] == pytest.approx(-2.0, rel=1e-3)
    flat, error = weights["a"].flatten(), (found["a"] - weights["a"]).flatten().abs()
    for start in range(0, 105, 32):
        largest = flat[start : start + 32].abs().max()
        assert error[start : start + 32].max() <= largest / 254 + largest * 1e-3  # scales have eleven bits
    assert error.max() > 0


@pytest.mark.parametrize(("storage", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("largest", [1e-3, 1e-5, 1e-7])
def test_small_weights_lose_no_more_than_others(storage, bits, largest):
    torch.manual_seed(0)
    weight = torch.randn(8, 32)
    weight *= largest / weight.abs().amax(1, keepdim=True)
    error = (unpack(pack({"a": weight}, storage))["a"] - weight).abs().max()
    assert 0 < error <= 0.51 * largest / (2 ** (bits - 1) - 1)


@pytest.mark.parametrize(("storage", "bits"), [("int8", 8), ("int6", 6), ("int5", 5), ("int4", 4)])
def test_fewer_bits_lose_half_a_step_of_theirs(storage, bits):
    torch.manual_seed(0)
    weight = torch.randn(33, 7)  # bits of one value lie in two bytes
    assert unpack(pack({"one": weight[:1, :1]}, storage))["one"].item() == pytest.approx(weight[0, 0].item(), rel=1e-3)
    packed = pack({"a": weight}, storage)
    assert packed["a"].numel() == -(-weight.numel() * bits // 8)
    blocks = torch.nn.functional.pad(weight.flatten(), (0, 25)).view(-1, 32)
    step = (blocks.abs().amax(1) / (2 ** (bits - 1) - 1)).repeat_interleave(32)[:231].view(33, 7)
    error = (unpack(packed)["a"] - weight).abs()
    assert (error <= step * 0.51).all() and error.max() > 0.4 * step.max()
    again = unpack(pack(unpack(packed), storage))["a"]
    torch.testing.assert_close(again, unpack(packed)["a"], atol=1e-3, rtol=1e-3)  # what it can hold, it holds


def test_half_precision_and_what_it_cannot_hold():
    weights = {"a": torch.tensor([[1.0 + 2**-12]]), "ids": torch.arange(2)}
    assert unpack(pack(weights, "float16"))["a"].tolist() == [[1.0]]
    for storage in ("float16", "int8"):
        with pytest.raises(ValueError, match="big has values that"):
            pack({"big": torch.full((2, 2), 1e9)}, storage)
    with pytest.raises(ValueError, match="storage='int3' is not one of float16, bfloat16, int8, int6"):
        pack(weights, "int3")


@pytest.fixture
def model(tmp_path):
    """A SpeechLLM with a reading connector between parents in folders."""
    scatter_weights(LlamaForCausalLM(text_config()), 2).save_pretrained(tmp_path / "llm")
    scatter_weights(WhisperForConditionalGeneration(whisper_config()), 1).save_pretrained(tmp_path / "whisper")
    connector = {"type": "ctc_compress", "vocabulary": 12, "hidden_size": 16, "ffn_size": 32, "heads": 2, "blocks": 1}
    model = SpeechLLMForConditionalGeneration.from_parts(
        tmp_path / "whisper", tmp_path / "llm", connector, audio_token_id=64, dtype=torch.float32
    )
    projector = scatter_weights(model.model.multi_modal_projector, 3)
    projector.load_vocabulary(torch.arange(5, 17), model.get_input_embeddings().weight)
    return model


def frames(model):
    features, mask = random_audio(model, [40])
    with torch.no_grad():
        return model.get_audio_features(features, mask)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_a_trained_part_is_stored_in_fewer_bits_and_computed_in_as_many(model, tmp_path, storage):
    model.save_pretrained(tmp_path / "whole", trained_only=True)
    model.save_pretrained(tmp_path / "packed", trained_only=True, storage=storage)
    whole, packed = (tmp_path / name / "trained.safetensors" for name in ("whole", "packed"))
    assert packed.stat().st_size < 0.7 * whole.stat().st_size
    assert TABLE in load_file(whole) and TABLE not in load_file(packed)
    again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "packed")
    assert again.dtype == again.model.multi_modal_projector.table.weight.dtype == torch.float32
    assert torch.equal(again.state_dict()[TABLE], model.state_dict()[TABLE])
    logits, expected = frames(again).connector.ctc_logits, frames(model).connector.ctc_logits
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, atol=0.05, rtol=0.05)


def test_a_table_that_was_trained_is_kept(model, tmp_path):
    with torch.no_grad():
        model.model.multi_modal_projector.table.weight[3, 2] += 1.0
    model.save_pretrained(tmp_path / "packed", trained_only=True, storage="bfloat16")
    again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "packed")
    expected = model.state_dict()[TABLE]
    torch.testing.assert_close(again.state_dict()[TABLE], expected, atol=0, rtol=2**-8)
    assert not torch.equal(again.state_dict()[TABLE][3], model.get_input_embeddings().weight[8])


def test_an_encoder_that_is_kept_needs_its_parent_no_more(model, tmp_path):
    model.unfreeze("encoder")
    model.save_pretrained(tmp_path / "packed", trained_only=True, storage="float16")
    shutil.rmtree(tmp_path / "whisper")
    again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "packed")
    torch.testing.assert_close(frames(again).last_hidden_state, frames(model).last_hidden_state, atol=1e-2, rtol=1e-2)
    assert again.config.parents["audio"]["id"] == str(tmp_path / "whisper")
    again.save_pretrained(tmp_path / "once_more", trained_only=True)  # still with the encoder
    third = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "once_more")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in third.state_dict().items())


def test_a_key_that_is_lost_is_named(model, tmp_path):
    model.save_pretrained(tmp_path / "packed", trained_only=True, storage="int8")
    file = tmp_path / "packed" / "trained.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    key = "model.multi_modal_projector.head.weight"
    save_file({name: value for name, value in load_file(file).items() if not name.startswith(key)}, file, metadata)
    with pytest.raises(ValueError, match=f"is missing 1 weights .{key}"):
        SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "packed")


def test_a_whole_model_is_not_stored_in_fewer_bits(model, tmp_path):
    with pytest.raises(ValueError, match="storage='int8' is for the trained part. Add trained_only=True"):
        model.save_pretrained(tmp_path / "whole", storage="int8")
