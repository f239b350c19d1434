"""Strided convolutions in half precision on a CPU: on some processors torch reads memory that is not theirs."""

import copy

import pytest
import torch
from test_connectors import AUDIO_SIZE, CONFORMER, TINY, ragged, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_speechllm.configuration_connectors import ConformerCTCConfig
from modeling_speechllm.conformer_ctc import Subsampling

CONVOLVING = {
    "conv": TINY["conv"],
    "conformer_ctc": CONFORMER,
    "window_qformer": TINY["window_qformer"] | {"gate": "conv"},
    "whisper_qformer": TINY["whisper_qformer"] | {"gate": "conv"},
}


class StridedConvolutions(TorchDispatchMode):
    """Dtypes of the strided convolutions that run, forward and backward."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if "conv" in name:
            # input, weight, bias, stride, ... and gradient, input, weight, bias' sizes, stride, ...
            tensors, stride = {"aten::convolution": (2, 3), "aten::convolution_backward": (3, 4)}[name]
            if max(args[stride]) > 1:
                self.dtypes += [tensor.dtype for tensor in args[:tensors]]
        return function(*args, **(kwargs or {}))


def poison() -> None:
    """Fills memory that is free again afterwards with a value that shows."""
    blocks = [torch.full((size,), 3e36) for size in (64, 256, 1024, 4096, 16384) for _ in range(16)]
    del blocks


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", CONVOLVING)
def test_no_strided_convolution_runs_in_half_precision(name, dtype, autocast):
    connector = tiny(name, **CONVOLVING[name])
    frames, lengths = ragged([1, 20, 7, 4], AUDIO_SIZE)
    if not autocast:
        connector, frames = connector.to(dtype), frames.to(dtype)
    with StridedConvolutions() as seen:
        with torch.autocast("cpu", dtype, enabled=autocast):
            output = connector(frames, lengths).embeddings
        output.float().sum().backward()
    assert len(seen.dtypes) >= 2 * (2 + 3)  # of at least two convolutions, forward and backward
    assert set(seen.dtypes) == {torch.float32}
    assert output.dtype == dtype or autocast


@pytest.mark.parametrize("channels", [1, 2, 17, 64])
def test_the_conformer_s_front_is_near_float32_at_every_size(channels):
    """From the smallest `reduced_size`, whose second convolution is 3 wide, through every remainder of its strides."""
    for reduced_size in (*range(7, 24), 64, 128):
        config = ConformerCTCConfig(reduced_size=reduced_size, channels=channels, hidden_size=16)
        half = Subsampling(config, config.stages(20)[:2]).bfloat16()
        exact = copy.deepcopy(half).float()
        for length in (*range(1, 10), 22):
            frames, lengths = ragged([length, 1], reduced_size)
            expected, _ = exact(frames.bfloat16().float(), lengths)
            scale = expected.abs().max()
            poison()
            found, _ = half(frames.bfloat16(), lengths)
            assert (found.float() - expected).abs().max() < 0.03 * scale, (reduced_size, length)
            poison()
            with torch.autocast("cpu", torch.bfloat16):
                found, _ = exact(frames.bfloat16().float(), lengths)
            assert (found.float() - expected).abs().max() < 0.03 * scale, (reduced_size, length, "autocast")


@pytest.mark.parametrize("name", CONVOLVING)
def test_bf16_is_near_float32_from_one_frame_up(name):
    half = tiny(name, **CONVOLVING[name]).bfloat16()
    exact = copy.deepcopy(half).float()
    for length in range(1, 26):
        frames, lengths = ragged([length], AUDIO_SIZE)
        expected = exact(frames.bfloat16().float(), lengths).embeddings
        poison()
        found = half(frames.bfloat16(), lengths).embeddings.float()
        assert (found - expected).abs().mean() < 0.1 * expected.abs().mean(), length
