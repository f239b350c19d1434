"""Attention of short sequences on a CPU in bf16: PyTorch's forward, and a backward pass of matrix products.

There the backward pass of `scaled_dot_product_attention` takes 1.5 to 3.5 times as long as the same products by
themselves, up to some 600 positions (docs/speed.md has the numbers); in float32, and on GPUs, it does not. Losses are
the same; gradients differ as two orders of rounding do. As there, scores are not kept but made again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

LONGEST = 512  # positions, up to which products are faster


class BackwardByProducts(torch.autograd.Function):
    """`scaled_dot_product_attention` of queries, keys and values (batch, heads, positions, dim) with a mask that is
    True where attended, or of floats to be added; the scores are made again in the backward pass, as PyTorch does."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        scale: float,
    ) -> torch.Tensor:
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal, scale=scale, dropout_p=0.0
        )
        ctx.save_for_backward(query, key, value, mask)
        ctx.is_causal, ctx.scale = is_causal, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        query, key, value, mask = ctx.saved_tensors
        if ctx.is_causal:
            mask = torch.ones(1, 1, query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        else:
            mask = None if mask is None else mask.expand(len(query), *mask.shape[1:])
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for row in range(len(query)):  # one at a time stays in the processor's cache
            scores = (query[row] @ key[row].transpose(-2, -1)).float().mul_(ctx.scale)
            own = None if mask is None else mask[0 if ctx.is_causal else row]
            if own is not None:
                scores = scores.masked_fill_(~own, float("-inf")) if own.dtype == torch.bool else scores.add_(own)
            weights = scores.softmax(-1).nan_to_num_(0.0)  # a place that attends to nothing gives zeros
            slopes = (gradient[row] @ value[row].transpose(-2, -1)).float()
            slopes = torch._softmax_backward_data(slopes, weights, -1, torch.float32).mul_(ctx.scale).to(query.dtype)
            torch.matmul(slopes, key[row], out=of_query[row])
            torch.matmul(slopes.transpose(-2, -1), query[row], out=of_key[row])
            torch.matmul(weights.to(query.dtype).transpose(-2, -1), gradient[row], out=of_value[row])
        return of_query, of_key, of_value, None, None, None


def attention_with_products(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa` attention, with a backward pass by products where that is faster."""
    length, learning = query.shape[2], torch.is_grad_enabled() and (query.requires_grad or value.requires_grad)
    whole = length == key.shape[2] or attention_mask is not None  # PyTorch's causal mask begins at the first key
    fits = whole and key.shape[2] <= LONGEST and query.dtype == torch.bfloat16 and query.device.type == "cpu"
    plain = not dropout and kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    if not (learning and fits and plain):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and length > 1
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = BackwardByProducts.apply(query, key, value, attention_mask, causal, scale)
    return output.transpose(1, 2).contiguous(), None


@contextmanager
def fast_backward(wanted: bool = True) -> Iterator[None]:
    """While it is on, and `wanted`, models whose attention is `sdpa` have [`attention_with_products`]."""
    functions = ALL_ATTENTION_FUNCTIONS
    if not wanted or "sdpa" in functions._local_mapping:
        yield
        return
    functions["sdpa"] = attention_with_products
    try:
        yield
    finally:
        del functions["sdpa"]


__all__ = ["BackwardByProducts", "attention_with_products", "fast_backward"]
