"""Ordinary fine-tuning with transformers' Trainer and PEFT works on a SpeechLLM, and resumes."""

import pytest
import torch
from conftest import random_audio, tiny_speechllm
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForMultimodalLM, Trainer, TrainingArguments

from modeling_speechllm import SpeechLLMForConditionalGeneration


def rows(model, count=8):
    """Prompts of two audio tokens and a fixed answer."""
    token = model.config.audio_token_id
    features, mask = random_audio(model, [16] * count)
    ids = torch.tensor([5, token, token, 6, 7, 8])
    labels = torch.tensor([-100, -100, -100, -100, 7, 8])
    return [
        {"input_ids": ids, "labels": labels, "input_features": features[i], "input_features_mask": mask[i]}
        for i in range(count)
    ]


def trainer(model, folder, **settings):
    settings = {"max_steps": 6, "save_steps": 3, "learning_rate": 1e-2, "logging_steps": 1} | settings
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        save_only_model=False,
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    return Trainer(model, arguments, train_dataset=rows(model))


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_the_trainer_learns_saves_and_resumes_to_the_same_losses(tmp_path):
    model = tiny_speechllm()
    model.freeze("encoder", "llm")
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    unbroken = trainer(model, tmp_path / "run")
    unbroken.train()
    assert losses(unbroken)[-1] < losses(unbroken)[0]
    for name, parameter in model.named_parameters():
        trained, old = before[name]
        assert torch.equal(parameter, old) != trained, name

    again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "run" / "checkpoint-3")
    again.freeze("encoder", "llm")
    resumed = trainer(again, tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert losses(resumed) == pytest.approx(losses(unbroken), abs=1e-6)


@pytest.mark.parametrize("target", [r".*language_model.*\.(q_proj|v_proj)", r".*audio_tower.*\.(q_proj|v_proj)"])
def test_lora_on_any_part_reloads_exactly(tmp_path, target):
    model = tiny_speechllm()
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(
        SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "base"),
        LoraConfig(r=2, target_modules=target, modules_to_save=["multi_modal_projector"], init_lora_weights=False),
    )
    features, mask = random_audio(model, [16])
    inputs = {"input_ids": torch.tensor([[5, 64, 64, 6]]), "input_features": features, "input_features_mask": mask}
    adapted.eval()
    expected = adapted(**inputs).logits
    assert not torch.allclose(expected, model(**inputs).logits)
    adapted.save_pretrained(tmp_path / "adapter")
    base = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "base")
    assert torch.equal(PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(**inputs).logits, expected)
    for load in (AutoModelForMultimodalLM, SpeechLLMForConditionalGeneration):
        assert torch.equal(load.from_pretrained(tmp_path / "adapter").eval()(**inputs).logits, expected)
