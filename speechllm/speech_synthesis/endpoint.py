"""Speech from an OpenAI-compatible endpoint (`/audio/speech`): hosted ones, or a local server of any TTS model."""

from collections.abc import Sequence

import numpy as np

from processing_speechllm.audio import load_audio
from trainers.targets.endpoints import Endpoint, Refusal

from .voices import SAMPLING_RATE, SynthesisError, Voice


class EndpointSynthesizer:
    """
    One request per text. What it says may differ from call to call, so keep the data set, not only its recipe.

    Args:
        base_url: as `http://localhost:8000/v1`; nothing else is contacted.
        model: the endpoint's name of the speech model.
        voices: those to use; endpoints do not list theirs. They are taken to speak every language.
        api_key, retries, timeout, first_pause: as in `Endpoint`.
        concurrency: requests at once.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        voices: Sequence[Voice],
        api_key: str | None = None,
        retries: int = 8,
        timeout: float = 300.0,
        first_pause: float = 1.0,
        concurrency: int = 8,
    ):
        self.endpoint = Endpoint(base_url, "/audio/speech", api_key, retries, timeout, first_pause)
        self.model, self.offered, self.concurrency = model, list(voices), concurrency
        self.name = f"{model} (OpenAI-compatible speech endpoint)"

    def voices(self, language: str) -> list[Voice]:
        """The voices that were given, whatever the language."""
        return self.offered

    def speak(self, text: str, voice: str, seed: int = 0) -> np.ndarray:
        """The text as float32 samples (samples,) at 16 kHz, from WAV or any audio file that the endpoint sends."""
        body = {"model": self.model, "input": text, "voice": voice, "response_format": "wav"}
        try:
            return self.endpoint.post(body, _read)
        except Refusal as refusal:
            raise SynthesisError(f"{self.endpoint.url} does not say {text!r} with {voice!r}: {refusal}") from refusal


def _read(reply: bytes) -> np.ndarray:
    return load_audio(reply, SAMPLING_RATE)
