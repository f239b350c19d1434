"""Batches for trainers that know no audio: plain `trl.SFTTrainer` and `transformers.Trainer`."""

from typing import Any

import torch

from processing_speechllm import SpeechLLMProcessor

from .chat_rows import read_messages
from .chats import answered_chat, pad_chats, tokenize_chats, unlabel_cut_ends, up_to_answer, with_segments
from .interleaving import AudioSegment

INSTRUCTION = "Repeat the sentence:"


class SpeechChatCollator:
    """
    Rows with audio -> `input_ids`, `attention_mask`, `labels` (rows, tokens), `input_features`, `input_features_mask`.

    Labels stand on the assistant's turns alone, end-of-turn token included, as the speech trainers have them; so the
    loss is theirs. A batch of text rows alone has `input_features` without rows, by which the model knows that there
    is no audio on purpose.

    Rows have `messages` in any form that `chat_rows` reads, and their audios in them or in `audio` or `audios`, in any
    form that `load_audio` takes (a path, {"bytes", "path"}, an `Audio` column decoded or not). Rows without messages
    have `audio` and `text`, which is then the answer to `instruction`.

    Args:
        processor: the model's processor.
        instruction (`str`, *optional*, defaults to `"Repeat the sentence:"`): asked of rows without messages.
        chat_template_kwargs (`dict`, *optional*): options of the chat template.

    Raises:
        AudioError: an audio that cannot be used.
        ValueError: a row without messages and transcript, or whose audios and places for them do not pair up.
    """

    def __init__(
        self,
        processor: SpeechLLMProcessor,
        instruction: str = INSTRUCTION,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.processor, self.instruction = processor, instruction
        self.chat_template_kwargs = chat_template_kwargs or {}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        samples, chats = [], []
        for number, row in enumerate(rows):
            name = str(row.get("id") or f"row {number} of the batch")
            chat, audios = self._read(row, name)
            heard = [self.processor.load_audio(audio) for audio in audios]
            tokens = [self.processor.audio_token_count(len(one)) for one in heard]
            chats.append(with_segments(up_to_answer(chat, name), [[AudioSegment(0, count)] for count in tokens]))
            samples += heard
        ids, labels = tokenize_chats(self.processor, chats, **self.chat_template_kwargs)
        unlabel_cut_ends(self.processor, rows, labels)
        batch = pad_chats(ids, labels, self.processor.tokenizer.pad_token_id)
        del batch["prompt_end"]
        if not samples:
            return batch | {"input_features": torch.zeros(0), "input_features_mask": torch.zeros(0)}
        inputs = self.processor.audio_inputs(samples)
        return batch | {name: torch.from_numpy(inputs[name]) for name in ("input_features", "input_features_mask")}

    def _read(self, row: dict[str, Any], name: str) -> tuple[list[dict], list[Any]]:
        """A row's chat with bare audio blocks, and its audios in reading order."""
        given = row.get("audios") if row.get("audios") is not None else row.get("audio")
        audios = [] if given is None else list(given) if isinstance(given, list) else [given]
        messages = row.get("messages") or row.get("conversations")
        if messages:
            try:
                return read_messages(messages, audios), audios
            except ValueError as error:
                raise ValueError(f"{name}: {error}. (Columns: {', '.join(row)}.)") from error
        texts = row["text"] if isinstance(row.get("text"), list) else [row.get("text")]
        if not audios or len(texts) != len(audios) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{name} has neither messages nor audio with its text; its columns are {', '.join(row)}. Set "
                "remove_unused_columns=False, with SFTTrainer also dataset_kwargs={'skip_prepare_dataset': True}; "
                "name columns `messages` and `audio`, or `audio` and `text`."
            )
        return answered_chat(texts, self.instruction), audios


__all__ = ["SpeechChatCollator"]
