"""From a batch to what the LLM sees: audio tokens of the connector, and prompts with them in place."""

from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_speechllm.connector_base import ConnectorOutput, length_mask
from modeling_speechllm.left_out import attended_places, leave_out, left_out_places, put_places, take_places
from modeling_speechllm.lengths import minimum_input
from modeling_speechllm.modeling_speechllm import put_audio

from ..speed.prefix import Prefix, read_on


def connect(model: PreTrainedModel, batch: dict[str, Any]) -> ConnectorOutput:
    """The connector's output for the audios of a batch, from features or from cached encoder frames; without audio,
    from as few silent frames as make a token.

    Language labels reach it in training only, where they are forced at the connector's own rate.
    """
    language = batch["language"] if model.training else None
    if "encoder_frames" not in batch:
        features = batch["input_features"], batch["input_features_mask"]
        return model.model.get_audio_features(*features, language).connector
    projector = model.model.multi_modal_projector
    weight = next(projector.parameters())
    frames, lengths = batch["encoder_frames"], batch["encoder_lengths"]
    if frames is None:
        sizes = [len(model.config.audio_layers)] * bool(model.config.audio_layers) + [model.config.audio_size]
        frames = torch.zeros(1, minimum_input(model.config.connector_stages), *sizes, device=weight.device)
        lengths = torch.tensor([frames.shape[1]], device=weight.device)
    return projector(frames.to(weight.dtype), lengths, language)


def embed_prompts(
    model: PreTrainedModel, batch: dict[str, Any], connected: ConnectorOutput
) -> dict[str, torch.Tensor]:
    """What the LLM is given: `inputs_embeds` (batch, sequence, dim), audio tokens in place of their placeholders; with
    a connector that leaves audio tokens out also `attention_mask` and `position_ids`, which do not count them.

    Otherwise there is no mask: rows are padded behind, where a causal LLM does not look, and attention without a
    mask is faster. What it gives for the padding stands for nothing.

    A batch without audio takes its dummy's tokens times zero, so that all processes run the same modules.

    Raises:
        ValueError: placeholders and audio tokens differ in number, with both.
    """
    embeddings = model.model.embed_text(batch["input_ids"])
    if batch["dummy_audio"]:
        embeddings = embeddings + 0.0 * connected.embeddings.sum().to(embeddings.dtype)
        return {"inputs_embeds": embeddings}
    used = length_mask(connected.lengths, connected.embeddings.shape[1])
    if "audio_keep" in batch:
        used = used & batch["audio_keep"]
    placeholders = model.model.get_placeholder_mask(batch["input_ids"])
    if int(placeholders.sum()) != int(used.sum()):
        raise ValueError(
            f"The prompts have {int(placeholders.sum())} audio placeholders, the connector gave {int(used.sum())} "
            "audio tokens. Model and processor do not belong together: load both from the same folder."
        )
    inputs = {"inputs_embeds": put_audio(embeddings, placeholders, connected.embeddings[used])}
    if connected.used is not None:
        left_out = left_out_places(placeholders, connected, used)
        inputs["attention_mask"], inputs["position_ids"] = leave_out(left_out, batch["attention_mask"])
    return inputs


def read_prompts(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], prefix: Prefix | None = None
) -> torch.Tensor:
    """Last hidden states (batch, sequence, dim) of the LLM that reads what [`embed_prompts`] made, from the end of a
    `prefix` on that all rows begin with, if there is one.

    Audio tokens that the connector leaves out take no part: the others are closed up before and spread again after,
    with zeros where nothing was read.
    """
    llm, embeddings = model.model.language_model, inputs["inputs_embeds"]
    if "position_ids" not in inputs:
        return read_on(llm, prefix, embeddings)
    mask = inputs["attention_mask"]
    counts = mask.sum(-1)
    places = attended_places(mask, max(int(counts.max()), 1))
    hidden = read_on(
        llm,
        prefix,
        take_places(embeddings, places),
        attention_mask=length_mask(counts, places.shape[1]).to(mask.dtype),
        position_ids=inputs["position_ids"].gather(1, places),
    )
    return put_places(hidden, places, mask.shape[1])


__all__ = ["connect", "embed_prompts", "read_prompts"]
