"""Training speed and memory at a real size, one row per launch config and trainer: the tables of docs/scaling.md.

    python -m benchmarks.training_scale --output_dir build/scale --processes 4          # GPUs
    python -m benchmarks.training_scale --output_dir build/scale --tiny                 # CPU: does every config train?

Weights are random and audio is noise: an encoder of the size of Whisper large-v3 (0.64 B) and a Llama of 1 B, joined
by LAD's connector (`lad-soft`) for distillation and imitation and by BLOOMZMMS' for alignment. With --tiny the
embedded model takes their place. Each run is a process group of its own, through `accelerate launch` with the packaged
config. The ZeRO configs need DeepSpeed (`pip install deepspeed`).

A run that fails, or whose loss is not finite or does not fall, is named in the table, and the exit status is 1. On a
CPU, Accelerate has no FSDP: tests/test_distributed.py shards there by other means. Speed there says nothing.
"""

import argparse
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

CONFIGS = ("single_gpu", "ddp", "fsdp2", "zero2", "zero3")
TRAINERS = ("alignment", "imitation", "distillation")
FOLDER = Path(__file__).parents[1] / "trainers" / "commands" / "accelerate"
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "B200": 2250}  # dense bf16, by NVIDIA's data sheets
COLUMNS = (
    ("config", "config"),
    ("trainer", "trainer"),
    ("processes", "processes"),
    ("steps_per_second", "steps/s"),
    ("audio_seconds_per_second", "audio s/s"),
    ("peak_gib", "peak GiB per process"),
    ("share_of_peak", "share of peak"),
    ("first_loss", "first loss"),
    ("last_loss", "last loss"),
    ("note", "note"),
)


def training_flops(
    parameters: dict[str, float], frames: float, audio_tokens: float, student: float, teacher: float
) -> float:
    """Floating-point operations of a forward and backward pass by the count of parameters, attention left out.

    2 per parameter and token forward; 2 more backward where gradients only pass through (the frozen LLM); 4 more where
    they also reach the weights (the connector). The frozen encoder and the teacher run forward alone.

    Args:
        parameters: of `encoder`, `connector`, and `llm` without embeddings and head, which runs on answers alone.
        frames: encoder frames (50 per second of Whisper).
        audio_tokens: positions at which the connector's layers run.
        student, teacher: LLM positions.
    """
    encoder, connector, llm = (parameters[group] for group in ("encoder", "connector", "llm"))
    return 2 * encoder * frames + 6 * connector * audio_tokens + 4 * llm * student + 2 * llm * teacher


# One run


def build_model(trainer: str, tiny: bool) -> tuple[Any, Any]:
    """Model with random weights and its processor; the embedded model with `tiny`."""
    from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor

    import speechllm
    from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration
    from processing_speechllm import SpeechLLMProcessor

    processor = SpeechLLMProcessor.from_pretrained(speechllm.NANO)
    if tiny:
        model = SpeechLLMForConditionalGeneration.from_pretrained(speechllm.NANO)
        torch.manual_seed(0)
        for parameter in model.model.multi_modal_projector.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        return model, processor
    audio = WhisperConfig(
        **{"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120},
        **{"num_mel_bins": 128, "max_source_positions": 1500},
    )
    text = LlamaConfig(
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    connector = {"type": "conformer_ctc", "layers": None} if trainer == "alignment" else "lad-soft"
    config = SpeechLLMConfig.from_parts(audio, text, connector, audio_token_id=processor.audio_token_id)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = SpeechLLMForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.model.multi_modal_projector.float()
    return model, SpeechLLMProcessor.from_parts(WhisperFeatureExtractor(feature_size=128), processor.tokenizer, config)


def noise_rows(count: int, seconds: tuple[float, float]) -> Any:
    """Rows of noise with transcripts of two words per second; a fifth are of text alone."""
    from datasets import Dataset

    generator, rows = random.Random(0), []
    for number in range(count):
        duration = generator.uniform(*seconds)
        noise = np.random.default_rng(number).normal(0, 0.1, round(16000 * duration)).astype(np.float32)
        file = BytesIO()
        soundfile.write(file, noise, 16000, format="WAV", subtype="PCM_16")
        text = " ".join(generator.choices(["turn", "off", "the", "radio", "in", "kitchen"], k=round(2 * duration)))
        with_audio = number % 5 != 4
        question = [{"type": "text", "text": "what was said"}]
        rows.append(
            {
                "id": str(number),
                "audio": {"bytes": file.getvalue(), "path": None} if with_audio else None,
                "text": text,
                "language": "en",
                "duration": duration,
                "messages": [
                    {"role": "user", "content": [{"type": "audio", "text": None}] * with_audio + question},
                    {"role": "assistant", "content": [{"type": "text", "text": text}]},
                ],
            }
        )
    return Dataset.from_list(rows)


def run_one(args: argparse.Namespace) -> None:
    """What each process of a run does; the first one writes the result."""
    from transformers import TrainerCallback

    import trainers

    name = f"Speech{args.trainer.capitalize()}"
    on_gpu = torch.cuda.is_available()
    settings = {
        **{"max_steps": args.warmup + args.steps, "logging_steps": 1, "lr_scheduler_type": "constant"},
        **{"per_device_train_batch_size": args.batch_size, "learning_rate": args.learning_rate},
        **{"gradient_checkpointing": not args.tiny, "disable_tqdm": True, "bf16": not args.tiny},
        **{"save_strategy": "steps" if args.tiny else "no", "save_steps": args.steps},
        "dataloader_num_workers": 4 if on_gpu else 0,
    }
    config = getattr(trainers, f"{name}Config")(str(Path(args.output_dir) / "run"), **settings)
    model, processor = build_model(args.trainer, args.tiny)  # after the config, which says how they are loaded
    rows = noise_rows(64 if args.tiny else 512, (1.0, 2.0) if args.tiny else (3.0, 15.0))
    times, counts = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.monotonic())

    class Counted(getattr(trainers, f"{name}Trainer")):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
            teacher = inputs.get("teacher_attention_mask")
            counts.append(
                {
                    "step": self.state.global_step,
                    "audio_seconds": inputs["counts"]["audio_seconds"],
                    "utterances": inputs["counts"]["utterances"],
                    "student": 0 if args.trainer == "alignment" else inputs["counts"]["input_tokens"],
                    "teacher": 0 if teacher is None else int(teacher.sum()),
                }
            )
            return super().training_step(model, inputs, *rest)

    groups = {
        group: sum(parameter.numel() for module in modules for parameter in module.parameters())
        for group, modules in model.group_modules().items()
    }
    groups["llm"] = sum(parameter.numel() for parameter in model.model.language_model.parameters())
    groups["llm"] -= model.get_input_embeddings().weight.numel()
    per_second, per_utterance = processor.audio_token_count(160000) / 10, None
    if model.config.connector["type"] == "whisper_qformer":
        per_utterance = processor.audio_token_count(16000)
    trainer = Counted(model, config, train_dataset=rows, processing_class=processor, callbacks=[Clock()])
    trainer.train()
    if not trainer.is_world_process_zero():
        return
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    measured = [count for count in counts if count["step"] >= args.warmup]
    total = {name: sum(count[name] for count in measured) for name in measured[0]}
    elapsed = times[-1] - times[args.warmup - 1]
    tokens = total["utterances"] * per_utterance if per_utterance else total["audio_seconds"] * per_second
    flops = training_flops(groups, 50 * total["audio_seconds"], tokens, total["student"], total["teacher"])
    device = torch.cuda.get_device_name() if on_gpu else "CPU"
    peak = next((value for key, value in PEAK_TFLOPS.items() if key in device), None)
    memory = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "device": device,
        "parameters": groups,
        "steps_per_second": args.steps / elapsed,
        "audio_seconds_per_second": total["audio_seconds"] / elapsed * args.processes,
        "tflops_per_process": flops / elapsed / 1e12,
        "share_of_peak": None if peak is None else flops / elapsed / 1e12 / peak,
        "peak_gib": memory / 2**30,
        "first_loss": float(np.mean(losses[:3])),
        "last_loss": float(np.mean(losses[-3:])),
        "losses": losses,
        "saved": sorted(path.name for path in Path(config.output_dir).glob("checkpoint-*")),
    }
    Path(args.result).write_text(json.dumps(result), encoding="utf-8")


# All runs


def command(config: str, args: argparse.Namespace) -> tuple[list[str], int, dict[str, str]] | str:
    """How a config is launched here: command, processes and environment; or why it is not."""
    if config.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        return "not run: DeepSpeed is not installed"
    processes = 1 if config == "single_gpu" else args.processes
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{config}.yaml")]
    launch += ["--num_processes", str(processes)]
    if torch.cuda.is_available():
        return [*launch, "-m"], processes, {}
    if config == "fsdp2":
        return "not run: Accelerate has no FSDP without an accelerator"
    if config.startswith("zero"):
        # On a CPU, Accelerate counts one process with DeepSpeed however many there are.
        launch[-1] = "1"
        return [*launch, "--mixed_precision", "no", "-m"], 1, {"DS_ACCELERATOR": "cpu"}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(processes),
        "-m",
    ]
    return torchrun, processes, {"ACCELERATE_USE_CPU": "1"}


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry per config and trainer, as they are had; each run's output is in its own log."""
    results = []
    for config in args.configs:
        for trainer in args.trainers:
            entry = {"config": config, "trainer": trainer, "processes": args.processes, "note": "", "failed": False}
            results.append(entry)
            launched = command(config, args)
            if isinstance(launched, str):
                entry["note"] = launched
                continue
            line, processes, environment = launched
            entry["processes"] = processes
            folder = Path(args.output_dir) / f"{config}-{trainer}"
            folder.mkdir(parents=True, exist_ok=True)
            result = folder / "result.json"
            result.unlink(missing_ok=True)
            names = ("steps", "warmup", "batch_size", "learning_rate")
            options = [f"--{name}={getattr(args, name)}" for name in names]
            options += [f"--trainer={trainer}", f"--result={result}", f"--output_dir={folder}"]
            options += [f"--processes={processes}"] + ["--tiny"] * args.tiny
            with open(folder / "log.txt", "w", encoding="utf-8") as log:
                subprocess.run(
                    [*line, "benchmarks.training_scale", *options],
                    env=os.environ | environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
            if result.is_file():
                entry |= json.loads(result.read_text(encoding="utf-8"))
                entry["failed"] = not entry["last_loss"] < entry["first_loss"]  # also where it is not finite
                entry["note"] = "the loss does not fall" if entry["failed"] else ""
            else:
                entry |= {"failed": True, "note": f"failed, see {config}-{trainer}/log.txt"}
            print(table([entry]).splitlines()[-1], flush=True)
            write(results, args)
    return results


def table(results: list[dict[str, Any]]) -> str:
    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(title for _, title in COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(cell(entry.get(key)) for key, _ in COLUMNS)} |" for entry in results]
    return "\n".join(lines)


def write(results: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """results.json and results.md in the output folder."""
    settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
    text = json.dumps({"settings": settings, "torch": torch.__version__, "results": results}, indent=1)
    for name, content in (("results.json", text), ("results.md", table(results) + "\n")):
        partial = Path(args.output_dir) / f"{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(Path(args.output_dir) / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder for results.json, results.md and the runs' logs")
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=CONFIGS)
    parser.add_argument("--trainers", nargs="+", choices=TRAINERS, default=TRAINERS)
    parser.add_argument("--processes", type=int, default=2, help="processes, one per GPU")
    parser.add_argument("--steps", type=int, default=20, help="measured optimizer steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--batch_size", type=int, default=8, help="rows per process")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--tiny", action="store_true", help="the embedded model, for a CPU")
    parser.add_argument("--trainer", choices=TRAINERS, help=argparse.SUPPRESS)  # set for the processes of a run
    parser.add_argument("--result", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.trainer:
        run_one(args)
        return 0
    results = run_all(args)
    print(table(results))
    return int(any(entry["failed"] for entry in results))


if __name__ == "__main__":
    sys.exit(main())
