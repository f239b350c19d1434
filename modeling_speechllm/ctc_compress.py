"""A connector that reads: CTC over the LLM's tokens, and one embedding of the LLM per token that it read.

Strided convolutions and Transformer layers give the frames context; CTC tells at each place which token of a
restricted vocabulary is spoken there. A run of places with the same token becomes one vector: the LLM's own
embeddings, weighted by the mean posterior of the run (LegoSLM, arXiv 2505.11352). The blank between them becomes
nothing (CTC compressors: Gaido et al. 2021, arXiv 2102.01578; CJST, arXiv 2411.07607). So the LLM reads a sequence as
long as text, in its own embeddings, also before it was trained on any speech; of silence it reads nothing.

Unusual here:
- How many placeholders an audio takes depends on its length alone, as with every connector. `used` marks those that
  carry a token; the model takes the others out of attention and positions, so that they are not there for the LLM.
- The vocabulary is what occurs in the training texts: `token_ids` says which rows of the LLM's table the classes are,
  and `table` is a copy of these rows.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .configuration_connectors import CTCCompressConfig
from .connector_base import Connector, ConnectorOutput, Initialized, fill_last, length_mask, zero_past
from .convolutions import StridedConv1d
from .lengths import stage_length
from .local_attention import attended_keys, context_within, query_blocks

QUERY_BLOCK = 512  # 41 s at 12.5 Hz


def rotary_positions(time: int, dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary positions (Su et al. 2021, arXiv 2104.09864), (time, dim) each."""
    rate = 10000.0 ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angle = torch.arange(time, device=device, dtype=torch.float32)[:, None] * rate
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(heads: torch.Tensor, positions: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Queries or keys (batch, heads, time, dim), turned by their positions."""
    cosine, sine = (value.to(heads.dtype) for value in positions)
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-second, first], dim=-1) * sine


class ReadingBlock(nn.Module):
    """A pre-norm Transformer layer with rotary positions."""

    def __init__(self, config: CTCCompressConfig):
        super().__init__()
        size, self.heads, self.context = config.hidden_size, config.heads, config.attention_context
        self.attention_norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.output = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.linear_1 = nn.Linear(size, config.ffn_size)
        self.linear_2 = nn.Linear(config.ffn_size, size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden: torch.Tensor, lengths: torch.Tensor, positions: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """(batch, time, size), (batch,), [`rotary_positions`] -> (batch, time, size)."""
        heads = self.query_key_value(self.attention_norm(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        query, key, time = rotate(query, positions), rotate(key, positions), hidden.shape[1]
        context = context_within(self.context, time)
        attended = [
            F.scaled_dot_product_attention(
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                attn_mask=attended_keys(lengths, queries, keys, context),
                dropout_p=self.dropout.p if self.training else 0.0,
            )
            for queries, keys in query_blocks(time, time if context is None else QUERY_BLOCK, context)
        ]
        hidden = hidden + self.dropout(self.output(torch.cat(attended, dim=2).transpose(1, 2).flatten(2)))
        inner = self.dropout(F.gelu(self.linear_1(self.norm(hidden))))
        return hidden + self.dropout(self.linear_2(inner))


class TokenTable(Initialized):
    """Rows of the LLM's embedding table: which (`token_ids`), and the rows themselves (`weight`)."""

    def __init__(self, vocabulary: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, size))
        self.register_buffer("token_ids", torch.arange(vocabulary))

    def initialize(self, std: float) -> None:
        init.normal_(self.weight, std=std)
        init.copy_(self.token_ids, torch.arange(len(self.token_ids)))

    def forward(self, posterior: torch.Tensor) -> torch.Tensor:
        """(..., vocabulary) -> the mean of the rows that it weights, (..., size)."""
        return posterior.to(self.weight.dtype) @ self.weight


def runs(classes: torch.Tensor, lengths: torch.Tensor, blank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs of the same class, the blank's left out: what greedy CTC reads.

    (batch, time), (batch,) -> number of the run that each place belongs to, from 0 (-1 for blank and past the end),
    and which places begin one, (batch, time) each.
    """
    valid = length_mask(lengths, classes.shape[1]) & (classes != blank)
    begins = valid.clone()
    begins[:, 1:] &= (classes[:, 1:] != classes[:, :-1]) | ~valid[:, :-1]
    return (begins.cumsum(1) - 1).masked_fill(~valid, -1), begins


def mean_at_begin(embedded: torch.Tensor, run: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
    """The mean over each run at the place where it begins, zeros elsewhere, of (batch, time, dim) and [`runs`]; sums
    are taken in float32."""
    place = torch.arange(run.shape[1], device=run.device).expand_as(run)
    begin = place.masked_fill(~begins, 0).cummax(1).values  # of the run, or of the one before
    inside = (run >= 0)[..., None]
    total = torch.zeros_like(embedded, dtype=torch.float32)
    total = total.scatter_add(1, begin[..., None].expand_as(embedded), embedded.float().masked_fill(~inside, 0.0))
    count = torch.zeros_like(begin).scatter_add(1, begin, inside[..., 0].to(begin.dtype))
    return (total / count.clamp(min=1)[..., None]).masked_fill(~begins[..., None], 0.0).to(embedded.dtype)


class CTCCompress(Connector):
    """See the module."""

    leaves_out = True

    def __init__(self, config: CTCCompressConfig, audio_size: int, text_size: int, window: int, **kwargs: Any):
        super().__init__(config, audio_size, text_size, window, **kwargs)
        sizes = [audio_size, *[config.hidden_size] * config.convolutions]
        self.norm = nn.LayerNorm(audio_size)
        self.convolutions = nn.ModuleList(
            StridedConv1d(size, next_size, config.kernel, config.stride)
            for size, next_size in zip(sizes, sizes[1:], strict=False)
        )
        self.blocks = nn.ModuleList(ReadingBlock(config) for _ in range(config.blocks))
        self.output_norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocabulary + 1)
        self.table = TokenTable(config.vocabulary, text_size)

    @property
    def blank(self) -> int:
        """CTC's blank, the class after the vocabulary."""
        return self.config.vocabulary

    @torch.no_grad()
    def load_vocabulary(self, token_ids: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Takes the LLM's tokens that the connector can read, (vocabulary,), from the embeddings of all (tokens,
        text_size), as `embed_text` gives them: some LLMs scale their table.

        Raises:
            ValueError: another number of tokens than the config's `vocabulary`.
        """
        if len(token_ids) != self.config.vocabulary:
            raise ValueError(
                f"ctc_compress: {len(token_ids)} tokens for vocabulary={self.config.vocabulary}. Build the connector "
                "with as many classes as there are tokens to read."
            )
        self.table.token_ids.copy_(token_ids)
        self.table.weight.copy_(embeddings[token_ids])

    def copied(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"table.weight": embeddings[self.table.token_ids]}

    def classes_of(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Classes of the LLM's tokens, of any shape; -1 for those that the connector cannot read."""
        known = self.table.token_ids
        order = known.argsort()
        place = torch.searchsorted(known[order], token_ids).clamp(max=len(known) - 1)
        found = order[place]
        return found.masked_fill(known[found] != token_ids, -1)

    def over_tokens(self, logits: torch.Tensor, tokens: int, blank: int) -> torch.Tensor:
        """CTC logits of the classes (..., vocabulary + 1) -> of all the LLM's tokens (..., tokens), -inf for those
        that the connector cannot read; the blank is the token `blank`."""
        spread = logits.new_full((*logits.shape[:-1], tokens), -torch.inf)
        spread[..., self.table.token_ids] = logits[..., : self.blank]
        spread[..., blank] = logits[..., self.blank]
        return spread

    def read(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder frames -> CTC logits (batch, places, vocabulary + 1), the blank last, and places of each row."""
        hidden = self.norm(frames)
        for convolution, stage in zip(self.convolutions, self.stages, strict=True):
            hidden = fill_last(zero_past(hidden, lengths), stage["kernel"], stage["stride"])
            hidden = F.gelu(convolution(hidden.transpose(1, 2))).transpose(1, 2)
            lengths = stage_length(lengths, **stage)
        positions = rotary_positions(hidden.shape[1], self.config.hidden_size // self.config.heads, hidden.device)
        for block in self.blocks:
            hidden = block(hidden, lengths, positions)
        return self.head(self.output_norm(hidden)), lengths

    def project(self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None) -> ConnectorOutput:
        logits, lengths = self.read(frames, lengths)
        posterior = logits.float().softmax(-1)
        run, begins = runs(logits.argmax(-1), lengths, self.blank)
        spoken = posterior[..., : self.blank] / posterior[..., : self.blank].sum(-1, keepdim=True).clamp(min=1e-6)
        embedded = self.table(spoken)
        embeddings = mean_at_begin(embedded, run, begins)
        return ConnectorOutput(
            embeddings=embeddings, lengths=lengths, used=begins, ctc_logits=logits, ctc_lengths=lengths
        )


__all__ = ["CTCCompress", "ReadingBlock", "rotary_positions", "runs"]
