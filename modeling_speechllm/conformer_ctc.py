"""E-Branchformer connector with an intermediate language CTC, and CTC over the LLM's own embedding table.

BLOOMZMMS (Denisov & Vu 2024, arXiv 2404.10922): all encoder layers mixed, normalised per utterance, subsampled to an
eighth by an E-Branchformer (Kim et al. 2022, arXiv 2210.00077) and a length adaptor. After an early block a CTC tells
the language at half the rate, and its posteriors are fed back (self-conditioning, Nozaki & Komatsu 2021, arXiv
2104.02724).

Unusual here:
- Padding never leaks: whatever slides over time or attends sees zeros, or nothing, past each row's length.
- Attention runs over a block of queries at a time, recomputed in the backward pass, so that memory grows linearly with
  the length of the audio, although every position attends to all others. With `attention_context` each attends to so
  many on both sides only, and time grows linearly too (local attention as in Longformer, Beltagy et al. 2020, arXiv
  2004.05150, and Fast Conformer, Rekesh et al. 2023, arXiv 2305.05084).
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import is_tracing

from .configuration_connectors import ConformerCTCConfig
from .connector_base import Connector, ConnectorOutput, Initialized, fill_last, zero_past
from .convolutions import StridedConv1d, StridedConv2d
from .lengths import output_length, receptive_field, stage_length
from .local_attention import attended_keys, context_within, query_blocks

QUERY_BLOCK = 512  # 41 s at 12.5 Hz
SUBSAMPLING_BLOCK = 512  # 41 s too


def ctc_logits(embeddings: torch.Tensor, embedding_weight: torch.Tensor) -> torch.Tensor:
    """CTC logits over an LLM's vocabulary: h E^T with its frozen input embeddings, no bias, no copy.

    Args:
        embeddings (`torch.Tensor` of shape `(..., dim)`): what a connector made.
        embedding_weight (`torch.Tensor` of shape `(vocabulary, dim)`): gets no gradient.
    """
    return F.linear(embeddings.to(embedding_weight), embedding_weight.detach())


def utterance_norm(frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean 0 over the valid frames of each row and channel, the variance as it is (ESPnet's `utterance_mvn` as
    BLOOMZMMS has it); `frames` are zero past `lengths`."""
    values = frames.float()
    mean = values.sum(1, keepdim=True) / lengths[:, None, None]
    return zero_past(values - mean, lengths).to(frames.dtype)


def relative_positions(time: int, size: int, device: torch.device) -> torch.Tensor:
    """Sinusoids of the distances from `time - 1` down to `1 - time` of a query from a key, (2 * time - 1, size)."""
    distance = torch.arange(time - 1, -time, -1, device=device, dtype=torch.float32)
    rate = torch.exp(torch.arange(0, size, 2, device=device) * (-math.log(10000.0) / size))
    angle = distance[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def by_key(scores: torch.Tensor, keys: int) -> torch.Tensor:
    """Scores by distance to scores by key: (..., queries, queries + keys - 1) -> (..., queries, keys).

    Column `queries - 1 - i + j` of row i belongs to key j, so each row starts one column before the one above.
    """
    queries, columns = scores.shape[-2:]
    flat = F.pad(scores, (0, 1)).flatten(-2)[..., queries - 1 : queries - 1 + queries * columns]
    return flat.unflatten(-1, (queries, columns))[..., :keys]


def depthwise(size: int, kernel: int, convolution: type = nn.Conv1d) -> nn.Conv1d:
    """A convolution over time, each channel for itself, that keeps the length."""
    return convolution(size, size, kernel, padding=kernel // 2, groups=size)


class FeedForward(nn.Module):
    """Layer norm and a perceptron with Swish; two of them, halved, enclose a block as in Macaron."""

    def __init__(self, config: ConformerCTCConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear_1 = nn.Linear(config.hidden_size, config.ffn_size)
        self.linear_2 = nn.Linear(config.ffn_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.linear_2(self.dropout(F.silu(self.linear_1(self.norm(hidden))))))


class RelativeAttention(Initialized):
    """Self-attention whose scores depend on the distance too (Transformer-XL; ESPnet's `rel_pos`).

    score(i, j) = ((q_i + u) k_j + (q_i + v) p_(i - j)) / sqrt(dim), with learned u and v.
    """

    def __init__(self, config: ConformerCTCConfig):
        super().__init__()
        size, self.heads, self.dropout = config.hidden_size, config.heads, config.dropout
        self.context = config.attention_context
        self.norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.position = nn.Linear(size, size, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(self.heads, size // self.heads))
        self.position_bias = nn.Parameter(torch.zeros(self.heads, size // self.heads))
        self.linear = nn.Linear(size, size)

    def initialize(self, std: float) -> None:
        init.xavier_uniform_(self.content_bias)
        init.xavier_uniform_(self.position_bias)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(batch, time, size), (batch,), [`relative_positions`] of as many positions as a query may be away from a key
        -> (batch, time, size)."""
        time = hidden.shape[1]
        context = context_within(self.context, time)
        heads = self.query_key_value(self.norm(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (batch, heads, time, dim) each
        position = self.position(positions).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        reach = (len(positions) + 1) // 2  # distance d is at place reach - 1 - d
        recompute = time > QUERY_BLOCK and torch.is_grad_enabled()
        attended = []
        for queries, keys in query_blocks(time, QUERY_BLOCK, context):
            near = position[:, reach - queries.stop + keys.start : reach - queries.start + keys.stop - 1]
            mask = attended_keys(lengths, queries, keys, context)
            inputs = query[:, :, queries], key[:, :, keys], value[:, :, keys], near, mask
            attended.append(
                checkpoint(self.attend, *inputs, use_reentrant=False) if recompute else self.attend(*inputs)
            )
        return self.linear(torch.cat(attended, dim=2).transpose(1, 2).flatten(2))

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Consecutive queries over consecutive keys; `position` goes from the last query's distance to the first key
        down to the first query's to the last key."""
        by_distance = (query + self.position_bias[:, None].to(query.dtype)) @ position.transpose(-1, -2)
        bias = by_key(by_distance, key.shape[2]) / math.sqrt(query.shape[-1])
        return F.scaled_dot_product_attention(
            query + self.content_bias[:, None].to(query.dtype),
            key,
            value,
            attn_mask=bias.masked_fill(~mask, float("-inf")),
            dropout_p=self.dropout if self.training else 0.0,
        )


class GateConvolution(nn.Conv1d, Initialized):
    """A convolution that starts as the constant 1, so that the unit it gates starts as a linear one (cgMLP)."""

    def initialize(self, std: float) -> None:
        init.normal_(self.weight, std=1e-6)
        init.ones_(self.bias)


class ConvolutionalGating(nn.Module):
    """cgMLP: one half of the channels, convolved over time, gates the other (Sakuma et al. 2022)."""

    def __init__(self, config: ConformerCTCConfig):
        super().__init__()
        half = config.gating_size // 2
        self.norm = nn.LayerNorm(config.hidden_size)
        self.linear_1 = nn.Linear(config.hidden_size, config.gating_size)
        self.gate_norm = nn.LayerNorm(half)
        self.gate_convolution = depthwise(half, config.kernel, GateConvolution)
        self.linear_2 = nn.Linear(half, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        value, gate = F.gelu(self.linear_1(self.norm(hidden))).chunk(2, dim=-1)
        gate = zero_past(self.gate_norm(gate), lengths)
        gate = self.gate_convolution(gate.transpose(1, 2)).transpose(1, 2)
        return self.linear_2(self.dropout(value * gate))


class EBranchformerBlock(GradientCheckpointingLayer):
    """Attention beside convolutional gating, merged by a depthwise convolution, between two feed-forward halves."""

    def __init__(self, config: ConformerCTCConfig):
        super().__init__()
        size = config.hidden_size
        self.feed_forward_before = FeedForward(config)
        self.attention = RelativeAttention(config)
        self.gating = ConvolutionalGating(config)
        self.merge_convolution = depthwise(2 * size, config.kernel)
        self.merge = nn.Linear(2 * size, size)
        self.feed_forward_after = FeedForward(config)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """(batch, time, size), (batch,), [`relative_positions`] -> (batch, time, size)."""
        hidden = hidden + 0.5 * self.feed_forward_before(hidden)
        attended = self.attention(hidden, lengths, positions)
        branches = self.dropout(torch.cat([attended, self.gating(hidden, lengths)], dim=-1))
        branches = zero_past(branches, lengths)
        branches = branches + self.merge_convolution(branches.transpose(1, 2)).transpose(1, 2)
        hidden = hidden + self.dropout(self.merge(branches))
        hidden = hidden + 0.5 * self.feed_forward_after(hidden)
        return self.norm(hidden)


class Subsampling(nn.Module):
    """Two convolutions over time and channels, each halving both, and a linear layer."""

    def __init__(self, config: ConformerCTCConfig, stages: list[dict]):
        super().__init__()
        self.stages = stages
        self.convolutions = nn.ModuleList(
            [StridedConv2d(1, config.channels, 3, 2), StridedConv2d(config.channels, config.channels, 3, 2)]
        )
        rows = ((config.reduced_size - 1) // 2 - 1) // 2
        self.linear = nn.Linear(config.channels * rows, config.hidden_size)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        (batch, frames, reduced_size), (batch,) -> (batch, time, hidden_size), (batch,).

        Maps of all channels are the largest tensors here, so without gradients they are made of a block of long audio
        at a time, with the frames that its last positions share with the next block.
        """
        halved = stage_length(lengths, **self.stages[0])
        ends = stage_length(halved, **self.stages[1])
        field, hop = receptive_field(self.stages)
        time = output_length(frames.shape[1], self.stages)
        if torch.is_grad_enabled() or is_tracing() or time <= SUBSAMPLING_BLOCK:
            return self.convolve(frames, [lengths, halved]), ends
        blocks = []
        for start in range(0, time, SUBSAMPLING_BLOCK):
            first = start * hop
            block = frames[:, first : first + (SUBSAMPLING_BLOCK - 1) * hop + field]
            blocks.append(self.convolve(block, [lengths - first, halved - first // self.stages[0]["stride"]]))
        return torch.cat(blocks, dim=1), ends

    def convolve(self, frames: torch.Tensor, ends: list[torch.Tensor]) -> torch.Tensor:
        """Frames to positions; `ends` are where each row's frames end, and what the first convolution makes."""
        for convolution, stage, end in zip(self.convolutions, self.stages, ends, strict=True):
            frames = fill_last(zero_past(frames, end), stage["kernel"], stage["stride"])
            maps = frames.unflatten(-1, (convolution.in_channels, -1)).transpose(1, 2)  # (batch, channels, time, rows)
            frames = F.relu(convolution(maps)).transpose(1, 2).flatten(2)
        return self.linear(frames)


class LengthAdaptor(nn.Module):
    """Halves the frames: a convolution of kernel and stride 2 and ReLU (Li et al. 2021, arXiv 2010.12829)."""

    def __init__(self, size: int):
        super().__init__()
        self.convolution = StridedConv1d(size, size, kernel_size=2, stride=2)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, time, size), (batch,) -> (batch, half the time, rounded up, size), (batch,)."""
        hidden = fill_last(zero_past(hidden, lengths), 2, 2)
        return F.relu(self.convolution(hidden.transpose(1, 2))).transpose(1, 2), (lengths + 1) // 2


class ConformerCTC(Connector):
    """The adaptor of BLOOMZMMS, see the module; for its stage 1, [`ctc_logits`] of the output."""

    def __init__(self, config: ConformerCTCConfig, audio_size: int, text_size: int, window: int, **kwargs: Any):
        super().__init__(config, audio_size, text_size, window, **kwargs)
        size = config.hidden_size
        self.reduce = nn.Linear(audio_size, config.reduced_size)
        self.subsampling = Subsampling(config, self.stages[:2])
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(EBranchformerBlock(config) for _ in range(config.blocks))
        if config.language_count:
            self.language_adaptor = LengthAdaptor(size)
            self.language_head = nn.Linear(size, config.language_count + 1)
            self.language_condition = nn.Linear(config.language_count + 1, size)
        self.norm = nn.LayerNorm(size)
        self.length_adaptor = LengthAdaptor(size)
        self.linear = nn.Linear(size, text_size)

    def project(self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None) -> ConnectorOutput:
        output = ConnectorOutput()
        hidden, lengths = self.subsampling(self.reduce(utterance_norm(frames, lengths)), lengths)
        time, size = hidden.shape[1:]
        context = context_within(self.config.attention_context, time)
        reach = time if context is None else min(context + QUERY_BLOCK, time)
        positions = relative_positions(reach, size, hidden.device).to(hidden.dtype)
        hidden, positions = self.dropout(hidden * math.sqrt(size)), self.dropout(positions)
        for number, block in enumerate(self.blocks, start=1):
            hidden = block(hidden, lengths, positions)
            if self.config.language_count and number == self.config.language_block:
                halved, output.language_ctc_lengths = self.language_adaptor(hidden, lengths)
                output.language_ctc_logits = self.language_head(halved)
                posteriors = output.language_ctc_logits.softmax(-1).repeat_interleave(2, dim=1)
                hidden = hidden + self.language_condition(posteriors[:, : hidden.shape[1]])
        hidden, _ = self.length_adaptor(self.norm(hidden), lengths)
        output.embeddings = self.linear(hidden)
        return output


__all__ = ["ConformerCTC", "EBranchformerBlock", "ctc_logits", "relative_positions", "utterance_norm"]
