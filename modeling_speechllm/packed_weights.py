"""Weights in fewer bits than they are computed in, in an ordinary safetensors file.

In 4 to 8 bits 32 values in a row share a scale, as in GGUF's Q8_0: `name` holds the integers, `name.scales` (float16,
of very small weights float32) the scales. Integers of 8 bits have the weight's own shape; those of fewer are one
string of bits, lowest first, and `name.shape` says how many bits and what shape they were. Vectors (norms, biases)
stay as they are. The error of a value is at most half a scale, in 8 bits 1/254 of the largest of its 32, in 4 bits
1/14.
"""

import numpy as np
import torch
from torch.nn import functional as F

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
BITS = {"int8": 8, "int6": 6, "int5": 5, "int4": 4}
STORAGES = (*HALVES, *BITS)
BLOCK = 32
SMALLEST = torch.finfo(torch.float16).smallest_normal  # below it float16 loses bits
SCALES, SHAPE = ".scales", ".shape"


def pack(weights: dict[str, torch.Tensor], storage: str) -> dict[str, torch.Tensor]:
    """Weights by name as they are stored.

    Args:
        weights: tensors of any shape; integers stay as they are.
        storage: of `STORAGES`.

    Raises:
        ValueError: another storage; a weight that is too large for it.
    """
    if storage not in STORAGES:
        raise ValueError(f"storage={storage!r} is not one of {', '.join(STORAGES)}.")
    packed = {}
    for name, weight in weights.items():
        if not weight.is_floating_point() or (storage in BITS and weight.ndim < 2):
            packed[name] = weight
        elif storage in HALVES:
            packed[name] = weight.to(HALVES[storage])
        else:
            bits = BITS[storage]
            integers, packed[name + SCALES] = quantized(weight, bits)
            packed[name] = integers
            if bits < 8:
                packed[name], packed[name + SHAPE] = to_bits(integers, bits), torch.tensor([bits, *weight.shape])
        stored = packed.get(name + SCALES, packed[name])
        if stored.is_floating_point() and not stored.isfinite().all():
            raise ValueError(f"{name} has values that {storage} cannot hold. Store it as bfloat16, or whole.")
    return packed


def unpack(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `pack` made; what was in 4 to 8 bits in float32 again, the others as they were stored."""
    weights = {}
    for name, value in packed.items():
        if any(name.endswith(end) and name.removesuffix(end) + SCALES in packed for end in (SCALES, SHAPE)):
            continue
        if name + SHAPE in packed:
            bits, *shape = packed[name + SHAPE].tolist()
            value = from_bits(value, bits, shape)
        weights[name] = restored(value, packed[name + SCALES]) if name + SCALES in packed else value
    return weights


def quantized(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight of any shape -> int8 of that shape, of which so many bits are used, and scales, one per 32 values in
    row-major order."""
    flat, largest = weight.detach().float().flatten(), 2 ** (bits - 1) - 1
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1) / largest
    small = bool(((scales > 0) & (scales < SMALLEST)).any())
    scales = scales if small and scales.max() <= torch.finfo(torch.float16).max else scales.half()
    steps = scales.float().masked_fill(scales == 0, 1.0)  # a block of zeros, or nearly
    integers = (blocks / steps[:, None]).round().clamp(-largest, largest).to(torch.int8)
    return integers.flatten()[: len(flat)].view(weight.shape), scales


def restored(integers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """int8 of any shape and its scales -> float32 of that shape."""
    steps = scales.float().repeat_interleave(BLOCK)[: integers.numel()]
    return integers.float() * steps.view(integers.shape)


def to_bits(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 of any shape, of which the lowest bits say all -> uint8 (bytes,)."""
    unsigned = integers.flatten().numpy().view(np.uint8)[:, None]
    return torch.from_numpy(np.packbits(np.unpackbits(unsigned, 1, bits, "little"), bitorder="little"))


def from_bits(packed: torch.Tensor, bits: int, shape: list[int]) -> torch.Tensor:
    """uint8 (bytes,) of `to_bits` -> int8 of its shape."""
    count, whole = int(np.prod(shape)), -len(packed) % bits
    words = np.zeros((len(packed) + whole) // bits, np.uint64)  # eight values in each, of `bits` bytes
    for place, byte in enumerate(np.pad(packed.numpy(), (0, whole)).reshape(-1, bits).T):
        words |= byte.astype(np.uint64) << np.uint64(8 * place)
    values = np.empty((len(words), 8), np.int8)
    sign = 1 << (bits - 1)
    for place in range(8):
        value = (words >> np.uint64(bits * place)).astype(np.uint8) & (2 * sign - 1)
        values[:, place] = (value ^ sign).astype(np.int8) - sign
    return torch.from_numpy(values.reshape(-1)[:count].reshape(shape))


__all__ = ["STORAGES", "pack", "unpack"]
