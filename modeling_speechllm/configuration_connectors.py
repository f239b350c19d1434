"""Settings of the connectors, one dataclass each; `connector_config` reads them from a plain dict.

A connector's `stages(window)` are its length arithmetic (see `lengths.py`) for an encoder whose windows have `window`
frames.
"""

from dataclasses import dataclass, fields


@dataclass
class ConnectorConfig:
    """What all connectors share.

    Args:
        type (`str`): name in `CONNECTOR_CONFIGS`.
        layers (`"all"` or `list[int]`, *optional*): encoder layers whose softmax-weighted sum is read (BLOOMZMMS: all
            of them), 0 being the input of the first layer. By default the encoder's output.
    """

    type: str = ""
    layers: str | list[int] | None = None

    def __post_init__(self):
        if not (self.layers in (None, "all") or isinstance(self.layers, list) and len(self.layers) > 0):
            raise ValueError(
                f'{self.type}: layers must be "all", a list of layer numbers or None, not {self.layers!r}.'
            )

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
        bias (`bool`, defaults to `False`): biases in both linear layers.
    """

    type: str = "stack_mlp"
    stride: int = 8
    width: int | None = None
    hidden_size: int | None = None
    activation: str = "gelu"
    norm: bool = True
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
        if self.languages and len(self.languages) > 1 and self.gate is None:
            raise ValueError(
                f'{self.type}: {len(self.languages)} languages need a gate. Set gate="conv" or "attention".'
            )
        if self.gate is not None and not self.languages:
            raise ValueError(f"{self.type}: a gate needs the names of the languages. Set languages=[...].")
        if self.languages and len(set(self.languages)) != len(self.languages):
            raise ValueError(f"{self.type}: languages {self.languages} are not all different.")
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


CONNECTOR_CONFIGS = {"stack_mlp": StackMLPConfig, "whisper_qformer": WhisperQFormerConfig}


def connector_config(settings: dict | str | None) -> ConnectorConfig:
    """Typed settings of a connector from a plain dict (`{"type": name, ...}`), a name, or None for the default.

    Raises:
        ValueError: an unknown connector or an unknown setting, with the known ones.
    """
    settings = {"type": settings} if isinstance(settings, str) else dict(settings or {})
    name = settings.setdefault("type", "stack_mlp")
    if name not in CONNECTOR_CONFIGS:
        raise ValueError(f"Unknown connector {name!r}. Known connectors: {', '.join(sorted(CONNECTOR_CONFIGS))}.")
    known = [field.name for field in fields(CONNECTOR_CONFIGS[name])]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"Connector {name!r} has no setting {', '.join(unknown)}. Its settings: {', '.join(known)}.")
    return CONNECTOR_CONFIGS[name](**settings)


__all__ = [
    "CONNECTOR_CONFIGS",
    "ConnectorConfig",
    "QueryBankConfig",
    "StackMLPConfig",
    "WhisperQFormerConfig",
    "connector_config",
]
