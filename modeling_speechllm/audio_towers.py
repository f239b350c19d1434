"""One view of every speech encoder: features and their mask in, frames and their lengths out.

What the encoders do not do by themselves and the tower does:
- Whisper and encoders made from it run on the audio's own length (positions up to there, padding masked) instead of
  30 padded seconds.
- Audio longer than a window is cut into windows so that every frame is made once: none is lost or doubled at a seam.
- A batch gives what its members give alone, also for encoders with group norm or adapters, which padding would change.
- A frozen encoder runs in evaluation mode and without gradients; on a CPU, where padding takes time and a full batch
  saves none, audios of like length together.

Features have time as their last axis in every family: `(batch, samples)` or `(batch, features, positions)`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import ModelOutput, is_tracing, torch_compilable_check

from .audio_encoders import ENCODER_CLASSES
from .audio_families import (
    FILTERBANK_FAMILIES,
    POOLED_FAMILIES,
    WHISPER_FAMILIES,
    audio_stages,
    default_window,
    encoder_config,
    has_adapter,
)
from .connector_base import length_mask
from .lengths import look_back, minimum_input, output_length, receptive_field

ALIKE, PADDED = 0.9, 0.25  # on a CPU, audios of 0.9 of the longest's length run together, if a quarter were padding
# Of a frozen encoder: bounds what long audio takes beside its features and frames. A CPU is fastest where what a layer
# makes of a pass stays in its cache; an accelerator needs many rows.
WINDOWS_PER_PASS = {"cpu": 4}
WINDOWS_PER_PASS_ELSEWHERE = 16


@dataclass
class AudioTowerOutput(ModelOutput):
    """
    Args:
        last_hidden_state (`torch.Tensor` of shape `(batch, frames, dim)`): encoder frames, zero past each length; with
            layers asked for `(batch, frames, layers, dim)`.
        lengths (`torch.Tensor` of shape `(batch,)`): valid frames of each row.
    """

    last_hidden_state: torch.Tensor | None = None
    lengths: torch.Tensor | None = None


def pad_time(sequence: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros at the end of dimension 1 up to `size`."""
    return F.pad(sequence, (0, 0) * (sequence.ndim - 2) + (0, size - sequence.shape[1]))


def windows_per_pass(device: torch.device) -> int:
    """How many windows of long audio a frozen encoder runs at a time."""
    return WINDOWS_PER_PASS.get(device.type, WINDOWS_PER_PASS_ELSEWHERE)


def longest(lengths: torch.Tensor, size: int) -> int:
    """The greatest of `lengths`, at least 1; in a compiled graph, which has one shape for all data, `size`."""
    return size if is_tracing() else max(int(lengths.max()), 1)


class AudioTower(nn.Module):
    """A transformers speech encoder behind the common view; subclasses run one batch of windows.

    Args:
        encoder: the transformers module; its own config is `audio_config`.
        window: encoder frames per window.
    """

    def __init__(self, encoder: PreTrainedModel, window: int):
        super().__init__()
        # One unit of FSDP and of `device_map`: how often the encoder's layers run depends on the batch.
        self._no_split_modules = [type(self).__name__]
        self.encoder = encoder
        self.config = encoder.config
        self.stages = audio_stages(encoder.config)
        self.window = window
        field, self.hop = receptive_field(self.stages)
        self.window_step = window * self.hop
        # Windows overlap by what their last frame sees beyond them, so frames at a seam are those of the uncut audio;
        # padded convolutions see the window's own padding there. Seamless' adapter makes a frame more than its input
        # has hops (`lead`): the first looks back into the padding, and in later windows it is the one before's last.
        self.lead = max(output_length(self.window_step, self.stages) - window, 0)
        if self.lead:
            overlap = field - look_back(self.stages) + (self.lead - 1) * self.hop
        else:
            field, hop = receptive_field([stage for stage in self.stages if not stage.get("padding")])
            overlap = field - hop
        self.window_size = self.window_step + max(overlap, 0)

    @property
    def frozen(self) -> bool:
        """No parameter is trained (Whisper's sinusoidal positions never are)."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def forward(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        layers: list[int] | None = None,
        mix: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> AudioTowerOutput:
        """
        Args:
            input_features (`torch.Tensor`): filterbank features `(batch, features, positions)` or waveform
                `(batch, samples)`, padded on the right.
            input_features_mask (`torch.Tensor` of shape `(batch, positions or samples)`, *optional*): 1 where valid.
            layers (`list[int]`, *optional*): encoder layers to return in place of the output, 0 being the input of
                the first and the last being the output; where the encoder ends in pooling, they are pooled too.
            mix (`Callable`, *optional*): (rows, frames, layers, dim) -> (rows, frames, dim), applied to a few windows
                at a time, so that long audio never holds all its layers. A frozen encoder gives it no gradients.

        Raises:
            ValueError: a row too short for one encoder frame, a mask that is not right-padded, or layers of an
                encoder with an adapter, which has more frames in its layers than in its output.
        """
        if layers and has_adapter(self.config):
            raise ValueError("layers: this encoder ends in an adapter. Load it with add_adapter=False in its config.")
        size = input_features.shape[-1]
        if input_features_mask is None:
            lengths = torch.full((len(input_features),), size, device=input_features.device)
        else:
            input_features_mask = input_features_mask.to(input_features.device)
            lengths = input_features_mask.sum(-1).long()
            if input_features_mask.shape[-1] != size:
                raise ValueError(
                    f"input_features_mask has {input_features_mask.shape[-1]} positions, input_features {size}. "
                    "Pass both as the processor made them."
                )
            torch_compilable_check(
                (input_features_mask.bool() == length_mask(lengths, size)).all(),
                "input_features must be padded on the right: its mask has a 0 before a 1.",
            )
        frames = output_length(lengths, self.stages)
        torch_compilable_check((frames > 0).all(), lambda: self._too_short(lengths, frames))
        if self.frozen:
            self.encoder.eval()
        with torch.no_grad() if self.frozen else nullcontext():
            hidden = self._run_alike(input_features.to(self.encoder.dtype), lengths, layers, mix)
        hidden = hidden[:, : longest(frames, hidden.shape[1])]
        past = ~length_mask(frames, hidden.shape[1])
        hidden = hidden.masked_fill(past.view(*past.shape, *[1] * (hidden.ndim - 2)), 0.0)
        return AudioTowerOutput(last_hidden_state=hidden, lengths=frames)

    def _run_alike(
        self, features: torch.Tensor, lengths: torch.Tensor, layers: list[int] | None, mix: Callable | None
    ) -> torch.Tensor:
        """`_run_windows` for audios of like length at a time, where that is faster."""
        if torch.is_grad_enabled() or features.device.type != "cpu" or len(features) < 2 or is_tracing():
            return self._run_windows(features, lengths, layers, mix)
        if lengths.sum() > (1 - PADDED) * len(lengths) * lengths.max():
            return self._run_windows(features, lengths, layers, mix)
        order = lengths.argsort(descending=True, stable=True)
        groups, longest_of = [], 0
        for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
            if not groups or length < ALIKE * longest_of:
                groups.append([])
                longest_of = length
            groups[-1].append(row)
        parts = [self._run_windows(features[rows], lengths[rows], layers, mix) for rows in groups]
        size = max(part.shape[1] for part in parts)
        hidden = parts[0].new_zeros(len(features), size, *parts[0].shape[2:])
        for rows, part in zip(groups, parts, strict=True):
            hidden[rows, : part.shape[1]] = part
        return hidden

    def _too_short(self, lengths: torch.Tensor, frames: torch.Tensor) -> str:
        """What is wrong with the first row that makes no frame."""
        row = int((frames < 1).nonzero()[0])
        return (
            f"Audio row {row} has {int(lengths[row])} input positions, too few for one encoder frame "
            f"({minimum_input(self.stages)} are needed). Drop or lengthen this audio."
        )

    def _run_windows(
        self, features: torch.Tensor, lengths: torch.Tensor, layers: list[int] | None, mix: Callable | None
    ) -> torch.Tensor:
        """Cut into windows, run those that hold audio as one batch, and put their frames back in order."""
        features = features[..., : longest(lengths, features.shape[-1])]
        if features.shape[-1] <= self.window_size:
            return self._encode_mixed(features, lengths, layers, mix)
        count = -(-(features.shape[-1] - self.window_size) // self.window_step) + 1
        missing = (count - 1) * self.window_step + self.window_size - features.shape[-1]
        windows = F.pad(features, (0, missing)).unfold(-1, self.window_size, self.window_step)
        windows = windows.movedim(-2, 1)  # (batch, count, [mel,] window_size)
        starts = torch.arange(count, device=features.device) * self.window_step
        window_lengths = (lengths[:, None] - starts).clamp(0, self.window_size)
        used = output_length(window_lengths, self.stages) > self.lead * (starts > 0)
        encoded = self._in_passes(windows[used], window_lengths[used], layers, mix)
        hidden = encoded.new_zeros(len(features), count, self.window, *encoded.shape[2:])
        hidden[used] = pad_time(encoded[:, self.lead :], self.window)
        hidden = hidden.flatten(1, 2)
        if self.lead:
            first = encoded[used.nonzero()[:, 1] == 0, : self.lead]
            hidden = torch.cat([first, hidden], dim=1)
        return hidden

    def _in_passes(
        self,
        windows: torch.Tensor,
        lengths: torch.Tensor | None,
        layers: list[int] | None,
        mix: Callable | None,
        **kwargs: bool,
    ) -> torch.Tensor:
        """`encode`, a few windows at a time where no gradients hold all of them in memory anyway."""
        count = windows_per_pass(windows.device)
        if torch.is_grad_enabled() or len(windows) <= count:
            return self._encode_mixed(windows, lengths, layers, mix, **kwargs)
        parts = lengths.split(count) if lengths is not None else [None] * len(windows)
        encoded = [
            self._encode_mixed(rows, part, layers, mix, **kwargs)
            for rows, part in zip(windows.split(count), parts, strict=False)
        ]
        longest = max(part.shape[1] for part in encoded)
        return torch.cat([pad_time(part, longest) for part in encoded])

    def _encode_mixed(
        self,
        features: torch.Tensor,
        lengths: torch.Tensor | None,
        layers: list[int] | None,
        mix: Callable | None,
        **kwargs: bool,
    ) -> torch.Tensor:
        hidden = self.encode(features, lengths, layers, **kwargs)
        return hidden if mix is None else mix(hidden)

    def encode(self, features: torch.Tensor, lengths: torch.Tensor, layers: list[int] | None = None) -> torch.Tensor:
        """One window per row: features and input lengths -> (rows, frames, dim) or (rows, frames, layers, dim)."""
        raise NotImplementedError


class WhisperTower(AudioTower):
    """Whisper's encoder on the audio's own length, or on full windows (`pad_to_window`) as in its pretraining."""

    masks_silence = False  # pretraining attended to the silence after the audio

    def __init__(self, encoder: PreTrainedModel, window: int, pad_to_window: bool = False):
        super().__init__(encoder, window)
        self.pad_to_window = pad_to_window

    def _run_windows(
        self, features: torch.Tensor, lengths: torch.Tensor, layers: list[int] | None, mix: Callable | None
    ) -> torch.Tensor:
        if not self.pad_to_window:
            return super()._run_windows(features, lengths, layers, mix)
        if features.shape[-1] % self.window_size:
            raise ValueError(
                f"pad_to_window: got {features.shape[-1]} mel frames, not a multiple of the window's "
                f"{self.window_size}. Use a processor saved with pad_to_window=True."
            )
        # The extractor's own padding is part of what the pretrained encoder saw: windows run whole.
        count = features.shape[-1] // self.window_size
        windows = features.unflatten(-1, (count, self.window_size)).movedim(-2, 1)
        starts = torch.arange(count, device=features.device) * self.window_size
        window_lengths = (lengths[:, None] - starts).clamp(0, self.window_size)
        used = window_lengths > 0
        attended = window_lengths[used] if self.masks_silence else None
        encoded = self._in_passes(windows[used], attended, layers, mix, keep_silence=True)
        hidden = encoded.new_zeros(len(features), count, self.window, *encoded.shape[2:])
        hidden[used] = encoded
        return hidden.flatten(1, 2)

    def encode(
        self,
        features: torch.Tensor,
        lengths: torch.Tensor | None,
        layers: list[int] | None = None,
        keep_silence: bool = False,
    ) -> torch.Tensor:
        """See [`AudioTower.encode`]; attends to everything without `lengths`, and with `keep_silence` the
        convolutions see the features past them."""
        encoder, mask = self.encoder, None
        if not keep_silence:
            # The convolutions must see zeros past the end, as they do at the end of a row of its own.
            inside = length_mask(lengths, features.shape[-1])[:, None]
            features = features.masked_fill(~inside, 0.0)
        hidden = F.gelu(encoder.conv1(features))
        if not keep_silence:
            hidden = hidden.masked_fill(~inside, 0.0)
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
        if lengths is not None:
            mask = length_mask(output_length(lengths, self.stages[:2]), hidden.shape[1])
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=mask)
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        hidden = hidden + encoder.embed_positions(positions).to(hidden.dtype)
        hidden = F.dropout(hidden, p=encoder.dropout, training=encoder.training)
        states = [hidden]
        for layer in encoder.layers:
            if not (encoder.training and torch.rand([]) < encoder.layerdrop):
                hidden = layer(hidden, mask)
            states.append(hidden)
        output = encoder.layer_norm(self.pool(states.pop()))
        if not layers:
            return output
        return torch.stack([(*map(self.pool, states), output)[number] for number in layers], dim=2)

    def pool(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the encoder does to the frames `(rows, frames, dim)` before its last layer norm."""
        return hidden


class PooledWhisperTower(WhisperTower):
    """Qwen2-Audio's and Audio Flamingo 3's encoders: Whisper, then the average of every two frames.

    As in the original, an odd last frame (20 ms) has no partner and makes no frame.
    """

    masks_silence = True

    def pool(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.encoder.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2)


class MaskedTower(AudioTower):
    """Encoders whose own forward takes a mask: wav2vec2, HuBERT, WavLM, w2v-BERT, Seamless, Parakeet."""

    def encode(self, features: torch.Tensor, lengths: torch.Tensor, layers: list[int] | None = None) -> torch.Tensor:
        if not self._feels_padding(features.shape[-1]):
            mask = length_mask(lengths, features.shape[-1])
            inside = mask if features.ndim == 2 else mask[:, None]
            return self._hidden(features.masked_fill(~inside, 0.0), mask.long(), layers)
        frames = output_length(lengths, self.stages)
        hidden = None
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            encoded = self._hidden(features[rows, ..., :length], None, layers)
            if hidden is None:
                hidden = encoded.new_zeros(len(features), int(frames.max()), *encoded.shape[2:])
            hidden = hidden.index_copy(0, rows, pad_time(encoded, hidden.shape[1]))
        return hidden

    def _feels_padding(self, positions: int) -> bool:
        """Whether masked padding would change the frames, so that only rows of equal length run together.

        Group norm takes statistics over time, and an adapter convolves past the end. Seamless adds its boolean mask to
        the attention scores where attention is "eager" (transformers 5.23), which is harmless only if all of it is 1.
        """
        added = self.config.model_type == "seamless_m4t_v2" and self.config._attn_implementation == "eager"
        if added and positions > self.config.speech_encoder_chunk_size:
            raise ValueError(
                f"Seamless' chunks of {self.config.speech_encoder_chunk_size} positions are not kept apart by eager "
                f'attention, and a window has {positions}. Load it with attn_implementation="sdpa".'
            )
        return added or has_adapter(self.config) or getattr(self.config, "feat_extract_norm", "layer") == "group"

    def _hidden(self, features: torch.Tensor, mask: torch.Tensor | None, layers: list[int] | None) -> torch.Tensor:
        if self.config.model_type in FILTERBANK_FAMILIES:
            features = features.transpose(1, 2)
        settings = {"attention_mask": mask, "output_hidden_states": bool(layers)}
        if self.encoder.training and getattr(self.config, "mask_time_prob", 0) > 0:
            # SpecAugment refuses audio shorter than one of its masks.
            frames = output_length(features.shape[1], [stage for stage in self.stages if not stage.get("padding")])
            if frames < self.config.mask_time_length:
                settings["mask_time_indices"] = features.new_zeros(len(features), frames, dtype=torch.bool)
        output = self.encoder(features, **settings)
        if not layers:
            return output.last_hidden_state
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        return torch.stack([states[number] for number in layers], dim=2)


def build_audio_tower(
    audio_config: PreTrainedConfig,
    window: int | None = None,
    pad_to_window: bool = False,
    encoder: PreTrainedModel | None = None,
) -> AudioTower:
    """A tower with new weights (or around a given `encoder`).

    Args:
        audio_config: config of a supported family, see [`SpeechLLMConfig`].
        window: encoder frames per window, see `audio_window` of [`SpeechLLMConfig`].
        pad_to_window: see [`SpeechLLMConfig`].

    Raises:
        ValueError: unknown family, with the supported ones; an `encoder` that is a whole model.
    """
    audio_config = encoder_config(audio_config)
    window = window or default_window(audio_config)
    encoder_class = ENCODER_CLASSES.get(audio_config.model_type) or MODEL_MAPPING[type(audio_config)]
    if encoder is None:
        encoder = encoder_class._from_config(audio_config)
    elif not isinstance(encoder, encoder_class):
        raise ValueError(
            f"{type(encoder).__name__} is not the encoder alone, a {encoder_class.__name__}. Give that part of it, or "
            "the id or folder of the whole, from which the encoder is loaded."
        )
    if audio_config.model_type not in WHISPER_FAMILIES:
        return MaskedTower(encoder, window)
    tower_class = PooledWhisperTower if audio_config.model_type in POOLED_FAMILIES else WhisperTower
    return tower_class(encoder, window, pad_to_window)


__all__ = ["AudioTower", "AudioTowerOutput", "build_audio_tower"]
