"""Strided convolutions that are right on every CPU.

On processors with AMX, torch 2.14 (oneDNN) computes a bfloat16 convolution of stride 2 whose output is one wide from
memory that is not its own: `Conv2d(2, 2, 3, 2)` on an input 3 wide gives values up to 1e38 among right ones. Which
other shapes are hit is not known, so on a CPU strided convolutions are computed in float32, inside autocast too. Other
devices compute in the precision that they are given.
"""

import torch
from torch import nn


class Float32OnCPU:
    """Mixin of a convolution: on a CPU, half precision is computed in float32 and rounded to the input's dtype."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.device.type != "cpu":
            return super().forward(hidden)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            output = self._conv_forward(hidden.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
        return output.to(hidden.dtype)


class StridedConv1d(Float32OnCPU, nn.Conv1d):
    """`nn.Conv1d` with a bias, see [`Float32OnCPU`]."""


class StridedConv2d(Float32OnCPU, nn.Conv2d):
    """`nn.Conv2d` with a bias, see [`Float32OnCPU`]."""


__all__ = ["StridedConv1d", "StridedConv2d"]
