"""Text and audio in, tensors out: the processor of a SpeechLLM and its pipeline."""

from .audio import AudioError, load_audio
from .processing_speechllm import SpeechLLMProcessor, stage_length

__all__ = ["AudioError", "SpeechLLMProcessor", "load_audio", "stage_length"]
