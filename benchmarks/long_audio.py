"""CPU seconds and peak memory of encoder and connector for long audio, each length in a process of its own.

    python -m benchmarks.long_audio --encoder FOLDER_OR_ID
    python -m benchmarks.long_audio --encoder FOLDER_OR_ID --no_encoder                     # noise for its frames
    python -m benchmarks.long_audio --encoder FOLDER_OR_ID --passes 1 2 4 8 16 --minutes 8  # windows per pass

Prints a table: megabytes above an empty process with the encoder loaded, seconds of the encoder and of the connector,
for 1, 10 and 60 minutes of audio (log-mel noise) through a frozen Whisper encoder and each connector at small sizes.
With --passes the encoder alone, one process, the numbers of windows in turns, median of two after one.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

CONFORMER = {
    **{"type": "conformer_ctc", "layers": None, "hidden_size": 256, "heads": 4, "blocks": 2},
    **{"gating_size": 512, "ffn_size": 512},
}
CONNECTORS = {
    "stack_mlp": {"type": "stack_mlp"},
    "conv": {"type": "conv"},
    "window_qformer": {"type": "window_qformer"},
    "whisper_qformer": {"type": "whisper_qformer", "queries": 64, "decoder_layers": 2},
    "conformer_ctc": CONFORMER,
    "conformer_ctc, context 128": CONFORMER | {"attention_context": 128},
    "ctc_compress": {"type": "ctc_compress", "blocks": 2},
    "ctc_compress, context 128": {"type": "ctc_compress", "blocks": 2, "attention_context": 128},
}
TEXT_SIZE = 1024


def frozen_tower(encoder: str, dtype: Any) -> tuple[Any, Any]:
    """The encoder's tower, which learns nothing, and its config."""
    from modeling_speechllm import build_audio_tower
    from modeling_speechllm.audio_encoders import load_encoder

    loaded = load_encoder(encoder, dtype=dtype)
    return build_audio_tower(loaded.config, encoder=loaded).requires_grad_(False).eval(), loaded.config


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child_output(arguments: list[str], name: str) -> str:
    """
    What Python prints with these arguments, in a process of its own.

    Raises:
        SystemExit: it fails; by `name` and the last line of what it said.
    """
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["it said nothing (killed, as where memory runs out?)"]
        raise SystemExit(f"{name} failed with status {ended.returncode}: {said[-1]}")
    return ended.stdout


def measure(encoder: str, connector: str, minutes: float, no_encoder: bool) -> dict[str, float]:
    """Megabytes and seconds of one forward pass; runs in a process of its own."""
    import torch

    from modeling_speechllm.connectors import build_connector

    tower, config = frozen_tower(encoder, torch.float32)
    projector = build_connector(CONNECTORS[connector], config.hidden_size, TEXT_SIZE, tower.window).eval()
    with torch.no_grad():
        warm = tower(torch.randn(1, config.num_mel_bins, 100))
        projector(warm.last_hidden_state, warm.lengths)
        before = peak_megabytes()
        features = torch.randn(1, config.num_mel_bins, round(minutes * 60 * 100))
        began = time.process_time()
        frames = features.shape[2] // 2
        if no_encoder:
            hidden, lengths = torch.randn(1, frames, config.hidden_size), torch.tensor([frames])
        else:
            encoded = tower(features)
            hidden, lengths = encoded.last_hidden_state, encoded.lengths
        heard = time.process_time()
        tokens = int(projector(hidden, lengths).lengths)
    ended = time.process_time()
    return {
        "megabytes": peak_megabytes() - before,
        "encoder": heard - began,
        "connector": ended - heard,
        "tokens": tokens,
    }


def measure_passes(encoder: str, counts: list[int], minutes: float, dtype: str) -> None:
    """Prints CPU seconds and peak memory of the encoder for each number of windows per pass."""
    import torch

    from modeling_speechllm import audio_towers

    tower, config = frozen_tower(encoder, getattr(torch, dtype))
    features = torch.randn(1, config.num_mel_bins, round(minutes * 60 * 100)).to(getattr(torch, dtype))
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    peaks = {}
    for turn in range(3):
        for count in sorted(counts):  # the peak of a process only grows
            audio_towers.WINDOWS_PER_PASS = {"cpu": count}
            began = time.process_time()  # of all threads: says the same on a machine that others use
            tower(features)
            if turn:
                seconds[count].append(time.process_time() - began)
            peaks.setdefault(count, peak_megabytes())
    print(f"| windows per pass, {dtype} | CPU s for {minutes:g} min | over the fastest | peak MB of the process |")
    print("|---|---|---|---|")
    fastest = min(statistics.median(values) for values in seconds.values())
    for count in counts:
        median = statistics.median(seconds[count])
        print(f"| {count} | {median:.2f} | {median / fastest:.2f} | {peaks[count]:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.long_audio",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--encoder", required=True, help="Hub id or folder of a Whisper checkpoint")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10, 60], help="lengths of the audio")
    parser.add_argument("--connectors", nargs="+", choices=CONNECTORS, default=list(CONNECTORS))
    parser.add_argument("--passes", type=int, nargs="+", help="the encoder alone, with so many windows at a time")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="with --passes")
    parser.add_argument("--no_encoder", action="store_true", help="connectors alone, on noise in place of frames")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.passes:
        measure_passes(arguments.encoder, arguments.passes, arguments.minutes[0], arguments.dtype)
        return
    if arguments.one:
        print(
            json.dumps(measure(arguments.encoder, arguments.connectors[0], arguments.minutes[0], arguments.no_encoder))
        )
        return
    heads = " | ".join(f"{minutes:g} min: MB | encoder s | connector s | tokens" for minutes in arguments.minutes)
    print(f"| connector | {heads} |")
    print("|---" * (1 + 4 * len(arguments.minutes)) + "|")
    for connector in arguments.connectors:
        cells = []
        for minutes in arguments.minutes:
            command = ["-m", "benchmarks.long_audio", "--encoder", arguments.encoder, "--one"]
            command += ["--connectors", connector, "--minutes", str(minutes)]
            command += ["--no_encoder"] * arguments.no_encoder
            output = child_output(command, f"{connector}, {minutes:g} min")
            found = json.loads(output.strip().splitlines()[-1])
            cells += [f"{found['megabytes']:,.0f}", f"{found['encoder']:.1f}", f"{found['connector']:.1f}"]
            cells.append(f"{found['tokens']:,}")
        print(f"| `{connector}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
