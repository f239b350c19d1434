"""The SpeechLLM model. Importing it registers the Auto classes, so no remote code is needed."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM

from .audio_towers import AudioTower, build_audio_tower
from .configuration_speechllm import AUDIO_TOKEN, SpeechLLMConfig
from .connectors import CONNECTORS
from .lengths import output_length
from .modeling_speechllm import SpeechLLMForConditionalGeneration, SpeechLLMModel, SpeechLLMPreTrainedModel

AutoConfig.register("speechllm", SpeechLLMConfig, exist_ok=True)
AutoModel.register(SpeechLLMConfig, SpeechLLMModel, exist_ok=True)
AutoModelForMultimodalLM.register(SpeechLLMConfig, SpeechLLMForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(SpeechLLMConfig, SpeechLLMForConditionalGeneration, exist_ok=True)

__all__ = [
    "AUDIO_TOKEN",
    "CONNECTORS",
    "AudioTower",
    "SpeechLLMConfig",
    "SpeechLLMForConditionalGeneration",
    "SpeechLLMModel",
    "SpeechLLMPreTrainedModel",
    "build_audio_tower",
    "output_length",
]
