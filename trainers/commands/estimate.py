"""What a training will take, before it is run: tokens, rows that cannot be learned from, memory, updates.

All of it is arithmetic on lengths and sizes; the seconds of an update are measured, by `speechllm inspect` or in the
first updates of the training itself.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback

from processing_speechllm import SpeechLLMProcessor

TEMPLATE = 20  # positions of a chat template and an instruction, an assumption
ACTIVATION = 34  # bytes x width x layers per position in 16 bits (Korthikanti et al. 2022, arXiv 2205.05198)
TRAINED = 16  # bytes per trained parameter: weight, gradient and Adam's two states in float32
FIRST_UPDATES = 5  # measured; the first of them, which warms up, is left out
GIB = 1 << 30


@dataclass(frozen=True)
class TokenCounts:
    """
    Lengths in the LLM, per row.

    Attributes:
        audio, text (`np.ndarray` of shape `(rows,)`): audio tokens; tokens of transcript and chat.
        for_ctc (`np.ndarray` of shape `(rows,)`): audio tokens that CTC needs: transcript tokens, and one more where
            two in a row are equal.
    """

    audio: np.ndarray
    text: np.ndarray
    for_ctc: np.ndarray

    def infeasible(self) -> int:
        """Rows whose transcript CTC cannot place."""
        return int((self.for_ctc > self.audio).sum())

    def beyond(self, positions: int | None) -> int:
        """Rows that the LLM's window cannot hold."""
        return 0 if positions is None else int((self.audio + self.text + TEMPLATE > positions).sum())


def count_row_tokens(rows: Dataset, processor: SpeechLLMProcessor) -> TokenCounts:
    """Tokens of all rows, of audio by `duration`; nothing is decoded."""
    rate = processor.feature_extractor.sampling_rate
    audio = [processor.audio_token_count(round(seconds * rate)) if seconds else 0 for seconds in rows["duration"][:]]
    text, for_ctc = [], []
    names = [name for name in ("text", "messages") if name in rows.column_names]
    for row in rows.select_columns(names):
        said = row["text"] if isinstance(row["text"], list) else [row["text"]]
        spoken = processor.tokenizer(" ".join(part for part in said if part), add_special_tokens=False)["input_ids"]
        contents = [message["content"] for message in row.get("messages") or []]
        blocks = [c if isinstance(c, str) else "".join(b.get("text") or "" for b in c) for c in contents]
        asked = processor.tokenizer(" ".join(blocks), add_special_tokens=False)["input_ids"] if blocks else []
        for_ctc.append(len(spoken) + sum(a == b for a, b in zip(spoken, spoken[1:], strict=False)))
        text.append(len(asked) or len(spoken))
    return TokenCounts(np.array(audio), np.array(text), np.array(for_ctc))


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, without shards: frozen weights, trained ones with gradients and optimizer, activations of
    the LLM and of the logits, at a number of positions per batch."""

    frozen: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        return self.frozen + self.trained + self.activations


def estimate_memory(model: Any, positions: int, labels: int, is_checkpointed: bool) -> Memory:
    """
    Memory of a training by arithmetic; trained parameters are those that require gradients.

    Args:
        model: the SpeechLLM.
        positions: LLM positions of a batch, padding included.
        labels: positions with logits.
        is_checkpointed: whether only the layers' inputs are kept.
    """
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    trained = TRAINED * sum(p.numel() for p in model.parameters() if p.requires_grad)
    text = model.config.text_config
    layers = getattr(text, "num_hidden_layers", None) or 1
    size = next(model.model.language_model.parameters()).element_size()
    kept = 2 * layers + ACTIVATION if is_checkpointed else ACTIVATION * layers
    hidden = positions * text.hidden_size * kept * size // 2
    return Memory(frozen, trained, hidden + labels * text.vocab_size * 8)  # logits and their gradient in float32


def batch_positions(tokens: TokenCounts, durations: np.ndarray, args: Any) -> tuple[int, int, float]:
    """
    LLM positions and labels of the largest batch, and rows per batch of one device, by the trainer's settings.

    Args:
        tokens, durations: of the rows.
        args: a `SpeechTrainingConfig`.
    """
    longest, mean = int((tokens.audio + tokens.text).max()) + TEMPLATE, float((tokens.audio + tokens.text).mean())
    if args.batch_tokens:
        rows = args.batch_tokens / max(mean, 1)
        return int(max(args.batch_tokens, longest)), int(rows * tokens.text.mean()), rows
    if args.batch_seconds:
        rows = args.batch_seconds / max(float(durations.mean()), 1e-3)
        return int(max(rows * (mean + TEMPLATE), longest)), int(rows * tokens.text.mean()), rows
    rows = args.per_device_train_batch_size
    return rows * longest, int(rows * tokens.text.max()), float(rows)


def in_bytes(size: float) -> str:
    """Bytes as `1.5 GiB` or `300 MiB`."""
    if size < GIB / 10:
        return f"{size / (1 << 20):.2g} MiB" if size < 10 << 20 else f"{size / (1 << 20):.0f} MiB"
    return f"{size / GIB:.2g} GiB" if size < 10 * GIB else f"{size / GIB:.0f} GiB"


def in_time(seconds: float) -> str:
    """Seconds as `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def training_line(trainer: Any, rows: Dataset, processor: SpeechLLMProcessor) -> str:
    """The estimate in one line at the start of a training: data, updates per epoch, memory, rows to know of."""
    args = trainer.args
    tokens = count_row_tokens(rows, processor)
    durations = np.asarray(rows["duration"][:], dtype=float)
    total = float(durations.sum())
    positions, labels, per_batch = batch_positions(tokens, durations, args)
    labels = per_batch * tokens.audio.max() if "Alignment" in type(trainer).__name__ else labels
    checkpointed = bool(args.activation_checkpointing)
    memory = estimate_memory(trainer.speech_model, positions, int(labels), checkpointed)
    step_rows = per_batch * args.world_size * args.gradient_accumulation_steps
    parts = [
        f"{in_time(total)} of audio, {tokens.audio.sum() / max(total, 1e-3):.1f} audio tokens per second",
        f"about {max(len(rows) / step_rows, 1):,.0f} updates per epoch",
        f"about {in_bytes(memory.total)} of memory per device unsharded ({in_bytes(memory.frozen)} frozen, "
        f"{in_bytes(memory.trained)} trained, {in_bytes(memory.activations)} activations)",
    ]
    text_config = trainer.speech_model.config.text_config
    beyond = tokens.beyond(getattr(text_config, "max_position_embeddings", None))
    if beyond:
        parts.append(f"{beyond} rows exceed the LLM's window")
    if tokens.infeasible() and "Alignment" in type(trainer).__name__:
        parts.append(f"{tokens.infeasible()} rows have more tokens than CTC can place")
    return f"Estimate: {'; '.join(parts)}; time follows after {FIRST_UPDATES} updates"


class TimeEstimate(TrainerCallback):
    """Says, after the first updates, how long all of them will take on this machine."""

    def __init__(self, say: Callable[[str], None]):
        self.say, self.first, self.started = say, None, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if self.first is None:
            self.first, self.started = state.global_step, time.perf_counter()
        elif state.global_step == self.first + FIRST_UPDATES - 1 < state.max_steps:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            each = (time.perf_counter() - self.started) / (FIRST_UPDATES - 1)
            left = each * (state.max_steps - state.global_step)
            self.say(f"{each:.2g} s per update: {in_time(left)} to go for {state.max_steps} updates, evaluation aside")


__all__ = [
    "Memory",
    "TimeEstimate",
    "TokenCounts",
    "batch_positions",
    "count_row_tokens",
    "estimate_memory",
    "in_bytes",
    "in_time",
    "training_line",
]
