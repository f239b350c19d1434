"""What is timed without a trainer: answers of the pipeline, attention, CUDA graphs, the GPU's own ceiling."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .measuring import synchronize
from .parts import noise_clips

NEW_TOKENS = 33


def timed(function: Callable[[], Any], repeats: int = 5, warmup: int = 2) -> float:
    """Median seconds of a call, all work of the GPU included."""
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(repeats):
        synchronize()
        begin = time.perf_counter()
        function()
        synchronize()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def matmul_tflops(device: str) -> float:
    """TFLOP/s of one product of two bf16 matrices 8192 x 8192 of random numbers: what the device gives at best."""
    size = 8192 if device == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(lambda: left @ right, repeats=10, warmup=3) / 1e12


def answer_times(model: Any, processor: Any, tiny: bool, **options: Any) -> list[dict[str, float]]:
    """The pipeline, from samples to text: seconds to the first token, and tokens per second after it; with further
    options of `generate`."""
    from processing_speechllm import SpeechInstructPipeline

    model = model.eval()
    if model.device.type == "cuda":
        model = model.to(torch.bfloat16)  # the connector too, as it would be loaded
    pipe = SpeechInstructPipeline(model=model, processor=processor, device=model.device)
    found = []
    for seconds in (1.0,) if tiny else (3.0, 10.0):
        clip = noise_clips(1, (seconds, seconds))[0]
        for batch_size in (1, 8):
            clips = [clip] * batch_size

            def answer(tokens: int, clips: list = clips, batch_size: int = batch_size) -> None:
                lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
                given = {"sampling_rate": 16000, "batch_size": batch_size, "do_sample": False}
                pipe(clips, instruction="what was said", **lengths, **given, **options)

            first, all_tokens = (timed(lambda n=n: answer(n), repeats=3, warmup=1) for n in (1, NEW_TOKENS))
            rate = batch_size * (NEW_TOKENS - 1) / max(all_tokens - first, 1e-9)
            found.append({"seconds": seconds, "batch": batch_size, "first_token": first, "tokens_per_second": rate})
    return found


def attention_times(device: str) -> dict[str, float]:
    """Milliseconds of one layer's attention, forward and backward, in each form that the GPU has.

    (32, 20 heads, 512, 64) without and with a mask of padding: the shapes of Whisper large's encoder for 10 s.
    """
    shape = (32, 20, 512, 64) if device == "cuda" else (2, 2, 32, 16)
    query, key, value = (torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    lengths = torch.linspace(shape[2] // 2, shape[2], shape[0], device=device).long()
    mask = (torch.arange(shape[2], device=device) < lengths[:, None])[:, None, None]

    def eager(mask: torch.Tensor | None) -> torch.Tensor:
        scores = query @ key.transpose(-1, -2) * shape[-1] ** -0.5
        scores = scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value

    def fused(mask: torch.Tensor | None, kind: SDPBackend | None = None) -> torch.Tensor:
        if kind is None:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        with sdpa_kernel(kind):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    forms = {
        "eager": lambda: eager(None),
        "eager, mask": lambda: eager(mask),
        "SDPA": lambda: fused(None),
        "SDPA, mask": lambda: fused(mask),
        "flash": lambda: fused(None, SDPBackend.FLASH_ATTENTION),
        "efficient, mask": lambda: fused(mask, SDPBackend.EFFICIENT_ATTENTION),
        "cuDNN": lambda: fused(None, SDPBackend.CUDNN_ATTENTION),
        "cuDNN, mask": lambda: fused(mask, SDPBackend.CUDNN_ATTENTION),
    }
    found = {}
    for name, form in forms.items():
        try:
            found[name] = 1000 * timed(lambda form=form: form().sum().backward())
        except RuntimeError:  # a backend that this device or mask does not have
            found[name] = None
    return found | {f"{name}, every length new": new_length_times(device, name) for name in ("SDPA", "SDPA, no cuDNN")}


def new_length_times(device: str, form: str) -> float:
    """Milliseconds of one layer's attention, forward and backward, on 20 batches no two of which are equally long."""
    from modeling_speechllm.attention_backends import attention_for_any_length

    rows, heads = (32, 20) if device == "cuda" else (2, 2)
    with nullcontext() if form == "SDPA" else attention_for_any_length():
        begin = None
        for number in range(21):
            length = 300 + 7 * number if device == "cuda" else 20 + number
            query, key, value = (
                torch.randn(rows, heads, length, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
                for _ in range(3)
            )
            F.scaled_dot_product_attention(query, key, value).sum().backward()
            if number == 0:
                synchronize()
                begin = time.perf_counter()
        synchronize()
        return 1000 * (time.perf_counter() - begin) / 20


def graph_times(small: Callable[[], Any], device: str) -> dict[str, float | None]:
    """Milliseconds of a small model's encoder (3 s of speech) and LLM (8 x 64 positions, forward and backward), as
    they are and as a CUDA graph, which starts all kernels at once."""
    model = small().eval()
    encoder, llm = model.model.audio_tower.encoder, model.model.language_model
    llm.requires_grad_(False)
    kind, size = llm.dtype, llm.config.hidden_size
    hidden = torch.randn(1, 150, encoder.config.hidden_size, device=device, dtype=encoder.dtype)
    prompt = torch.randn(8, 64, size, device=device, dtype=kind, requires_grad=True)

    def encode() -> torch.Tensor:
        with torch.no_grad():
            states = hidden
            for layer in encoder.layers:
                states = layer(states, None)
            return encoder.layer_norm(states)

    def read() -> None:
        prompt.grad = None
        llm(inputs_embeds=prompt, use_cache=False).last_hidden_state.float().square().mean().backward()

    found: dict[str, float | None] = {}
    for name, function in (("encoder, 3 s", encode), ("LLM, forward and backward", read)):
        found[name] = 1000 * timed(function)
        found[f"{name}, CUDA graph"] = None
        if device == "cuda":
            graph = captured(function)
            found[f"{name}, CUDA graph"] = 1000 * timed(graph.replay)
    return found


def captured(function: Callable[[], Any]) -> "torch.cuda.CUDAGraph":
    """All kernels of a call as one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph
