"""Time from samples to the first token: features, encoder, connector, prefill and one step, for every system."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from trainers.data.chats import pad_chats

from .audio_llms import FAMILIES, build
from .parts import RATE, Parts, chat_ids, clock, noise
from .ultravox_form import UltravoxForm, audio_arguments

Answer = Callable[[list[np.ndarray]], torch.Tensor]  # samples -> ids, on the CPU
OURS, ULTRAVOX, CASCADE = "speechllm", "Ultravox's form", "cascade (Whisper, then the LLM)"
SYSTEMS = (OURS, ULTRAVOX, *FAMILIES, CASCADE)
PADDING = ("Qwen2-Audio", "Voxtral", "Audio Flamingo 3", CASCADE)  # to 30 s
ONE = {"max_new_tokens": 1, "do_sample": False}
TOKENS_PER_SECOND = 3.5  # that Whisper writes in the cascade, whatever it hears: fluent English


def move(batch: dict[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


def ids_of(processor: Any, counts: list[int]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of prompts with so many audio tokens."""
    texts = [None] * len(counts)
    padded = pad_chats(*chat_ids(processor, texts, counts), processor.tokenizer.pad_token_id)
    return {name: padded[name] for name in ("input_ids", "attention_mask")}


def make_system(name: str, parts: Parts, dtype: torch.dtype, device: str) -> Answer:
    """A system as a function of samples."""
    if name == OURS:
        model, processor = parts.speechllm(dtype, device)

        def answer(samples: list[np.ndarray]) -> torch.Tensor:
            inputs = processor.audio_inputs(samples)
            batch = ids_of(processor, inputs["num_audio_tokens"])
            batch |= {key: torch.from_numpy(inputs[key]) for key in ("input_features", "input_features_mask")}
            return model.generate(**move(batch, device), **ONE).cpu()

        return answer
    if name == CASCADE:
        whisper, llm = parts.copy_of("whisper", dtype, device), parts.copy_of("llm", dtype, device)
        tokenizer = parts.tokenizer

        def cascade(samples: list[np.ndarray]) -> torch.Tensor:
            features = parts.extractor(samples, sampling_rate=RATE, return_tensors="pt")["input_features"]
            tokens = round(TOKENS_PER_SECOND * len(samples[0]) / RATE)
            length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
            read = whisper.generate(features.to(device, dtype), **length).cpu()
            texts = [" ".join(["word"] * (read.shape[1] * 3 // 4))] * len(samples)  # as many words as such text has
            inputs = tokenizer([f"Repeat the sentence: {text}" for text in texts], return_tensors="pt")
            inputs.pop("token_type_ids", None)
            return llm.generate(**move(dict(inputs), device), **ONE).cpu()

        return cascade
    _, processor = parts.speechllm(torch.float32, "cpu")
    if name == ULTRAVOX:
        form = UltravoxForm(parts.copy_of("encoder", dtype, device), parts.copy_of("llm", dtype, device), 1024).eval()

        def as_ultravox(samples: list[np.ndarray]) -> torch.Tensor:
            batch = ids_of(processor, [processor.audio_token_count(len(one)) for one in samples])
            batch |= audio_arguments(processor, samples, batch["input_ids"])
            places = batch["input_ids"] == processor.audio_token_id
            batch["input_ids"] = batch["input_ids"].masked_fill(places, 0)
            return form.first_token(**move(batch, device)).cpu()

        return as_ultravox
    peer = build(FAMILIES[name], parts, processor, dtype, device)

    def as_peer(samples: list[np.ndarray]) -> torch.Tensor:
        batch = peer.inputs(samples, [None] * len(samples))
        del batch["labels"]
        return peer.model.generate(**move(batch, device), **ONE).cpu()

    return as_peer


def measure(answer: Answer, seconds: float, batch: int, repeats: int, device: str) -> list[float]:
    """Seconds of each of some answers, after one that warms up."""
    samples = [noise(seconds, number) for number in range(batch)]
    answer(samples)
    times = []
    for _ in range(repeats):
        begin = clock(device)
        answer(samples)
        times.append(clock(device) - begin)
    return times


__all__ = ["CASCADE", "OURS", "PADDING", "SYSTEMS", "ULTRAVOX", "make_system", "measure"]
