"""Every causal LM in the installed transformers: joined, saved and loaded it gives the same logits, or is refused.

Families are built tiny by the names of their sizes. What is new or changed in an update of transformers shows here:
the lists below hold exactly.
"""

import re
from dataclasses import fields

import pytest
import torch
from conftest import scatter_weights, whisper_config
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from modeling_speechllm import SpeechLLMForConditionalGeneration

MOST_WEIGHTS = 3_000_000
SIZES = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **{"qk_head_dim": 16, "embedding_size": 32, "n_group": 1, "num_group": 1, "topk_group": 1},
}
LATENT = {"num_key_value_heads": 4}
HYBRID = {"num_hidden_layers": 4}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 1}
OWN_SIZES = {  # what the names above do not say
    **dict.fromkeys(("lfm3", "qwen3_5_text", "qwen3_5_moe_text"), HYBRID),
    **dict.fromkeys(("qwen3_next", "qwen4_exp_text", "recurrent_gemma"), HYBRID),
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bailing_hybrid": LATENT | {"layer_types": ["linear_attention", "full_attention"]},
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), LATENT),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "sarvam_mla", "youtu"), LATENT),
    **dict.fromkeys(("codegen", "gptj"), {"rotary_dim": 8}),
    "falcon_h1": {"mamba_chunk_size": 8, "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
    "gemma4_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
    "dots1": {"num_key_value_heads": 4, "n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "zamba": {"layer_types": ["mamba", "hybrid"], "num_hidden_layers": 2},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"is_decoder": True},
    "xlnet": {"d_head": 8},
}


def decoder_config(family: str) -> type[PreTrainedConfig]:
    """The class of the config of the LLM alone."""
    whole = CONFIG_MAPPING[family]
    texts = [spec for name, spec in whole.sub_configs_defaults.items() if name == "text_config"]
    if not texts:
        return whole
    spec = texts[0] if isinstance(texts[0], type) else texts[0].config_class
    return spec if spec is not AutoConfig else CONFIG_MAPPING[texts[0].model_type]


def tiny_config(family: str) -> PreTrainedConfig:
    kind = decoder_config(family)
    known = {field.name for field in fields(kind)} | set(kind.attribute_map)
    sizes = SIZES | OWN_SIZES.get(kind.model_type, {})
    return kind(**{name: value for name, value in sizes.items() if name in known})


def outcome(family: str, folder) -> str:
    """What becomes of a family: "same", or why not."""
    try:
        config = tiny_config(family)
        if config.is_encoder_decoder:
            return "encoder-decoder"
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        if sum(parameter.numel() for parameter in empty.parameters()) > MOST_WEIGHTS:
            return "not built: large"
        torch.manual_seed(0)
        llm = scatter_weights(AutoModelForCausalLM.from_config(config)).eval()
        ids = torch.tensor([[5, 16, 27, 38, 49]])
        with torch.no_grad():
            llm(input_ids=ids)
    except Exception as error:
        return f"not built: {type(error).__name__}"
    try:
        model = SpeechLLMForConditionalGeneration.from_parts(WhisperEncoder(whisper_config()), llm, audio_token_id=64)
    except ValueError as error:
        return "refused: " + re.sub(r"^LLM family \S+ is not supported: |\(.*|, so .*", "", str(error)).strip(". ")
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.save_pretrained(folder)
        # Memory that a buffer of the reloaded model would get if nobody filled it.
        for size in (64, 256, 1024, 4096):
            rubbish = [torch.full((size,), float("nan")) for _ in range(20)]
        del rubbish
        again = SpeechLLMForConditionalGeneration.from_pretrained(folder)(input_ids=ids).logits
    return "same" if torch.allclose(again, expected, atol=1e-5) else "differs"


NO_LINEAR_HEAD = "refused: its logits are not its head's output with the scales and soft caps known to speechllm"
NO_CACHE = "refused: it keeps no cache of transformers' kind, without which it cannot generate here"
SEQ2SEQ = "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet whisper"
ENCODERS = "bert big_bird camembert data2vec-text electra ernie megatron-bert modernbert-decoder roberta xlm-roberta"
EXPECTED = {
    **dict.fromkeys([*SEQ2SEQ.split(), "musicgen", "musicgen_melody"], "encoder-decoder"),
    **dict.fromkeys(ENCODERS.split(), NO_LINEAR_HEAD),
    **dict.fromkeys(["inkling_text", "roberta-prelayernorm", "roformer", "xlm", "xlm-roberta-xl"], NO_LINEAR_HEAD),
    **dict.fromkeys(["bert-generation", "openai-gpt", "recurrent_gemma", "rwkv", "xlnet"], NO_CACHE),
    **dict.fromkeys(["cpmant", "deepseek_v4"], "refused: it does not run from embeddings"),
    "rembert": "refused: its head takes 1664 features and its last layer gives 32",
    "trocr": "refused: transformers has no class of its decoder alone",
    # Of these no tiny model is to be had by the names of their sizes.
    **dict.fromkeys("blt git inkling2_loop_text inkling2_text kimi_linear".split(), "not built: large"),
    **dict.fromkeys("longcat_flash phi4_multimodal roc_bert".split(), "not built: large"),
    **dict.fromkeys("emu3 mllama reformer xlstm xmod zamba".split(), "not built: ValueError"),
    "cohere_compass_text": "not built: KeyError",
    "dbrx": "not built: AttributeError",
    "qwen4_exp": "not built: TypeError",
    "zamba2": "not built: StrictDataclassClassValidationError",
    # transformers 5.24 zeroes the padding token's embedding whenever it loads Youtu, without a SpeechLLM too.
    "youtu": "differs",
}


def one_name_of_each() -> list[str]:
    """Families that share a config's class are one."""
    names = {decoder_config(family): family for family in reversed(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    return list(names.values())[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("family", one_name_of_each())
def test_a_family_is_the_same_after_saving_or_refused(family, tmp_path):
    assert outcome(family, tmp_path) == EXPECTED.get(family, "same")


def test_the_lists_hold_only_families_that_are_there():
    assert EXPECTED.keys() <= set(one_name_of_each())
