"""Forms of a training step and of an answer on one GPU, in one process, until the time is up.

The most telling come first; what did not fit into `--minutes` is named in the table. A form that fails is named with
its error, and the others go on. Nothing is quantised, and no form changes a loss or an answer: bf16 throughout.
"""

import argparse
import gc
import importlib.util
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .answers import answer_times, attention_times, graph_times, matmul_tflops
from .launches import Launch
from .measuring import device_name, measured_training
from .parts import embedded_model, noise_rows, random_model

DEEPSPEED_OPS = "from deepspeed.ops.op_builder import UtilsBuilder; UtilsBuilder().load()"


class Forms:
    """What is measured, in order of weight; each entry of `plan` is (name, seconds it takes on an H100, function)."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        self.seconds = (1.0, 2.0) if args.tiny else (3.0, 15.0)
        self.made: tuple[Any, Any, Any] = (None, None, None)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rows = noise_rows(args.batch_size * (args.warmup + args.steps), self.seconds, text_every=None)

    def plan(self) -> list[tuple[str, float, Callable[[], dict[str, Any]]]]:
        large, few = self.args.batch_size, max(self.args.batch_size // 8, 1)
        step, ctc = self.training_step, {"type": "conformer_ctc", "layers": None}
        return [
            ("matrix product 8192, bf16", 1, lambda: {"tflops_per_process": matmul_tflops(self.device)}),
            ("attention, forward and backward", 4, lambda: {"milliseconds": attention_times(self.device)}),
            (f"imitation, ultravox, SDPA, batch {large}", 12, lambda: step("imitation", "ultravox", large)),
            (f"the same, batch {few}", 4, lambda: step("imitation", "ultravox", few)),
            (f"the same, batch {large}, eager attention", 6, lambda: step("imitation", "ultravox", large, "eager")),
            (
                f"the same, batch {large}, SDPA, checkpointing",
                6,
                lambda: step("imitation", "ultravox", large, activation_checkpointing=True),
            ),
            (f"distillation, lad-soft, SDPA, batch {large}", 12, lambda: step("distillation", "lad-soft", large)),
            ("answers, ultravox", 15, lambda: self.answers("large")),
            ("small model, CUDA graphs", 5, lambda: {"milliseconds": graph_times(self.small, self.device)}),
            ("small model, answers", 6, lambda: self.answers("base")),
            (f"small model, imitation, batch {few}", 5, lambda: step("imitation", "ultravox", few, size="base")),
            ("fsdp2 and zero2, one process each, side by side", 40, self.launches),
            (
                f"imitation, ultravox, compiled layers, batch {large}",
                45,
                lambda: step("imitation", "ultravox", large, compiled=True),
            ),
            ("small model, answers, static cache", 60, lambda: self.answers("base", cache_implementation="static")),
            (f"alignment, conformer_ctc, SDPA, batch {large}", 12, lambda: step("alignment", ctc, large)),
        ]

    def answers(self, size: str, **options: Any) -> dict[str, Any]:
        """Answers of a model that no trainer has wrapped; a static cache is compiled into CUDA graphs on a GPU."""
        self.made = (None, None, None)
        return {"answers": answer_times(*self.model("ultravox", size), self.args.tiny, **options)}

    def model(self, connector: Any, size: str = "large") -> tuple[Any, Any]:
        """The model and its processor, made once as long as the same is asked for."""
        if self.args.tiny:
            return embedded_model()
        if self.made[0] != (connector, size):
            self.made = (None, None, None)
            clear()
            self.made = ((connector, size), *random_model(connector, size, self.device))
        return self.made[1:]

    def small(self) -> Any:
        return self.model("ultravox", "base")[0]

    def training_step(
        self,
        trainer: str,
        connector: Any,
        batch_size: int,
        attention: str = "sdpa",
        size: str = "large",
        compiled: bool = False,
        activation_checkpointing: bool = False,
    ) -> dict[str, Any]:
        import trainers

        kind = getattr(trainers, f"Speech{trainer.capitalize()}Config")
        config = kind(
            str(self.folder / "run"),
            max_steps=self.args.warmup + self.args.steps,
            logging_steps=self.args.warmup + self.args.steps,
            lr_scheduler_type="constant",
            per_device_train_batch_size=batch_size,
            learning_rate=self.args.learning_rate,
            activation_checkpointing=activation_checkpointing,
            train_sampling_strategy="group_by_length",
            disable_tqdm=True,
            bf16=not self.args.tiny,
            save_strategy="no",
            dataloader_num_workers=self.args.workers,
        )
        model, processor = self.model(connector, size)
        model.set_attn_implementation(attention)
        model.activation_checkpointing_disable()
        if compiled:
            compile_layers(model)
        clear()
        return measured_training(trainer, config, model, processor, self.rows, self.args.warmup)

    def launches(self) -> dict[str, Any]:
        """FSDP2 and ZeRO-2 in one process each: whether they train. Side by side, so their speed says nothing."""
        self.made = (None, None, None)
        clear()
        settings = vars(self.args) | {"processes": 1, "steps": 4, "warmup": 2, "batch_size": 4}
        started = [Launch(name, "imitation", argparse.Namespace(**settings)) for name in ("fsdp2", "zero2")]
        ended = [launch.finish(max(self.args.deadline - time.monotonic(), 5.0)) for launch in started]
        told = [
            f"{entry['config']}: {entry['note'] or 'loss {first_loss:.3g} -> {last_loss:.3g}'.format(**entry)}"
            for entry in ended
        ]
        return {"note": "; ".join(told), "failed": any(entry["failed"] for entry in ended), "runs": ended}


def clear() -> None:
    """Gives back what the last form took."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def compile_layers(model: Any) -> None:
    """`torch.compile` of each layer of encoder and LLM: all layers of one kind share one graph for any length."""
    torch._dynamo.config.cache_size_limit = 64
    for layer in [*model.model.audio_tower.encoder.layers, *model.model.language_model.layers]:
        layer.compile(dynamic=True)


def run_forms(args: argparse.Namespace, write: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """One entry per form, written as they are had."""
    if torch.cuda.is_available() and importlib.util.find_spec("deepspeed") is not None:
        # DeepSpeed compiles a part of itself at its first start: beside the first forms.
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen([sys.executable, "-c", DEEPSPEED_OPS], **quiet)
    forms, results = Forms(args), []
    for name, seconds, function in forms.plan():
        entry = {"form": name, "device": device_name(), "note": "", "failed": False}
        begin = time.monotonic()
        if not args.tiny and begin + seconds > args.deadline:
            entry["note"] = f"not run: it takes about {seconds} s, {args.deadline - begin:.0f} s were left"
        else:
            try:
                entry |= function()
            except Exception as error:  # a form that cannot run here must not take the others with it
                entry |= {"failed": True, "note": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
                with open(forms.folder / "errors.txt", "a", encoding="utf-8") as log:
                    log.write(f"== {name}\n{traceback.format_exc()}\n")
        entry["form_seconds"] = time.monotonic() - begin
        results.append(entry)
        write(results)
    return results
