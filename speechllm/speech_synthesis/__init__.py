"""Text to speech for benchmarks: espeak-ng, hibari or an OpenAI-compatible endpoint, behind one small interface."""

from .voices import SAMPLING_RATE, SynthesisError, Synthesizer, Voice, choose_voices, load_synthesizer

__all__ = ["SAMPLING_RATE", "SynthesisError", "Synthesizer", "Voice", "choose_voices", "load_synthesizer"]
