"""Several processes: the launch configs, what of them cannot run here, and the start through Accelerate."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from ..speech_config import SpeechTrainingConfig

LAUNCH_CONFIGS = Path(__file__).parent / "accelerate"
LAUNCHED = "SPEECHLLM_LAUNCHED"  # set for the processes that Accelerate starts


def launch_config(config: str) -> Path:
    """
    The file of a launch config.

    Args:
        config: name of a packaged config, or a file.

    Raises:
        ValueError: there is neither.
    """
    packaged = LAUNCH_CONFIGS / f"{config}.yaml"
    path = packaged if packaged.is_file() else Path(config).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in LAUNCH_CONFIGS.glob("*.yaml")))
        raise ValueError(f"accelerate_config: no file {config!r}. Give one, or one of the packaged: {known}.")
    return path


def check_devices(config: str, command: str) -> None:
    """
    Refuses a launch of several processes that would know nothing of each other, and write over each other.

    Raises:
        ValueError: the config is for accelerators, and there is none.
    """
    path = launch_config(config)
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    several = settings.get("distributed_type", "NO") != "NO"
    on_cpu = settings.get("use_cpu") and (settings.get("num_processes") or 1) > 1  # Accelerate would start but one
    if several and (on_cpu or not (settings.get("use_cpu") or torch.accelerator.is_available())):
        found = "starts several processes on a CPU, of which Accelerate makes one each"
        found = found if on_cpu else "is for several GPUs, and this machine has none"
        raise ValueError(
            f"accelerate_config {config!r} {found}. Two processes on a CPU: "
            f"ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 2 -m speechllm_cli.main {command} ..."
        )


def check_processes(args: SpeechTrainingConfig) -> None:
    """
    Raises:
        ValueError: this is one of several processes that Accelerate takes for one each; all would train alone, into
            one folder.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > args.world_size:
        raise ValueError(
            f"{started} processes were started, and Accelerate counts {args.world_size}: each would train alone, into "
            "the same folder. On a CPU set ACCELERATE_USE_CPU=1 beside torchrun."
        )


def start_through_accelerate(config: str, command: str, arguments: Sequence[str]) -> int:
    """
    Puts `accelerate launch` of the same command in place of this process.

    Args:
        config: name of a packaged config, or a file.

    Raises:
        ValueError: there is neither.
    """
    path = launch_config(config)
    os.environ[LAUNCHED] = "1"
    sys.stdout.flush()
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    os.execv(sys.executable, [*launcher, "-m", "speechllm_cli.main", command, *arguments])


__all__ = ["LAUNCHED", "check_devices", "check_processes", "launch_config", "start_through_accelerate"]
