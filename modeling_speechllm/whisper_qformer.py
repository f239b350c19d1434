"""The Whisper decoder as a Q-Former (DiVA, Held et al. 2024, arXiv 2410.02678; LAD, arXiv 2603.07025)."""

from typing import Any

import torch
from torch import nn
from transformers import WhisperConfig
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

from .configuration_connectors import WhisperQFormerConfig
from .connector_base import Connector, ConnectorOutput, fold_windows, length_mask, rows_of_windows, unfold_tokens
from .query_bank import QueryBank


class WhisperQFormer(Connector):
    """A fixed number of queries goes through Whisper's decoder layers, which cross-attend the encoder's frames.

    As in DiVA's code the queries live in the decoder's width, its positions are added and its causal mask stays on; a
    linear layer maps the result to the LLM. Audio longer than a window gets one set of queries per window. The frames
    of a shorter one are attended as they are, without the silence that pads Whisper's own windows.
    """

    def __init__(self, config: WhisperQFormerConfig, audio_size: int, text_size: int, window: int, **kwargs: Any):
        super().__init__(config, audio_size, text_size, window, **kwargs)
        self.window = window
        size = config.hidden_size or audio_size
        self.decoder_config = decoder_config(config, size, kwargs.get("attention", "sdpa"))
        self.audio_projection = nn.Identity() if size == audio_size else nn.Linear(audio_size, size)
        self.bank = QueryBank(config, size, audio_size)
        self.embed_positions = nn.Embedding(config.positions, size)
        self.layers = nn.ModuleList(
            WhisperDecoderLayer(self.decoder_config, number) for number in range(config.decoder_layers)
        )
        self.layer_norm = nn.LayerNorm(size)
        self.linear = nn.Linear(size, text_size)

    def project(self, frames: torch.Tensor, lengths: torch.Tensor, language: torch.Tensor | None) -> ConnectorOutput:
        queries, language_logits = self.bank(frames, lengths, language)
        windows, window_lengths, used = fold_windows(self.audio_projection(frames), lengths, self.window)
        positions = self.embed_positions(torch.arange(queries.shape[1], device=queries.device))
        hidden = rows_of_windows(queries, used) + positions
        no_cache = None  # by position: its keyword is another from transformers 5.24 on
        causal = create_causal_mask(self.decoder_config, hidden, None, no_cache)
        cross = create_bidirectional_mask(
            config=self.decoder_config,
            inputs_embeds=hidden,
            attention_mask=length_mask(window_lengths, windows.shape[1]),
            encoder_hidden_states=windows,
        )
        for layer in self.layers:
            hidden = layer(hidden, causal, windows, encoder_attention_mask=cross, use_cache=False)
        tokens = self.linear(self.layer_norm(hidden))
        return ConnectorOutput(embeddings=unfold_tokens(tokens, used), language_logits=language_logits)

    def set_attn_implementation(self, attention: str) -> None:
        self.decoder_config._attn_implementation = attention

    def load_decoder(self, decoder: nn.Module) -> None:
        """Takes the weights of a pretrained `WhisperDecoder` (all but its vocabulary).

        Raises:
            ValueError: a decoder of another shape.
        """
        own = ("embed_positions.", "layers.", "layer_norm.")
        state = {key: value for key, value in decoder.state_dict().items() if key.startswith(own)}
        expected = {key: value.shape for key, value in self.state_dict().items() if key.startswith(own)}
        if {key: value.shape for key, value in state.items()} != expected:
            raise ValueError(
                f"The Whisper decoder ({len(decoder.layers)} layers of width {decoder.config.d_model}) does not fit "
                f"the connector ({len(self.layers)} layers of width {self.decoder_config.d_model}). "
                "Leave these settings out, they are read from the decoder."
            )
        self.load_state_dict(state, strict=False)


def decoder_config(config: WhisperQFormerConfig, size: int, attention: str) -> WhisperConfig:
    """The settings as transformers' decoder layers read them."""
    whisper = WhisperConfig(
        d_model=size,
        decoder_layers=config.decoder_layers,
        decoder_attention_heads=config.heads or max(size // 64, 1),
        decoder_ffn_dim=config.ffn_size or 4 * size,
        max_target_positions=config.positions,
    )
    whisper._attn_implementation = attention
    return whisper


__all__ = ["WhisperQFormer"]
