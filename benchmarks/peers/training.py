"""Training samples per second: each measurement is one short training, by the loop that its users would run."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from trainers import SpeechChatCollator, SpeechImitationConfig, SpeechImitationTrainer
from trainers.cache.config import EncodeConfig
from trainers.cache.encode import encode_dataset
from trainers.commands.teacher_prompts import make_teacher_inputs

from .audio_llms import FAMILIES, build
from .parts import CONNECTOR, INSTRUCTION, Parts, clock, takes_processor_time
from .ultravox_form import UltravoxCollator, UltravoxForm

DIVERGENCE = {"cross_entropy_weight": 0.0, "divergence_weight": 1.0, "end_token_weight": 1.0, "temperature": 2.0}
OURS, CACHED, ULTRAVOX = "speechllm", "speechllm, cached", "Ultravox's form"
PLAIN, TRL = "Trainer, our model", "SFTTrainer, our model"
LOSSES = {
    "cross-entropy": (OURS, CACHED, ULTRAVOX, PLAIN, TRL, *(f"Trainer, {name}" for name in FAMILIES)),
    "divergence": (OURS, CACHED, ULTRAVOX),
}


@dataclass(frozen=True)
class Work:
    """What every loop trains on, and where."""

    parts: Parts
    rows: Dataset
    batch: int
    steps: int
    dtype: torch.dtype
    device: str

    @property
    def bf16(self) -> bool:
        return self.dtype == torch.bfloat16

    @property
    def mean_seconds(self) -> float:
        return sum(self.rows["duration"]) / len(self.rows)


class Clock(TrainerCallback):
    """Times all steps but the first, and adds up the audio in them."""

    def __init__(self, device: str):
        self.device, self.ends, self.audio = device, [], []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(clock(self.device))


def counted(trainer_class: type, watch: Clock) -> type:
    """The trainer, telling the watch what audio each step has."""

    class Counted(trainer_class):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **kwargs: Any) -> torch.Tensor:
            watch.audio.append(inputs.pop("seconds") if "seconds" in inputs else inputs["counts"]["audio_seconds"])
            return super().training_step(model, inputs, *rest, **kwargs)

    return Counted


class WithSeconds:
    """A collator that adds how many `seconds` of audio a batch has."""

    def __init__(self, collate: Any):
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self.collate(rows) | {"seconds": sum(row["duration"] for row in rows)}


def make_cache(work: Work, folder: Path) -> str:
    """Encoder outputs and the teacher's likeliest tokens of all rows; returns the folder."""
    model, processor = work.parts.speechllm(work.dtype, work.device)
    config = EncodeConfig(
        output_dir=str(folder),
        teacher="top_k",
        temperature=DIVERGENCE["temperature"],
        instruction=INSTRUCTION,
        device=work.device,
    )
    encode_dataset(model, processor, work.rows, config, make_teacher_inputs(processor, config))
    return str(folder)


def make_trainer(loop: str, loss: str, work: Work, folder: str, cache: str | None, watch: Clock, seed: int) -> Trainer:
    """A trainer with the settings that its users get by default; batch, precision and number of steps are given. Where
    the processor's time of the process is taken, nobody has workers: what they read would not be in it."""
    common = {
        **{
            "per_device_train_batch_size": work.batch,
            "max_steps": work.steps + 1,
            "seed": seed,
            "learning_rate": 1e-4,
        },
        **{"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_strategy": "no"},
        **{"use_cpu": work.device == "cpu", "lr_scheduler_type": "constant"},
    }
    divergence, plain = loss == "divergence", {"remove_unused_columns": False}
    if loop in (OURS, CACHED):
        model, processor = work.parts.speechllm(work.dtype, work.device)
        settings = common | (DIVERGENCE if divergence else {})
        if loop == CACHED:
            settings |= {"frames_cache": cache, "cached_teacher": divergence}
        if takes_processor_time(work.device):
            settings |= {"dataloader_num_workers": 0}
        args = SpeechImitationConfig(folder, bf16=work.bf16, **settings)
        trainer_class = counted(SpeechImitationTrainer, watch)
        return trainer_class(model, args, train_dataset=work.rows, processing_class=processor, callbacks=[watch])
    if loop in (PLAIN, TRL):
        model, processor = work.parts.speechllm(work.dtype, work.device)
        base, config = (SFTTrainer, SFTConfig) if loop == TRL else (Trainer, TrainingArguments)
        if loop == TRL:
            plain |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
        args = config(folder, bf16=work.bf16, **common, **plain)
        collator, given = SpeechChatCollator(processor), {"processing_class": processor}
    elif loop == ULTRAVOX:
        _, processor = work.parts.speechllm(torch.float32, "cpu")
        encoder, llm = (work.parts.copy_of(name, work.dtype, work.device) for name in ("encoder", "llm"))
        model = UltravoxForm(encoder, llm, CONNECTOR["hidden_size"])
        workers = 8 if work.device == "cuda" else 0  # as its configuration has them, but on a CPU, where it has one
        base, args = Trainer, TrainingArguments(folder, dataloader_num_workers=workers, **common, **plain)
        collator, given = UltravoxCollator(processor, divergence), {}
    else:
        _, processor = work.parts.speechllm(torch.float32, "cpu")
        collator = build(FAMILIES[loop.removeprefix("Trainer, ")], work.parts, processor, work.dtype, work.device)
        model, given = collator.model, {}
        base, args = Trainer, TrainingArguments(folder, bf16=work.bf16, **common, **plain)
    return counted(base, watch)(
        model, args, data_collator=WithSeconds(collator), train_dataset=work.rows, callbacks=[watch], **given
    )


def measure(loop: str, loss: str, work: Work, cache: str | None, seed: int) -> dict[str, float]:
    """One short training: samples per second after its first step, and its peak of GPU memory in GiB.

    Batches differ in length between loops that sort and loops that do not, so what is counted is seconds of audio; a
    sample is the mean row.
    """
    watch = Clock(work.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(loop, loss, work, folder, cache, watch, seed)
        if work.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    elapsed, audio = watch.ends[-1] - watch.ends[0], sum(watch.audio[1:])
    result = {"samples_per_second": audio / work.mean_seconds / elapsed, "steps": len(watch.ends) - 1}
    if work.device == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        del trainer
        torch.cuda.empty_cache()
    return result


__all__ = ["CACHED", "LOSSES", "OURS", "PLAIN", "TRL", "ULTRAVOX", "Work", "make_cache", "measure"]
