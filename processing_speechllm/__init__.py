"""Text and audio in, tensors out: the processor of a SpeechLLM and its pipeline."""

from .audio import AudioError, load_audio
from .pipeline_speech_instruct import SpeechInstructPipeline
from .processing_speechllm import SpeechLLMProcessor, stage_length

TASK = "speech-instruct"


def register_pipeline(default_model: str | None = None) -> None:
    """
    Make `pipeline("speech-instruct")` known to transformers; safe to call again.

    Args:
        default_model (`str`, *optional*): folder or Hub id used when the caller names no model.
    """
    from transformers import AutoModelForMultimodalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    PIPELINE_REGISTRY.supported_tasks.pop(TASK, None)  # else registering again warns
    PIPELINE_REGISTRY.register_pipeline(
        TASK,
        pipeline_class=SpeechInstructPipeline,
        pt_model=AutoModelForMultimodalLM,
        default=None if default_model is None else {"model": (default_model, "main")},
        type="multimodal",
    )


__all__ = [
    "AudioError",
    "SpeechInstructPipeline",
    "SpeechLLMProcessor",
    "load_audio",
    "register_pipeline",
    "stage_length",
]
