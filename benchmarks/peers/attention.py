"""Attention's forward and backward pass in its forms, on one CPU thread, in milliseconds of processor time.

    python -m benchmarks.peers.attention

Nine heads of 64 and a causal mask with padding, as in a layer of SmolLM2-135M.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

from trainers.speed.attention import BackwardByProducts

SHAPES = ((8, 60), (8, 100), (8, 200), (4, 400), (4, 600), (2, 1000))  # rows, positions


def eager(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As transformers' `eager`."""
    bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    weights = (query @ key.transpose(2, 3)) * query.shape[-1] ** -0.5 + bias
    return F.softmax(weights, -1, dtype=torch.float32).to(query.dtype) @ value


FORMS = {
    "eager": eager,
    "sdpa": lambda query, key, value, mask: F.scaled_dot_product_attention(query, key, value, attn_mask=mask),
    "sdpa, backward by products": lambda query, key, value, mask: BackwardByProducts.apply(
        query, key, value, mask, False, query.shape[-1] ** -0.5
    ),
}


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.peers.attention", description=__doc__).parse_args()
    torch.set_num_threads(1)
    print(f"| rows x positions | precision | {' | '.join(FORMS)} |\n|---|---|{'---:|' * len(FORMS)}")
    for rows, positions in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            tensors = [torch.randn(rows, 9, positions, 64, dtype=dtype) for _ in range(3)]
            mask = torch.ones(rows, 1, positions, positions, dtype=torch.bool).tril()
            mask[0, :, 6:, -5:] = False
            times = {name: ([], []) for name in FORMS}
            for number in range(6):
                for name, form in FORMS.items():
                    query, key, value = (tensor.clone().requires_grad_() for tensor in tensors)
                    begin = time.thread_time()
                    output = form(query, key, value, mask)
                    middle = time.thread_time()
                    output.backward(torch.ones_like(output))
                    if number:
                        times[name][0].append(middle - begin)
                        times[name][1].append(time.thread_time() - middle)
            shown = [" + ".join(f"{1000 * statistics.median(part):.1f}" for part in parts) for parts in times.values()]
            print(f"| {rows} x {positions} | {str(dtype)[6:]} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
