"""Settings of the connectors, one dataclass each; `connector_config` reads them from a plain dict.

A connector's `stages(window)` are its length arithmetic (see `lengths.py`) for an encoder whose windows have `window`
frames.
"""

from dataclasses import dataclass, field, fields
from typing import Any

SIZES = {
    *("hidden_size", "heads", "ffn_size", "blocks", "decoder_layers", "qformer_layers", "bottleneck_size", "queries"),
    *("vocabulary", "gate_size", "gating_size", "channels", "width"),
}


def check_languages(kind: str, languages: Any) -> None:
    """Raises a ValueError unless languages are a list of different names; a string would be one of letters."""
    names = isinstance(languages, (list, tuple)) and all(isinstance(name, str) and name for name in languages)
    if not names or len(set(languages)) < len(languages):
        raise ValueError(f"{kind}: languages={languages!r} must be a list of different names, such as ['en', 'de'].")


@dataclass
class ConnectorConfig:
    """What all connectors share.

    Args:
        type (`str`): name in `CONNECTOR_CONFIGS`.
        layers (`"all"` or `list[int]`, *optional*): encoder layers whose softmax-weighted sum is read (BLOOMZMMS: all
            of them), 0 being the input of the first layer. By default the encoder's output.
        ctc_blank (`int`, *optional*): token of the LLM that is the blank of CTC over its vocabulary; no transcript may
            hold it. By default the LLM's padding token.
    """

    type: str = ""
    layers: str | list[int] | None = None
    ctc_blank: int | None = None

    def __post_init__(self):
        if not (self.layers in (None, "all") or isinstance(self.layers, list) and len(self.layers) > 0):
            raise ValueError(
                f'{self.type}: layers must be "all", a list of layer numbers or None, not {self.layers!r}.'
            )
        for name in SIZES & {one.name for one in fields(self)}:
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(f"{self.type}: {name}={size!r} must be a whole number of 1 or more.")

    def stages(self, window: int) -> list[dict]:
        """Stages from encoder frames to audio tokens."""
        raise NotImplementedError


@dataclass
class StackMLPConfig(ConnectorConfig):
    """Frame stacking and a two-layer perceptron, after Ultravox and Voxtral.

    Args:
        stride (`int`, defaults to 8): encoder frames from one audio token to the next.
        width (`int`, *optional*, defaults to `stride`): encoder frames stacked into one audio token, >= `stride`.
        hidden_size (`int`, *optional*, defaults to the LLM's width): inner width of the perceptron.
        activation (`str`, defaults to `"gelu"`): a name of transformers' `ACT2FN`, or `"swiglu"` (Ultravox).
        norm (`bool`, defaults to `True`): RMS norm on the stacked frames (Ultravox); Voxtral has none.
        inner_norm (`bool`, defaults to `False`): RMS norm between activation and second layer (Ultravox from 0.5 on).
        bias (`bool`, defaults to `False`): biases in both linear layers.
    """

    type: str = "stack_mlp"
    stride: int = 8
    width: int | None = None
    hidden_size: int | None = None
    activation: str = "gelu"
    norm: bool = True
    inner_norm: bool = False
    bias: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.width = self.stride if self.width is None else self.width
        if self.stride < 1 or self.width < self.stride:
            raise ValueError(
                f"stack_mlp: stride={self.stride}, width={self.width} would skip frames. "
                "Use stride >= 1 and width >= stride."
            )

    def stages(self, window: int) -> list[dict]:
        """One token per stride, the last one padded."""
        return [{"kernel": self.width, "stride": self.stride, "ceil": True}]


@dataclass
class QueryBankConfig(ConnectorConfig):
    """What connectors with learned queries share: how many, and a bank of them per language (LAD, `query_bank.py`).

    Args:
        queries (`int`): queries per window.
        languages (`list[str]`, *optional*): names of the languages, one bank entry each; None is one shared entry.
        gate (`"conv"` or `"attention"`, *optional*): hears the language; needed for more than one entry.
        gate_size (`int`, defaults to 256): width inside the gate.
        selection (`"hard"` or `"soft"`, defaults to `"hard"`): pick one entry, or mix them by the gate's posterior.
    """

    queries: int = 1
    languages: list[str] | None = None
    gate: str | None = None
    gate_size: int = 256
    selection: str = "hard"

    def __post_init__(self):
        super().__post_init__()
        if self.languages is not None:
            check_languages(self.type, self.languages)
        if self.languages and len(self.languages) > 1 and self.gate is None:
            raise ValueError(
                f'{self.type}: {len(self.languages)} languages need a gate. Set gate="conv" or "attention".'
            )
        if self.gate is not None and not self.languages:
            raise ValueError(f"{self.type}: a gate needs the names of the languages. Set languages=[...].")
        for name, value, known in (
            ("gate", self.gate, (None, "conv", "attention")),
            ("selection", self.selection, ("hard", "soft")),
        ):
            if value not in known:
                raise ValueError(f"{self.type}: {name} must be one of {', '.join(map(repr, known))}, not {value!r}.")


@dataclass
class WhisperQFormerConfig(QueryBankConfig):
    """The Whisper decoder as Q-Former, after DiVA and LAD.

    Args:
        queries (`int`, defaults to 256): L; LAD found longer ones best.
        decoder (`str`, *optional*): Hub id or folder of a whole Whisper checkpoint whose decoder `from_parts` starts
            from; sizes are read from it.
        hidden_size (`int`, *optional*, defaults to the encoder's width), decoder_layers (`int`, defaults to 4), heads
            (`int`, *optional*, defaults to one per 64), ffn_size (`int`, *optional*, defaults to 4 times the width),
            positions (`int`, defaults to 448): sizes of the decoder.
    """

    type: str = "whisper_qformer"
    queries: int = 256
    decoder: str | None = None
    hidden_size: int | None = None
    decoder_layers: int = 4
    heads: int | None = None
    ffn_size: int | None = None
    positions: int = 448

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.queries <= self.positions:
            raise ValueError(f"whisper_qformer: queries={self.queries} must be from 1 to positions={self.positions}.")

    def stages(self, window: int) -> list[dict]:
        """One set of queries per encoder window."""
        return [{"kernel": window, "stride": window, "ceil": True, "tokens": self.queries}]


@dataclass
class ConvConfig(ConnectorConfig):
    """Strided convolutions and a bottleneck adapter, after BLSP.

    Args:
        convolutions (`int`, defaults to 3): how many, each followed by a gated linear unit.
        kernel (`int`, defaults to 5), stride (`int`, defaults to 2): of each; `kernel // 2` zeros pad both sides.
        hidden_size (`int`, *optional*, defaults to the encoder's width): width between convolutions, after the gate.
        bottleneck_size (`int`, defaults to 512): inner width of the adapter.
    """

    type: str = "conv"
    convolutions: int = 3
    kernel: int = 5
    stride: int = 2
    hidden_size: int | None = None
    bottleneck_size: int = 512

    def __post_init__(self):
        super().__post_init__()
        if self.convolutions < 1 or not 1 <= self.stride <= self.kernel:
            raise ValueError(
                f"conv: convolutions={self.convolutions}, kernel={self.kernel}, stride={self.stride} would skip "
                "frames. Use convolutions >= 1, stride >= 1 and kernel >= stride."
            )

    def stages(self, window: int) -> list[dict]:
        """One stage per convolution."""
        stage = {"kernel": self.kernel, "stride": self.stride, "padding": self.kernel // 2}
        return [dict(stage) for _ in range(self.convolutions)]


@dataclass
class WindowQFormerConfig(QueryBankConfig):
    """A Q-Former per window of frames, after SALMONN and Granite Speech.

    Args:
        queries (`int`, defaults to 1): audio tokens per window; divides `width`, so that the token rate is even.
        width (`int`, defaults to 17): encoder frames per window (SALMONN: 17 = 0.33 s; Granite: 15 with 3 queries).
        hidden_size (`int`, defaults to 768), qformer_layers (`int`, defaults to 2), heads (`int`, defaults to 12),
            ffn_size (`int`, defaults to 3072): sizes of the Q-Former, which cross-attends in every layer.
        dropout (`float`, defaults to 0.1): on hidden states and attention weights, as in BLIP-2.
    """

    type: str = "window_qformer"
    queries: int = 1
    width: int = 17
    hidden_size: int = 768
    qformer_layers: int = 2
    heads: int = 12
    ffn_size: int = 3072
    dropout: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.queries < 1 or self.width < 1 or self.width % self.queries:
            raise ValueError(
                f"window_qformer: queries={self.queries} must divide width={self.width}, "
                "so that every audio token stands for the same number of frames."
            )
        if self.hidden_size % self.heads:
            raise ValueError(f"window_qformer: heads={self.heads} must divide hidden_size={self.hidden_size}.")

    def stages(self, window: int) -> list[dict]:
        """`queries` tokens per window of frames, the last window padded."""
        return [{"kernel": self.width, "stride": self.width, "ceil": True, "tokens": self.queries}]


def check_context(config: Any) -> None:
    """Raises a ValueError for an `attention_context` that is no number of positions."""
    context = config.attention_context
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise ValueError(
            f"{config.type}: attention_context={context!r} must be a whole number of positions, 1 or more, or None "
            "for the whole audio."
        )


@dataclass
class ConformerCTCConfig(ConnectorConfig):
    """E-Branchformer with an intermediate language CTC, after BLOOMZMMS; sizes by default are the paper's.

    Args:
        layers (defaults to `"all"`): see [`ConnectorConfig`].
        reduced_size (`int`, defaults to 128): frames are mapped to it first.
        channels (`int`, *optional*, defaults to `hidden_size`): of the two-dimensional convolutions that follow, as in
            ESPnet's front.
        hidden_size (`int`, defaults to 1024), blocks (`int`, defaults to 17), heads (`int`, defaults to 8): of the
            E-Branchformer.
        ffn_size (`int`, defaults to 2048): inner width of its feed-forward halves.
        gating_size (`int`, defaults to 8192): inner width of its convolutional gating MLP, both halves together.
        kernel (`int`, defaults to 31): of its depthwise convolutions.
        dropout (`float`, defaults to 0.1): on hidden states, positions and attention weights.
        languages (`list[str]` or `int`, defaults to 0): names or number of the languages that the intermediate CTC
            tells apart (its blank is one more, the last), at half the rate of the blocks; 0 is no such CTC.
        language_block (`int`, defaults to 3): the block after which it reads and conditions.
        attention_context (`int`, *optional*): how many positions (0.08 s each at 50 frames per second) before and
            after it each one attends to; None is the whole audio, whose cost grows with its length squared. Audio of
            up to `attention_context + 1` positions gives the same with both.
    """

    type: str = "conformer_ctc"
    layers: str | list[int] | None = "all"
    reduced_size: int = 128
    channels: int | None = None
    hidden_size: int = 1024
    blocks: int = 17
    heads: int = 8
    ffn_size: int = 2048
    gating_size: int = 8192
    kernel: int = 31
    dropout: float = 0.1
    languages: list[str] | int = 0
    language_block: int = 3
    attention_context: int | None = None

    def __post_init__(self):
        super().__post_init__()
        self.channels = self.hidden_size if self.channels is None else self.channels
        if not isinstance(self.languages, int) or isinstance(self.languages, bool) or self.languages < 0:
            check_languages(self.type, self.languages)
        if self.reduced_size < 7:  # two convolutions of kernel 3 and stride 2
            raise ValueError(f"conformer_ctc: reduced_size={self.reduced_size} must be at least 7.")
        if self.hidden_size % (2 * self.heads) or self.gating_size % 2 or self.kernel % 2 == 0:
            raise ValueError(
                f"conformer_ctc: hidden_size={self.hidden_size} must be a multiple of twice heads={self.heads}, "
                f"gating_size={self.gating_size} even, kernel={self.kernel} odd."
            )
        check_context(self)
        if self.language_count and not 1 <= self.language_block <= self.blocks:
            raise ValueError(
                f"conformer_ctc: language_block={self.language_block} must be from 1 to blocks={self.blocks}."
            )

    @property
    def language_count(self) -> int:
        """How many languages the intermediate CTC tells apart."""
        return self.languages if isinstance(self.languages, int) else len(self.languages)

    def stages(self, window: int) -> list[dict]:
        """Four frames to one in the front, two to one in the length adaptor, each padded."""
        front = [{"kernel": 3, "stride": 2, "ceil": True} for _ in range(2)]
        return [*front, {"kernel": 2, "stride": 2, "ceil": True}]


@dataclass
class CTCCompressConfig(ConnectorConfig):
    """CTC over tokens of the LLM, compressed to one of its embeddings per token read (`ctc_compress.py`).

    Args:
        vocabulary (`int`, defaults to 4096): how many tokens it can read; which ones, `load_vocabulary` says.
        convolutions (`int`, defaults to 2), kernel (`int`, defaults to 3), stride (`int`, defaults to 2): strided
            convolutions in front. CTC needs as many places as the transcript has tokens: at 50 frames per second and
            a product of strides of 4, 12.5 a second.
        hidden_size (`int`, defaults to 512), blocks (`int`, defaults to 4), heads (`int`, defaults to 8), ffn_size
            (`int`, defaults to 2048): of the Transformer layers.
        dropout (`float`, defaults to 0.1): on hidden states and attention weights.
        attention_context (`int`, *optional*): as of [`ConformerCTCConfig`].
    """

    type: str = "ctc_compress"
    vocabulary: int = 4096
    convolutions: int = 2
    kernel: int = 3
    stride: int = 2
    hidden_size: int = 512
    blocks: int = 4
    heads: int = 8
    ffn_size: int = 2048
    dropout: float = 0.1
    attention_context: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_context(self)
        if self.vocabulary < 1 or self.convolutions < 1 or not 1 <= self.stride <= self.kernel:
            raise ValueError(
                f"ctc_compress: vocabulary={self.vocabulary}, convolutions={self.convolutions}, kernel={self.kernel}, "
                f"stride={self.stride}. Use vocabulary and convolutions >= 1, stride >= 1 and kernel >= stride."
            )
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"ctc_compress: hidden_size={self.hidden_size} must be a multiple of twice heads={self.heads}."
            )

    def stages(self, window: int) -> list[dict]:
        """One stage per convolution, each padded."""
        return [{"kernel": self.kernel, "stride": self.stride, "ceil": True} for _ in range(self.convolutions)]


@dataclass
class WhisperReaderConfig(ConnectorConfig):
    """Whisper's own decoder reads, and the LLM gets an embedding per token read (`whisper_reader.py`).

    Args:
        decoder (`str`, *optional*): Hub id or folder of a whole Whisper checkpoint whose decoder `from_parts` starts
            from; the sizes and tokens below are read from it and from the LLM's tokenizer.
        language (`str`, defaults to `"en"`): what a multilingual Whisper is told that is spoken.
        frames_per_token (`int`, defaults to 6): encoder frames per place for a token: at 50 frames per second, room
            for 8 tokens a second.
        trailing_silence (`float`, defaults to 0.5): seconds of silence that the processor puts after the audio, by
            which Whisper finds its end.
        hidden_size (`int`, *optional*, defaults to the encoder's width), decoder_layers (`int`, defaults to 6), heads
            (`int`, *optional*, defaults to one per 64), ffn_size (`int`, *optional*, defaults to 4 times the width),
            positions (`int`, defaults to 448): sizes of the decoder.
        tokens (`int`, defaults to 51865): Whisper's vocabulary; vocabulary (`int`, defaults to 50257): how many of
            them it may write, see `load_vocabulary`.
        prompt (`list[int]`): what the decoder begins with, up to the first timestamp.
        end (`int`, defaults to 50257): Whisper's end token; text lies before it. times (`int`, defaults to 50364): the
            first timestamp; all after it are timestamps, one per encoder frame.
        no_speech (`int`, *optional*): Whisper's token for no speech; None in checkpoints from before the threshold,
            for which it is off. suppress_tokens (`list[int]`): tokens of text that Whisper never writes, brackets and
            notes of what is not speech ("[Music]").
        no_speech_threshold (`float`, *optional*, defaults to 0.35): above which `no_speech_probability` nothing is
            read of a window; not the probability of `no_speech` alone, for which Whisper has 0.6. None or 0 is off.
        selection (`str`, defaults to `"hard"`): a token's vector is the LLM's embedding of what was written
            (`"hard"`, with the gradient of the other), or the mean of all embeddings, weighted by the posterior
            (`"soft"`).
    """

    type: str = "whisper_reader"
    decoder: str | None = None
    language: str = "en"
    frames_per_token: int = 6
    trailing_silence: float = 0.5
    hidden_size: int | None = None
    decoder_layers: int = 6
    heads: int | None = None
    ffn_size: int | None = None
    positions: int = 448
    tokens: int = 51865
    vocabulary: int = 50257
    prompt: list[int] = field(default_factory=lambda: [50258, 50259, 50359, 50364])
    end: int = 50257
    times: int = 50364
    no_speech: int | None = None
    suppress_tokens: list[int] = field(default_factory=list)
    no_speech_threshold: float | None = 0.35
    selection: str = "hard"

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.vocabulary <= self.end < self.times < self.tokens or self.frames_per_token < 1:
            raise ValueError(
                f"whisper_reader: vocabulary={self.vocabulary}, end={self.end}, times={self.times}, "
                f"tokens={self.tokens}, frames_per_token={self.frames_per_token}. Use 1 <= vocabulary <= end < times "
                "< tokens and frames_per_token >= 1, or leave them out: they are read from the decoder."
            )
        if not self.prompt or len(self.prompt) >= self.positions or max(self.prompt) >= self.tokens:
            raise ValueError(
                f"whisper_reader: prompt={self.prompt} must be tokens below {self.tokens}, fewer than the "
                f"{self.positions} positions."
            )
        if not (isinstance(self.trailing_silence, (int, float)) and 0 <= self.trailing_silence < float("inf")):
            raise ValueError(f"whisper_reader: trailing_silence={self.trailing_silence} must be 0 seconds or more.")
        told = [*self.suppress_tokens, *([] if self.no_speech is None else [self.no_speech])]
        if not all(isinstance(token, int) and 0 <= token < self.tokens for token in told):
            raise ValueError(
                f"whisper_reader: no_speech={self.no_speech}, suppress_tokens={self.suppress_tokens} must be tokens "
                f"below {self.tokens}. Leave them out: they are read from the decoder."
            )
        if self.selection not in ("hard", "soft"):
            raise ValueError(f"whisper_reader: selection={self.selection!r} must be 'hard' or 'soft'.")
        threshold = self.no_speech_threshold
        if threshold is not None and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
            raise ValueError(
                f"whisper_reader: no_speech_threshold={threshold!r} must be a probability from 0 to 1; 0 or None "
                "reads whatever is heard."
            )

    def stages(self, window: int) -> list[dict]:
        """One place per `frames_per_token` frames.

        Raises:
            ValueError: windows of another number of frames than a multiple of `frames_per_token`.
        """
        if window % self.frames_per_token:
            raise ValueError(
                f"whisper_reader: frames_per_token={self.frames_per_token} does not divide the {window} frames of a "
                "window. Choose a divisor."
            )
        return [{"kernel": self.frames_per_token, "stride": self.frames_per_token, "ceil": True}]


CONNECTOR_CONFIGS = {
    config.type: config
    for config in (
        StackMLPConfig,
        ConvConfig,
        WindowQFormerConfig,
        ConformerCTCConfig,
        WhisperQFormerConfig,
        CTCCompressConfig,
        WhisperReaderConfig,
    )
}

# Published connectors by name; docs/connectors.md tells their sources and what differs.
LAD = {
    "type": "whisper_qformer",
    "queries": 256,
    "decoder_layers": 32,
    "languages": ["en", "vi", "id", "zh", "es", "de"],
    "gate": "attention",
}
PRESETS = {
    "ultravox": {"type": "stack_mlp", "hidden_size": 2048, "activation": "swiglu", "inner_norm": True},
    "voxtral": {"type": "stack_mlp", "stride": 4, "norm": False},
    "blsp": {"type": "conv"},
    "salmonn": {"type": "window_qformer"},
    "granite": {
        "type": "window_qformer",
        "width": 15,
        "queries": 3,
        "hidden_size": 1024,
        "heads": 16,
        "ffn_size": 4096,
    },
    "bloomzmms": {"type": "conformer_ctc", "languages": 139, "ctc_blank": 0},  # <unk> of BLOOM
    "diva": {"type": "whisper_qformer", "queries": 448, "decoder_layers": 32},
    "lad-soft": LAD | {"selection": "soft"},
    "lad-hard": LAD | {"selection": "hard"},
}


def connector_config(settings: dict | str | None) -> ConnectorConfig:
    """Typed settings of a connector from a plain dict (`{"type": name, ...}`), a name, or None for the default.

    A name of `PRESETS` stands for its settings; a dict may change some of them.

    Raises:
        ValueError: an unknown connector or an unknown setting, with the known ones.
    """
    settings = {"type": settings} if isinstance(settings, str) else dict(settings or {})
    name = settings.setdefault("type", "stack_mlp")
    if name in PRESETS:
        settings = PRESETS[name] | settings | {"type": PRESETS[name]["type"]}
        name = settings["type"]
    if name not in CONNECTOR_CONFIGS:
        raise ValueError(
            f"Unknown connector {name!r}. Known connectors: {', '.join(sorted(CONNECTOR_CONFIGS))}. "
            f"Known presets: {', '.join(sorted(PRESETS))}."
        )
    known = [field.name for field in fields(CONNECTOR_CONFIGS[name])]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"Connector {name!r} has no setting {', '.join(unknown)}. Its settings: {', '.join(known)}.")
    return CONNECTOR_CONFIGS[name](**settings)


__all__ = [
    "CONNECTOR_CONFIGS",
    "PRESETS",
    "CTCCompressConfig",
    "ConformerCTCConfig",
    "ConnectorConfig",
    "ConvConfig",
    "QueryBankConfig",
    "StackMLPConfig",
    "WhisperQFormerConfig",
    "WhisperReaderConfig",
    "WindowQFormerConfig",
    "connector_config",
]
