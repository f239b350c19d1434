"""What stands behind the last layer of a causal LM: its output layer, what it does to its logits, and the loss of its
router where it is a mixture of experts."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclass
class RouterLoss:
    """The loss that balances a mixture of experts, as the family's own causal LM adds it.

    Args:
        function: the family's own, of router logits, experts, experts per token, and the attention mask.
        experts, experts_per_token: sizes of the router.
        weight: factor of the loss beside that of the language model.
    """

    function: Callable
    experts: int
    experts_per_token: int
    weight: float

    def __call__(self, router_logits: tuple[torch.Tensor, ...], attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Loss of `router_logits`, `(tokens, experts)` of each layer; not yet weighted."""
        return self.function(router_logits, self.experts, self.experts_per_token, attention_mask)


def build_head(text_config: Any) -> tuple[nn.Linear, RouterLoss | None]:
    """A new output layer of the shape that the family's own causal LM has (width, vocabulary, bias), and the loss of
    the family's router, if it has one."""
    with torch.device("meta"):
        causal_lm = AutoModelForCausalLM.from_config(text_config)
    head = causal_lm.get_output_embeddings()
    return nn.Linear(head.in_features, head.out_features, bias=head.bias is not None), router_loss_of(causal_lm)


def router_loss_of(causal_lm: PreTrainedModel) -> RouterLoss | None:
    """The loss of a family's router, None where it has none, or another kind of it (Doge's)."""
    function = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
    names = ["gate_logits", "num_experts", "top_k", "attention_mask"]
    if function is None or list(inspect.signature(function).parameters) != names:
        return None
    name = "router_aux_loss_coef" if hasattr(causal_lm, "router_aux_loss_coef") else "aux_loss_coef"  # JetMoE
    return RouterLoss(function, causal_lm.num_experts, causal_lm.num_experts_per_tok, getattr(causal_lm, name))


def scale_logits(logits: torch.Tensor, text_config: Any) -> torch.Tensor:
    """What a causal LM does to its logits after the head: Cohere's scale, Granite's divisor, Gemma's soft cap (by
    another name RecurrentGemma's)."""
    if getattr(text_config, "logit_scale", None) is not None:
        logits = logits * text_config.logit_scale
    if getattr(text_config, "logits_scaling", None) is not None:
        logits = logits / text_config.logits_scaling
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if (cap := getattr(text_config, name, None)) is not None:
            logits = torch.tanh(logits / cap) * cap
    return logits


__all__ = ["RouterLoss", "build_head", "scale_logits"]
