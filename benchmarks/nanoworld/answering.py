"""Prompts with text or audio in them through one SpeechLLM, in batches: for imitation and for exact match.

An answer counts as exact if greedy decoding would give it token by token. One forward pass decides that: every token
of the answer must be the most likely one after the right beginning.
"""

from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.nanoworld.conversations import IGNORED, Encoder, collate


@dataclass
class Question:
    """A user turn and its answer as ids; the request is ids of text, or encoder frames (frames, dim)."""

    instruction: str
    request: list[int] | torch.Tensor
    answer: list[int]
    request_first: bool = True


class Reader:
    """Runs questions through a model's connector and LLM; encoder frames are given.

    Args:
        model: a `SpeechLLMForConditionalGeneration`.
        encoder: of conversations to ids.
    """

    def __init__(self, model: nn.Module, encoder: Encoder):
        self.model, self.encoder = model, encoder

    def logits(self, questions: list[Question]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (answer tokens, vocabulary) before each answer token, and the labels (batch, length)."""
        embeddings, device = None, self.model.device
        heard = [question.request for question in questions if isinstance(question.request, torch.Tensor)]
        counts = []
        if heard:
            lengths = torch.tensor([len(frames) for frames in heard])
            padded = nn.utils.rnn.pad_sequence([frames.float() for frames in heard], batch_first=True)
            output = self.model.model.multi_modal_projector(padded.to(device), lengths.to(device))
            counts = output.lengths.tolist()
            embeddings = torch.cat([row[:count] for row, count in zip(output.embeddings, counts, strict=True)])
        samples = []
        remaining = iter(counts)
        for question in questions:
            is_audio = isinstance(question.request, torch.Tensor)
            request = [self.encoder.audio] * next(remaining) if is_audio else question.request
            head = self.encoder.turn(question.instruction, request, question.request_first)
            answer = question.answer + [self.encoder.end]
            samples.append((head + answer, [IGNORED] * len(head) + answer))
        batch = collate(samples, self.encoder.tokenizer.pad_token_id)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        inputs = self.model.get_input_embeddings()(batch["input_ids"])
        if embeddings is not None:
            places = (batch["input_ids"] == self.encoder.audio)[..., None].expand_as(inputs)
            inputs = inputs.masked_scatter(places, embeddings.to(inputs.dtype))
        hidden = self.model.model.language_model(
            inputs_embeds=inputs, attention_mask=batch["attention_mask"]
        ).last_hidden_state
        labels = batch["labels"][:, 1:]
        return self.model.lm_head(hidden[:, :-1][labels != IGNORED]), labels

    @torch.no_grad()
    def exact(self, questions: list[Question], batch: int = 64) -> list[bool]:
        """Whether greedy decoding answers each question exactly, in the model's own precision."""
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].request))
        found = [False] * len(questions)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            logits, labels = self.logits([questions[i] for i in part])
            wrong = torch.zeros_like(labels, dtype=torch.bool)
            wrong[labels != IGNORED] = logits.argmax(-1) != labels[labels != IGNORED]
            for i, bad in zip(part, wrong.any(1).tolist(), strict=True):
                found[i] = not bad
        return found

    @torch.no_grad()
    def greedy(self, questions: list[Question], limit: int = 30, batch: int = 64) -> list[list[int]]:
        """The LLM's own greedy answers to questions about text, without their end tokens."""
        answers = []
        for start in tqdm(range(0, len(questions), batch), desc="greedy answers", mininterval=5):
            part = questions[start : start + batch]
            heads = [
                self.encoder.turn(question.instruction, question.request, question.request_first) for question in part
            ]
            size, pad = max(map(len, heads)), self.encoder.tokenizer.pad_token_id
            ids = torch.tensor([[pad] * (size - len(head)) + head for head in heads], device=self.model.device)
            output = self.model.generate(
                input_ids=ids, attention_mask=(ids != pad).long(), max_new_tokens=limit, do_sample=False
            )
            for row in output[:, size:].tolist():
                answers.append(row[: row.index(self.encoder.end)] if self.encoder.end in row else row)
        return answers
