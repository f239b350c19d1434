"""Connectors: encoder frames to LLM input embeddings. One class per architecture, one dictionary for all."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from .configuration_speechllm import StackMLPConfig, connector_config, output_length


class StackMLP(nn.Module):
    """Stacks `width` consecutive frames, `stride` apart, and maps them through a two-layer perceptron.

    Ultravox (stack 8, RMS norm, SwiGLU) and Voxtral (stack 4, GELU, no norm) are settings of it.

    Args:
        config: see [`StackMLPConfig`].
        audio_size: width of the encoder's frames.
        text_size: width of the LLM's embeddings.
    """

    def __init__(self, config: StackMLPConfig, audio_size: int, text_size: int):
        super().__init__()
        self.config = config
        stacked, hidden = audio_size * config.width, config.hidden_size or text_size
        gated = config.activation == "swiglu"
        self.norm = nn.RMSNorm(stacked, eps=1e-6) if config.norm else nn.Identity()
        self.linear_1 = nn.Linear(stacked, hidden * (2 if gated else 1), bias=config.bias)
        self.act = ACT2FN["silu" if gated else config.activation]
        self.linear_2 = nn.Linear(hidden, text_size, bias=config.bias)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, frames, audio_size), zero past `lengths` (batch,) -> (batch, tokens, text_size), (batch,)."""
        width, stride = self.config.width, self.config.stride
        tokens = output_length(frames.shape[1], self.config.stages)
        frames = F.pad(frames, (0, 0, 0, (tokens - 1) * stride + width - frames.shape[1]))
        stacked = frames.unfold(1, width, stride).transpose(2, 3).flatten(2)  # (batch, tokens, width * audio_size)
        hidden = self.linear_1(self.norm(stacked))
        if self.config.activation == "swiglu":
            value, gate = hidden.chunk(2, dim=-1)
            hidden = self.act(gate) * value
        else:
            hidden = self.act(hidden)
        return self.linear_2(hidden), output_length(lengths, self.config.stages)


CONNECTORS = {"stack_mlp": StackMLP}


def build_connector(settings: dict, audio_size: int, text_size: int) -> nn.Module:
    """The connector that `settings` (`{"type": name, ...}`) name."""
    config = connector_config(settings)
    return CONNECTORS[config.type](config, audio_size, text_size)


__all__ = ["CONNECTORS", "StackMLP", "build_connector"]
