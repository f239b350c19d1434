"""A text-only prompt through a SpeechLLM gives the logits of its LLM alone."""

import pytest
import torch
import transformers
from conftest import VOCABULARY, scatter_weights, text_config, whisper_config
from packaging.version import Version
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    RemBertConfig,
    RwkvConfig,
)

from modeling_speechllm import SpeechLLMForConditionalGeneration, build_audio_tower

LLAMA_LIKE = text_config().to_dict()
LLAMA_LIKE = {
    key: LLAMA_LIKE[key]
    for key in (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id"),
    )
}
GPT_LIKE = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "llama": text_config(),
    "qwen2": Qwen2Config(**LLAMA_LIKE),
    "qwen3": Qwen3Config(**LLAMA_LIKE, head_dim=8),
    "mistral": MistralConfig(**LLAMA_LIKE),
    "gemma2": Gemma2Config(**LLAMA_LIKE, head_dim=8, final_logit_softcapping=3.0, attn_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**LLAMA_LIKE, head_dim=8, final_logit_softcapping=3.0),
    "gpt2": GPT2Config(**GPT_LIKE, n_positions=64),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "granite": GraniteConfig(**LLAMA_LIKE, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5),
    "cohere": CohereConfig(**LLAMA_LIKE, logit_scale=0.3),
    "cohere2": Cohere2Config(**LLAMA_LIKE, logit_scale=0.3),
    "phi": PhiConfig(**LLAMA_LIKE),  # a bias in the output layer
    "phi3": Phi3Config(**LLAMA_LIKE),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "mamba": MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
}
# Before transformers 5.23 Mamba's state is no cache of its common kind, and composing it is refused.
refused = pytest.mark.xfail(
    Version(transformers.__version__) < Version("5.23"), raises=ValueError, strict=True, reason="of another kind"
)
NAMES = [pytest.param(name, marks=refused if name == "mamba" else ()) for name in FAMILIES]


def causal_lm(config):
    model = scatter_weights(AutoModelForCausalLM.from_config(config)).eval()
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


def encoder():
    torch.manual_seed(0)
    return build_audio_tower(whisper_config()).encoder


@pytest.mark.parametrize("family", NAMES)
def test_logits_are_those_of_the_llm_alone(family, tmp_path):
    llm = causal_lm(FAMILIES[family])
    input_ids = torch.tensor([[5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14]])
    attention_mask = (input_ids > 0).long()
    expected = llm(input_ids=input_ids, attention_mask=attention_mask).logits
    model = SpeechLLMForConditionalGeneration.from_parts(encoder(), llm, audio_token_id=VOCABULARY)
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    torch.testing.assert_close(logits[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[1, 2:], expected[1, 2:], rtol=0, atol=1e-5)

    # ... and again after a round trip through a checkpoint, where only the config says how to build the head.
    model.save_pretrained(tmp_path)
    reloaded = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path)
    again = reloaded(input_ids=input_ids, attention_mask=attention_mask).logits
    torch.testing.assert_close(again[0], expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", NAMES)
def test_generation_matches_the_llm_alone(family):
    llm = causal_lm(FAMILIES[family])
    prompt = torch.tensor([[5, 6, 7, 8]])
    expected = llm.generate(input_ids=prompt, max_new_tokens=5, do_sample=False)
    model = SpeechLLMForConditionalGeneration.from_parts(encoder(), llm, audio_token_id=VOCABULARY)
    assert torch.equal(model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False), expected)


SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
REFUSED = {
    "rwkv": (
        RwkvConfig(**SIZES | {"num_hidden_layers": 2}, attention_hidden_size=32),
        "keeps no cache of transformers' kind",
    ),
    "bert": (BertConfig(**SIZES, num_attention_heads=2, is_decoder=True), "logits are not its head's output"),
    "rembert": (
        RemBertConfig(**SIZES, num_attention_heads=2, is_decoder=True, output_embedding_size=24),
        "its head takes 24 features and its last layer gives 32",
    ),
}


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_supported_is_refused_for_the_reason_it_has(family):
    config, reason = REFUSED[family]
    llm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=f"LLM family '{family}' is not supported: .*{reason}"):
        SpeechLLMForConditionalGeneration.from_parts(encoder(), llm, audio_token_id=VOCABULARY)


def test_an_unknown_scale_on_the_logits_is_noticed():
    llm = causal_lm(text_config())
    llm.config.logit_scale = 0.5  # our model would apply it, this LLM does not
    with pytest.raises(ValueError, match="LLM family 'llama' is not supported: its logits"):
        SpeechLLMForConditionalGeneration.from_parts(encoder(), llm, audio_token_id=VOCABULARY)
