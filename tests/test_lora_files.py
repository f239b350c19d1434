"""LoRA adapters added without PEFT give the weights that PEFT gives; what is not plain LoRA is left to PEFT."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_speechllm.lora_files import add_plain_lora
from modeling_speechllm.parents import merged

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 40,
}
SOME = ["q_proj", "down_proj"]


def llm() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **SIZES)).eval()


@pytest.fixture
def saved(tmp_path):
    """Saves an adapter of given settings whose weights are not zero; returns the folder."""

    def save(**settings):
        adapted = get_peft_model(llm(), LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": SOME} | settings))
        torch.manual_seed(1)
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.3)
        adapted.save_pretrained(tmp_path / "adapter")
        return str(tmp_path / "adapter")

    return save


def by_peft(folder):
    return PeftModel.from_pretrained(llm(), folder).merge_and_unload()


def same(first, second):
    other = second.state_dict()
    return all(torch.allclose(value, other[name], atol=1e-6) for name, value in first.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"target_modules": "all-linear"}, {"init_lora_weights": "gaussian"}])
def test_plain_lora_gives_the_weights_that_peft_gives(saved, settings):
    folder, model = saved(**settings), llm()
    assert add_plain_lora(model, folder)
    assert same(model, by_peft(folder)) and not same(model, llm())


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"target_modules": ["embed_tokens"]},
        {"modules_to_save": ["norm"]},
    ],
)
def test_what_is_not_plain_is_left_to_peft(saved, settings):
    folder, model = saved(**settings), llm()
    assert not add_plain_lora(model, folder) and same(model, llm())
    assert same(merged(model, folder), by_peft(folder))


def test_a_setting_of_a_later_peft_is_left_to_it(saved):
    folder = saved()
    path = Path(folder) / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"use_something_new": True}), encoding="utf-8")
    assert not add_plain_lora(llm(), folder)


def test_an_adapter_of_another_model_changes_nothing(saved):
    folder = saved()
    other = LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, **SIZES | {"intermediate_size": 32}))
    before = copy.deepcopy(other)
    assert not add_plain_lora(other, folder) and same(other, before)


@pytest.mark.slow
def test_peft_is_not_imported_for_it(saved, tmp_path):
    folder = saved()
    llm().save_pretrained(tmp_path / "llm")
    code = (
        "import sys; from modeling_speechllm.parents import load_causal_lm; "
        f"load_causal_lm({str(tmp_path / 'llm')!r}, adapter={folder!r}); print('peft' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout == "False\n", result.stderr


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["plain", "by PEFT"])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_of_a_head_that_is_the_embeddings_is_refused(settings, target, tmp_path):
    """Added to the weight that both are, it would change both."""

    def tied():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, tie_word_embeddings=True, **SIZES)).eval()

    config = LoraConfig(r=4, target_modules=["q_proj", target], **settings)
    get_peft_model(tied(), config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="one weight in this LLM.*tie_word_embeddings=False"):
        merged(tied(), str(tmp_path))
    config = LoraConfig(r=4, target_modules=["q_proj"], **settings)
    get_peft_model(tied(), config).save_pretrained(tmp_path / "other")
    assert merged(tied(), str(tmp_path / "other")) is not None
