"""The interface of speech synthesis: who can speak a language, and one call that says a text."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SAMPLING_RATE = 16_000  # Hz, of everything that is synthesised
ENGINES = ("espeak", "hibari")
GENDERS = ("female", "male")


class SynthesisError(RuntimeError):
    """This text could not be said by this voice; another text or voice may do."""


@dataclass(frozen=True)
class Voice:
    """A voice by the name that its engine knows; `gender` is `"female"`, `"male"` or, where nobody says, `""`."""

    name: str
    gender: str = ""


class Synthesizer(Protocol):
    """What turns text into speech."""

    name: str  # engine and version, for cards
    concurrency: int  # how many threads may call `speak` at once

    def voices(self, language: str) -> list[Voice]:
        """The voices that speak a language; ValueError, with the languages there are, if none does."""

    def speak(self, text: str, voice: str, seed: int = 0) -> np.ndarray:
        """The text as float32 samples (samples,) in [-1, 1] at `SAMPLING_RATE`; SynthesisError if it cannot be said.
        The same arguments give the same samples, except from an endpoint."""


def load_synthesizer(
    engine: str, model: str | None = None, api_key_variable: str | None = None, voices: Sequence[Voice] = ()
) -> Synthesizer:
    """
    The synthesizer that a name stands for.

    Args:
        engine: `"espeak"`, `"hibari"`, or the address of an OpenAI-compatible endpoint, as `http://localhost:8000/v1`.
        model: the endpoint's name of its model.
        api_key_variable: the environment variable that holds the endpoint's key, if it wants one.
        voices: of an endpoint, which does not list them itself.

    Raises:
        ValueError: an unknown engine, or an endpoint without model, voices or key.
        ImportError: the engine's package is missing; the message has the pip line.
    """
    if engine == "espeak":
        from .espeak import EspeakSynthesizer

        return EspeakSynthesizer()
    if engine == "hibari":
        from .hibari import HibariSynthesizer

        return HibariSynthesizer()
    if not engine.startswith(("http://", "https://")):
        raise ValueError(
            f"There is no speech synthesizer {engine!r}. Give {', '.join(ENGINES)}, or the address of an "
            "OpenAI-compatible endpoint (http://.../v1)."
        )
    from .endpoint import EndpointSynthesizer

    if model is None or not voices:
        raise ValueError(f"{engine} needs the name of its speech model (speech_model) and of its voices (voices).")
    if api_key_variable is not None and not os.environ.get(api_key_variable):
        raise ValueError(f"The environment variable {api_key_variable} is not set. Put the endpoint's key there.")
    key = None if api_key_variable is None else os.environ[api_key_variable]
    return EndpointSynthesizer(engine, model, list(voices), api_key=key)


def parse_voice(text: str) -> Voice:
    """`name`, `name:f` or `name:m` as a `Voice`.

    Raises:
        ValueError: another letter after the colon.
    """
    name, _, gender = text.partition(":")
    genders = {"": "", "f": "female", "m": "male"}
    if not name or gender not in genders:
        raise ValueError(f"The voice {text!r} must be a name, or name:f or name:m.")
    return Voice(name, genders[gender])


def choose_voices(
    synthesizer: Synthesizer, language: str, per_gender: int = 5, named: Sequence[Voice] = ()
) -> list[Voice]:
    """
    The voices of a benchmark in one language: `per_gender` female and as many male ones (LAD: five and five), the
    first that the engine lists; or exactly the `named` ones, with the engine's word on their gender.

    Raises:
        ValueError: the engine has fewer, or does not have one of the named.
    """
    offered = synthesizer.voices(language)
    if named:
        known = {voice.name: voice for voice in offered}
        for voice in named:
            if voice.name not in known:
                raise ValueError(
                    f"{synthesizer.name} has no voice {voice.name!r} for {language}. It has {', '.join(known)}."
                )
        return [voice if voice.gender else known[voice.name] for voice in named]
    pools = {gender: [voice for voice in offered if voice.gender == gender] for gender in GENDERS}
    short = [f"{len(pools[gender])} {gender}" for gender in GENDERS if len(pools[gender]) < per_gender]
    if short or per_gender < 1:
        names = ", ".join(f"{voice.name} ({voice.gender or 'gender unknown'})" for voice in offered)
        raise ValueError(
            f"{per_gender} female and {per_gender} male voices per language are asked for, but {synthesizer.name} has "
            f"{' and '.join(short) or 'others'} here for {language}: {names}. Ask for fewer (voices_per_gender, from "
            "1), name the voices to use (voices), or take another engine."
        )
    return [voice for gender in GENDERS for voice in pools[gender][:per_gender]]
