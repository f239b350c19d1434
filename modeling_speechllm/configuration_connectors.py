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


CONNECTOR_CONFIGS = {"stack_mlp": StackMLPConfig}


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


__all__ = ["CONNECTOR_CONFIGS", "ConnectorConfig", "StackMLPConfig", "connector_config"]
