"""How much faster a training step is from cached encoder outputs (and a cached teacher), side by side in one run.

    python -m benchmarks.training_cache  # the embedded model, its own recordings
    python -m benchmarks.training_cache --encoder WHISPER --data FOLDER  # another encoder; manifest.jsonl

The embedded LLM is trained on, with a new stack-MLP connector, by imitation (cross-entropy on the transcript) and by
distillation (L_OUT against the teacher). Steps with and without cache take turns, so that what else the machine does
falls on both; reported is the median of each and their ratio.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoFeatureExtractor, AutoModelForCausalLM

import speechllm
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from trainers import (
    SpeechDistillationConfig,
    SpeechDistillationTrainer,
    SpeechImitationConfig,
    SpeechImitationTrainer,
)
from trainers.cache.config import EncodeConfig
from trainers.cache.encode import encode_dataset
from trainers.commands.teacher_prompts import make_teacher_inputs
from trainers.data.loading import load_rows, with_durations

CASES = {
    "imitation": (SpeechImitationTrainer, SpeechImitationConfig, {}, "none"),
    "distillation": (SpeechDistillationTrainer, SpeechDistillationConfig, {"input_weight": 0.0}, "hidden"),
}


def load_parts(encoder: str | None) -> tuple[SpeechLLMForConditionalGeneration, SpeechLLMProcessor]:
    """The embedded model, or its LLM with another encoder and a new connector."""
    nano = SpeechLLMForConditionalGeneration.from_pretrained(speechllm.NANO)
    processor = SpeechLLMProcessor.from_pretrained(speechllm.NANO)
    nano.freeze("encoder", "llm")
    if encoder is None:
        return nano, processor
    with tempfile.TemporaryDirectory() as folder:
        text = AutoModelForCausalLM.from_config(nano.config.text_config)
        text.base_model.load_state_dict(nano.model.language_model.state_dict())
        text.tie_weights()
        text.save_pretrained(folder)
        processor.tokenizer.save_pretrained(folder)
        connector = {"type": "stack_mlp", "stride": 4, "hidden_size": 512}
        model = SpeechLLMForConditionalGeneration.from_parts(audio=encoder, text=folder, connector=connector)
        tokenizer = processor.tokenizer
    extractor = AutoFeatureExtractor.from_pretrained(encoder)
    return model, SpeechLLMProcessor.from_parts(extractor, tokenizer, model.config)


def load_data(data: Path | None, count: int) -> Dataset:
    """`count` rows of a folder, or the packaged recordings again and again.

    Raises:
        SystemExit: the folder has fewer.
    """
    if data is not None:
        rows = with_durations(load_rows(data))
        if len(rows) < count:
            raise SystemExit(
                f"{data} has {len(rows)} rows, and {count} are needed: a batch for each step and one to warm up. "
                "Give more rows, fewer --steps or a smaller --batch."
            )
        return rows.shuffle(seed=0).select(range(count))
    examples = Path(speechllm.NANO) / "examples"
    spoken = json.loads((examples / "examples.json").read_text(encoding="utf-8"))
    listed = [
        {"audio": {"path": str(examples / entry["file"]), "bytes": None}, "text": entry["text"]} for entry in spoken
    ]
    rows = concatenate_datasets([Dataset.from_list(listed)] * (-(-count // len(listed)))).select(range(count))
    return with_durations(rows.add_column("id", [str(number) for number in range(count)]))


def step_times(trainers: dict[str, object], steps: int) -> dict[str, float]:
    """Median seconds of one batch (read, forward, backward) of each trainer, taking turns."""
    loaders = {name: iter(trainer.get_train_dataloader()) for name, trainer in trainers.items()}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(steps + 1):
        for name, trainer in trainers.items():
            begin = time.perf_counter()
            batch = trainer._prepare_inputs(next(loaders[name]))
            counts = {key: torch.tensor(value) for key, value in batch["counts"].items()}
            trainer.model.train()
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts).backward()
            trainer.model.zero_grad()
            if step:  # the first one warms up
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def main(encoder: str | None, data: Path | None, steps: int, batch: int, threads: int) -> None:
    """Prints one line of Markdown per objective."""
    torch.set_num_threads(threads)
    rows = load_data(data, batch * (steps + 1))
    print(f"{len(rows)} rows, {sum(rows['duration']) / len(rows):.1f} s each, batches of {batch}, {threads} thread(s)")
    print("| objective | seconds per step | from the cache | speed-up | encoding once, per row |")
    print("|---|---:|---:|---:|---:|")
    for name, (trainer_class, config_class, settings, teacher) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            model, processor = load_parts(encoder)
            config = EncodeConfig(output_dir=f"{folder}/cache", teacher=teacher, device="cpu")
            begin = time.perf_counter()
            encode_dataset(model, processor, rows, config, make_teacher_inputs(processor, config))
            encoding = (time.perf_counter() - begin) / len(rows)
            cached = {"frames_cache": config.output_dir, "cached_teacher": teacher != "none"}
            trainers = {}
            for way, extra in (("on line", {}), ("cached", cached)):
                model, processor = load_parts(encoder)
                common = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
                common |= {"dataloader_num_workers": 0}  # reading a batch is a part of the step that is timed
                arguments = config_class(
                    f"{folder}/{way}", per_device_train_batch_size=batch, **common, **settings, **extra
                )
                trainers[way] = trainer_class(model, arguments, train_dataset=rows, processing_class=processor)
            times = step_times(trainers, steps)
            ratio = times["on line"] / times["cached"]
            print(f"| {name} | {times['on line']:.3f} | {times['cached']:.3f} | {ratio:.1f}x | {encoding:.4f} s |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="folder of a speech encoder, by default the embedded model's")
    parser.add_argument("--data", type=Path, help="folder with a manifest.jsonl, by default the packaged recordings")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    main(**vars(parser.parse_args()))
