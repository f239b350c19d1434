"""LLMs in 8 or 4 bits, by bitsandbytes: what `quantization_config` of `from_parts` and `from_pretrained` then is."""

import logging
from importlib.util import find_spec

import torch
from transformers import BitsAndBytesConfig

QUANTIZATIONS = ("8bit", "4bit")
WHOLE = ["model.audio_tower", "model.multi_modal_projector", "lm_head"]  # of a SpeechLLM, from the start of the name
SAYS_EVERY_TIME = "bitsandbytes.autograd._functions"  # logger that tells of bfloat16 at every product of every layer


class Once(logging.Filter):
    """Lets each message of a logger pass the first time."""

    def __init__(self):
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        first = message not in self.said
        self.said.add(message)
        return first


ONCE = Once()


def quantization_config(name: str, whole: bool = False) -> BitsAndBytesConfig:
    """
    Settings for the linear layers of an LLM: LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339; BLOOMZMMS), or NF4
    with double quantisation (QLoRA; Dettmers et al. 2023, arXiv 2305.14314), computed in bfloat16, on a CPU in
    float32.

    Embeddings, head, encoder and connector keep their precision.

    Args:
        name: `"8bit"` or `"4bit"`.
        whole: for a SpeechLLM that was saved whole, of which only the LLM is quantised; not for `from_parts` and
            checkpoints of the trained parts, whose LLM is loaded alone.

    Raises:
        ValueError: another name, or bitsandbytes is not installed.
    """
    if name not in QUANTIZATIONS:
        raise ValueError(f"quantization={name!r} is not one of {', '.join(QUANTIZATIONS)}.")
    if find_spec("bitsandbytes") is None:
        raise ValueError(f'quantization={name!r} needs bitsandbytes: pip install "speechllm[quantization]"')
    skipped = {"llm_int8_skip_modules": WHOLE} if whole else {}
    if name == "8bit":
        logging.getLogger(SAYS_EVERY_TIME).addFilter(ONCE)  # no second time where it is there
        return BitsAndBytesConfig(load_in_8bit=True, **skipped)
    computed = torch.bfloat16 if torch.accelerator.is_available() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
        **skipped,
    )


__all__ = ["QUANTIZATIONS", "quantization_config"]
