"""Peak memory of encoder and connector for long audio, each length in a process of its own.

    python -m benchmarks.long_audio --encoder FOLDER_OR_ID

Prints a table: megabytes above an empty process with the encoder loaded, and seconds, for 1, 10 and 60 minutes of
audio (log-mel noise) through a frozen Whisper encoder and each connector at small sizes.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

CONNECTORS = {
    "stack_mlp": {"type": "stack_mlp"},
    "conv": {"type": "conv"},
    "window_qformer": {"type": "window_qformer"},
    "conformer_ctc": {
        "type": "conformer_ctc",
        "layers": None,
        "hidden_size": 256,
        "heads": 4,
        "blocks": 2,
        "gating_size": 512,
        "ffn_size": 512,
    },
    "whisper_qformer": {"type": "whisper_qformer", "queries": 64, "decoder_layers": 2},
}
MINUTES = (1, 10, 60)
TEXT_SIZE = 1024


def measure(encoder: str, connector: str, minutes: int) -> dict[str, float]:
    """Megabytes and seconds of one forward pass; runs in a process of its own."""
    import torch

    from modeling_speechllm import build_audio_tower
    from modeling_speechllm.audio_encoders import load_encoder
    from modeling_speechllm.connectors import build_connector

    loaded = load_encoder(encoder, dtype=torch.float32)
    tower = build_audio_tower(loaded.config, encoder=loaded).requires_grad_(False).eval()
    projector = build_connector(CONNECTORS[connector], loaded.config.hidden_size, TEXT_SIZE, tower.window).eval()
    frames = minutes * 60 * 100
    with torch.no_grad():
        warm = tower(torch.randn(1, loaded.config.num_mel_bins, 100))
        projector(warm.last_hidden_state, warm.lengths)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        features = torch.randn(1, loaded.config.num_mel_bins, frames)
        encoded = tower(features)
        tokens = int(projector(encoded.last_hidden_state, encoded.lengths).lengths)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"megabytes": (peak - before) / 1024, "seconds": time.perf_counter() - started, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_audio", description=__doc__)
    parser.add_argument("--encoder", required=True, help="Hub id or folder of a Whisper checkpoint")
    parser.add_argument("--connector", choices=CONNECTORS, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.connector:
        print(json.dumps(measure(arguments.encoder, arguments.connector, arguments.minutes)))
        return
    heads = " | ".join(f"{minutes} min: MB | s | tokens" for minutes in MINUTES)
    print(f"| connector | {heads} |")
    print("|---" * (1 + 3 * len(MINUTES)) + "|")
    for connector in CONNECTORS:
        cells = []
        for minutes in MINUTES:
            command = [sys.executable, "-m", "benchmarks.long_audio", "--encoder", arguments.encoder]
            command += ["--connector", connector, "--minutes", str(minutes)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(output.strip().splitlines()[-1])
            cells += [f"{found['megabytes']:,.0f}", f"{found['seconds']:.1f}", f"{found['tokens']:,}"]
        print(f"| `{connector}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
