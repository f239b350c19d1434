"""Which kernels compute scaled dot-product attention on a GPU while lengths change from batch to batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def attention_for_any_length() -> Iterator[None]:
    """PyTorch's choice without cuDNN, which plans anew for every length: about 6 ms for each layer and direction on an
    H200, where a step of training computes for 1 ms. Left alone where cuDNN is all that is allowed."""
    flags = torch.backends.cuda
    change = flags.cudnn_sdp_enabled() and (flags.flash_sdp_enabled() or flags.mem_efficient_sdp_enabled())
    if change:
        flags.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        if change:
            flags.enable_cudnn_sdp(True)


__all__ = ["attention_for_any_length"]
