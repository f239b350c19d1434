"""espeak-ng: formant synthesis of about a hundred languages, robotic but free, small and the same everywhere.

It comes with `pip install espeakng-loader`. A voice is a language and a variant, as `de+f2`; the variants are
espeak-ng's own, their gender is what its files say.
"""

import atexit
import functools
import importlib.util
import json
import os
import queue
import subprocess
import sys
from pathlib import Path

import numpy as np
import soxr

from .voices import SAMPLING_RATE, SynthesisError, Voice

WORKER = Path(__file__).with_name("espeak_worker.py")
# Where espeak-ng's code is not the usual one.
BASES = {"en": "en-us", "en-gb": "en-gb-x-rp", "zh": "cmn", "zh-hk": "yue", "no": "nb"}
# Ten that speak every language of LAD; none of them is among those that the embedded model was trained with.
VARIANTS = {
    "female": ("Alicia", "Andrea", "anika", "f2", "f5"),
    "male": ("Henrique", "m3", "m6", "m8", "victor"),
}
RATE, PITCH = 165, 50  # words per minute; 0 to 99, 50 is the voice's own


class EspeakWorker:
    """One process of `espeak_worker.py`; one request at a time."""

    def __init__(self):
        if importlib.util.find_spec("espeakng_loader") is None:
            raise ImportError("espeak-ng is not installed. Run: pip install espeakng-loader")
        command = [sys.executable, "-P", str(WORKER)]  # -P: nothing of this folder can pass for a package
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )  # in a session of its own, so that an interrupt is ours alone to handle
        atexit.register(self.close)
        self.version = json.loads(self._line())["version"]

    def speak(self, text: str, voice: str, rate: int, pitch: int) -> np.ndarray:
        """float32 samples (samples,) at 16 kHz."""
        request = {"text": text.replace("\0", " "), "voice": voice, "rate": rate, "pitch": pitch}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        reply = json.loads(self._line())
        if "error" in reply:
            raise SynthesisError(f"espeak-ng could not say {text!r} with voice {voice!r}: {reply['error']}")
        raw = self.process.stdout.read(reply["bytes"])
        if not any(raw):  # of a text without letters
            raise SynthesisError(f"espeak-ng found nothing to say in {text!r} with voice {voice!r}")
        samples = np.frombuffer(raw, dtype=np.int16).astype(np.float32) / 32768
        return soxr.resample(samples, reply["rate"], SAMPLING_RATE).astype(np.float32)

    def _line(self) -> bytes:
        line = self.process.stdout.readline()
        if not line:
            raise OSError(f"espeak-ng's process ended (exit status {self.process.wait()}); see its message above.")
        return line

    def close(self) -> None:
        """Ends the process, which does so when its input ends."""
        self.process.stdin.close()
        self.process.wait()


class EspeakSynthesizer:
    """
    espeak-ng in a few processes of its own.

    Args:
        concurrency: processes; None is one per core, four at most.
    """

    def __init__(self, concurrency: int | None = None):
        self.concurrency = concurrency or min(4, os.cpu_count() or 1)
        self.idle: queue.LifoQueue[EspeakWorker | None] = queue.LifoQueue()
        for _ in range(self.concurrency - 1):
            self.idle.put(None)  # started when needed
        first = EspeakWorker()
        self.idle.put(first)
        self.name = f"espeak-ng {first.version}"

    def voices(self, language: str) -> list[Voice]:
        """`VARIANTS` on the language's base voice, which is tried once."""
        code = language.lower().replace("_", "-")
        codes = (code, code.partition("-")[0])
        for candidate in dict.fromkeys(BASES.get(code, code) for code in codes):
            try:
                self.speak("1", candidate)
            except SynthesisError:
                continue
            return [Voice(f"{candidate}+{name}", gender) for gender, names in VARIANTS.items() for name in names]
        raise ValueError(
            f"espeak-ng has no voice for the language {language!r}. Give a code that it knows, such as en, de, vi, zh."
        )

    def speak(self, text: str, voice: str, seed: int = 0, rate: int = RATE, pitch: int = PITCH) -> np.ndarray:
        """The text as float32 samples (samples,) at 16 kHz; `seed` plays no part.

        Args:
            voice: espeak-ng's name of a voice, with a variant if you like (`de+f2`).
            rate: words per minute.
            pitch: 0 to 99.
        """
        worker = self.idle.get()
        try:
            worker = worker or EspeakWorker()
            return worker.speak(text, voice, rate, pitch)
        finally:
            self.idle.put(worker)


@functools.cache
def _single() -> EspeakSynthesizer:
    return EspeakSynthesizer(concurrency=1)


def speak(text: str, voice: str, rate: int = RATE, pitch: int = PITCH) -> np.ndarray:
    """As `EspeakSynthesizer.speak`, of one worker that this process starts once."""
    return _single().speak(text, voice, rate=rate, pitch=pitch)
