"""Length arithmetic as data: a chain of stages says how long a sequence becomes.

Processor and model carry the same stages (`audio_stages`, `connector_stages` of their configs), so they count alike.
"""

from typing import Any


def stage_length(length: Any, kernel: int, stride: int, padding: int = 0, ceil: bool = False, tokens: int = 1) -> Any:
    """Output length of one stage; `length` is an int or an integer tensor of any shape.

    A stage slides a window of `kernel` inputs by `stride` over the sequence (with `padding` on both sides) and makes
    `tokens` outputs at each place. With `ceil` the last, partly filled window counts too, so nothing is left out.
    Nothing comes of nothing, however wide the padding.
    """
    places = (length + 2 * padding - kernel + (stride - 1 if ceil else 0)) // stride + 1
    places = places * (places > 0)
    if ceil:
        places = places + (places == 0)
    return places * (length > 0) * tokens


def output_length(length: Any, stages: list[dict]) -> Any:
    """Length after all `stages`, see [`stage_length`]."""
    for stage in stages:
        length = stage_length(length, **stage)
    return length


def minimum_input(stages: list[dict]) -> int:
    """Shortest input that gives one output."""
    needed = 1
    for stage in reversed(stages):
        needed = 1 if stage.get("ceil") else (needed - 1) * stage["stride"] + stage["kernel"]
        needed = max(needed - 2 * stage.get("padding", 0), 1)
    return needed


def receptive_field(stages: list[dict]) -> tuple[int, int]:
    """(inputs one output sees, inputs from one output to the next) of a chain of stages."""
    field, hop = 1, 1
    for stage in stages:
        field += (stage["kernel"] - 1) * hop
        hop *= stage["stride"]
    return field, hop


def look_back(stages: list[dict]) -> int:
    """Inputs before the first that the first output sees, all of them padding."""
    back, hop = 0, 1
    for stage in stages:
        back += stage.get("padding", 0) * hop
        hop *= stage["stride"]
    return back


__all__ = ["look_back", "minimum_input", "output_length", "receptive_field", "stage_length"]
