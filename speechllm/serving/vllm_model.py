"""A SpeechLLM as vLLM's Transformers backend runs it.

What the backend does not know by itself: the placeholder's text, the rate of the samples that it hands over, how many
tokens the longest audio takes, and what Granite does to its logits.
"""

from typing import Any

from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from modeling_speechllm import AUDIO_TOKEN


class SpeechLLMMultiModalProcessor(MultiModalProcessor):
    """Hands over samples with their rate: vLLM has brought them to the feature extractor's."""

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Any) -> Any:
        inputs = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        rate = int(self.info._get_audio_sampling_rate())
        return inputs._replace(hf_kwargs={**inputs.hf_kwargs, "sampling_rate": rate})


@MULTIMODAL_REGISTRY.register_processor(
    SpeechLLMMultiModalProcessor, info=MultiModalProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class SpeechLLMForVLLM(TransformersMultiModalForCausalLM):
    """[`SpeechLLMForConditionalGeneration`] in vLLM."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return AUDIO_TOKEN if modality == "audio" else None
