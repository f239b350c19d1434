"""Length arithmetic from data: stages, as the model's config lists them too, from samples to audio tokens."""

STAGE_KEYS = {"kernel", "stride", "padding", "ceil", "tokens"}


def stage_length(length: int, stages: list[dict]) -> int:
    """
    How many items `length` items become after `stages`.

    A stage `{"kernel": k, "stride": s, "padding": p = 0, "ceil": c = False, "tokens": t = 1}` slides a window over the
    items and gives `t` items per position; with `ceil` a last, partly filled window counts too.
    """
    for stage in stages:
        kernel, stride, ceil = stage["kernel"], stage["stride"], stage.get("ceil", False)
        if length == 0:
            return 0
        room = length + 2 * stage.get("padding", 0) - kernel
        positions = (room + (stride - 1 if ceil else 0)) // stride + 1
        length = max(positions, 1 if ceil else 0) * stage.get("tokens", 1)
    return length


def fill(length: int, stages: list[dict]) -> int:
    """Items that fill `length` positions after (unpadded) `stages` to the last one."""
    for stage in reversed(stages):
        length = (length - 1) * stage["stride"] + stage["kernel"]
    return length


def check_stages(name: str, stages: list[dict] | None) -> None:
    """Raise a `ValueError` unless `stages`, the processor's argument `name`, is a list of stages."""
    if stages is None or not all({"kernel", "stride"} <= set(stage) <= STAGE_KEYS for stage in stages):
        raise ValueError(
            f"{name} must be a list of dicts with kernel, stride and optionally padding, ceil, tokens, not "
            f"{stages!r}. Copy it from the model's config, or use SpeechLLMProcessor.from_parts."
        )


__all__ = ["stage_length"]
