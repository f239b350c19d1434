"""Distillation: hearing moves the LLM to where reading moves it (DiVA, Held et al. 2024; LAD, Gopal et al. 2026,
arXiv 2603.07025), with no answers needed."""

from typing import Any

import torch
from transformers import PreTrainedModel

from modeling_speechllm.query_bank import QueryBank, teacher_forcing_probability
from processing_speechllm import SpeechLLMProcessor

from .collators import Example, whole
from .distillation_config import SpeechDistillationConfig
from .imitation_trainer import ImitationCollator
from .interleaving import Segment
from .losses import input_distance, language_loss, output_distance
from .speech_inputs import connect, embed_prompts
from .speech_trainer import SpeechTrainer
from .terms import Term


class DistillationCollator(ImitationCollator):
    """User turns heard and read; with answers only where a row has them and they are used."""

    def prompts(self, examples: list[Example]) -> dict[str, Any]:
        chats = [self.chat(example) for example in examples]
        batch = self.chat_inputs(examples, chats, teacher=True)
        return batch | self.transcripts(examples)

    def chat(self, example: Example) -> list[dict]:
        """A row's chat up to its last user turn, and its answer too for response distillation."""
        messages = example.row.get("messages")
        if messages:
            return messages if self.args.response_weight else messages[:-1]
        audios = [None] * len(example.utterances)
        if self.args.instruction:
            return SpeechLLMProcessor.instruction_chat(audios, self.args.instruction)
        return [{"role": "user", "content": [{"type": "audio"} for _ in audios]}]

    def segments(self, example: Example) -> list[list[Segment]]:
        return [whole(utterance) for utterance in example.utterances]


class SpeechDistillationTrainer(SpeechTrainer):
    """
    Distils the LLM that reads transcripts into the connector.

    loss = input_weight * L_IN / utterances + output_weight * L_OUT / rows + language_weight * L_LID / labelled
           + response_weight * temperature^2 * D(teacher, student) / answer tokens

    Reported beside the terms: `language_accuracy`, the gate's; `teacher_forcing`; `cut_tokens`, transcript tokens per
    utterance that L_IN had to leave out as the transcript is longer than the audio's tokens.

    Args:
        model, args ([`SpeechDistillationConfig`]), train_dataset, eval_dataset, processing_class, peft_config,
            callbacks: see [`SpeechTrainer`]. Rows need `audio`, `text`, and `language` for the gate.
    """

    _tag_names = ["speechllm", "speech-distillation"]
    _name = "SpeechDistillation"
    config_class = SpeechDistillationConfig
    collator_class = DistillationCollator

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        self.check_teacher()

    def before_step(self) -> None:
        probability = 0.0
        if self.args.teacher_forcing:
            probability = teacher_forcing_probability(self.state.global_step, self.state.max_steps)
        for module in self.speech_model.modules():
            if isinstance(module, QueryBank):
                module.teacher_forcing = probability

    def objective(self, model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Term]:
        connected = connect(model, batch)
        embeddings = embed_prompts(model, batch, connected)
        hidden = model.model.language_model(
            inputs_embeds=embeddings, attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state
        teacher = self.teacher_hidden(model, batch)
        rows = torch.arange(len(hidden), device=hidden.device)
        student_end = hidden[rows, batch["prompt_end"]]
        teacher_end = teacher[rows, batch["teacher_prompt_end"]]
        terms = {"output": Term(output_distance(student_end, teacher_end), "rows", self.args.output_weight)}
        with torch.no_grad():
            text = model.model.embed_text(batch["transcript_ids"])
        total, cut = input_distance(connected.embeddings, connected.lengths, text, batch["transcript_lengths"])
        terms["input"] = Term(total, "utterances", self.args.input_weight)
        terms["cut_tokens"] = Term(torch.as_tensor(cut), "utterances", 0.0)
        if connected.language_logits is not None:
            total, correct = language_loss(connected.language_logits, batch["language"])
            terms["language"] = Term(total, "labelled", self.args.language_weight)
            terms["language_accuracy"] = Term(correct, "labelled", 0.0)
        if self.args.response_weight:
            terms |= self.response_terms(model, batch, hidden, 0.0, self.args.response_weight, teacher)
        return terms


__all__ = ["DistillationCollator", "SpeechDistillationTrainer"]
