"""Parameters and token rate of every connector preset at its paper's sizes: the table in docs/connectors.md.

    python -m benchmarks.connector_sizes

Connectors are built on the meta device: nothing is allocated.
"""

from typing import NamedTuple

import torch

from modeling_speechllm.configuration_connectors import PRESETS, connector_config
from modeling_speechllm.connectors import build_connector
from modeling_speechllm.lengths import output_length

FRAMES_PER_SECOND, WINDOW = 50, 1500


class Parents(NamedTuple):
    """What a preset stands between; `audio_layers` are those mixed, 0 for the encoder's output alone."""

    encoder: str
    audio_size: int
    llm: str
    text_size: int
    audio_layers: int = 0


PARENTS = {
    "ultravox": Parents("Whisper large-v3-turbo", 1280, "Llama 3.1 8B", 4096),
    "voxtral": Parents("Whisper large-v3", 1280, "Ministral 3B", 3072),
    "blsp": Parents("Whisper small", 768, "Llama 2 7B", 4096),
    "salmonn": Parents("Whisper large-v2", 1280, "Vicuna 13B", 5120),
    "granite": Parents("CTC conformer", 1024, "Granite 3.3 2B", 2048),
    "bloomzmms": Parents("MMS 1B", 1280, "BLOOMZ 7B1", 4096, audio_layers=49),
    "diva": Parents("Whisper large-v3", 1280, "Llama 3 8B", 4096),
    "lad-soft": Parents("Whisper large-v3", 1280, "SEA-LION v3 8B", 4096),
    "lad-hard": Parents("Whisper large-v3", 1280, "SEA-LION v3 8B", 4096),
}


def count_parameters(connector: dict | str, parents: Parents) -> int:
    """Trainable parameters of a preset or of settings."""
    with torch.device("meta"):
        module = build_connector(connector, parents.audio_size, parents.text_size, WINDOW, parents.audio_layers)
    return sum(parameter.numel() for parameter in module.parameters())


def token_rate(connector: dict | str) -> float:
    """Audio tokens per second over full windows."""
    frames = 120 * WINDOW
    return output_length(frames, connector_config(connector).stages(WINDOW)) * FRAMES_PER_SECOND / frames


def main() -> None:
    print("| preset | connector | encoder (width) | LLM (width) | tokens per second | parameters |")
    print("|---|---|---|---|---|---|")
    for preset in PRESETS:
        parents = PARENTS[preset]
        mixed = f", {parents.audio_layers} layers mixed" if parents.audio_layers else ""
        cells = (
            f"`{preset}`",
            f"`{connector_config(preset).type}`",
            f"{parents.encoder} ({parents.audio_size}{mixed})",
            f"{parents.llm} ({parents.text_size})",
            f"{token_rate(preset):.2f}",
            f"{count_parameters(preset, parents) / 1e6:,.1f} M",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
