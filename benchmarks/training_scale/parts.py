"""What is measured: a model with random weights, rows of noise, and the operations that a step needs."""

import random
from io import BytesIO
from typing import Any

import numpy as np
import soundfile
import torch

PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "B200": 2250}  # dense bf16, by NVIDIA's data sheets
AUDIO_SIZES = {
    "large": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120},
    "base": {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
}
MEL_BINS = {"large": 128, "base": 80}
TEXT_SIZES = {  # Llama 3.2 1B, SmolLM2-135M
    "large": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    },
    "base": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
        **{"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    },
}
CONNECTORS = {"alignment": {"type": "conformer_ctc", "layers": None}, "imitation": "lad-soft"}


def peak_tflops(device: str) -> float | None:
    """Dense bf16 peak of a GPU by its name; None where it is not known."""
    return next((value for key, value in PEAK_TFLOPS.items() if key in device), None)


def training_flops(
    parameters: dict[str, float], frames: float, audio_tokens: float, student: float, teacher: float
) -> float:
    """Floating-point operations of a forward and backward pass by the count of parameters, attention left out.

    2 per parameter and token forward; 2 more backward where gradients only pass through (the frozen LLM); 4 more where
    they also reach the weights (the connector). The frozen encoder and the teacher run forward alone. Padding and
    activations that are computed again do not count.

    Args:
        parameters: of `encoder`, `connector`, and `llm` without embeddings and head, which runs on answers alone.
        frames: encoder frames (50 per second of Whisper).
        audio_tokens: positions at which the connector's layers run.
        student, teacher: LLM positions.
    """
    encoder, connector, llm = (parameters[group] for group in ("encoder", "connector", "llm"))
    return 2 * encoder * frames + 6 * connector * audio_tokens + 4 * llm * student + 2 * llm * teacher


def parameter_counts(model: Any) -> dict[str, int]:
    """Parameters per group, the LLM's without its embeddings."""
    groups = {
        group: sum(parameter.numel() for module in modules for parameter in module.parameters())
        for group, modules in model.group_modules().items()
    }
    groups["llm"] = sum(parameter.numel() for parameter in model.model.language_model.parameters())
    groups["llm"] -= model.get_input_embeddings().weight.numel()
    return groups


def embedded_model() -> tuple[Any, Any]:
    """The embedded model with a connector of random weights, and its processor."""
    import speechllm
    from modeling_speechllm import SpeechLLMForConditionalGeneration
    from processing_speechllm import SpeechLLMProcessor

    model = SpeechLLMForConditionalGeneration.from_pretrained(speechllm.NANO)
    torch.manual_seed(0)
    for parameter in model.model.multi_modal_projector.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model, SpeechLLMProcessor.from_pretrained(speechllm.NANO)


def random_model(connector: Any, size: str = "large", device: str = "cpu") -> tuple[Any, Any]:
    """
    A model of random weights in bf16, its connector in float32, and its processor, whose tokenizer is the embedded
    model's.

    Args:
        connector: its settings.
        size: "large", Whisper large-v3's encoder (0.64 B) and a Llama of 1.24 B; "base", Whisper base's (20 M) and an
            LLM of 135 M.
        device: where it is made.
    """
    from transformers import LlamaConfig, WhisperConfig, WhisperFeatureExtractor

    import speechllm
    from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration
    from processing_speechllm import SpeechLLMProcessor

    processor = SpeechLLMProcessor.from_pretrained(speechllm.NANO)
    audio = WhisperConfig(**AUDIO_SIZES[size], num_mel_bins=MEL_BINS[size], max_source_positions=1500)
    text = LlamaConfig(**TEXT_SIZES[size], pad_token_id=processor.tokenizer.pad_token_id)
    config = SpeechLLMConfig.from_parts(audio, text, connector, audio_token_id=processor.audio_token_id)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = SpeechLLMForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.model.multi_modal_projector.float()
    extractor = WhisperFeatureExtractor(feature_size=MEL_BINS[size])
    return model, SpeechLLMProcessor.from_parts(extractor, processor.tokenizer, config)


def noise_clips(count: int, seconds: tuple[float, float]) -> list[np.ndarray]:
    """Clips of noise at 16 kHz, cut out of one minute at random places."""
    generator = random.Random(0)
    pool = np.random.default_rng(0).normal(0, 0.1, 16000 * 60).astype(np.float32)
    clips = []
    for _ in range(count):
        samples = round(16000 * generator.uniform(*seconds))
        start = generator.randrange(len(pool) - samples)
        clips.append(pool[start : start + samples])
    return clips


def noise_rows(count: int, seconds: tuple[float, float], text_every: int | None = 5) -> Any:
    """Rows of noise with transcripts of two words per second; every `text_every`-th is of text alone."""
    from datasets import Dataset

    generator, rows = random.Random(0), []
    for number, noise in enumerate(noise_clips(count, seconds)):
        file = BytesIO()
        soundfile.write(file, noise, 16000, format="WAV", subtype="PCM_16")
        duration = len(noise) / 16000
        text = " ".join(generator.choices(["turn", "off", "the", "radio", "in", "kitchen"], k=round(2 * duration)))
        with_audio = not text_every or number % text_every != text_every - 1
        question = [{"type": "text", "text": "what was said"}]
        rows.append(
            {
                "id": str(number),
                "audio": {"bytes": file.getvalue(), "path": None} if with_audio else None,
                "text": text,
                "language": "en",
                "duration": duration,
                "messages": [
                    {"role": "user", "content": [{"type": "audio", "text": None}] * with_audio + question},
                    {"role": "assistant", "content": [{"type": "text", "text": text}]},
                ],
            }
        )
    return Dataset.from_list(rows)
