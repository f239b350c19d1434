"""The teacher's prompts for rows of data, as the trainers build them, for `speechllm encode`."""

from collections.abc import Callable
from typing import Any

import torch

from processing_speechllm import SpeechLLMProcessor

from ..cache.config import EncodeConfig
from ..data.chats import (
    answered_chat,
    pad_chats,
    question_chat,
    read_chat,
    tokenize_chats,
    unlabel_cut_ends,
    up_to_answer,
)
from ..data.collators import no_transcript
from ..imitation_config import SpeechImitationConfig

TRANSCRIBE = SpeechImitationConfig.transcription_instruction


def make_teacher_inputs(
    processor: SpeechLLMProcessor, config: EncodeConfig
) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """
    What makes of rows `input_ids`, `attention_mask` and `labels` (rows, tokens).

    With `teacher="hidden"` as [`SpeechDistillationTrainer`] without answers, `instruction` being its; with `"top_k"`
    as [`SpeechImitationTrainer`], `instruction` being its `transcription_instruction`.
    """

    def teacher_inputs(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        chats = []
        for row in rows:
            texts = row["text"] if isinstance(row["audio"], list) else [row["text"]] * (row["audio"] is not None)
            if None in texts:
                raise ValueError(no_transcript(row["id"]))
            if config.teacher == "hidden":
                chat = question_chat(row, len(texts), config.instruction)
            elif row.get("messages"):
                chat = up_to_answer(row["messages"], row["id"])
            else:
                chat = answered_chat(texts, config.instruction or TRANSCRIBE)
            chats.append(read_chat(chat, texts))
        ids, labels = tokenize_chats(processor, chats)
        unlabel_cut_ends(processor, rows, labels)
        padded = pad_chats(ids, labels, processor.tokenizer.pad_token_id)
        return {name: padded[name] for name in ("input_ids", "attention_mask", "labels")}

    return teacher_inputs


__all__ = ["make_teacher_inputs"]
