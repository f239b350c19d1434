"""One training, timed: steps per second, seconds of audio per second, share of the GPU's peak, memory, losses."""

import resource
import time
from typing import Any

import numpy as np
import torch

from .parts import parameter_counts, peak_tflops, training_flops

COMPARED = 3  # losses from the first and from the last on, whose means say whether it falls


def synchronize() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> float:
    """GiB: what was allocated at most on the GPU; without one, of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def measured_training(
    trainer: str,
    config: Any,
    model: Any,
    processor: Any,
    rows: Any,
    warmup: int,
    processes: int = 1,
) -> dict[str, Any] | None:
    """
    Trains to the end and says how fast it went after `warmup` steps; None in all processes but the first.

    Args:
        trainer: "alignment", "imitation" or "distillation".
        config: its config; `max_steps` are the steps with the warm-up.
        processes: how many train together.
    """
    from transformers import TrainerCallback

    import trainers

    times, counts = {}, []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (warmup, config.max_steps):
                synchronize()
                times[state.global_step] = time.monotonic()

    class Counted(getattr(trainers, f"Speech{trainer.capitalize()}Trainer")):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
            teacher = inputs.get("teacher_attention_mask")
            counts.append(
                {
                    "step": self.state.global_step,
                    "audio_seconds": inputs["counts"]["audio_seconds"],
                    "utterances": inputs["counts"]["utterances"],
                    "student": 0 if trainer == "alignment" else inputs["counts"]["input_tokens"],
                    "teacher": 0 if teacher is None else int(teacher.sum()),
                }
            )
            return super().training_step(model, inputs, *rest)

    groups = parameter_counts(model)
    per_second, per_utterance = processor.audio_token_count(160000) / 10, None
    if model.config.connector["type"] == "whisper_qformer":
        per_utterance = processor.audio_token_count(16000)
    run = Counted(model, config, train_dataset=rows, processing_class=processor, callbacks=[Clock()])
    run.train()
    if not run.is_world_process_zero():
        return None
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    measured = [count for count in counts if count["step"] >= warmup]
    total = {name: sum(count[name] for count in measured) for name in measured[0]}
    elapsed = times[config.max_steps] - times[warmup]
    tokens = total["utterances"] * per_utterance if per_utterance else total["audio_seconds"] * per_second
    flops = training_flops(groups, 50 * total["audio_seconds"], tokens, total["student"], total["teacher"])
    peak = peak_tflops(device_name())
    return {
        "device": device_name(),
        "parameters": groups,
        "steps_per_second": (config.max_steps - warmup) / elapsed,
        "audio_seconds_per_second": total["audio_seconds"] / elapsed * processes,
        "tflops_per_process": flops / elapsed / 1e12,
        "share_of_peak": None if peak is None else flops / elapsed / 1e12 / peak,
        "peak_gib": peak_memory(),
        "first_loss": float(np.mean(losses[:COMPARED])),
        "last_loss": float(np.mean(losses[-COMPARED:])),
        "losses": losses,
    }
