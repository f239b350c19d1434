"""Imitation: the LLM that hears answers as the LLM that reads (BLSP; MTBI, Xie et al. 2025, arXiv 2505.18644;
BLOOMZMMS, stage 2; Ultravox), with speech and text interleaved if asked."""

from typing import Any

import torch
from datasets import Dataset, List
from transformers import PreTrainedModel

from .data.chats import (
    IGNORED,
    answered_chat,
    pad_chats,
    read_chat,
    tokenize_chats,
    unlabel_cut_ends,
    up_to_answer,
    with_segments,
)
from .data.collators import Example, SpeechCollator, Utterance, keep_masks, whole
from .data.ctc_alignment import token_times
from .data.interleaving import Segment, TextSegment, choose_spans, choose_speech, interleave
from .imitation_config import SpeechImitationConfig
from .objectives.speech_inputs import connect
from .objectives.terms import Term
from .speech_trainer import SpeechTrainer


class ImitationCollator(SpeechCollator):
    """Chats with speech, and where a teacher is asked for the same chats with transcripts."""

    def prompts(self, examples: list[Example]) -> dict[str, Any]:
        chats = [self.chat(example) for example in examples]
        return self.chat_inputs(examples, chats, teacher=self.args.divergence_weight > 0)

    def chat(self, example: Example) -> list[dict]:
        """A row's chat up to its last answer; without one its transcripts are the answer."""
        messages = example.row.get("messages")
        if messages:
            return up_to_answer(messages, example.id)
        return answered_chat(example.texts, self.args.transcription_instruction)

    def chat_inputs(self, examples: list[Example], chats: list[list[dict]], teacher: bool) -> dict[str, Any]:
        """Prompts of student and teacher, and which audio tokens stand in the student's."""
        segments = [self.segments(example) for example in examples]
        padding = self.processor.tokenizer.pad_token_id
        heard = [with_segments(chat, rows) for chat, rows in zip(chats, segments, strict=True)]
        ids, labels = self.tokenize(examples, heard)
        batch = pad_chats(ids, labels, padding)
        flat = [row for rows in segments for row in rows]
        utterances = [utterance for example in examples for utterance in example.utterances]
        if any(row != whole(utterance) for row, utterance in zip(flat, utterances, strict=True)):
            batch["audio_keep"] = keep_masks(flat, [utterance.tokens for utterance in utterances])
        if teacher and self.args.cached_teacher:
            batch |= self.cached_states(examples)
        elif teacher:
            read = [read_chat(chat, example.texts) for chat, example in zip(chats, examples, strict=True)]
            teacher_ids, teacher_labels = self.tokenize(examples, read)
            check_same_answers(examples, labels, teacher_labels)
            batch |= pad_chats(teacher_ids, teacher_labels, padding, "teacher_")
        batch["counts"] = {
            "input_tokens": int(batch["attention_mask"].sum()) if examples else 0,
            "answer_tokens": int((batch["labels"] != IGNORED).sum()),
            "answers": int((batch["labels"][:, 1:] != IGNORED).any(-1).sum()),
        }
        return batch

    def tokenize(self, examples: list[Example], chats: list[list[dict]]) -> tuple[list[list[int]], list[list[int]]]:
        """Ids and labels; an answer that was cut at its length limit is not taught to end there."""
        ids, labels = tokenize_chats(self.processor, chats, **self.args.chat_template_kwargs or {})
        unlabel_cut_ends(self.processor, [example.row for example in examples], labels)
        return ids, labels

    def cached_states(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """What the cache holds of the teacher: `teacher_hidden` (batch, dim), or `teacher_log_probabilities` and
        `teacher_indices` (answer tokens, k) of all rows one after the other; of no rows all of them, empty."""
        if not examples:
            none = torch.zeros(0, 1)
            return {"teacher_hidden": none, "teacher_log_probabilities": none, "teacher_indices": none.long()}
        states = [self.frames_cache.teacher(example.id) for example in examples]
        if "hidden" in states[0]:
            return {"teacher_hidden": torch.stack([state["hidden"].float() for state in states])}
        names = ("log_probabilities", "indices")
        return {f"teacher_{name}": torch.cat([state[name] for state in states]) for name in names}

    def segments(self, example: Example) -> list[list[Segment]]:
        """What stands in place of each of a row's audio blocks."""
        heard = [whole(utterance) for utterance in example.utterances]
        if not self.training:
            return heard
        if len(heard) > 1 and self.args.text_probability > 0:
            spoken = choose_speech(len(heard), example.rng, self.args.text_probability)
            pairs = zip(heard, spoken, example.texts, strict=True)
            return [row if speech else [TextSegment(text)] for row, speech, text in pairs]
        if self.args.span_probability > 0:
            return [self.interleaved(example, utterance) for utterance in example.utterances]
        return heard

    def interleaved(self, example: Example, utterance: Utterance) -> list[Segment]:
        """An utterance some of whose words stand as text.

        Raises:
            ValueError: no word times, of no row or not of this one.
        """
        if utterance.words is None and "words" in example.row:
            raise ValueError(
                f"Row {example.id} could not be aligned: its words are None, and span_probability needs their times. "
                'Leave such rows out: dataset.filter(lambda row: row["words"] is not None).'
            )
        if utterance.words is None:
            raise ValueError(
                f"Row {example.id} has no word times in its column 'words', which span_probability needs. Add them "
                "with trainers.data.word_times.add_word_times, or set span_probability to 0."
            )
        span_lengths = tuple(self.args.span_words)
        spans = choose_spans(len(utterance.words), example.rng, self.args.span_probability, span_lengths)
        times = token_times(self.processor) if spans else None
        return interleave(utterance.text, utterance.words, spans, utterance.tokens, times)


def check_same_answers(examples: list[Example], heard: list[list[int]], read: list[list[int]]) -> None:
    """Raises a ValueError for a row whose answer has other tokens after the transcript than after the speech."""
    for example, mine, other in zip(examples, heard, read, strict=True):
        if [i for i in mine if i != IGNORED] != [i for i in other if i != IGNORED]:
            raise ValueError(
                f"Row {example.id}: the answer has other tokens after the transcript than after the speech, so "
                "teacher and student cannot be compared. Use a chat template with a special token before the answer."
            )


class SpeechImitationTrainer(SpeechTrainer):
    """
    Trains on answers to spoken requests, by cross-entropy, by the divergence from the same LLM reading the transcript,
    or both.

    loss = (cross_entropy_weight * CE + divergence_weight * temperature^2 * D(teacher, student)) / answer tokens

    What it imitates is in the data (`speechllm targets`): transcripts, multi-instructional targets, tasks,
    continuations, replies. Reported beside the terms: `token_accuracy`; where `cross_entropy_weight` is 0,
    it and the cross-entropy are computed in evaluations alone.

    Args:
        model, args ([`SpeechImitationConfig`]), train_dataset, eval_dataset, processing_class, peft_config, callbacks:
            see [`SpeechTrainer`]. Rows need `audio`, `text` and, unless their transcript is the answer, `messages`.
    """

    _tag_names = ["speechllm", "speech-imitation"]
    _name = "SpeechImitation"
    takes_loss_func = True
    objective_name = "imitation of the LLM that reads: its answers, or its distribution"
    config_class = SpeechImitationConfig
    collator_class = ImitationCollator

    def __init__(self, model: PreTrainedModel, args: SpeechImitationConfig | None = None, *rest: Any, **kwargs: Any):
        super().__init__(model, args, *rest, **kwargs)
        if self.args.span_probability > 0 and model.model.multi_modal_projector.autoregressive:
            raise ValueError(
                f"span_probability={self.args.span_probability}: the connector {model.config.connector['type']!r} "
                "writes its tokens one after another, not in time with the audio, so words cannot be cut out. Set it "
                "to 0; text_probability, for whole utterances, works."
            )
        if isinstance(self.train_dataset, Dataset):
            self.check_interleaving(self.train_dataset)
        if self.args.divergence_weight:
            self.check_teacher()
        self.check_cached_teacher("top_k", self.args.transcription_instruction)

    def check_interleaving(self, rows: Dataset) -> None:
        """
        Raises:
            ValueError: rows that cannot be interleaved as the settings say.
        """
        features = rows.features
        if self.args.text_probability > 0 and "audio" in features and not isinstance(features["audio"], List):
            raise ValueError(
                f"text_probability={self.args.text_probability} puts text in place of whole utterances of a row, and "
                "these rows have one each. Make rows of several (speechllm targets --utterances_per_row 2), take "
                "span_probability, or set it to 0."
            )
        if self.args.span_probability > 0:
            token_times(self.processing_class)
            words = rows.select_columns(["words"]).with_format("arrow") if "words" in features else None
            lacking = len(rows)
            if words is not None:
                lacking = sum(batch["words"].null_count for batch in words.iter(batch_size=10_000))
            if lacking:
                raise ValueError(
                    f"span_probability={self.args.span_probability} needs word times, and {lacking} of {len(rows)} "
                    "rows have none in their column 'words'. Add them (trainers.data.word_times.add_word_times), or "
                    'leave out what it could not align, dataset.filter(lambda row: row["words"] is not None), or set '
                    "it to 0."
                )

    def objective(self, model: PreTrainedModel, batch: dict[str, Any]) -> dict[str, Term]:
        hidden = self.hidden(model, batch, connect(model, batch))
        weights = self.args.cross_entropy_weight, self.args.divergence_weight
        return self.response_terms(model, batch, hidden, *weights, end_token_weight=self.args.end_token_weight)


__all__ = ["ImitationCollator", "SpeechImitationTrainer"]
