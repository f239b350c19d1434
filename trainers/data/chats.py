"""Chats of student and teacher: one template, the transcript in place of the audio, labels on the answer."""

from typing import Any

import torch

from processing_speechllm import SpeechLLMProcessor

from .interleaving import Segment, TextSegment, segment_blocks

IGNORED = -100


def answered_chat(texts: list[str], instruction: str) -> list[dict]:
    """The instruction after the audios of a row, and their transcripts `texts` as the answer."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": " ".join(texts)}]}
    return [*SpeechLLMProcessor.instruction_chat([None] * len(texts), instruction), answer]


def up_to_answer(messages: list[dict], name: str) -> list[dict]:
    """
    A chat up to its last assistant turn: what stands behind it teaches nothing.

    Raises:
        ValueError: no assistant turn, or audio behind the last one.
    """
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise ValueError(f"Row {name}: its messages have no assistant turn to learn. Add the answer, or leave it out.")
    rest = [block for message in messages[answers[-1] + 1 :] for block in message["content"]]
    if any(isinstance(block, dict) and block["type"] == "audio" for block in rest):
        raise ValueError(
            f"Row {name}: behind the last assistant turn of its messages there is audio without an answer. Add the "
            "answer, or leave that turn and its audio out."
        )
    return messages[: answers[-1] + 1]


def question_chat(row: dict[str, Any], audios: int, instruction: str | None) -> list[dict]:
    """A row's own chat up to its answer, or one user turn of its audios, with the instruction after them if any."""
    messages = row.get("messages")
    if messages:
        return messages[:-1] if messages[-1]["role"] == "assistant" else messages
    if instruction:
        return SpeechLLMProcessor.instruction_chat([None] * audios, instruction)
    return [{"role": "user", "content": [{"type": "audio"} for _ in range(audios)]}]


def with_segments(chat: list[dict], segments: list[list[Segment]]) -> list[dict]:
    """A chat whose audio blocks, in reading order, are replaced by segments: audio tokens, or text.

    Raises:
        ValueError: the chat has more or fewer audio blocks than there are audios.
    """
    blocks = [b for message in chat if isinstance(message["content"], list) for b in message["content"]]
    places = sum(block["type"] == "audio" for block in blocks)
    if places != len(segments):
        raise ValueError(
            f"A row's messages have {places} audio blocks, the row has {len(segments)} audios. Give one block per "
            'audio, {"type": "audio"}, and the audios in the column \'audio\'.'
        )
    remaining = iter(segments)
    new_chat = []
    for message in chat:
        content = message["content"]
        if isinstance(content, list):
            content = [
                piece
                for block in content
                for piece in (segment_blocks(next(remaining)) if block["type"] == "audio" else [block])
            ]
        new_chat.append({**message, "content": content})
    return new_chat


def read_chat(chat: list[dict], texts: list[str]) -> list[dict]:
    """The chat as the teacher reads it: transcripts in place of the audios."""
    return with_segments(chat, [[TextSegment(text)] for text in texts])


def tokenize_chats(
    processor: SpeechLLMProcessor, chats: list[list[dict]], **template_kwargs: Any
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of chats, and labels that stand on assistant turns; a chat without an answer at its end goes on to where
    the assistant begins, and has no labels. `template_kwargs` are options of the chat template."""
    ids: list[list[int]] = [[] for _ in chats]
    labels: list[list[int]] = [[] for _ in chats]
    for answered in (True, False):
        chosen = [n for n, chat in enumerate(chats) if (chat[-1]["role"] == "assistant") == answered]
        if not chosen:
            continue
        output = processor.apply_chat_template(
            [chats[number] for number in chosen],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=not answered,
            return_assistant_tokens_mask=answered,
            return_tensors=None,
            processor_kwargs={"padding": False},
            **template_kwargs,
        )
        for place, number in enumerate(chosen):
            ids[number] = list(output["input_ids"][place])
            mask = output["assistant_masks"][place] if answered else [0] * len(ids[number])
            labels[number] = [token if flag else IGNORED for token, flag in zip(ids[number], mask, strict=True)]
    return ids, labels


def unlabel_cut_ends(processor: SpeechLLMProcessor, rows: list[dict[str, Any]], labels: list[list[int]]) -> None:
    """Takes the labels off what ends an answer that was cut at its length limit, in place: it is not taught to end
    there."""
    added = processor.tokenizer.added_tokens_decoder
    special = {number for number, token in added.items() if token.special}
    for row, line in zip(rows, labels, strict=True):
        if row.get("finish_reason") == "length":
            taught = [place for place, label in enumerate(line) if label != IGNORED and label not in special]
            end = taught[-1] + 1 if taught else 0  # of a question alone, or an empty answer, nothing is taught
            line[end:] = [IGNORED] * (len(line) - end)


def pad_chats(
    ids: list[list[int]], labels: list[list[int]], padding: int, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """Padded to the right: `input_ids`, `attention_mask`, `labels`, and `prompt_end`, the place (batch,) of each row's
    last token before its answer. Of no rows it is one of padding, so that in a sharded run all modules are run."""
    ids, labels = ids or [[padding]], labels or [[IGNORED]]
    size = max(map(len, ids))
    ends = [next((place for place, label in enumerate(row) if label != IGNORED), len(row)) - 1 for row in labels]
    return {
        f"{prefix}input_ids": torch.tensor([row + [padding] * (size - len(row)) for row in ids]),
        f"{prefix}attention_mask": torch.tensor([[1] * len(row) + [0] * (size - len(row)) for row in ids]),
        f"{prefix}labels": torch.tensor([row + [IGNORED] * (size - len(row)) for row in labels]),
        f"{prefix}prompt_end": torch.tensor(ends),
    }


__all__ = [
    "IGNORED",
    "answered_chat",
    "pad_chats",
    "question_chat",
    "read_chat",
    "tokenize_chats",
    "unlabel_cut_ends",
    "up_to_answer",
    "with_segments",
]
