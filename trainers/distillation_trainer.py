"""Distillation: hearing moves the LLM to where reading moves it (DiVA, Held et al. 2024; LAD, Gopal et al. 2026,
arXiv 2603.07025), with no answers needed."""

from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_speechllm.connector_base import ConnectorOutput
from modeling_speechllm.left_out import attended_places, take_places
from modeling_speechllm.query_bank import QueryBank, teacher_forcing_probability

from .data.chats import question_chat, up_to_answer
from .data.collators import Example, whole
from .data.interleaving import Segment
from .distillation_config import SpeechDistillationConfig
from .imitation_trainer import ImitationCollator
from .objectives.ctc import language_loss
from .objectives.distances import input_distance, output_distance
from .objectives.speech_inputs import connect
from .objectives.terms import Term
from .speech_trainer import SpeechTrainer


class DistillationCollator(ImitationCollator):
    """User turns heard and read; with answers only where a row has them and they are used."""

    def prompts(self, examples: list[Example]) -> dict[str, Any]:
        reads = bool(self.args.output_weight or self.args.response_weight)
        batch = self.chat_inputs(examples, [self.chat(example) for example in examples], teacher=reads)
        batch |= self.transcripts(examples)
        tokens = [utterance.tokens for example in examples for utterance in example.utterances]
        sizes = batch["transcript_lengths"].tolist()
        batch["counts"]["compared_tokens"] = sum(map(min, tokens, sizes))
        return batch

    def chat(self, example: Example) -> list[dict]:
        """A row's chat up to its answer, and with it for response distillation."""
        if self.args.response_weight and example.row.get("messages"):
            return up_to_answer(example.row["messages"], example.id)
        return question_chat(example.row, len(example.utterances), self.args.instruction)

    def segments(self, example: Example) -> list[list[Segment]]:
        return [whole(utterance) for utterance in example.utterances]


def said(connected: ConnectorOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """A connector's vectors (batch, tokens, dim) and how many of each row; of one that reads what the LLM gets."""
    if connected.used is None:
        return connected.embeddings, connected.lengths
    counts = connected.used.sum(-1)
    places = attended_places(connected.used, max(int(counts.max()), 1))
    return take_places(connected.embeddings, places), counts


class SpeechDistillationTrainer(SpeechTrainer):
    """
    Distils the LLM that reads transcripts into the connector.

    loss = input_weight * L_IN / utterances + output_weight * L_OUT / rows + language_weight * L_LID / labelled
           + response_weight * temperature^2 * D(teacher, student) / answer tokens

    Reported beside the terms: `language_accuracy`, the gate's; `cut_tokens`, transcript tokens per utterance that L_IN
    had to leave out as the transcript is longer than the audio's tokens.

    Args:
        model, args ([`SpeechDistillationConfig`]), train_dataset, eval_dataset, processing_class, peft_config,
            callbacks: see [`SpeechTrainer`]. Rows need `audio`, `text`, and `language` for the gate.
    """

    _tag_names = ["speechllm", "speech-distillation"]
    _name = "SpeechDistillation"
    objective_name = "distillation from the LLM that reads: its embeddings, hidden states, language"
    works = ("diva",)
    config_class = SpeechDistillationConfig
    collator_class = DistillationCollator

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        projector = model.model.multi_modal_projector
        if self.args.input_mean == "tokens" and projector.leaves_out:
            raise ValueError(
                f"input_mean='tokens' divides by the tokens compared, and how many the connector, "
                f"{projector.config.type}, reads is not known before it has. Set it to 'utterances'."
            )
        self.check_teacher()
        self.check_cached_teacher("top_k" if self.args.response_weight else "hidden", self.args.instruction)

    def before_step(self) -> None:
        probability = 0.0
        if self.args.teacher_forcing:
            probability = teacher_forcing_probability(self.state.global_step, self.state.max_steps)
        for module in self.speech_model.modules():
            if isinstance(module, QueryBank):
                module.teacher_forcing = probability

    def objective(self, model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Term]:
        connected = connect(model, batch)
        hidden = self.hidden(model, batch, connected)
        rows = torch.arange(batch["counts"]["rows"], device=hidden.device)  # none where all were bad
        terms, teacher = {}, None
        if "teacher_input_ids" in batch:
            teacher = self.teacher_hidden(model, batch)
        if self.args.output_weight:
            read = batch["teacher_hidden"] if teacher is None else teacher[rows, batch["teacher_prompt_end"][rows]]
            total = output_distance(hidden[rows, batch["prompt_end"][rows]], read)
            terms["output"] = Term(total, "rows", self.args.output_weight)
        with torch.no_grad():
            text = model.model.embed_text(batch["transcript_ids"])
        over_tokens = self.args.input_mean == "tokens"
        total, cut = input_distance(*said(connected), text, batch["transcript_lengths"], over_tokens)
        terms["input"] = Term(total, "compared_tokens" if over_tokens else "utterances", self.args.input_weight)
        terms["cut_tokens"] = Term(torch.as_tensor(cut), "utterances", 0.0)
        if connected.language_logits is not None:
            total, correct = language_loss(connected.language_logits, batch["language"])
            terms["language"] = Term(total, "labelled", self.args.language_weight)
            terms["language_accuracy"] = Term(correct, "labelled", 0.0)
        if self.args.response_weight:
            terms |= self.response_terms(model, batch, hidden, 0.0, self.args.response_weight, teacher)
        return terms


__all__ = ["DistillationCollator", "SpeechDistillationTrainer"]
