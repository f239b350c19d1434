"""Single training steps of the loops on one batch, in turns: for a machine whose load would drown whole trainings.

    python -m benchmarks.peers.steps --loss divergence --dtype bf16 --steps 3      # random weights, one CPU thread

Eight rows of about 5 seconds; a step is reading its batch, forward, backward, optimizer, in seconds of processor time.
Printed is the median of each loop, and of the ratios within each turn to Ultravox's form. `whole rows` are our loops
with `share_prefix: false`, each to be set beside its own.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from trainers.speed.attention import fast_backward

from . import training
from .parts import DTYPES, clock, noise_rows, parts_from, random_parts

WHOLE_ROWS = ", whole rows"


def step(trainer: Any, device: str) -> float:
    """Seconds of one step."""
    begin = clock(device)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    if "ids" in batch:  # of our trainers
        counts = {name: torch.tensor(float(value)) for name, value in batch["counts"].items()}
        with fast_backward(wanted=not trainer.speech_model.attention_was_chosen):
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts).backward()
    else:
        batch.pop("seconds")
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    trainer.optimizer.step()
    trainer.model.zero_grad()
    return clock(device) - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parents", type=Path, help="folder with both parents, by default random weights")
    losses = ("cross-entropy", "divergence")
    parser.add_argument("--loss", choices=losses, default=losses[0], help="by default %(default)s")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of all loops, by default bf16")
    parser.add_argument("--steps", type=int, default=3, help="turns that are timed after one, by default 3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    parts = parts_from(args.parents) if args.parents else random_parts()
    dtype = DTYPES[args.dtype]
    work = training.Work(parts, noise_rows(8, (4.6, 5.4), 0), 8, 1, dtype, "cpu")
    loops = [name + rows for name in (training.OURS, training.CACHED) for rows in ("", WHOLE_ROWS)]
    loops.append(training.ULTRAVOX)
    loops += [training.PLAIN, training.TRL] if args.loss == "cross-entropy" else []
    with tempfile.TemporaryDirectory() as folder:
        cache, trainers = training.make_cache(work, Path(folder) / "cache"), {}
        for loop in loops:
            name = loop.removesuffix(WHOLE_ROWS)
            trainer = training.make_trainer(name, args.loss, work, folder, cache, training.Clock("cpu"), 0)
            if loop != name:
                trainer.shared_prefix.wanted = False
            trainer.create_optimizer()
            if trainer.args.gradient_checkpointing:
                trainer.model.activation_checkpointing_enable()
            trainers[loop] = trainer
        times = {loop: [] for loop in loops}
        for number in range(args.steps + 1):
            for loop, trainer in trainers.items():
                seconds = step(trainer, "cpu")
                if number:  # the first one warms up
                    times[loop].append(seconds)
    print(
        f"{args.loss}, {args.dtype}, {args.steps} turns\n| loop | seconds | samples per second over Ultravox's form |"
    )
    print("|---|---:|---:|")
    for loop, seconds in times.items():
        ratio = statistics.median(other / own for own, other in zip(seconds, times[training.ULTRAVOX], strict=True))
        print(f"| {loop} | {statistics.median(seconds):.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
