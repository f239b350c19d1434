"""A tiny llama in a GGUF file, quantised, with the tokenizer in it, as llama.cpp writes them."""

import json
from pathlib import Path

import gguf
import numpy as np
from transformers import LlamaConfig, PreTrainedTokenizerFast

SIZE, FFN, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2


def gguf_config(vocabulary: int) -> LlamaConfig:
    """The config of the model that [`write_gguf`] writes."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=SIZE,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
    )


def write_gguf(
    path: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0, splitting: str = "gpt-2"
) -> dict[str, np.ndarray]:
    """Writes random weights at 8 bits (norms at 32); returns by their names in the file what 8 bits make of them."""
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(SIZE)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(SIZE // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    random, weights = np.random.default_rng(seed), {}

    def add(name: str, *shape: int) -> None:
        values = (random.normal(size=shape) * 0.2).astype(np.float32)
        if len(shape) == 1:
            weights[name] = values + 1
            writer.add_tensor(name, weights[name])
            return
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        weights[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    add("token_embd.weight", len(tokens), SIZE)
    add("output.weight", len(tokens), SIZE)
    add("output_norm.weight", SIZE)
    key_size = SIZE // HEADS * KV_HEADS
    for layer in range(LAYERS):
        for name, *shape in (
            *(("attn_norm", SIZE), ("attn_q", SIZE, SIZE), ("attn_k", key_size, SIZE), ("attn_v", key_size, SIZE)),
            *(("attn_output", SIZE, SIZE), ("ffn_norm", SIZE), ("ffn_gate", FFN, SIZE), ("ffn_up", FFN, SIZE)),
            ("ffn_down", SIZE, FFN),
        ):
            add(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
