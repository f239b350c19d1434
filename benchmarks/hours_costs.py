"""What hours of speech cost to train on, by arithmetic: the table of docs/new-language.md.

    python -m benchmarks.hours_costs

Three passes over the data with frozen encoder and LLM; operations as in `training_scale.training_flops`, at an assumed
40 % of an H100's peak. Nothing here is measured.
"""

from benchmarks.training_scale.parts import PEAK_TFLOPS, training_flops

HOURS = (1, 10, 100, 1000)
EPOCHS = 3
SHARE = 0.4  # of the peak, assumed
FRAMES = 50  # per second of audio, of Whisper and wav2vec2
AUDIO_TOKENS = 6.25  # per second, at stride 8
TEXT_TOKENS = 4.0  # per second of speech, assumed
PAIRS = {  # name: parameters of encoder, connector, LLM without embeddings; width of the encoder's frames
    "Whisper small (0.088 B) + Qwen2.5 0.5B (0.36 B)": (
        {"encoder": 0.088e9, "connector": 0.007e9, "llm": 0.36e9},
        768,
    ),
    "Whisper large-v3 (0.637 B) + Llama 3 8B (6.98 B)": (
        {"encoder": 0.637e9, "connector": 0.05e9, "llm": 6.98e9},
        1280,
    ),
}


def costs(parameters: dict[str, float], width: int, hours: float) -> tuple[float, float]:
    """Seconds on one H100, and bytes of a cache of the encoder's frames in 16 bits."""
    seconds = 3600 * hours
    tokens = AUDIO_TOKENS + TEXT_TOKENS
    each = training_flops(parameters, FRAMES, AUDIO_TOKENS, tokens, 0)
    return EPOCHS * seconds * each / (SHARE * PEAK_TFLOPS["H100"] * 1e12), seconds * FRAMES * width * 2


def spoken(seconds: float) -> str:
    """Seconds in words."""
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def table() -> list[str]:
    """Lines of Markdown."""
    lines = ["| hours | " + " | ".join(f"{name}: H100 time, frames cache" for name in PAIRS) + " |"]
    lines.append("|---:|" + "---|" * len(PAIRS))
    for hours in HOURS:
        cells = []
        for parameters, width in PAIRS.values():
            seconds, size = costs(parameters, width, hours)
            cells.append(f"{spoken(seconds)}, {size / 1e9:.1f} GB")
        lines.append(f"| {hours:,} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
