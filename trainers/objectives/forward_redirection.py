"""Runs a function inside the forward of a wrapped module."""

from collections.abc import Callable
from typing import Any

from torch import nn


def through_forward(wrapper: nn.Module, inner: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """
    `function(*args)` as if it were the forward of `inner`, called by `wrapper`.

    DDP, FSDP and DeepSpeed act in the wrapper's forward and its hooks (gathering, preparing the backward pass); work
    that is more than one call of the model passes through them in this way, as in Lightning and TRL.

    Args:
        wrapper: the module as Accelerate wrapped it; may be `inner` itself.
        inner: the module inside, whose own forward is in place again while `function` runs.
        function: what to run; tensors in its arguments and results are seen by the hooks.
    """
    own = vars(inner).get("forward")  # set on the instance, as Accelerate's autocast does

    def restore() -> None:
        if own is None:
            vars(inner).pop("forward", None)
        else:
            inner.forward = own

    def run(*args: Any) -> Any:
        restore()
        return function(*args)

    inner.forward = run
    try:
        return wrapper(*args)
    finally:
        restore()


__all__ = ["through_forward"]
