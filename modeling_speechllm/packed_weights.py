"""Weights in fewer bits than they are computed in, in an ordinary safetensors file.

8 bits: 32 values in a row share a scale, as in GGUF's Q8_0; `name` holds the integers, in the weight's own shape, and
`name.scales` (float16) the scales. Vectors (norms, biases) stay as they are. The error of a value is at most half a
scale, that is 1/254 of the largest of its 32.
"""

import torch
from torch.nn import functional as F

STORAGES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
BLOCK = 32
SCALES = ".scales"


def pack(weights: dict[str, torch.Tensor], storage: str) -> dict[str, torch.Tensor]:
    """Weights by name as they are stored.

    Args:
        weights: tensors of any shape; integers stay as they are.
        storage: `"float16"`, `"bfloat16"` or `"int8"`.

    Raises:
        ValueError: another storage; a weight that is too large for it.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage={storage!r} is not one of {', '.join(STORAGES)}.")
    packed = {}
    for name, weight in weights.items():
        if not weight.is_floating_point() or (storage == "int8" and weight.ndim < 2):
            packed[name] = weight
        elif storage == "int8":
            packed[name], packed[name + SCALES] = quantized(weight)
        else:
            packed[name] = weight.to(STORAGES[storage])
        stored = packed.get(name + SCALES, packed[name])
        if stored.is_floating_point() and not stored.isfinite().all():
            raise ValueError(f"{name} has values that {storage} cannot hold. Store it as bfloat16, or whole.")
    return packed


def unpack(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `pack` made, those in 8 bits in float32 again, the others as they were stored."""
    return {
        name: restored(value, packed[name + SCALES]) if name + SCALES in packed else value
        for name, value in packed.items()
        if not (name.endswith(SCALES) and name.removesuffix(SCALES) in packed)
    }


def quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight of any shape -> int8 of that shape, and float16 scales, one per 32 values in row-major order."""
    flat = weight.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = (blocks.abs().amax(1) / 127).half()
    steps = scales.float().masked_fill(scales == 0, 1.0)  # a block of zeros, or nearly
    integers = (blocks / steps[:, None]).round().clamp(-127, 127).to(torch.int8)
    return integers.flatten()[: len(flat)].view(weight.shape), scales


def restored(integers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """int8 of any shape and its scales -> float32 of that shape."""
    steps = scales.float().repeat_interleave(BLOCK)[: integers.numel()]
    return integers.float() * steps.view(integers.shape)


__all__ = ["STORAGES", "pack", "unpack"]
