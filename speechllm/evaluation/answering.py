"""Questions through a model, in batches: answers, free or among labels, and what the model thinks of given answers.

What is unusual here:
- Everything goes through the processor's chat template with the generation prompt, speech and transcripts alike, so
  bound and cascade are asked exactly as the speech LLM is.
- The model's generation config is replaced: greedy or beams, its end tokens, nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from modeling_speechllm.left_out import leave_out
from processing_speechllm import SpeechLLMProcessor
from processing_speechllm.no_speech import answer_ids, ends_in_audio

from .constrained import allowed_tokens, beam_options, build_trie, label_tokens


@dataclass(frozen=True)
class Reply:
    """An answer, how many tokens it took, and how it ended: `"stop"`, or `"length"` at the limit."""

    text: str
    tokens: int
    finish_reason: str


class TooLong(ValueError):
    """A prompt that does not fit the LLM's positions together with its answer."""


class Answerer:
    """
    A model that is asked chats.

    Args:
        model: a SpeechLLM, or a causal LM of the same tokens, which reads only.
        processor: of the SpeechLLM; makes the prompts of both.
        max_new_tokens: limit of an answer.
        num_beams: 1 is greedy.
        chat_template_kwargs: variables of the chat template.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: SpeechLLMProcessor,
        max_new_tokens: int,
        num_beams: int = 1,
        chat_template_kwargs: dict | None = None,
    ):
        self.model, self.processor = model.eval(), processor
        self.tokenizer = processor.tokenizer
        self.max_new_tokens, self.num_beams = max_new_tokens, num_beams
        self.chat_template_kwargs = chat_template_kwargs or {}
        ends = model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self.end = self._end_of_turn()
        self.pad = self.tokenizer.pad_token_id
        self.pad = self.pad if self.pad is not None else (self.ends or [0])[0]
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.ends or None, pad_token_id=self.pad, max_new_tokens=max_new_tokens
        )
        self.positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def _end_of_turn(self) -> int | None:
        """The end token that the chat template writes after an answer, else the model's first one."""
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        ids = self.processor.apply_chat_template(
            [chat], tokenize=True, return_dict=True, return_tensors=None, processor_kwargs={"padding": False}
        )["input_ids"][0]
        last = next((token for token in reversed(list(ids)) if token in self.ends), None)
        return last if last is not None else (self.ends[0] if self.ends else None)

    def encode(self, chats: Sequence[list[dict]], audio: Sequence[Any] = ()) -> dict[str, torch.Tensor]:
        """
        Prompts padded to the left, on the model's device: `input_ids`, `attention_mask` and, where there is audio,
        `inputs_embeds` with it, and `no_speech` (prompts,), where the connector read nothing, if that has an answer.

        Args:
            chats: messages with a bare audio block per audio.
            audio: the audios of all chats in reading order.

        Raises:
            TooLong: prompt and answer do not fit the LLM.
        """
        encoded = self.processor.apply_chat_template(
            list(chats),
            audio=list(audio) or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"padding_side": "left"},
            **self.chat_template_kwargs,
        )
        longest = int(encoded["attention_mask"].sum(1).max())
        if self.positions is not None and longest + self.max_new_tokens > self.positions:
            raise TooLong(
                f"the prompt has {longest} tokens and up to {self.max_new_tokens} are to follow, but the LLM has "
                f"{self.positions} positions; lower max_new_tokens, or leave the row out"
            )
        heard = self._heard(dict(encoded.to(self.model.device, dtype=self.model.dtype)))
        if "no_speech" in heard:
            last = torch.tensor([ends_in_audio(chat) for chat in chats], device=self.model.device)
            heard["no_speech"] = heard["no_speech"] & last
        return heard

    @torch.inference_mode()
    def _heard(self, encoded: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Prompts with their audio merged into `inputs_embeds`, so that it is encoded once for all uses."""
        if "input_features" not in encoded:
            return encoded
        features, mask = (encoded.pop(name) for name in ("input_features", "input_features_mask"))
        embeds, audio = self.model.model.get_inputs_embeds(encoded["input_ids"], None, features, mask)
        if audio.left_out is not None:
            encoded["attention_mask"], _ = leave_out(audio.left_out, encoded["attention_mask"])
            if self.processor.no_speech_answer is not None:
                encoded["no_speech"] = (audio.left_out == (encoded["input_ids"] == self.processor.audio_token_id)).all(
                    1
                )
        return encoded | {"inputs_embeds": embeds}

    @torch.inference_mode()
    def answer(self, encoded: dict[str, torch.Tensor], labels: Sequence[Sequence[str]] | None = None) -> list[Reply]:
        """
        One answer per prompt.

        Args:
            encoded: of `encode`.
            labels: of each prompt, if nothing else can be answered.

        Raises:
            ValueError: labels that the tokenizer cannot spell, or a model without an end token to close them with.
        """
        encoded = dict(encoded)
        silent = encoded.pop("no_speech", None)
        length = encoded["input_ids"].shape[1]
        options: dict[str, Any] = {"num_beams": self.num_beams}
        if labels is not None:
            if self.end is None:
                raise ValueError("The model has no end token, so labels cannot be told from longer ones. Set one.")
            spelled = [[label_tokens(self.tokenizer, label) for label in options] for options in labels]
            tries = [build_trie(each, self.end) for each in spelled]
            options = {
                **beam_options(self.num_beams),
                "prefix_allowed_tokens_fn": allowed_tokens(tries, length, self.end),
                "max_new_tokens": 1 + max(len(tokens) for each in spelled for tokens in each),
            }
        sequences = self.model.generate(**encoded, **options)
        replies = [self._read(row) for row in sequences[:, length:].tolist()]
        if silent is None or labels is not None:  # of labels one is asked for in any case
            return replies
        return [self._no_speech() if none else reply for reply, none in zip(replies, silent.tolist(), strict=True)]

    def _no_speech(self) -> Reply:
        """What the pipeline answers where the connector read nothing."""
        answer = self.processor.no_speech_answer
        return Reply(answer, len(answer_ids(self.tokenizer, answer)), "stop")

    def _read(self, tokens: list[int]) -> Reply:
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
        return Reply(text, len(tokens) if end is None else end + 1, "length" if end is None else "stop")

    # What the model thinks of given answers

    def answer_tokens(self, text: str) -> list[int]:
        """The tokens of an answer, with the end of the turn."""
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*tokens, *([] if self.end is None else [self.end])]

    @torch.inference_mode()
    def embeddings(self, encoded: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Prompts of `encode` as embeddings (tokens, dim) without padding; of a SpeechLLM."""
        embeds = encoded.get("inputs_embeds")
        if embeds is None:
            embeds = self.model.model.embed_text(encoded["input_ids"])
        return [row[mask.bool()] for row, mask in zip(embeds, encoded["attention_mask"], strict=True)]

    @torch.inference_mode()
    def log_probabilities(
        self, prompts: Sequence[torch.Tensor], answers: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """
        Next-token log-probabilities (tokens, vocabulary), float32, at each token of given answers; of a SpeechLLM.

        Args:
            prompts: embeddings (tokens, dim) of `embeddings`.
            answers: tokens that follow each prompt.
        """
        device = self.model.device
        pieces = [
            torch.cat([prompt, self.model.model.embed_text(torch.tensor(list(answer), device=device))])
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        lengths = torch.tensor([len(piece) for piece in pieces], device=device)
        embeds = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)
        mask = (torch.arange(embeds.shape[1], device=device) < lengths[:, None]).long()
        hidden = self.model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, use_cache=False
        ).last_hidden_state
        found = []
        for row, prompt, answer in zip(hidden, prompts, answers, strict=True):
            states = row[len(prompt) - 1 : len(prompt) - 1 + len(answer)]
            found.append(self.model.compute_logits(states).float().log_softmax(-1))
        return found

    def label_scores(self, prompt: torch.Tensor, labels: Sequence[str], batch_size: int = 16) -> dict[str, float]:
        """
        The log-probability of each label, its end included, as the answer to a prompt.

        Args:
            prompt: embeddings (tokens, dim).
            labels: of the prompt.
            batch_size: labels at a time.
        """
        spelled = [[*label_tokens(self.tokenizer, label), self.end] for label in labels]
        scores = {}
        for start in range(0, len(labels), batch_size):
            part = spelled[start : start + batch_size]
            for label, tokens, rows in zip(
                labels[start : start + batch_size],
                part,
                self.log_probabilities([prompt] * len(part), part),
                strict=True,
            ):
                places = torch.tensor(tokens, device=rows.device)[:, None]
                scores[label] = float(rows.gather(1, places).sum())
        return scores


def agreement(heard: torch.Tensor, read: torch.Tensor) -> dict[str, float]:
    """
    How a model that hears agrees with itself reading, token by token of the reader's answer.

    Args:
        heard, read: log-probabilities (tokens, vocabulary) of `log_probabilities` of the same answer.

    Returns:
        `tokens`; `kl`, the sum of KL(read || heard) in nats; `top1`, how many tokens are the likeliest of both.
    """
    kl = torch.where(read.exp() > 0, read.exp() * (read - heard), 0.0).sum(-1)
    same = heard.argmax(-1) == read.argmax(-1)
    return {"tokens": len(read), "kl": float(kl.sum()), "top1": int(same.sum())}


__all__ = ["Answerer", "Reply", "TooLong", "agreement"]
