"""What the frozen LLM says when it reads the transcript: the states that a cache stores of it."""

from typing import Any

import torch

from .divergences import top_k_of


def last_prompt_hidden(
    hidden: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Last-layer hidden states `(batch, sequence, dim)` at the last position of each prompt -> `(batch, dim)`.

    Whatever the padding side; with `labels` the prompt ends before the first one that is not -100 (DiVA, LAD: L_OUT).
    """
    prompt = attention_mask.bool()
    if labels is not None:
        prompt = prompt & ((labels != -100).cumsum(1) == 0)
    places = torch.arange(prompt.shape[1], device=prompt.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), (places * prompt).argmax(1)]


@torch.no_grad()
def teacher_states(
    model: Any, inputs: dict[str, torch.Tensor], teacher: str, top_k: int, temperature: float
) -> list[dict[str, torch.Tensor]]:
    """The teacher's states of a batch of texts, one dict per row; see `FrameCache.teacher`.

    Args:
        model: a `SpeechLLMForConditionalGeneration`.
        inputs: `input_ids`, `attention_mask` and, for `top_k`, `labels` (-100 is no label), all `(batch, sequence)`.
        teacher: `"hidden"` or `"top_k"`.
        top_k, temperature: of `top_k`.
    """
    device = next(model.model.language_model.parameters()).device
    inputs = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask", "labels") if name in inputs}
    labels, mask = inputs.get("labels"), inputs["attention_mask"]
    embeddings = model.model.embed_text(inputs["input_ids"])
    hidden = model.model.language_model(
        inputs_embeds=embeddings, attention_mask=mask, use_cache=False
    ).last_hidden_state
    if teacher == "hidden":
        return [{"hidden": row} for row in last_prompt_hidden(hidden, mask, labels)]
    predicting = labels[:, 1:] != -100
    counts = predicting.sum(1).tolist()
    if not all(counts):
        return [{"log_probabilities": hidden.new_empty(count)} for count in counts]
    tokens = top_k_of(hidden[:, :-1][predicting], model.compute_logits, top_k, temperature)
    rows = zip(tokens.log_probabilities.split(counts), tokens.indices.split(counts), strict=True)
    return [{"log_probabilities": values, "indices": indices} for values, indices in rows]


__all__ = ["last_prompt_hidden", "teacher_states"]
