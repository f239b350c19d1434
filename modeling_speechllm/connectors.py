"""Connectors: encoder frames to LLM input embeddings. One class per architecture, one dictionary for all."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from .configuration_connectors import StackMLPConfig, connector_config
from .connector_base import Connector, ConnectorOutput
from .lengths import output_length
from .whisper_qformer import WhisperQFormer


class StackMLP(Connector):
    """Stacks `width` consecutive frames, `stride` apart, and maps them through a two-layer perceptron.

    Ultravox (stack 8, RMS norm, SwiGLU) and Voxtral (stack 4, GELU, no norm) are settings of it.
    """

    def __init__(self, config: StackMLPConfig, audio_size: int, text_size: int, window: int, audio_layers: int = 0):
        super().__init__(config, audio_size, text_size, window, audio_layers)
        stacked, hidden = audio_size * config.width, config.hidden_size or text_size
        gated = config.activation == "swiglu"
        self.norm = nn.RMSNorm(stacked, eps=1e-6) if config.norm else nn.Identity()
        self.linear_1 = nn.Linear(stacked, hidden * (2 if gated else 1), bias=config.bias)
        self.act = ACT2FN["silu" if gated else config.activation]
        self.linear_2 = nn.Linear(hidden, text_size, bias=config.bias)

    def project(self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None) -> ConnectorOutput:
        width, stride = self.config.width, self.config.stride
        tokens = output_length(frames.shape[1], self.stages)
        frames = F.pad(frames, (0, 0, 0, (tokens - 1) * stride + width - frames.shape[1]))
        stacked = frames.unfold(1, width, stride).transpose(2, 3).flatten(2)  # (batch, tokens, width * audio_size)
        hidden = self.linear_1(self.norm(stacked))
        if self.config.activation == "swiglu":
            value, gate = hidden.chunk(2, dim=-1)
            hidden = self.act(gate) * value
        else:
            hidden = self.act(hidden)
        return ConnectorOutput(embeddings=self.linear_2(hidden))


CONNECTORS = {"stack_mlp": StackMLP, "whisper_qformer": WhisperQFormer}


def build_connector(
    settings: dict, audio_size: int, text_size: int, window: int = 1500, audio_layers: int = 0
) -> Connector:
    """The connector that `settings` (`{"type": name, ...}`) name; other arguments as in [`Connector`]."""
    config = connector_config(settings)
    return CONNECTORS[config.type](config, audio_size, text_size, window, audio_layers)


__all__ = ["CONNECTORS", "StackMLP", "build_connector"]
