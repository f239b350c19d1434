"""The parts that all systems are made of, Whisper base's encoder and SmolLM2-135M, and rows of audio for them."""

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Dataset
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

import speechllm
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from trainers.data.chats import answered_chat, tokenize_chats, with_segments
from trainers.data.interleaving import AudioSegment

RATE = 16_000
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}  # by their names on the command line
WORDS = "turn on the radio in kitchen what time does next train leave for london please tell me about weather".split()
INSTRUCTION = "Repeat the sentence:"
# Ultravox's projector: eight frames stacked, RMS norms, SwiGLU; 1024 inside, for an LLM of width 576.
CONNECTOR = {"type": "stack_mlp", "stride": 8, "hidden_size": 1024, "activation": "swiglu", "inner_norm": True}


@dataclass
class Parts:
    """Whisper and an LLM in float32 on the CPU, which every measurement copies, with tokenizer and extractor."""

    whisper: WhisperForConditionalGeneration
    llm: PreTrainedModel
    tokenizer: Any
    extractor: WhisperFeatureExtractor
    source: str

    def copy_of(self, name: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
        """A fresh, frozen copy of `whisper`, its `encoder` or the `llm`."""
        part = self.whisper.model.encoder if name == "encoder" else getattr(self, name)
        return copy.deepcopy(part).to(device=device, dtype=dtype).eval().requires_grad_(False)

    def speechllm(
        self, dtype: torch.dtype, device: str, **kwargs: Any
    ) -> tuple[SpeechLLMForConditionalGeneration, SpeechLLMProcessor]:
        """Our model of these parts with a new connector, and its processor."""
        encoder, llm = self.copy_of("encoder", dtype, device), self.copy_of("llm", dtype, device)
        torch.manual_seed(0)
        model = SpeechLLMForConditionalGeneration.from_parts(
            encoder, llm, CONNECTOR, audio_token_id=self.placeholder, **kwargs
        )
        return model, SpeechLLMProcessor.from_parts(self.extractor, self.tokenizer, model.config)

    @property
    def placeholder(self) -> int:
        """Id of the audio placeholder: that of the tokenizer, or the first free one."""
        known = self.tokenizer.convert_tokens_to_ids("<|audio|>")
        return len(self.tokenizer) if known in (None, self.tokenizer.unk_token_id) else known


def random_parts() -> Parts:
    """The same sizes with random weights, and the embedded model's tokenizer: nothing is read but this package."""
    torch.manual_seed(0)
    whisper = WhisperConfig(
        **{"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
        **{"decoder_layers": 6, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "num_mel_bins": 80},
    )
    llm = LlamaConfig(
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
        **{"num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True},
        **{"max_position_embeddings": 8192, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
    )
    tokenizer = SpeechLLMProcessor.from_pretrained(speechllm.NANO).tokenizer
    llm.pad_token_id = tokenizer.pad_token_id
    return Parts(
        WhisperForConditionalGeneration(whisper).eval(),
        LlamaForCausalLM(llm).eval(),
        tokenizer,
        WhisperFeatureExtractor(feature_size=80),
        "random weights",
    )


def parts_from(folder: Path) -> Parts:
    """The parents in `folder`/whisper-base and `folder`/smollm2-135m-instruct."""
    audio, text = folder / "whisper-base", folder / "smollm2-135m-instruct"
    for part in (audio, text):
        if not (part / "config.json").is_file():
            raise SystemExit(f"{part} is no model folder. Give --parents a folder with both, or --random.")
    return Parts(
        WhisperForConditionalGeneration.from_pretrained(audio, dtype=torch.float32).eval(),
        AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(text),
        AutoFeatureExtractor.from_pretrained(audio),
        f"{audio.name} and {text.name}",
    )


def takes_processor_time(device: str) -> bool:
    """Whether what is timed is the process's own time, in which that of data loader workers is not."""
    return device == "cpu" and torch.get_num_threads() == 1


def clock(device: str) -> float:
    """Seconds to take differences of: of the GPU's work done; on one CPU thread of the processor's time, which other
    work on the machine does not lengthen; on several of the clock on the wall."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if takes_processor_time(device) else time.perf_counter()


def noise(seconds: float, seed: int) -> np.ndarray:
    """Samples (samples,) of noise; how long a forward takes does not depend on what is said."""
    return np.random.default_rng(seed).normal(0, 0.1, round(RATE * seconds)).astype(np.float32)


def noise_rows(count: int, seconds: tuple[float, float], seed: int) -> Dataset:
    """Rows of FLAC with a transcript of 2.5 words per second, lengths uniform in `seconds`."""
    generator, rows = random.Random(seed), []
    for number in range(count):
        duration = generator.uniform(*seconds)
        file = BytesIO()
        soundfile.write(file, noise(duration, number), RATE, format="FLAC", subtype="PCM_16")
        text = " ".join(generator.choices(WORDS, k=round(2.5 * duration)))
        audio = {"bytes": file.getvalue(), "path": None}
        rows.append({"id": str(number), "audio": audio, "text": text, "duration": duration})
    return Dataset.from_list(rows)


def chat_ids(
    processor: SpeechLLMProcessor, texts: Sequence[str | None], counts: Sequence[int]
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and labels of one chat per text with `counts` audio placeholders; without text it ends before the answer."""
    chats = []
    for text, count in zip(texts, counts, strict=True):
        chat = answered_chat([text or ""], INSTRUCTION)
        chats.append(with_segments(chat if text is not None else chat[:-1], [[AudioSegment(0, count)]]))
    return tokenize_chats(processor, chats)


__all__ = [
    "CONNECTOR",
    "DTYPES",
    "INSTRUCTION",
    "RATE",
    "Parts",
    "chat_ids",
    "clock",
    "noise",
    "noise_rows",
    "parts_from",
    "random_parts",
    "takes_processor_time",
]
