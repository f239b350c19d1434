"""First tokens of ours and of Ultravox's form in pairs, now one first and now the other.

    python -m benchmarks.peers.pairs --parents FOLDER --pairs 8            # one CPU thread, seconds of processor time
    python -m benchmarks.peers.pairs --device cuda --pairs 30              # random weights, by the clock

Both do the same work, so what tells them apart is less than what two turns on a busy machine differ by; the ratio
within a pair is not. Printed are medians, and the quartiles of the ratios.
"""

import argparse
import statistics
from pathlib import Path

import torch
import transformers

from . import first_token
from .parts import DTYPES, clock, noise, parts_from, random_parts


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parents", type=Path, help="folder with both parents, by default random weights")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of both, by default bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="by default %(default)s")
    parser.add_argument("--pairs", type=int, default=8, help="of each work, by default %(default)s")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 10.0], help="of audio, by default 3 10")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="by default 1 8")
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error(f"--pairs {args.pairs}: give 2 or more, whose ratios have quartiles.")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    parts = parts_from(args.parents) if args.parents else random_parts()
    dtype = DTYPES[args.dtype]
    names = (first_token.OURS, first_token.ULTRAVOX)
    systems = {name: first_token.make_system(name, parts, dtype, args.device) for name in names}
    print(f"{args.dtype}, {args.device}, {args.pairs} pairs")
    print(f"| work | {names[0]} | {names[1]} | ratio | its quartiles |")
    print("|---|---:|---:|---:|---:|")
    for seconds in args.seconds:
        for batch in args.batches:
            samples = [noise(seconds, number) for number in range(batch)]
            times = {name: [] for name in names}
            for number in range(args.pairs + 1):
                for name in names[:: -1 if number % 2 else 1]:
                    begin = clock(args.device)
                    systems[name](samples)
                    times[name].append(clock(args.device) - begin)
            ours, theirs = (times[name][1:] for name in names)  # the first pair warms up
            ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            cells = [f"{statistics.median(ours):.3f}", f"{statistics.median(theirs):.3f}", f"{middle:.2f}"]
            print(f"| {seconds:g} s, batch {batch} | {' | '.join(cells)} | {low:.2f} to {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
