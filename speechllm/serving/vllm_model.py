"""A SpeechLLM as vLLM's Transformers backend runs it.

The backend takes any model of transformers. Here is what it cannot know of this one: the placeholder's text, the rate
of the samples that it hands over, which features belong to one audio, how long the longest is, and what Granite does
to its logits. What vLLM cannot carry at all is refused by the model (`modeling_speechllm/under_vllm.py`) and below.
"""

from bisect import bisect_right
from typing import Any

import numpy as np
import torch
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalDummyInputsBuilder,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from modeling_speechllm import AUDIO_TOKEN
from processing_speechllm import AudioError


class ProcessingInfo(MultiModalProcessingInfo):
    """How much audio the model takes."""

    @property
    def longest_audio(self) -> int:
        """Samples of the longest audio, by the processor's limit and by `--max-model-len`."""
        processor = self.get_hf_processor()
        most = int(processor.audio_limit.seconds * processor.feature_extractor.sampling_rate)
        room = self.ctx.model_config.max_model_len
        return bisect_right(range(most + 1), room, key=processor.audio_token_count) - 1

    def get_max_audio_tokens(self) -> int:
        return self.get_hf_processor().audio_token_count(self.longest_audio)


class DummyInputs(MultiModalDummyInputsBuilder):
    """What vLLM measures memory with: audios of the longest kind."""

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Any, mm_options: Any) -> dict[str, Any]:
        zeros = self._get_dummy_audios(
            length=self.info.longest_audio, num_audios=mm_counts.get("audio", 0), overrides=mm_options.get("audio")
        )
        return {"audio": [np.full_like(audio, 0.1) for audio in zeros]}  # of silence the processor would warn


class Processor(MultiModalProcessor):
    """Calls the model's own processor."""

    def _get_hf_mm_inputs(self, mm_items: Any, hf_kwargs: Any) -> Any:
        """With the rate of the samples, which vLLM has brought to the feature extractor's."""
        inputs = super()._get_hf_mm_inputs(mm_items, hf_kwargs)
        rate = int(self.info._get_audio_sampling_rate())
        return inputs._replace(hf_kwargs={**inputs.hf_kwargs, "sampling_rate": rate})

    def _get_modality_field_names(self, modality: str) -> set[str]:
        """Also of raw waveforms, which have another name in their extractor."""
        return super()._get_modality_field_names(modality) | {"input_features", "input_features_mask"}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Any) -> Any:
        """
        Raises:
            ValueError: an audio that cannot be used, in the words of the processor.
        """
        try:
            return super()._apply_hf_processor_main(mm_items, hf_kwargs)
        except ValueError as error:
            if isinstance(error.__cause__, AudioError):
                raise ValueError(str(error.__cause__)) from error
            raise


def contiguous(module: torch.nn.Module, inputs: tuple) -> tuple:
    """Hook before vLLM's linear layers, which on a CPU take no transposed frames, as convolutions leave them."""
    return (inputs[0].contiguous(), *inputs[1:])


@MULTIMODAL_REGISTRY.register_processor(Processor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class SpeechLLMForVLLM(TransformersMultiModalForCausalLM):
    """[`SpeechLLMForConditionalGeneration`] in vLLM."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        config = vllm_config.model_config.hf_config
        if vllm_config.model_config.is_moe:
            raise ValueError(
                f"The LLM is a mixture of experts ({config.text_config.model_type}), which is not served here. "
                "Serve this model with `speechllm serve`."
            )
        if vllm_config.lora_config is not None:
            raise ValueError(
                "Adapters apart from the model are not served. Merge them, speechllm export FOLDER OUT --merge, and "
                "leave out --enable-lora."
            )
        scaling = getattr(config.text_config, "logits_scaling", None)
        if scaling not in (None, 1):  # a divisor (Granite's); vLLM reads a factor (Cohere's)
            config.text_config.logit_scale, config.text_config.logits_scaling = 1 / scaling, 1.0
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for part in (self.model.audio_tower, self.model.multi_modal_projector):
            for module in part.modules():
                if isinstance(module, LinearBase):
                    module.register_forward_pre_hook(contiguous)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return AUDIO_TOKEN if modality == "audio" else None

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits of the next token, which is no placeholder, as in `generate`."""
        logits = super().compute_logits(hidden_states)
        if logits is not None and self.config.audio_token_id < logits.shape[-1]:
            logits[..., self.config.audio_token_id] = -torch.inf
        return logits


__all__ = ["SpeechLLMForVLLM"]
