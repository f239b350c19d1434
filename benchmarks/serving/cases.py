"""What is asked: recordings with instructions, alone and in the ways that engines get wrong."""

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

LONG_SECONDS = 38.0  # more than a window of Whisper's encoder
INSTRUCTION = "Repeat the request word for word."
QUESTION = "What is five plus three?"


@dataclass(frozen=True)
class Case:
    """One request: audios, each of samples (samples,) at `rate` Hz, and an instruction."""

    instruction: str
    audio: tuple[np.ndarray, ...] = field(default=(), compare=False)
    rate: int = 16000

    def row(self) -> dict:
        """As the pipeline takes it."""
        sources = [{"array": samples, "sampling_rate": self.rate} for samples in self.audio]
        return {"instruction": self.instruction} | ({"audio": sources} if sources else {})

    def messages(self, lines: bool) -> list[dict]:
        """As OpenAI's API takes it; with `lines` each part ends its line, as the pipeline writes it, else the server
        is trusted to do that."""
        content = []
        for samples in self.audio:
            content.append(
                {"type": "input_audio", "input_audio": {"data": encoded(samples, self.rate), "format": "wav"}}
            )
            if lines:
                content.append({"type": "text", "text": "\n"})
        content.append({"type": "text", "text": self.instruction})
        return [{"role": "user", "content": content}]


def encoded(samples: np.ndarray, rate: int) -> str:
    """A WAV file of float samples, which loses nothing, in Base64."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return base64.b64encode(buffer.getvalue()).decode()


def load_examples(model: Path) -> list[dict]:
    """
    The recordings beside a checkpoint, each with its file and questions.

    Raises:
        FileNotFoundError: there are none.
    """
    folder = model / "examples"
    if not (folder / "examples.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no examples.json. Export the checkpoint with --example, or take another."
        )
    rows = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    return [row | {"file": str(folder / row["file"])} for row in rows]


def comparison_cases(examples: list[dict], longest: float) -> dict[str, list[Case]]:
    """
    Kinds of requests, each with cases.

    Args:
        examples: recordings (`file`) with `questions`, as they lie beside a checkpoint.
        longest: seconds that the model takes.
    """
    heard = [soundfile.read(row["file"], dtype="float32") for row in examples]
    rates = {rate for _, rate in heard}
    if len(rates) > 1:
        raise ValueError(f"The examples have the rates {sorted(rates)}. Resample them to one.")
    (rate,) = rates
    clips = [samples for samples, _ in heard]
    single = [
        Case(question["instruction"], (samples,), rate)
        for row, samples in zip(examples, clips, strict=True)
        for question in row["questions"]
    ]
    wanted = int(min(LONG_SECONDS, longest) * rate)
    every = np.concatenate(clips)
    long = np.tile(every, -(-wanted // len(every)))[:wanted]
    neighbours = zip(clips, clips[1:] + clips[:1], strict=True)
    return {
        "single": single,
        "batched": single,
        "two audios": [Case(INSTRUCTION, pair, rate) for pair in neighbours],
        "one audio twice": [Case(INSTRUCTION, (clips[0], clips[0]), rate)],
        "asked again": [single[0], single[0]],
        "long audio": [Case(INSTRUCTION, (long,), rate)],
        "text only": [Case(QUESTION)],
    }


def load_cases(examples: list[dict], count: int, seed: int) -> list[Case]:
    """`count` requests for measuring speed: the examples in turn, each recording at a loudness of its own, so that no
    engine has met it before."""
    single = comparison_cases(examples, longest=1.0)["single"]
    gains = np.random.default_rng(seed).uniform(0.7, 1.0, count).astype("float32")
    chosen = [single[number % len(single)] for number in range(count)]
    return [
        Case(case.instruction, tuple(samples * gain for samples in case.audio), case.rate)
        for case, gain in zip(chosen, gains, strict=True)
    ]


__all__ = ["Case", "comparison_cases", "load_cases", "load_examples"]
