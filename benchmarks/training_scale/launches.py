"""One training per launch config and trainer, each a process group of its own."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .measuring import measured_training
from .parts import CONNECTORS, embedded_model, noise_rows, random_model

CONFIGS = ("single_gpu", "ddp", "fsdp2", "zero2", "zero3")
TRAINERS = ("alignment", "imitation", "distillation")
FOLDER = Path(__file__).parents[2] / "trainers" / "commands" / "accelerate"
OPTIONS = ("steps", "warmup", "batch_size", "learning_rate", "trainer", "processes")


def run_one(args: argparse.Namespace) -> None:
    """What each process of a run does; the first one writes the result."""
    import trainers

    on_gpu = torch.cuda.is_available()
    settings = {
        **{"max_steps": args.warmup + args.steps, "logging_steps": 1, "lr_scheduler_type": "constant"},
        **{"per_device_train_batch_size": args.batch_size, "learning_rate": args.learning_rate},
        **{"activation_checkpointing": not args.tiny, "disable_tqdm": True, "bf16": not args.tiny},
        **{"save_strategy": "steps" if args.tiny else "no", "save_steps": args.steps},
        "dataloader_num_workers": 4 if on_gpu else 0,
    }
    kind = getattr(trainers, f"Speech{args.trainer.capitalize()}Config")
    config = kind(str(Path(args.output_dir) / "run"), **settings)
    # after the config, which says how they are loaded
    if args.tiny:
        model, processor = embedded_model()
    else:  # random weights are made much faster on a GPU
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if on_gpu else "cpu"
        model, processor = random_model(CONNECTORS.get(args.trainer, "lad-soft"), device=device)
        model = model.cpu()
        torch.cuda.empty_cache()
    rows = noise_rows(64 if args.tiny else 512, (1.0, 2.0) if args.tiny else (3.0, 15.0))
    result = measured_training(args.trainer, config, model, processor, rows, args.warmup, args.processes)
    if result is not None:
        result["saved"] = sorted(path.name for path in Path(config.output_dir).glob("checkpoint-*"))
        Path(args.result).write_text(json.dumps(result), encoding="utf-8")


def command(config: str, processes: int) -> tuple[list[str], int, dict[str, str]] | str:
    """How a config is launched here: command, processes and environment; or why it is not."""
    if config.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        return "not run: DeepSpeed is not installed"
    processes = 1 if config == "single_gpu" else processes
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{config}.yaml")]
    launch += ["--num_processes", str(processes)]
    if torch.cuda.is_available():
        return [*launch, "--main_process_port", "0", "-m"], processes, {}
    if config == "fsdp2":
        return "not run: Accelerate has no FSDP without an accelerator"
    if config.startswith("zero"):
        # On a CPU, Accelerate counts one process with DeepSpeed however many there are.
        launch[-1] = "1"
        return [*launch, "--mixed_precision", "no", "-m"], 1, {"DS_ACCELERATOR": "cpu"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*torchrun, "-m"], processes, {"ACCELERATE_USE_CPU": "1"}


class Launch:
    """A started run of one config and trainer; `finish` waits for its entry of the table."""

    def __init__(self, config: str, trainer: str, args: argparse.Namespace):
        self.entry = {"config": config, "trainer": trainer, "processes": args.processes, "note": "", "failed": False}
        self.process, self.log = None, f"{config}-{trainer}/log.txt"
        launched = command(config, args.processes)
        if isinstance(launched, str):
            self.entry["note"] = launched
            return
        line, processes, environment = launched
        self.entry["processes"] = processes
        folder = Path(args.output_dir) / f"{config}-{trainer}"
        folder.mkdir(parents=True, exist_ok=True)
        self.result = folder / "result.json"
        self.result.unlink(missing_ok=True)
        given = vars(args) | {"trainer": trainer, "processes": processes}
        options = [f"--{name}={given[name]}" for name in OPTIONS]
        options += [f"--result={self.result}", f"--output_dir={folder}"] + ["--tiny"] * args.tiny
        with open(folder / "log.txt", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*line, "benchmarks.training_scale", *options],
                env=os.environ | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, timeout: float | None = None) -> dict[str, Any]:
        """The entry of the table; after `timeout` seconds the run is ended."""
        if self.process is None:
            return self.entry
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 15)
            self.process.wait()
            return self.entry | {"note": f"ended: out of time, see {self.log}"}
        if not self.result.is_file():
            return self.entry | {"failed": True, "note": f"failed, see {self.log}"}
        entry = self.entry | json.loads(self.result.read_text(encoding="utf-8"))
        entry["failed"] = not entry["last_loss"] < entry["first_loss"]  # also where it is not finite
        entry["note"] = "the loss does not fall" if entry["failed"] else ""
        return entry


def run_all(args: argparse.Namespace, write: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """One entry per config and trainer, written as they are had; each run's output is in its own log."""
    results = []
    for config in args.configs:
        for trainer in args.trainers:
            results.append(Launch(config, trainer, args).finish())
            write(results)
    return results
