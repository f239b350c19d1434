"""LLMs in 8 and 4 bits: a connector is trained on them as they are, saved, and loaded with them again."""

import logging
from types import SimpleNamespace

import pytest
import torch
from conftest import random_audio, text_config, whisper_config
from factories_processing import CHATML_MARKED, make_tokenizer
from factories_training import tone_rows
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, WhisperFeatureExtractor, WhisperModel

from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.quantization import quantization_config
from processing_speechllm import SpeechLLMProcessor
from trainers import SpeechImitationConfig, SpeechImitationTrainer
from trainers.checkpoints.lora import lora_config
from trainers.commands.run import name_base

KINDS = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
STACK = {"type": "stack_mlp", "stride": 4}


@pytest.fixture(scope="module")
def parents(tmp_path_factory) -> dict[str, str]:
    """Folders of a tiny encoder and a tiny LLM."""
    folder = tmp_path_factory.mktemp("parents")
    names = {"audio": str(folder / "audio"), "text": str(folder / "text")}
    tokenizer = make_tokenizer(CHATML_MARKED)
    tokenizer.pad_token = "<|im_start|>"
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128}
    LlamaForCausalLM(text_config(pad_token_id=tokenizer.pad_token_id, **sizes)).save_pretrained(names["text"])
    tokenizer.save_pretrained(names["text"])
    WhisperModel(whisper_config(num_mel_bins=80, max_source_positions=100)).save_pretrained(names["audio"])
    WhisperFeatureExtractor(feature_size=80).save_pretrained(names["audio"])
    return names


def quantized(parents, kind) -> SpeechLLMForConditionalGeneration:
    torch.manual_seed(0)
    return SpeechLLMForConditionalGeneration.from_parts(
        **parents, connector=STACK, quantization_config=quantization_config(kind), dtype=torch.float32
    )


def trainer_of(model, parents, folder, peft_config=None, **settings) -> SpeechImitationTrainer:
    settings = {
        **{"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2},
        **{"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "divergence_weight": 0.5},
        **{"gradient_checkpointing": False, "lr_scheduler_type": "constant"} | settings,
    }
    args = SpeechImitationConfig(str(folder), **settings)
    processor = SpeechLLMProcessor.from_parts(**parents, config=model.config)
    rows = tone_rows(answered=True)
    data = {"train_dataset": rows, "eval_dataset": rows if args.eval_strategy != "no" else None}
    return SpeechImitationTrainer(model, args, processing_class=processor, peft_config=peft_config, **data)


def linear_types(module) -> set[str]:
    return {type(part).__name__ for part in module.modules() if isinstance(part, torch.nn.Linear)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_connector_trains_on_a_quantized_llm_and_comes_back_with_it(kind, parents, tmp_path):
    model = quantized(parents, kind)
    assert linear_types(model.model.language_model) == {KINDS[kind]}
    assert linear_types(model.model.audio_tower) | linear_types(model.lm_head) == {"Linear"}
    before = {name: value.detach().clone() for name, value in model.state_dict().items() if "SCB" not in name}
    trainer = trainer_of(model, parents, tmp_path / "run")
    connector = dict(model.model.multi_modal_projector.named_parameters())
    assert all(value.dtype == torch.float32 for value in connector.values())
    for name, value in connector.items():  # not rounded to bf16 on the way
        assert torch.equal(value, before[f"model.multi_modal_projector.{name}"]), name
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    for name, value in model.state_dict().items():
        if "multi_modal_projector" not in name and name in before:
            assert torch.equal(value, before[name]), name
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "trained.safetensors").exists()
    again = SpeechLLMForConditionalGeneration.from_pretrained(
        tmp_path / "saved", quantization_config=quantization_config(kind), dtype=torch.float32
    )
    features, mask = random_audio(model, [80, 33])
    tokens = model.eval().get_audio_features(features, mask).pooler_output
    torch.testing.assert_close(again.get_audio_features(features, mask).pooler_output, tokens, rtol=0, atol=0)
    ids = torch.arange(8)[None]
    # 4 bits: some CPUs have a kernel for inference, which computes in bfloat16
    tolerance = 0.0 if kind == "8bit" else 0.05
    torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=tolerance)
    plain = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert linear_types(plain.model.language_model) == {"Linear"}  # quantisation is a way of loading


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_whole_checkpoint_the_llm_alone_is_quantized(kind, parents, tmp_path):
    model = SpeechLLMForConditionalGeneration.from_parts(**parents, connector=STACK)
    model.save_pretrained(tmp_path)
    again = SpeechLLMForConditionalGeneration.from_pretrained(
        tmp_path, quantization_config=quantization_config(kind, whole=True)
    )
    assert linear_types(again.model.language_model) == {KINDS[kind]}
    assert linear_types(again.model.audio_tower) == linear_types(again.model.multi_modal_projector) == {"Linear"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_quantized_checkpoint_takes_its_best_weights_and_is_trained_on(kind, parents, tmp_path):
    SpeechLLMForConditionalGeneration.from_parts(**parents, connector=STACK).save_pretrained(tmp_path / "whole")
    model = SpeechLLMForConditionalGeneration.from_pretrained(
        tmp_path / "whole", quantization_config=quantization_config(kind, whole=True), dtype=torch.float32
    )
    model.config.parents = None  # as of a model whose parents nobody knows: checkpoints are whole
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(model, parents, tmp_path / "run", load_best_model_at_end=True, **saving)
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    for name, value in model.model.multi_modal_projector.named_parameters():
        assert torch.equal(value, best[f"model.multi_modal_projector.{name}"])
    trainer.save_model(str(tmp_path / "trained"))
    again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "trained", dtype=torch.float32)
    assert linear_types(again.model.language_model) == {KINDS[kind]}
    ids = torch.arange(8)[None]
    expected = model.eval()(input_ids=ids).logits
    trainer_of(again, parents, tmp_path / "on", max_steps=1, learning_rate=0.0).train()
    again.save_pretrained(tmp_path / "twice")  # a model that was loaded quantised
    twice = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "twice", dtype=torch.float32)
    tolerance = 0.0 if kind == "8bit" else 0.05
    torch.testing.assert_close(twice(input_ids=ids).logits, expected, rtol=0, atol=tolerance)


def test_lora_on_a_quantized_llm_is_held_in_float32(parents, tmp_path):
    model = quantized(parents, "4bit")
    trainer = trainer_of(model, parents, tmp_path, lora_config(model, ["llm"], rank=2), max_steps=2)
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert any("lora_" in name for name in trained) and any("multi_modal_projector" in name for name in trained)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    trainer.train()


def test_adapters_on_a_composed_quantized_llm_name_a_base_that_loads(parents, tmp_path):
    model = quantized(parents, "4bit")
    trained_with = SpeechLLMProcessor.from_parts(**parents, config=model.config)
    name_base(SimpleNamespace(output_dir=str(tmp_path), process_index=0), model, trained_with)
    trainer = trainer_of(model, parents, tmp_path, lora_config(model, ["llm"], rank=2), max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    settings = PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert settings.base_model_name_or_path == str(tmp_path / "base")
    base = SpeechLLMForConditionalGeneration.from_pretrained(settings.base_model_name_or_path, dtype=torch.float32)
    found = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).state_dict()
    expected = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert expected and all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_cannot_be_quantized_or_trained_says_so(parents, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="quantization='3bit' is not one of 8bit, 4bit"):
        quantization_config("3bit")
    with pytest.raises(ValueError, match="A quantised LLM cannot be trained in full"):
        trainer_of(quantized(parents, "8bit"), parents, tmp_path, train_groups=["llm"], divergence_weight=0.0)
    monkeypatch.setattr("modeling_speechllm.quantization.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "speechllm\[quantization\]"'):
        quantization_config("8bit")


def test_what_bitsandbytes_says_of_every_product_is_said_once(caplog):
    quantization_config("8bit")
    quantization_config("8bit")
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    with caplog.at_level(logging.WARNING, logger=logger.name):
        for number in (1, 1, 2, 1):
            logger.warning("inputs of layer %s will be cast", number)
    assert [record.getMessage()[:17] for record in caplog.records] == ["inputs of layer 1", "inputs of layer 2"]
