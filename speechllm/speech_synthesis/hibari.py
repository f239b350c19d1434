"""hibari: natural English voices of a few megabytes each, from `pip install hibari-tts` (Apache-2.0).

One voice (heart, female) is in the package; it fetches the others from the Hub when they are first used. Here only
voices that lie on this machine are used, so nothing is fetched unasked.
"""

import importlib.metadata
import threading
from typing import Any

import numpy as np
import soxr

from .voices import SAMPLING_RATE, SynthesisError, Voice

FETCH = "python -c \"from hibari import Hibari; [Hibari(voice=v) for v in ('fenrir', 'emma', 'fable', 'kore')]\""


class HibariSynthesizer:
    """English by hibari; one text at a time, at about a hundred times real time."""

    concurrency = 1

    def __init__(self):
        try:
            from hibari import voices
        except ImportError as error:
            raise ImportError("hibari is not installed. Run: pip install hibari-tts") from error
        self.name = f"hibari-tts {importlib.metadata.version('hibari-tts')}"
        self.registry, self.models, self.lock = voices, {}, threading.Lock()

    def voices(self, language: str) -> list[Voice]:
        """The voices that lie on this machine.

        Raises:
            ValueError: the language is not English.
        """
        if language.lower().replace("_", "-").partition("-")[0] != "en":
            raise ValueError(f"{self.name} speaks English, not {language}. Take espeak or an endpoint.")
        return [Voice(name, entry["gender"]) for name, entry in self.registry.VOICES.items() if self._is_here(name)]

    def speak(self, text: str, voice: str, seed: int = 0) -> np.ndarray:
        """The text as float32 samples (samples,) at 16 kHz; `seed` is of the noise in voiceless sounds."""
        with self.lock:
            samples = self._model(voice)(text, seed=seed)
        if samples.size == 0:
            raise SynthesisError(f"{self.name} found nothing to say in {text!r}")
        return np.clip(soxr.resample(samples, 24_000, SAMPLING_RATE), -1, 1).astype(np.float32)

    def _is_here(self, name: str) -> bool:
        try:
            self.registry.voice_path(name, download_missing=False)
        except FileNotFoundError:
            return False
        return True

    def _model(self, voice: str) -> Any:
        if voice not in self.models:
            from hibari import Hibari

            if voice not in self.registry.VOICES or not self._is_here(voice):
                raise ValueError(f"hibari's voice {voice!r} does not lie on this machine. Fetch all with: {FETCH}")
            self.models[voice] = Hibari(voice=voice)
        return self.models[voice]
