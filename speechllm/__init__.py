"""Gives any text LLM ears. Importing this package registers everything with transformers.

After `import speechllm`, the Auto classes load SpeechLLM checkpoints without remote code, and
`pipeline("speech-instruct")` without a model takes the embedded one (`NANO`).
"""

from pathlib import Path

from transformers import AutoProcessor

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration, SpeechLLMModel
from processing_speechllm import SpeechInstructPipeline, SpeechLLMProcessor, register_pipeline

__version__ = "0.2.0"

NANO = str(Path(__file__).parent / "nano")  # folder of the embedded checkpoint

AutoProcessor.register(SpeechLLMConfig, SpeechLLMProcessor, exist_ok=True)
register_pipeline(NANO)

__all__ = [
    "NANO",
    "SpeechInstructPipeline",
    "SpeechLLMConfig",
    "SpeechLLMForConditionalGeneration",
    "SpeechLLMModel",
    "SpeechLLMProcessor",
    "__version__",
]
