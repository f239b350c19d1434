"""Language query bank and gate (LAD, Gopal et al. 2026, arXiv 2603.07025).

One query sequence per language, B = {Q^(k)}, and a gate that hears the speech and mixes them (soft) or picks one
(hard, with a straight-through gradient). One entry and no gate is the shared query sequence of DiVA.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_connectors import QueryBankConfig
from .connector_base import Initialized, length_mask, zero_past
from .convolutions import StridedConv1d


def teacher_forcing_probability(step: int, total_steps: int) -> float:
    """p_tf of LAD: from 1 to 0 on a cosine over the first half of training, 0 after it.

    p_tf(s) = (1 + cos(pi min(1, s / 0.5 S))) / 2
    """
    return (1 + math.cos(math.pi * min(1.0, step / (0.5 * total_steps)))) / 2


class ConvGate(nn.Module):
    """Strided convolutions over time, mean over the valid frames, linear. Sizes are ours, the paper does not tell."""

    def __init__(self, audio_size: int, hidden_size: int, languages: int):
        super().__init__()
        self.conv_1 = StridedConv1d(audio_size, hidden_size, kernel_size=5, stride=4, padding=2)
        self.conv_2 = StridedConv1d(hidden_size, hidden_size, kernel_size=5, stride=4, padding=2)
        self.linear = nn.Linear(hidden_size, languages)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(batch, frames, audio_size), zero past (batch,) lengths -> logits (batch, languages)."""
        for conv in (self.conv_1, self.conv_2):
            frames = F.gelu(conv(frames.transpose(1, 2))).transpose(1, 2)
            lengths = (lengths - 1) // 4 + 1
            frames = zero_past(frames, lengths)
        return self.linear(frames.sum(1) / lengths[:, None])


class AttentionGate(nn.Module):
    """Attention pooling over the valid frames, then a perceptron. Sizes are ours, the paper does not tell."""

    def __init__(self, audio_size: int, hidden_size: int, languages: int):
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(audio_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, 1, bias=False)
        )
        self.mlp = nn.Sequential(nn.Linear(audio_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, languages))

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(batch, frames, audio_size), (batch,) lengths -> logits (batch, languages)."""
        past = ~length_mask(lengths, frames.shape[1])
        weights = self.score(frames)[..., 0].masked_fill(past, float("-inf")).softmax(-1)
        return self.mlp(torch.einsum("bt,btd->bd", weights, frames))


GATES = {"conv": ConvGate, "attention": AttentionGate}


class QueryBank(Initialized):
    """K query sequences of L queries, and the gate that chooses among them.

    `teacher_forcing` is the probability with which, in training, a known language label takes the place of the gate's
    own choice; a trainer sets it each step from [`teacher_forcing_probability`]. In evaluation a known label is a hint
    that always decides.

    Args:
        config: settings: `queries`, `languages`, `gate`, `gate_size`, `selection`.
        query_size: width of the queries.
        audio_size: width of the encoder's frames, which the gate hears.
    """

    def __init__(self, config: QueryBankConfig, query_size: int, audio_size: int):
        super().__init__()
        self.selection = config.selection
        self.teacher_forcing = 0.0
        languages = len(config.languages or [None])
        self.queries = nn.Parameter(torch.zeros(languages, config.queries, query_size))
        self.gate = GATES[config.gate](audio_size, config.gate_size, languages) if config.gate else None

    def initialize(self, std: float) -> None:
        init.normal_(self.queries, mean=0.0, std=0.02)

    def forward(
        self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            frames (`torch.Tensor` of shape `(batch, frames, audio_size)`): zero past `lengths` `(batch,)`.
            language (`torch.LongTensor` of shape `(batch,)`, *optional*): labels, -1 for unknown.

        Returns:
            queries `(batch, L, query_size)` and the gate's logits `(batch, K)`, None without a gate.

        Raises:
            ValueError: a label outside the bank, or not one for each audio.
        """
        languages = len(self.queries)
        if language is not None and language.shape != (len(frames),):
            raise ValueError(
                f"There are {len(frames)} audios and language labels of shape {tuple(language.shape)}. Give one label "
                "per audio, -1 for unknown."
            )
        if language is not None and ((language < -1) | (language >= languages)).any():
            raise ValueError(
                f"Language labels must be from 0 to {languages - 1}, or -1 for unknown, not {language.tolist()}."
            )
        if self.gate is None:
            return self.queries.expand(len(frames), -1, -1), None
        logits = self.gate(frames, lengths)
        posterior = logits.softmax(-1)
        forced = torch.zeros_like(logits[:, 0], dtype=torch.bool) if language is None else language >= 0
        if self.training:
            forced = forced & (torch.rand(len(forced), device=forced.device) < self.teacher_forcing)
        chosen = logits.argmax(-1) if language is None else torch.where(forced, language, logits.argmax(-1))
        soft = torch.einsum("bk,kld->bld", posterior, self.queries)
        discrete = self.queries[chosen]
        if self.selection == "soft":
            # A hint decides in evaluation; in training the mixture learns from L_LID alone.
            hinted = (forced & (not self.training))[:, None, None]
            return torch.where(hinted, discrete, soft), logits
        return discrete + (soft - soft.detach()), logits


__all__ = ["GATES", "AttentionGate", "ConvGate", "QueryBank", "teacher_forcing_probability"]
