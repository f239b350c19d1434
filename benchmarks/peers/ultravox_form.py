"""Ultravox's form of a speech LLM on the same parts, written from its description (fixie-ai/ultravox, version 0.6).

What it does and others do not: features padded to the longest of a batch and an additive mask over the padding; eight
frames stacked into a SwiGLU projector; the rows' audio put into the prompts one after the other; logits of every
position of the prompt and the answer; for the divergence a second pass of the LLM over the transcript that makes all
logits (and the loss on them) too, temperature 2, and the same divergence once more at the end of each answer. Weights,
the projector's too, are held in the precision that is asked for, without autocast.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from processing_speechllm import SpeechLLMProcessor
from trainers.data.chats import answered_chat, pad_chats, read_chat, tokenize_chats

from .parts import INSTRUCTION, chat_ids

STACK, TEMPERATURE = 8, 2.0


class Projector(nn.Module):
    """(batch, frames, dim) -> (batch, frames / 8, LLM dim)."""

    def __init__(self, audio_size: int, hidden_size: int, text_size: int):
        super().__init__()
        self.norm = LlamaRMSNorm(audio_size * STACK, eps=1e-6)
        self.linear_1 = nn.Linear(audio_size * STACK, 2 * hidden_size, bias=False)
        self.inner_norm = LlamaRMSNorm(hidden_size, eps=1e-6)
        self.linear_2 = nn.Linear(hidden_size, text_size, bias=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        batch, length, dim = frames.shape
        frames = F.pad(frames, (0, 0, 0, -length % STACK)).view(batch, -1, dim * STACK)
        value, gate = self.linear_1(self.norm(frames)).chunk(2, dim=-1)
        return self.linear_2(self.inner_norm(F.silu(gate) * value))


class UltravoxForm(nn.Module):
    """Encoder, projector, LLM; only the projector is trained."""

    accepts_loss_kwargs = False  # Trainer keeps the number of items to itself

    def __init__(self, encoder: PreTrainedModel, llm: PreTrainedModel, hidden_size: int):
        super().__init__()
        self.encoder, self.llm = encoder, llm
        torch.manual_seed(0)
        self.projector = Projector(encoder.config.d_model, hidden_size, llm.config.hidden_size)
        self.projector.to(device=llm.device, dtype=llm.dtype)

    def encode(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Mel features (audios, mels, positions) and how many are audio -> frames (audios, frames, dim)."""
        encoder = self.encoder
        hidden = F.gelu(encoder.conv1(features.to(encoder.dtype)))
        hidden = F.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        frames = (lengths - 1) // 2 + 1
        inside = torch.arange(hidden.shape[1], device=hidden.device)[None] < frames[:, None]
        mask = (1.0 - inside[:, None, None].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer in encoder.layers:
            hidden = layer(hidden, mask.expand(-1, -1, hidden.shape[1], -1))
        return encoder.layer_norm(hidden)

    def embed(
        self,
        input_ids: torch.Tensor,
        features: torch.Tensor,
        lengths: torch.Tensor,
        starts: torch.Tensor,
        counts: torch.Tensor,
    ) -> torch.Tensor:
        """The prompt's embeddings (rows, places, dim) with `counts` audio tokens from place `starts` on."""
        embeddings = self.llm.get_input_embeddings()(input_ids)
        audio = self.projector(self.encode(features, lengths).to(embeddings.dtype))
        for row in range(len(audio)):
            start, count = starts[row], counts[row]
            embeddings[row][start : start + count] = audio[row][:count]
        return embeddings

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        teacher_input_ids: torch.Tensor | None = None,
        teacher_attention_mask: torch.Tensor | None = None,
        teacher_labels: torch.Tensor | None = None,
        **audio: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        embeddings = self.embed(input_ids, **audio)
        output = self.llm(inputs_embeds=embeddings, attention_mask=attention_mask, labels=labels)
        if teacher_input_ids is None:
            return {"loss": output.loss}
        with torch.no_grad():
            read = self.llm(
                inputs_embeds=self.llm.get_input_embeddings()(teacher_input_ids),
                attention_mask=teacher_attention_mask,
                labels=teacher_labels,
            ).logits
        heard, total = output.logits, 0.0
        for ends in (False, True):
            student, teacher = (predicting(places, ends) for places in (labels, teacher_labels))
            total = total + F.kl_div(
                F.log_softmax(heard[student] / TEMPERATURE, dim=-1),
                F.softmax(read[teacher] / TEMPERATURE, dim=-1),
                reduction="batchmean",
            )
        return {"loss": total}

    @torch.no_grad()
    def first_token(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **audio: torch.Tensor
    ) -> torch.Tensor:
        return self.llm.generate(
            inputs_embeds=self.embed(input_ids, **audio),
            attention_mask=attention_mask,
            **{"max_new_tokens": 1, "do_sample": False},
        )


def predicting(labels: torch.Tensor, ends: bool) -> torch.Tensor:
    """(rows, places) mask of the places before labels, or before the last label of each row."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != -100
    if not ends:
        return mask
    last = torch.zeros_like(mask)
    for row in range(len(mask)):
        places = torch.where(mask[row])[0]
        if len(places):
            last[row, places[-1]] = True
    return last


def audio_arguments(
    processor: SpeechLLMProcessor, samples: list[np.ndarray], ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What `embed` takes beside the ids: features padded to the longest, lengths, and places of the audio tokens."""
    inputs = processor.audio_inputs(samples)
    places = ids == processor.audio_token_id
    return {
        "features": torch.from_numpy(inputs["input_features"]),
        "lengths": torch.from_numpy(inputs["input_features_mask"]).sum(-1),
        "starts": places.int().argmax(-1),
        "counts": places.sum(-1),
    }


class UltravoxCollator:
    """Rows to batches of [`UltravoxForm`], with the teacher's prompts for the divergence."""

    def __init__(self, processor: SpeechLLMProcessor, divergence: bool):
        self.processor, self.divergence = processor, divergence

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        processor = self.processor
        samples, texts = [processor.load_audio(row["audio"]) for row in rows], [row["text"] for row in rows]
        counts = [processor.audio_token_count(len(one)) for one in samples]
        padding = processor.tokenizer.pad_token_id
        batch = pad_chats(*chat_ids(processor, texts, counts), padding)
        if self.divergence:
            read = [read_chat(answered_chat([text], INSTRUCTION), [text]) for text in texts]
            batch |= pad_chats(*tokenize_chats(processor, read), padding, "teacher_")
        batch = {name: value for name, value in batch.items() if not name.endswith("prompt_end")}
        batch |= audio_arguments(processor, samples, batch["input_ids"])
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == processor.audio_token_id, padding)
        return batch


__all__ = ["UltravoxCollator", "UltravoxForm", "audio_arguments"]
