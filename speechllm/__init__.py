"""Gives any text LLM ears. Importing this package registers everything with transformers.

After `import speechllm`, the Auto classes load SpeechLLM checkpoints without remote code, and
`pipeline("speech-instruct")` without a model takes the embedded one (`MODELS[DEFAULT]`).
"""

from pathlib import Path

from transformers import AutoProcessor

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration, SpeechLLMModel
from processing_speechllm import SpeechInstructPipeline, SpeechLLMProcessor, register_pipeline

__version__ = "0.4.0"

# Folders of the embedded checkpoints, by the names that commands and benchmarks know them by.
MODELS = {path.parent.name: str(path.parent) for path in sorted(Path(__file__).parent.glob("*/config.json"))}
DEFAULT = "small"  # of human speech: what the pipeline, `ask`, `demo` and `serve` take
NANO, SMALL = MODELS["nano"], MODELS["small"]

AutoProcessor.register(SpeechLLMConfig, SpeechLLMProcessor, exist_ok=True)
register_pipeline(MODELS[DEFAULT])

__all__ = [
    "DEFAULT",
    "MODELS",
    "NANO",
    "SMALL",
    "SpeechInstructPipeline",
    "SpeechLLMConfig",
    "SpeechLLMForConditionalGeneration",
    "SpeechLLMModel",
    "SpeechLLMProcessor",
    "__version__",
]
