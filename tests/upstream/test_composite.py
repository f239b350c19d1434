"""What transformers' common model tests ask of a composite model, stated for ours: dispatch of attention, devices,
plans and tied weights, and outputs that its Trainer can gather."""

import json

import pytest
import torch
from conftest import AUDIO_CONFIGS, VOCABULARY, positions, random_audio, text_config, tiny_speechllm
from peft import LoraConfig, get_peft_model
from test_modeling import prompt
from transformers import (
    GPT2Config,
    JetMoeConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Trainer,
    TrainingArguments,
)

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration

CLOSE = {"rtol": 0, "atol": 2e-5}
CONNECTORS = {
    "stack_mlp": {"type": "stack_mlp", "stride": 4, "layers": [0, 2]},
    "conv": {"type": "conv", "bottleneck_size": 8},
    "window_qformer": {
        **{"type": "window_qformer", "width": 4, "queries": 2, "hidden_size": 16, "heads": 2, "ffn_size": 16}
    },
    "conformer_ctc": {
        **{"type": "conformer_ctc", "reduced_size": 8, "channels": 2, "hidden_size": 16, "blocks": 3, "heads": 2},
        **{"ffn_size": 16, "gating_size": 16, "kernel": 3, "languages": 3, "language_block": 1},
    },
    "whisper_qformer": {
        **{"type": "whisper_qformer", "queries": 4, "decoder_layers": 1, "heads": 2, "languages": ["en", "zh"]},
        **{"gate": "conv", "gate_size": 8},
    },
}
MIXTURES = {
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "jetmoe": lambda: JetMoeConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, kv_channels=8),
}
SIZES = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


def inputs_of(model, lengths=(16, 90)):
    features, mask = random_audio(model, list(lengths))
    input_ids = torch.tensor([prompt(model, list(lengths))])
    return {"input_ids": input_ids, "input_features": features, "input_features_mask": mask}


# --- Attention ---


@pytest.mark.parametrize("name", ["window_qformer", "whisper_qformer"])
def test_attention_reaches_every_part_at_loading_and_later(name, tmp_path):
    model = tiny_speechllm(connector=CONNECTORS[name])
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)

    def of_the_connector(model):
        connector = model.model.multi_modal_projector
        config = connector.qformer.config if name == "window_qformer" else connector.decoder_config
        return config._attn_implementation

    assert of_the_connector(model) == "sdpa"
    eager = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    mixed = {"audio_config": "sdpa", "text_config": "eager", "": "eager"}
    mixed = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=mixed)
    model.set_attn_implementation("eager")
    for other in (eager, mixed, model):
        assert of_the_connector(other) == other.config.text_config._attn_implementation == "eager"
        torch.testing.assert_close(other(**inputs).logits, expected, **CLOSE)
    of_encoders = [part.config.audio_config._attn_implementation for part in (eager, mixed, model)]
    assert of_encoders == ["eager", "sdpa", "eager"]
    model.set_attn_implementation({"": "sdpa"})
    assert of_the_connector(model) == "sdpa" and model.config.text_config._attn_implementation == "eager"


# --- Audio features ---


@pytest.mark.parametrize("name", ["whisper", "wav2vec2-layer-norm", "parakeet", "qwen2-audio"])
@pytest.mark.parametrize("layers", [None, [0, 2]])
def test_audio_features_give_the_encoder_s_layers(name, layers):
    model = tiny_speechllm(name, connector={"type": "stack_mlp", "stride": 4, "layers": layers})
    features, mask = random_audio(model, positions(name, 9, 50))
    plain = model.get_audio_features(features, mask)
    assert plain.hidden_states is None
    full = model.get_audio_features(features, mask, output_hidden_states=True)
    torch.testing.assert_close(full.pooler_output, plain.pooler_output, **CLOSE)
    assert len(full.hidden_states) == 3
    last = model.model.audio_tower(features, mask).last_hidden_state
    torch.testing.assert_close(full.hidden_states[-1], last, **CLOSE)
    with pytest.raises(ValueError, match="no attentions.*call model.audio_tower.encoder"):
        model.get_audio_features(features, mask, output_attentions=True)
    as_tuple = model.get_audio_features(features, mask, return_dict=False)
    assert isinstance(as_tuple, tuple)


# --- Devices ---


@pytest.mark.parametrize("name", CONNECTORS)
def test_an_offloaded_model_gives_the_same(name, tmp_path):
    model = tiny_speechllm(connector=CONNECTORS[name], audio_token_id=3)
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    ctc = model.model.get_ctc_logits(inputs["input_features"], inputs["input_features_mask"]).logits
    model.save_pretrained(tmp_path / "model")
    for place in ("model.multi_modal_projector", "model.audio_tower", "model.language_model", "lm_head"):
        parts = ("model.multi_modal_projector", "model.audio_tower", "model.language_model", "lm_head")
        device_map = {part: "disk" if part == place else "cpu" for part in parts}
        loaded = SpeechLLMForConditionalGeneration.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
        )
        assert any(parameter.device.type == "meta" for parameter in loaded.parameters())
        torch.testing.assert_close(loaded(**inputs).logits, expected, **CLOSE)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        audio = {name: value for name, value in inputs.items() if name != "input_ids"}
        torch.testing.assert_close(loaded(inputs_embeds=embeds, **audio).logits, expected, **CLOSE)
        again = loaded.model.get_ctc_logits(inputs["input_features"], inputs["input_features_mask"]).logits
        torch.testing.assert_close(again, ctc, **CLOSE)
        options = {"max_new_tokens": 3, "do_sample": False}
        assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))


# --- Adapters on embeddings ---


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 7]}},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_adapters_on_the_embeddings_work(settings):
    model = tiny_speechllm()
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    peft = get_peft_model(model, LoraConfig(**settings))
    peft.eval()
    torch.testing.assert_close(peft(**inputs).logits, expected, **CLOSE)
    ids = peft.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 3


# --- Plans and tied weights ---


def plan_of(text):
    return SpeechLLMForConditionalGeneration(SpeechLLMConfig.from_parts(AUDIO_CONFIGS["whisper"](), text))._tp_plan


def test_the_head_is_sharded_only_where_the_embeddings_it_is_tied_to_are():
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": VOCABULARY}
    assert "lm_head" not in plan_of(GPT2Config(**sizes, tie_word_embeddings=True))
    assert "lm_head" not in plan_of(GPT2Config(**sizes, tie_word_embeddings=False))  # no plan at all
    tied = plan_of(text_config(tie_word_embeddings=True))
    assert tied["lm_head"] == "colwise_gather_output"
    assert tied["model.language_model.embed_tokens"] == "embedding_rowwise"
    assert "lm_head" in plan_of(text_config(tie_word_embeddings=False))


# --- Mixtures of experts ---


@pytest.mark.parametrize("name", MIXTURES)
def test_the_router_s_loss_is_the_family_s_own(name):
    from transformers import AutoModelForCausalLM
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(0)
    config = MIXTURES[name]()
    llm = AutoModelForCausalLM.from_config(config).eval()
    encoder = WhisperEncoder(AUDIO_CONFIGS["whisper"]())
    model = SpeechLLMForConditionalGeneration.from_parts(encoder, llm, audio_token_id=VOCABULARY)
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    inputs = {"input_ids": ids, "labels": ids, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])}
    plain = model(**inputs)
    assert plain.aux_loss is None and plain.router_logits is None
    for settings in ({"output_router_logits": True}, {}):
        if not settings:
            llm.config.output_router_logits = True
        expected, found = llm(**inputs, **settings), model(**inputs, **settings)
        torch.testing.assert_close(found.loss, expected.loss)
        torch.testing.assert_close(found.aux_loss, expected.aux_loss)
        assert found.loss > plain.loss and len(found.router_logits) >= 2


def test_a_mixture_loads_with_its_router(tmp_path):
    model = tiny_speechllm(text=MIXTURES["mixtral"]())
    model.save_pretrained(tmp_path)
    loaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    for each in (model, loaded):
        each.config.text_config.output_router_logits = True
    assert torch.equal(loaded(ids, labels=ids).loss, model(ids, labels=ids).loss)
    assert isinstance(MixtralForCausalLM, type)


# --- Outputs that are gathered ---


def test_plain_evaluation_ignores_what_has_no_batch_in_front(tmp_path):
    model = tiny_speechllm()
    rows = []
    for length in (16, 30):
        row = {key: value[0] for key, value in inputs_of(model, [length]).items()}
        rows.append(row | {"labels": row["input_ids"].clamp(max=VOCABULARY - 1)})
    arguments = TrainingArguments(
        tmp_path, use_cpu=True, report_to=[], remove_unused_columns=False, per_device_eval_batch_size=1
    )
    output = Trainer(model, arguments, eval_dataset=rows).predict(rows)
    assert output.predictions.shape[0] == 2  # the logits alone, of both rows


# --- Configs ---


@pytest.mark.parametrize("setting", ["field", "window", "connector", "layers"])
def test_a_config_that_cannot_be_loaded_is_not_saved(setting, tmp_path):
    model = tiny_speechllm()
    if setting == "field":
        model.config.conector = {}
    elif setting == "window":
        model.config.audio_window = 10**6
    elif setting == "connector":
        model.config.connector["stride"] = 0
    else:
        model.config.connector = {"type": "magic"}
    for part in (model, model.config):
        with pytest.raises(ValueError, match="could not be loaded again, so it is not saved: .*Correct what was set"):
            part.save_pretrained(tmp_path / "m")
    assert not list(tmp_path.rglob("config.json"))


def test_a_resized_model_is_saved_and_loaded(tmp_path):
    model = tiny_speechllm()
    model.resize_token_embeddings(VOCABULARY + 8)
    inputs = inputs_of(model)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["vocab_size"] == VOCABULARY + 8
    loaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, expected)
