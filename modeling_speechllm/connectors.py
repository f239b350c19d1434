"""Connectors: encoder frames to LLM input embeddings. One class per architecture, one dictionary for all."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, Blip2QFormerConfig
from transformers.activations import ACT2FN

from .configuration_connectors import ConvConfig, StackMLPConfig, WindowQFormerConfig, connector_config
from .conformer_ctc import ConformerCTC
from .connector_base import (
    Connector,
    ConnectorOutput,
    fill_last,
    fold_windows,
    rows_of_windows,
    unfold_tokens,
    zero_past,
)
from .convolutions import StridedConv1d
from .ctc_compress import CTCCompress
from .lengths import stage_length
from .query_bank import QueryBank
from .whisper_qformer import WhisperQFormer
from .whisper_reader import WhisperReader


class StackMLP(Connector):
    """Stacks `width` consecutive frames, `stride` apart, and maps them through a two-layer perceptron.

    Ultravox (stack 8, RMS norms, SwiGLU) and Voxtral (stack 4, GELU, no norm) are settings of it.
    """

    def __init__(self, config: StackMLPConfig, audio_size: int, text_size: int, window: int, **kwargs: Any):
        super().__init__(config, audio_size, text_size, window, **kwargs)
        stacked, hidden = audio_size * config.width, config.hidden_size or text_size
        gated = config.activation == "swiglu"
        self.norm = nn.RMSNorm(stacked, eps=1e-6) if config.norm else nn.Identity()
        self.linear_1 = nn.Linear(stacked, hidden * (2 if gated else 1), bias=config.bias)
        self.act = ACT2FN["silu" if gated else config.activation]
        self.inner_norm = nn.RMSNorm(hidden, eps=1e-6) if config.inner_norm else nn.Identity()
        self.linear_2 = nn.Linear(hidden, text_size, bias=config.bias)

    def project(self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None) -> ConnectorOutput:
        width, stride = self.config.width, self.config.stride
        stacked = (
            fill_last(frames, width, stride).unfold(1, width, stride).transpose(2, 3).flatten(2)
        )  # (batch, tokens, width * audio_size)
        # With a stride below the width it is a view whose rows overlap, which oneDNN under vLLM cannot read.
        hidden = self.linear_1(self.norm(stacked.contiguous()))
        if self.config.activation == "swiglu":
            value, gate = hidden.chunk(2, dim=-1)
            hidden = self.act(gate) * value
        else:
            hidden = self.act(hidden)
        return ConnectorOutput(embeddings=self.linear_2(self.inner_norm(hidden)))


class Conv(Connector):
    """Strided convolutions with gated linear units, a residual bottleneck adapter and a layer norm.

    BLSP (Wang et al. 2023, arXiv 2309.00916; code cwang621/blsp): three convolutions, one token per 8 frames.
    """

    def __init__(self, config: ConvConfig, audio_size: int, text_size: int, window: int, **kwargs: Any):
        super().__init__(config, audio_size, text_size, window, **kwargs)
        hidden = config.hidden_size or audio_size
        sizes = [audio_size, *[hidden] * (config.convolutions - 1), text_size]
        self.convolutions = nn.ModuleList(
            StridedConv1d(size, 2 * next_size, config.kernel, config.stride, padding=config.kernel // 2)
            for size, next_size in zip(sizes, sizes[1:], strict=False)
        )
        self.linear_1 = nn.Linear(text_size, config.bottleneck_size, bias=False)
        self.linear_2 = nn.Linear(config.bottleneck_size, text_size, bias=False)
        self.norm = nn.LayerNorm(text_size)

    def project(self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None) -> ConnectorOutput:
        for convolution, stage in zip(self.convolutions, self.stages, strict=True):
            hidden = convolution(zero_past(frames, lengths).transpose(1, 2))
            frames = F.glu(hidden, dim=1).transpose(1, 2)
            lengths = stage_length(lengths, **stage)
        frames = frames + self.linear_2(F.gelu(self.linear_1(frames)))
        return ConnectorOutput(embeddings=self.norm(frames))


class WindowQFormer(Connector):
    """Queries that cross-attend one short window of frames, the same Q-Former for every window.

    SALMONN (Tang et al. 2024, arXiv 2310.13289): 0.33 s and one query; Granite Speech (Saon et al. 2025, arXiv
    2505.08699): 15 frames and 3 queries. Windows are folded into the batch, the last one filled up with zero frames.
    """

    def __init__(self, config: WindowQFormerConfig, audio_size: int, text_size: int, window: int, **kwargs: Any):
        super().__init__(config, audio_size, text_size, window, **kwargs)
        self.bank = QueryBank(config, config.hidden_size, audio_size)
        qformer_config = Blip2QFormerConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.qformer_layers,
            num_attention_heads=config.heads,
            intermediate_size=config.ffn_size,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            encoder_hidden_size=audio_size,
            cross_attention_frequency=1,
        )
        attention = qformer_attention(kwargs.get("attention", "sdpa"))
        self.qformer = AutoModel.from_config(qformer_config, attn_implementation=attention)
        self.linear = nn.Linear(config.hidden_size, text_size)

    def set_attn_implementation(self, attention: str) -> None:
        self.qformer.set_attn_implementation(qformer_attention(attention))

    def project(self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None) -> ConnectorOutput:
        queries, language_logits = self.bank(frames, lengths, language)
        windows, _, used = fold_windows(frames, lengths, self.config.width)
        output = self.qformer(
            query_embeds=rows_of_windows(queries, used),
            encoder_hidden_states=fill_last(windows, self.config.width, self.config.width),
        )
        tokens = self.linear(output.last_hidden_state)
        return ConnectorOutput(embeddings=unfold_tokens(tokens, used), language_logits=language_logits)


def qformer_attention(attention: str) -> str:
    """The nearest attention that BLIP-2's Q-Former has; it knows no flash attention."""
    return "sdpa" if "flash" in attention else attention


CONNECTORS = {
    "stack_mlp": StackMLP,
    "conv": Conv,
    "window_qformer": WindowQFormer,
    "conformer_ctc": ConformerCTC,
    "whisper_qformer": WhisperQFormer,
    "ctc_compress": CTCCompress,
    "whisper_reader": WhisperReader,
}


def build_connector(
    settings: dict | str, audio_size: int, text_size: int, window: int = 1500, audio_layers: int = 0, **kwargs: Any
) -> Connector:
    """The connector that `settings` (`{"type": name, ...}`, or a name) name; other arguments as in [`Connector`]."""
    config = connector_config(settings)
    return CONNECTORS[config.type](config, audio_size, text_size, window, audio_layers=audio_layers, **kwargs)


__all__ = ["CONNECTORS", "Conv", "StackMLP", "WindowQFormer", "build_connector"]
