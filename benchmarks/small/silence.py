"""How likely the connector that reads with Whisper's decoder finds it that nothing is said: sounds beside speech.

    python -m benchmarks.small silence --parents PARENTS --data DATA [--whisper whisper-tiny.en]

One line per kind of sound and speech: the lowest and highest probability, and of how many nothing is read. The form
of the probability and `no_speech_threshold` were found on what the first lines have; the others were looked at
afterwards. No LLM runs.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.small.acceptance_rows import CONDITIONS, SOUNDS, pink, spread
from benchmarks.small.corpora import RATE, recordings
from benchmarks.small.shipping import ENCODER, LLM
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor

BATCH_SECONDS = 120
Sound = Callable[[np.random.Generator, int], np.ndarray]


def time(size: int) -> np.ndarray:
    return np.arange(size) / RATE


def clicks(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two a second, at any time."""
    wave = 1e-5 * rng.normal(size=size)
    wave[rng.integers(0, size, max(size // 8000, 1))] = 1
    return wave


def drums(rng: np.random.Generator, size: int) -> np.ndarray:
    """Beats of noise and low tones in time."""
    phase = time(size) % rng.uniform(0.2, 0.6)
    return np.exp(-20 * phase) * (rng.normal(size=size) + 3 * np.sin(2 * np.pi * 80 * phase))


def melody(rng: np.random.Generator, size: int) -> np.ndarray:
    """One voice with vibrato, three tones a second."""
    steps = rng.choice([0, 2, 4, 5, 7, 9, 11, 12], size=size * 3 // RATE + 1)
    pitch = 330 * 2 ** (np.repeat(steps, RATE // 3 + 1)[:size] / 12) * (1 + 0.005 * np.sin(35 * time(size)))
    return sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / RATE) / k for k in range(1, 8))


EASY_SOUNDS: dict[str, Sound] = {
    "zeros": lambda rng, size: np.zeros(size),
    "clicks": clicks,
    "noise and hum": lambda rng, size: pink(rng, size) / 3 + SOUNDS["hum"](rng, size) * rng.uniform(0.2, 1),
}
OTHER_SOUNDS: dict[str, Sound] = {
    "wavering noise": lambda rng, size: pink(rng, size) * (1 + np.sin(2 * np.pi * rng.uniform(2, 6) * time(size))),
    "a tone": lambda rng, size: np.sin(2 * np.pi * rng.uniform(200, 2000) * time(size)),
    "beeps": lambda rng, size: np.sin(2 * np.pi * rng.uniform(400, 2000) * time(size)) * (time(size) % 0.5 < 0.2),
    "drums": drums,
    "melody": melody,
}


def sounds(made: dict[str, Sound], seed: int, count: int, seconds: tuple[float, float]) -> Iterator[tuple]:
    """(kind, samples), `count` of each kind, peaks of 0.01 to 0.5 (silence as it is)."""
    for kind, make in made.items():
        rng = np.random.default_rng([seed, *kind.encode()])
        for _ in range(count):
            wave = make(rng, int(RATE * rng.uniform(*seconds)))
            level = 1 if kind == "silence" else 10 ** rng.uniform(-2, -0.3) / max(np.abs(wave).max(), 1e-9)
            yield kind, np.clip(level * wave, -1, 1).astype(np.float32)


def speech(data: Path, source: str, split: str, count: int, condition: str = "") -> Iterator[tuple]:
    """(kind, samples) of recordings of people, under a condition of the acceptance where one is told."""
    rows = [recording for recording in recordings(data, source) if recording.split == split]
    kind = f"{source}, {'speakers of training' if split == 'train' else 'test'}{condition and ', ' + condition}"
    for recording in spread(rows, count):
        samples = recording.samples()
        if condition:
            samples = CONDITIONS[condition](samples, np.random.default_rng([len(samples), 7]))
        yield kind, np.asarray(samples, dtype=np.float32)


def quiet(data: Path, source: str, count: int) -> Iterator[tuple]:
    """(kind, samples) of the longest stretch of a recording, of a second at least, that is 30 dB below its speech:
    rooms, microphones, breath."""
    found = 0
    for recording in recordings(data, source):
        samples = recording.samples()
        blocks = samples[: len(samples) // 320 * 320].reshape(-1, 320)
        power = 10 * np.log10(np.mean(blocks**2, axis=1) + 1e-10)
        edges = np.flatnonzero(np.diff(np.r_[0, power < np.percentile(power, 95) - 30, 0]))
        begin, end = max(edges.reshape(-1, 2).tolist(), key=lambda pair: pair[1] - pair[0], default=(0, 0))
        if end - begin >= 60:  # with a tenth of a second to both sides
            yield f"pauses of {source}", samples[(begin + 5) * 320 : (end - 5) * 320]
            found += 1
        if found == count:
            return


@torch.inference_mode()
def probabilities(
    model: SpeechLLMForConditionalGeneration, processor: SpeechLLMProcessor, clips: list[np.ndarray]
) -> list[float]:
    """Of no speech, of each of clips (samples,) of one window."""
    connector, found = model.model.multi_modal_projector, [0.0] * len(clips)
    order = sorted(range(len(clips)), key=lambda place: len(clips[place]))
    while order:
        count = max(int(BATCH_SECONDS * RATE / (len(clips[order[0]]) + RATE)), 1)
        places, order = order[:count], order[count:]
        inputs = processor.audio_inputs([clips[place] for place in places])
        features, mask = (torch.from_numpy(inputs[name]) for name in ("input_features", "input_features_mask"))
        heard = model.model.audio_tower(features, mask)
        prompt = torch.tensor(connector.config.prompt).expand(len(places), -1)
        told = connector.decode(prompt, heard.last_hidden_state, heard.lengths, None)
        for place, probability in zip(places, connector.no_speech_probability(told).tolist(), strict=True):
            found[place] = probability
    return found


def silence(parents: Path, data: Path, whisper: str = ENCODER, count: int = 20) -> Iterator[str]:
    """The table, line by line; `count` sounds of each kind, ten times as many recordings of each source."""
    decoder = str(parents / whisper)
    model = SpeechLLMForConditionalGeneration.from_parts(
        decoder, str(parents / LLM), {"type": "whisper_reader", "decoder": decoder}, dtype=torch.float32
    )
    processor = SpeechLLMProcessor.from_parts(decoder, str(parents / LLM), model.config)
    threshold = model.config.connector["no_speech_threshold"]
    usual, short, many = (1.0, 10.0), (0.1, 0.5), 10 * count
    groups = {
        "found on": [
            *sounds(SOUNDS | EASY_SOUNDS, 0, count, usual),
            *((f"{kind}, 0.1 to 0.5 s", wave) for kind, wave in sounds(SOUNDS, 2, count, short)),
            *speech(data, "cv_en", "train", many),
            *speech(data, "cv_other", "test", many),
            *speech(data, "cv_en", "test", many),
            *speech(data, "picovoice", "test", many),
        ],
        "afterwards": [
            *sounds(SOUNDS, 1, count, usual),
            *sounds(OTHER_SOUNDS, 0, count, usual),
            *quiet(data, "cv_unlabelled", count),
            *quiet(data, "picovoice", count),
            *(clip for condition in CONDITIONS for clip in speech(data, "cv_other", "test", many, condition)),
        ],
    }
    yield "| | | n | lowest | highest | nothing read |"
    yield "|---|---|---:|---:|---:|---:|"
    for group, clips in groups.items():
        for kind in dict.fromkeys(kind for kind, _ in clips):
            some = probabilities(model, processor, [wave for other, wave in clips if other == kind])
            share = f"{100 * sum(one > threshold for one in some) / len(some):.1f} %"
            yield f"| {group} | {kind} | {len(some)} | {min(some):.2f} | {max(some):.2f} | {share} |"
