"""The tokenizer of a GGUF file, as the LLM's own repository has it.

transformers reads one too, but forgets how text is split before merging, and which tokens are special.
"""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging
from transformers.utils.hub import cached_file

STRINGS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens in GGUF
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How byte-level tokenizers split text, by the names that GGUF has for it: a pattern, or None for GPT-2's own.
PATTERNS = {
    **dict.fromkeys(("default", "gpt-2"), None),
    "llama-bpe": LETTERS + r"|\p{N}{1,3}|" + OTHERS,
    "qwen2": LETTERS + r"|\p{N}|" + OTHERS,
}
DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell")  # and else as GPT-2

logger = logging.get_logger(__name__)


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer | None:
    """How a byte-level tokenizer splits text, None for a name that is not known."""
    if name in DIGITS_APART:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name not in PATTERNS:
        return None
    if PATTERNS[name] is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gguf_tokenizer(text: str, gguf_file: str, **hub: Any) -> PreTrainedTokenizerBase:
    """
    Tokenizer of a GGUF file.

    Args:
        text: Hub id or folder.
        gguf_file: name of the file there.
        **hub: how the Hub is reached (`revision`, `token`, ...).

    Raises:
        OSError: no such file.
    """
    from transformers.integrations.gguf import read_gguf_metadata  # transformers 5.24

    metadata, _ = read_gguf_metadata(cached_file(text, gguf_file, **hub), STRINGS)

    def read(key: str) -> Any:
        return metadata.get(f"tokenizer.{key}")

    name, kind = read("ggml.pre") or "default", read("ggml.model")
    splitting = pre_tokenizer(name) if kind == "gpt2" else None
    if splitting is None:
        logger.warning(
            f"{text} {gguf_file}: its tokenizer ({kind}, {name}) is read by transformers, which may split words or "
            "special tokens otherwise than the LLM was trained with. Put the files of the LLM's own tokenizer "
            "(tokenizer.json, ...) beside it."
        )
        return AutoTokenizer.from_pretrained(text, gguf_file=gguf_file, **hub)
    tokens, kinds = read("ggml.tokens"), read("ggml.token_type")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in read("ggml.merges")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitting, decoders.ByteLevel()
    for special in (True, False):
        wanted = CONTROL if special else USER_DEFINED
        added = [token for token, kind in zip(tokens, kinds, strict=True) if kind == wanted]
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in added])
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {token: read(f"ggml.{key}_token_id") for token, key in keys.items()}
    named = {token: tokens[index] for token, index in ids.items() if index is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=read("chat_template"), **named)


def load_tokenizer(text: str, gguf_file: str | None = None, **hub: Any) -> PreTrainedTokenizerBase:
    """The LLM's tokenizer from its own files, else from its GGUF file."""
    try:
        return AutoTokenizer.from_pretrained(text, **hub)
    except (OSError, ValueError):
        if gguf_file is None:
            raise
    return gguf_tokenizer(text, gguf_file, **hub)


__all__ = ["gguf_tokenizer", "load_tokenizer"]
