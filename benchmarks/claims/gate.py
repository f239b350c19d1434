"""Why a language gate does or does not learn: alone on what the encoder makes, and inside LAD's first updates.

    python -m benchmarks.claims.gate --out build/claims --parents PARENTS

Needs the data of the real world (`python -m benchmarks.claims --world real --papers lad ...`). Its first table is the
gate trained by nothing but L_LID; its second the norm of each term's gradient in the gate's parameters, in a hard
bank, into whose choice the straight-through estimator lets L_OUT's gradient.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn import functional as F
from transformers import get_cosine_schedule_with_warmup

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "1")

from benchmarks.claims.real import LANGUAGES
from benchmarks.claims.variants import load_paper
from benchmarks.claims.worlds import read_rows
from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.query_bank import GATES, QueryBank
from processing_speechllm import SpeechLLMProcessor
from trainers import SpeechDistillationConfig, SpeechDistillationTrainer
from trainers.cache.frame_cache import FrameCache, pad_frames
from trainers.data.loading import load_rows
from trainers.objectives.terms import Term

TERMS = ("language", "output", "input")
BATCH = 8


class Encoded:
    """Frames and languages of a set of rows of the real world."""

    def __init__(self, place: Path, name: str):
        self.cache, self.rows = FrameCache(place / "frames-six"), list(read_rows(place / "data" / name) or [])

    def batch(self, rows: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frames (rows, frames, dim), lengths (rows,), languages (rows,)."""
        frames, lengths = pad_frames([self.cache.frames(row["id"]).float() for row in rows])
        return frames, lengths, torch.tensor([LANGUAGES.index(row["language"]) for row in rows])


def learn_alone(place: Path, kind: str, rate: float, updates: int, size: int, seed: int = 0) -> float:
    """
    Trains a gate by L_LID alone, by AdamW on a cosine with a tenth of warm-up.

    Args:
        place: of the real world.
        kind: `attention` or `conv`.
        rate: peak learning rate.
        updates: of 8 rows.
        size: the gate's width.
        seed: of the gate and of the rows' order.

    Returns:
        Share of the unseen speakers' recordings whose language it tells.
    """
    torch.manual_seed(seed)
    train, unseen = Encoded(place, "six"), Encoded(place, "six-validation")
    order = random.Random(seed).sample(train.rows, len(train.rows))
    gate = GATES[kind](train.cache.frames(order[0]["id"]).shape[-1], size, len(LANGUAGES))
    optimizer = torch.optim.AdamW(gate.parameters(), rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, updates // 10, updates)
    for step in range(updates):
        rows = [order[(BATCH * step + number) % len(order)] for number in range(BATCH)]
        frames, lengths, languages = train.batch(rows)
        optimizer.zero_grad()
        F.cross_entropy(gate(frames, lengths), languages).backward()
        optimizer.step()
        schedule.step()
    right = 0
    with torch.no_grad():
        for start in range(0, len(unseen.rows), BATCH):
            frames, lengths, languages = unseen.batch(unseen.rows[start : start + BATCH])
            right += int((gate(frames, lengths).argmax(-1) == languages).sum())
    return right / len(unseen.rows)


class Measured(SpeechDistillationTrainer):
    """Notes the norm of each term's gradient in the gate, update by update."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        bank = next(module for module in self.speech_model.modules() if isinstance(module, QueryBank))
        self.gate, self.norms = list(bank.gate.parameters()), []

    def terms(self, model: Any, batch: dict[str, Any]) -> dict[str, Term]:
        terms, found = super().terms(model, batch), {}
        for name in TERMS:
            share = terms[name].total * terms[name].weight / batch["counts"][terms[name].items]
            gradients = torch.autograd.grad(share, self.gate, retain_graph=True)
            found[name] = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        self.norms.append(found)
        return terms


def gradients_of(place: Path, parents: Path, kind: str, updates: int) -> list[dict[str, float]]:
    """Norms of the gradients by term, in the first updates of LAD's hard bank with such a gate."""
    variant = load_paper("lad", "real", {"parents": str(parents)}).variants[f"hard-{kind}"]
    audio, text = str(parents / "whisper-base"), str(parents / "gemma3-270m")
    torch.manual_seed(0)
    model = SpeechLLMForConditionalGeneration.from_parts(audio, text, dict(variant.settings["connector"]))
    processor = SpeechLLMProcessor.from_parts(audio, text, model.config)
    with TemporaryDirectory() as folder:
        config = SpeechDistillationConfig(
            folder,
            use_cpu=True,
            max_steps=updates,
            per_device_train_batch_size=BATCH,
            learning_rate=variant.settings["learning_rate"],
            frames_cache=str(place / "frames-six"),
            cached_teacher=True,
            save_strategy="no",
            disable_tqdm=True,
        )
        rows = load_rows(str(place / "data" / "six"))
        trainer = Measured(model, config, rows, processing_class=processor)
        trainer.train()
    return trainer.norms


def main() -> None:
    """The command line: two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the real world has been made")
    parser.add_argument("--parents", type=Path, required=True, help="folder of whisper-base and gemma3-270m")
    parser.add_argument("--updates", type=int, default=200, help="of the gate alone")
    parser.add_argument("--rates", type=float, nargs="+", default=[5.6e-5, 5.6e-4])
    parser.add_argument("--measured", type=int, default=10, help="updates of the whole model whose gradients are told")
    arguments = parser.parse_args()
    place, parents = arguments.out / "real", arguments.parents.resolve()
    wanted = [place / "done.json", place / "frames-six", parents / "whisper-base", parents / "gemma3-270m"]
    if missing := [str(path) for path in wanted if not path.exists()]:
        parser.error(
            f"not there: {', '.join(missing)}. The real world is made by python -m benchmarks.claims --world real "
            "--papers lad --out OUT --parents PARENTS --data DATA; README.md here tells what these folders hold."
        )
    if arguments.updates < 1 or arguments.measured < 1:
        parser.error("--updates and --measured: give 1 or more.")
    size = (
        load_paper("lad", "real", {"parents": str(parents)}).variants["hard-conv"].settings["connector"]["gate_size"]
    )
    print("| gate, alone | learning rate | updates | LID of unseen speakers, % |\n|---|---:|---:|---:|", flush=True)
    for kind in GATES:
        for rate in arguments.rates:
            share = learn_alone(place, kind, rate, arguments.updates, size)
            print(f"| {kind} | {rate:g} | {arguments.updates} | {100 * share:.0f} |", flush=True)
    lines = ["| gate | update | " + " | ".join(f"of {name}" for name in TERMS) + " |", "|---|---:|---:|---:|---:|"]
    for kind in GATES:
        for number, norms in enumerate(gradients_of(place, parents, kind, arguments.measured), 1):
            lines.append(f"| {kind} | {number} | " + " | ".join(f"{norms[name]:.3g}" for name in TERMS) + " |")
    print("", *lines, sep="\n")


if __name__ == "__main__":
    main()
