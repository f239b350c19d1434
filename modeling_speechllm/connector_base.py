"""What every connector is: encoder frames and lengths in, LLM input embeddings and lengths out."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_connectors import ConnectorConfig
from .lengths import output_length, stage_length


@dataclass
class ConnectorOutput(ModelOutput):
    """
    Args:
        embeddings (`torch.Tensor` of shape `(batch, tokens, text_size)`): LLM embeddings, anything past lengths.
        lengths (`torch.Tensor` of shape `(batch,)`): valid audio tokens of each row.
        language_logits (`torch.Tensor` of shape `(batch, languages)`, *optional*): of connectors with a language gate.
        language_ctc_logits (`torch.Tensor` of shape `(batch, frames, languages + 1)`, *optional*) and
        language_ctc_lengths (`torch.Tensor` of shape `(batch,)`, *optional*): of an intermediate language CTC.
        used (`torch.BoolTensor` of shape `(batch, tokens)`, *optional*): which audio tokens the LLM is to read; all
            within `lengths` where there is none. The others are there in number only.
        ctc_logits (`torch.Tensor` of shape `(batch, places, classes + 1)`, *optional*), the blank last, and
        ctc_lengths (`torch.Tensor` of shape `(batch,)`, *optional*): of a connector with a CTC of its own.
    """

    embeddings: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    language_logits: torch.Tensor | None = None
    language_ctc_logits: torch.Tensor | None = None
    language_ctc_lengths: torch.Tensor | None = None
    used: torch.Tensor | None = None
    ctc_logits: torch.Tensor | None = None
    ctc_lengths: torch.Tensor | None = None


def length_mask(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(batch,) lengths -> (batch, size) bool mask of the positions before each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def zero_past(sequence: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(batch, time, dim) with zeros past each row's length, so that what slides over the end sees what it would see
    if the row stood alone."""
    return sequence.masked_fill(~length_mask(lengths, sequence.shape[1])[..., None], 0.0)


def fill_last(sequence: torch.Tensor, width: int, stride: int) -> torch.Tensor:
    """(batch, time, ...) with zeros at the end, so that the last window of a `ceil` stage is whole."""
    places = stage_length(sequence.shape[1], width, stride, ceil=True)
    missing = (places - 1) * stride + width - sequence.shape[1]
    return F.pad(sequence, (0, 0) * (sequence.ndim - 2) + (0, missing))


def fold_windows(
    frames: torch.Tensor, lengths: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cuts rows into windows of `size` frames and leaves out the empty ones.

    (batch, frames, dim), (batch,) -> windows (rows, at most size, dim), their lengths (rows,), and which of the
    (batch, windows) they are. A single, shorter window is not padded.
    """
    count = max(-(-frames.shape[1] // size), 1)
    if count == 1:
        return frames, lengths, torch.ones_like(lengths[:, None], dtype=torch.bool)
    frames = F.pad(frames, (0, 0, 0, count * size - frames.shape[1]))
    windows = frames.unflatten(1, (count, size))
    window_lengths = (lengths[:, None] - torch.arange(count, device=lengths.device) * size).clamp(0, size)
    used = window_lengths > 0
    return windows[used], window_lengths[used], used


def rows_of_windows(rows: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """(batch, ...) -> (windows, ...): each row once for each of its windows that [`fold_windows`] kept."""
    return rows if used.shape[1] == 1 else rows[used.nonzero()[:, 0]]


def unfold_tokens(tokens: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """(rows, n, dim) outputs of the windows that [`fold_windows`] kept -> (batch, windows * n, dim)."""
    if used.shape[1] == 1:  # one window each: nothing was left out
        return tokens
    unfolded = tokens.new_zeros(*used.shape, *tokens.shape[1:])
    unfolded[used] = tokens
    return unfolded.flatten(1, 2)


class Initialized(nn.Module):
    """A module with parameters of its own."""

    def initialize(self, std: float) -> None:
        """Sets the parameters that this module itself holds (not its children's), with `transformers.initialization`,
        which leaves loaded weights alone. `std` is the config's `initializer_range`."""
        raise NotImplementedError


class LayerMix(Initialized):
    """Softmax-weighted sum over encoder layers with one learned weight each (ELMo; BLOOMZMMS), equal at the start."""

    def __init__(self, layers: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(layers))

    def initialize(self, std: float) -> None:
        init.zeros_(self.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, frames, layers, dim) -> (batch, frames, dim)."""
        return torch.einsum("btld,l->btd", hidden_states, self.weight.softmax(0).to(hidden_states.dtype))


class Connector(nn.Module):
    """Base of all connectors; a subclass implements `project`.

    Args:
        config: settings.
        audio_size: width of the encoder's frames.
        text_size: width of the LLM's embeddings.
        window: encoder frames per window of the tower.
        audio_layers: how many encoder layers arrive, 0 for the output alone.
        attention: transformers' name of the attention, where the connector's comes from there.

    `leaves_out` says of a class whether its outputs have `used`; `autoregressive` whether it writes its audio tokens
    one after another, so that none of them has a time or a CTC.
    """

    leaves_out = False
    autoregressive = False

    def __init__(
        self,
        config: ConnectorConfig,
        audio_size: int,
        text_size: int,
        window: int,
        audio_layers: int = 0,
        attention: str = "sdpa",
    ):
        super().__init__()
        self._no_split_modules = [type(self).__name__]  # one unit of FSDP and of `device_map`
        self.config = config
        self.stages = config.stages(window)
        if audio_layers:
            self.layer_mix = LayerMix(audio_layers)

    def forward(
        self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None = None
    ) -> ConnectorOutput:
        """
        Args:
            frames (`torch.Tensor`): `(batch, frames, audio_size)`, or `(batch, frames, layers, audio_size)` where
                layers are mixed; zero past `lengths`.
            lengths (`torch.Tensor` of shape `(batch,)`): valid frames.
            language (`torch.LongTensor` of shape `(batch,)`, *optional*): language labels, -1 for unknown.
        """
        if frames.ndim == 4:
            frames = self.layer_mix(frames)
        output = self.project(frames, lengths, language)
        if output.lengths is None:
            output.lengths = output_length(lengths, self.stages)
        return output

    def set_attn_implementation(self, attention: str) -> None:
        """Computes attention in another way; a connector without attention of transformers has nothing to set."""

    def copied(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weights of the connector, by name, that are copies out of the LLM's table `embeddings` (tokens, text_size)
        unless they were trained."""
        return {}

    def project(self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None) -> ConnectorOutput:
        """As `forward`, after layers were mixed; lengths left out of the output follow from `stages`."""
        raise NotImplementedError


__all__ = [
    "Connector",
    "ConnectorOutput",
    "Initialized",
    "LayerMix",
    "fill_last",
    "fold_windows",
    "length_mask",
    "rows_of_windows",
    "unfold_tokens",
    "zero_past",
]
