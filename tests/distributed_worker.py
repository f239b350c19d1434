"""Two processes train tiny models in turn: `torchrun --nproc_per_node 2 tests/distributed_worker.py OUT`.

What they log goes to OUT/results.json, which tests/test_distributed.py compares with one process. One start serves
all cases: it is slower than the trainings.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from conftest import name_parents, text_config
from datasets import Dataset
from factories_training import tiny_parts, tone_rows
from test_trainers import SETTINGS, TRAINERS, build, logged
from torch.distributed.tensor import DTensor
from transformers.distributed import DistributedConfig

from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from trainers import speech_trainer

POSITIONS = 4  # per chunk of the head, so that processes differ in their number of chunks
MIXED = {"max_steps": 4, "per_device_train_batch_size": 1}
SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4}
FSDP = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True, "cpu_ram_efficient_loading": True}}
ACCUMULATED = {
    **{"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    "gradient_checkpointing": True,
}
AVERAGED = {"average_best": 2, "eval_strategy": "steps", "eval_steps": 2}
BUDGET = {"max_steps": 2, "batch_seconds": 2.0}
RATES = {"max_steps": 3, "learning_rates": {"gate": 1e-1, "connector": 2e-2}}


def rows_of(kind: str) -> Dataset:
    return tone_rows(answered=kind.startswith("imitation") or kind in SETTINGS)


def mixed_rows(kind: str) -> Dataset:
    """Eight rows, every other one without audio, one with a long answer."""
    rows = [dict(row) for row in tone_rows(8, answered=True)]
    for row in rows[1::2]:
        row["audio"] = row["language"] = None
        row["messages"][0]["content"] = [{"type": "text", "text": "hello what is the"}]
    rows[2]["messages"][1]["content"] = [{"type": "text", "text": "hello world " * 8}]
    dataset = Dataset.from_list(rows)
    return dataset if "messages" in rows_of(kind).column_names else dataset.remove_columns("messages")


def tied_parts():
    """Model and processor; the LLM's head is its embedding table."""
    return tiny_parts(text=text_config(vocab_size=305, pad_token_id=300, tie_word_embeddings=True))


def curves(trainer) -> dict[str, list[float]]:
    return {name: logged(trainer, name) for name in ("loss", "grad_norm")}


def allow_fsdp_on_cpu() -> None:
    """Accelerate takes an FSDP plugin on accelerators only; all it does with it works under gloo as well."""
    original = AcceleratorState.__init__

    def with_plugin(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    AcceleratorState.__init__ = with_plugin


def everywhere(value) -> list:
    """A value of each process."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def trained(trainer, resume: Path | None = None) -> dict:
    """What a run logged, which of its batches had audio on each process, and how its parameters are held."""
    heard, objective = [], trainer.objective

    def spy(model, batch):
        heard.append(not batch["dummy_audio"])
        return objective(model, batch)

    trainer.objective = spy
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    parameters = trainer.model.named_parameters()
    held = {name: isinstance(parameter, DTensor) for name, parameter in parameters}
    whole = [name for name, sharded in held.items() if not sharded]
    return curves(trainer) | {"heard": everywhere(heard), "whole": whole, "parameters": len(held)}


def sharded_at_load(folder: Path):
    """Model and processor of a folder, sharded by transformers itself."""
    config = DistributedConfig(fsdp_size=2)
    model = SpeechLLMForConditionalGeneration.from_pretrained(folder, distributed_config=config)
    return model, SpeechLLMProcessor.from_pretrained(folder)


def predicted(folder: Path, **settings) -> dict:
    """After an update on all rows (FSDP2 shards nothing before): the answers that `predict` was given, in order, which
    of their tokens it puts first, and its loss. Of five rows, batches of two do not divide among two processes."""
    rows = tone_rows(5, answered=True)
    trainer = build("imitation", folder, rows, eval_rows=rows, per_device_eval_batch_size=2, max_steps=1, **settings)
    trainer.train()
    found = trainer.predict(rows)
    answered = (found.label_ids != -100).any(-1)
    labels, logits = found.label_ids[answered][:, 1:], found.predictions[answered][:, :-1]
    return {
        "labels": [[int(token) for token in row if token != -100] for row in labels],
        "right": [(best == row)[row != -100].tolist() for best, row in zip(logits.argmax(-1), labels, strict=True)],
        "loss": found.metrics["test_loss"],
    }


def whole_cases(out: Path) -> dict[str, dict]:
    """Every process holds the whole model (DDP)."""
    results = {}
    for kind in TRAINERS:
        trainer = build(kind, out / kind, rows_of(kind), max_steps=3, per_device_train_batch_size=4)
        trainer.save_model(out / "start" / kind)
        results[f"{kind} ddp"] = trained(trainer)
        results[f"{kind} ddp mixed"] = trained(build(kind, out / kind, mixed_rows(kind), **MIXED))
    results["budget"] = trained(build("imitation", out / "budget", tone_rows(16, answered=True), **BUDGET))
    kind = "distillation"
    results["ddp rates"] = trained(build(kind, out / kind, rows_of(kind), **RATES))
    results["predicted ddp"] = predicted(out / "predicted")
    return results | saved_cases("ddp", out / "saved" / "ddp")


def loaded_cases(out: Path) -> dict[str, dict]:
    """Sharded by transformers as it loads."""
    model, processor = sharded_at_load(out / "start" / "imitation")
    name_parents(model)
    settings = SAVED | {"save_only_model": True}  # transformers cannot resume such runs
    results = {
        "loaded saved": trained(build("imitation", out / "saved" / "loaded", None, model, processor, **settings))
    }
    return results | {
        f"{kind} loaded mixed": trained(
            build(kind, out / kind, mixed_rows(kind), *sharded_at_load(out / "start" / kind), **MIXED)
        )
        for kind in TRAINERS
    }


def fsdp_cases(out: Path) -> dict[str, dict]:
    """Sharded by Accelerate. From here on the environment says so, which leaves no other kind of run."""
    results = {}
    for kind in TRAINERS:
        results[f"{kind} fsdp mixed"] = trained(build(kind, out / kind, mixed_rows(kind), **MIXED, **FSDP))
    kind, rows = "imitation-divergence", rows_of("imitation")
    results["fsdp accumulated"] = trained(build(kind, out / kind, rows, **ACCUMULATED, **FSDP))
    results["fsdp bf16"] = trained(build(kind, out / kind, rows, **ACCUMULATED, **FSDP, bf16=True))
    results["fsdp tied"] = trained(build(kind, out / kind, mixed_rows(kind), *tied_parts(), **MIXED, **FSDP))
    groups = ["connector", "llm"]
    results["fsdp llm"] = trained(build("imitation", out / kind, rows, train_groups=groups, **ACCUMULATED, **FSDP))
    trainer = build(kind, out / kind, rows, eval_rows=rows, max_steps=1, **FSDP)
    trainer.train()
    results["fsdp evaluated"] = trainer.evaluate()
    kind = "distillation"
    results["fsdp rates"] = trained(build(kind, out / kind, rows_of(kind), **RATES, **FSDP))
    results["predicted fsdp"] = predicted(out / "predicted", **FSDP)
    settings = SAVED | AVERAGED | FSDP
    results["fsdp averaged"] = trained(build("imitation", out / "averaged", rows, eval_rows=rows, **settings))
    return results | saved_cases("fsdp", out / "saved" / "fsdp", **FSDP)


def saved_cases(name: str, folder: Path, **settings) -> dict[str, dict]:
    """A run with checkpoints, and the same resumed from the first of them."""
    unbroken = trained(build("imitation", folder, **SAVED, **settings))
    resumed = trained(build("imitation", folder, **SAVED, **settings), folder / "checkpoint-2")
    return {f"{name} unbroken": unbroken, f"{name} resumed": resumed}


def main(out: Path) -> None:
    allow_fsdp_on_cpu()
    results = whole_cases(out)
    speech_trainer.response_loss.__defaults__ = (POSITIONS,)
    results |= loaded_cases(out) | fsdp_cases(out)
    if os.environ["RANK"] == "0":
        (out / "results.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
