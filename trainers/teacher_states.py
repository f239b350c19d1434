"""What the frozen LLM says when it reads the transcript: the states that a cache stores of it."""

from typing import Any

import torch

from modeling_speechllm.modeling_speechllm import scale_logits

POSITIONS_PER_PASS = 512  # of the vocabulary's width each: bounds the memory of the logits


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


def top_log_probabilities(
    logits: torch.Tensor, top_k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `(positions, vocabulary)` -> log-probabilities at `temperature` of the `top_k` most likely tokens and
    their ids, both `(positions, top_k)`, the most likely first."""
    return (logits.float() / temperature).log_softmax(-1).topk(top_k, dim=-1)


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
    labels = inputs.pop("labels", None)
    hidden = model.model.language_model(**inputs, use_cache=False).last_hidden_state
    if teacher == "hidden":
        return [{"hidden": row} for row in last_prompt_hidden(hidden, inputs["attention_mask"], labels)]
    predicting = labels[:, 1:] != -100
    log_probabilities, indices = [], []
    for part in hidden[:, :-1][predicting].split(POSITIONS_PER_PASS):
        logits = scale_logits(model.lm_head(part), model.config.text_config)
        values, tokens = top_log_probabilities(logits, min(top_k, logits.shape[-1]), temperature)
        log_probabilities.append(values.cpu())
        indices.append(tokens.cpu())
    counts = predicting.sum(1).tolist()
    return [
        {"log_probabilities": values, "indices": tokens.int()}
        for values, tokens in zip(
            torch.cat(log_probabilities).split(counts), torch.cat(indices).split(counts), strict=True
        )
    ]


__all__ = ["last_prompt_hidden", "teacher_states", "top_log_probabilities"]
