"""What all rows begin with, a chat template's start and system prompt, is read once, not in every row and step.

In a causal LLM the states of these places depend on nothing behind them, and in a frozen LLM they are the same in
every step and want no gradient. So they are computed once, for one row, and the rest of each row attends to their keys
and values through the LLM's own cache, as decoding attends to a prompt. Losses and gradients are those of whole rows
but for rounding. Where that is not so, or cannot be seen to be so, rows are read as a whole (`may_share`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from modeling_speechllm.generation import CACHE

SHORTEST = 8  # places that are worth it
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)  # of a cache, that hold keys and values and nothing else
KINDS_OF_LAYERS = {"full_attention", "sliding_attention"}
ROPE_BY_LENGTH = {"dynamic", "longrope"}  # rotations of the first places change with the length of the row
TOLERANCE, IN_FLOAT32 = 0.1, 1e-3  # relative, of states that were read in two parts, in bf16 or fp16


@dataclass(frozen=True)
class Prefix:
    """The first places of a row as an LLM read them: `ids` (places,), `hidden` (1, places, dim), the last hidden
    states, and `states`, for each layer keys and values (1, heads, places, head dim)."""

    ids: torch.Tensor
    hidden: torch.Tensor
    states: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, places: int) -> "Prefix":
        """The prefix of this prefix, which is what the LLM makes of it alone."""
        states = tuple((keys[:, :, :places], values[:, :, :places]) for keys, values in self.states)
        return Prefix(self.ids[:places], self.hidden[:, :places], states)

    def cache(self, llm: PreTrainedModel, rows: int) -> Cache:
        """A new cache that holds it for so many rows; what a pass adds to it is not in the next one."""
        cache = DynamicCache(config=llm.config)
        for number, (keys, values) in enumerate(self.states):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
        return cache


def common_places(ids: torch.Tensor) -> int:
    """At how many places from the beginning all rows of ids (rows, places) are the same."""
    return int((ids == ids[:1]).all(0).long().cumprod(0).sum())


@torch.no_grad()
def read_prefix(llm: PreTrainedModel, ids: torch.Tensor, embeddings: torch.Tensor) -> Prefix | None:
    """Reads ids (places,) with embeddings (1, places, dim); None where the LLM's cache does not hold all of them."""
    cache = DynamicCache(config=llm.config)
    output = llm(inputs_embeds=embeddings, use_cache=True, **{CACHE: cache})
    if output.get(CACHE) is not cache or any(type(layer) not in LAYERS for layer in cache.layers):
        return None
    states = tuple((layer.keys, layer.values) for layer in cache.layers)
    if any(part is None or part.ndim != 4 or part.shape[::2] != (1, len(ids)) for layer in states for part in layer):
        return None
    return Prefix(ids, output.last_hidden_state, states)


def read_on(llm: PreTrainedModel, prefix: Prefix | None, embeddings: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """
    Last hidden states of rows.

    Args:
        llm: an LLM without its head.
        prefix: what all rows begin with, None for nothing known.
        embeddings (`torch.Tensor` of shape `(rows, places, dim)`): of the whole rows.
        **kwargs: `attention_mask` or `position_ids` of the LLM, `(rows, places)` each, of the whole rows; the mask has
            the places of the prefix.

    Returns:
        (rows, places, dim) of the whole rows; those of the prefix without gradient.
    """
    if prefix is None or len(prefix) >= embeddings.shape[1]:
        return llm(inputs_embeds=embeddings, use_cache=False, **kwargs).last_hidden_state
    if "position_ids" in kwargs:
        kwargs["position_ids"] = kwargs["position_ids"][:, len(prefix) :]
    rows, cache = len(embeddings), prefix.cache(llm, len(embeddings))
    output = llm(inputs_embeds=embeddings[:, len(prefix) :], use_cache=True, **{CACHE: cache}, **kwargs)
    hidden = output.last_hidden_state
    return torch.cat([prefix.hidden.to(hidden.dtype).expand(rows, -1, -1), hidden], dim=1)


def may_share(llm: PreTrainedModel) -> bool:
    """Whether what an LLM, as it is now, makes of the first places is the same for all rows and steps: frozen, without
    dropout and adapters, causal, on one device, with a cache of keys and values alone."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    weights, config = list(llm.parameters()), llm.config
    if llm.training or llm._is_stateful or any(weight.requires_grad or weight.is_inference() for weight in weights):
        return False
    if len({weight.device for weight in weights}) != 1 or weights[0].device.type == "meta":
        return False
    if getattr(config, "is_causal", True) is False or getattr(config, "use_bidirectional_attention", False):
        return False
    rope = getattr(config, "rope_parameters", None) or {}
    if {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)} & ROPE_BY_LENGTH:
        return False
    if set(getattr(config, "layer_types", None) or ()) - KINDS_OF_LAYERS:
        return False
    if getattr(config, "attention_chunk_size", None) or torch.compiler.is_compiling():
        return False
    return not any(isinstance(module, BaseTunerLayer) for module in llm.modules())


@torch.no_grad()
def reads_in_parts(llm: PreTrainedModel, ids: torch.Tensor, embeddings: torch.Tensor) -> bool:
    """Whether an LLM makes the same of ids (places,), embeddings (1, places, dim), as a whole and in two parts."""
    half = len(ids) // 2
    prefix = read_prefix(llm, ids[:half], embeddings[:, :half])
    if prefix is None:
        return False
    whole, parts = (read_on(llm, part, embeddings).float() for part in (None, prefix))
    short = prefix.states[0][0].dtype != torch.float32
    return bool((whole - parts).norm() <= (TOLERANCE if short else IN_FLOAT32) * whole.norm())


class SharedPrefix:
    """
    Finds the common prefix of batches, and keeps what the LLM made of it for as long as it is the same LLM.

    Of a batch whose rows begin with what is kept, as much of that is taken as they have in common with it; anything
    longer that the batch itself has in common is read and kept in its place.

    Args:
        wanted: without it no batch has a prefix.
    """

    def __init__(self, wanted: bool = True):
        self.wanted = wanted
        self._kept: Prefix | None = None
        self._made_by: list[Any] = []
        self._checked: tuple[PreTrainedModel, bool] | None = None

    def of(
        self,
        llm: PreTrainedModel,
        ids: torch.Tensor,
        attention_mask: torch.Tensor,
        embeddings: torch.Tensor,
        audio: torch.Tensor | None = None,
    ) -> Prefix | None:
        """
        What all rows of a batch begin with, as the LLM reads it; None where they have less than `SHORTEST` places in
        common, or it cannot be shared.

        Args:
            llm: the LLM without its head, as it is about to read the batch.
            ids, attention_mask (`torch.Tensor` of shape `(rows, places)`): padded behind.
            embeddings (`torch.Tensor` of shape `(rows, places, dim)`): of the ids, but where audio is.
            audio (`torch.BoolTensor` of shape `(rows, places)`, *optional*): where it is.
        """
        refused = self._checked is not None and self._checked[0] is llm and not self._checked[1]
        if not self.wanted or refused or len(ids) == 0:
            return None
        text = attention_mask.bool() if audio is None else attention_mask.bool() & ~audio
        limit = min(int(text.long().cumprod(-1).sum(-1).min()), ids.shape[1] - 1)
        if limit < SHORTEST or not may_share(llm):
            return None
        ids = ids[:, :limit]
        self._forget_if_changed(llm, embeddings)
        kept = 0 if self._kept is None else self._places_of_kept(ids)
        own = common_places(ids)
        if own > kept and (len(ids) > 1 or kept < SHORTEST) and own >= SHORTEST:
            first = ids[0, :own], embeddings[:1, :own].detach()
            self._kept = read_prefix(llm, *first) if self._can_share(llm, *first) else None
            kept = own
            if self._kept is None:  # nor will it be in the next batch
                self._checked, kept = (llm, False), 0
        return self._kept.first(kept) if kept >= SHORTEST else None

    def _places_of_kept(self, ids: torch.Tensor) -> int:
        size = min(len(self._kept), ids.shape[1])
        return common_places(torch.cat([self._kept.ids[None, :size], ids[:, :size]]))

    def _forget_if_changed(self, llm: PreTrainedModel, embeddings: torch.Tensor) -> None:
        """Forgets what another LLM made, or this one with other weights or in another precision."""
        device = embeddings.device.type
        made_by = [id(llm), embeddings.dtype, embeddings.device]
        made_by += [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
        made_by += [(id(part), part._version, part.data_ptr()) for part in (*llm.parameters(), *llm.buffers())]
        if made_by != self._made_by:
            self._kept, self._made_by = None, made_by

    def _can_share(self, llm: PreTrainedModel, ids: torch.Tensor, embeddings: torch.Tensor) -> bool:
        """`reads_in_parts`, seen once for each LLM."""
        if self._checked is None or self._checked[0] is not llm:
            self._checked = llm, reads_in_parts(llm, ids, embeddings)
        return self._checked[1]


__all__ = ["Prefix", "SharedPrefix", "common_places", "read_on"]
