"""A tiny SpeechLLM with its processor, and rows of tones to train it on."""

import numpy as np
from conftest import text_config, tiny_speechllm, whisper_config
from datasets import Dataset
from factories_processing import CHATML_MARKED, RATE, encoded, make_tokenizer
from transformers import WhisperFeatureExtractor

from processing_speechllm import SpeechLLMProcessor

TEXTS = ["hello world", "what is said", "the audio", "said here", "world", "is the", "hello", "transcribe"]
LANGUAGES = ["en", "de"]


def tiny_parts(connector=None, text=None, chat_template=CHATML_MARKED, audio=None):
    """Model and processor that fit each other."""
    tokenizer = make_tokenizer(chat_template)
    tokenizer.pad_token = "<|im_start|>"
    text = text or text_config(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    audio = audio or whisper_config(num_mel_bins=80, max_source_positions=100)
    model = tiny_speechllm(audio, text, connector or {"type": "stack_mlp", "stride": 4}, len(tokenizer))
    model.freeze("encoder", "llm")
    extractor = WhisperFeatureExtractor(feature_size=80)
    return model, SpeechLLMProcessor.from_parts(extractor, tokenizer, model.config)


def tone(number: int, seconds: float) -> np.ndarray:
    """Samples (samples,) whose pitch tells the row."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * (200 + 90 * number) * time)).astype(np.float32)


def tone_rows(count: int = 8, answered: bool = False, **columns) -> Dataset:
    """Rows of tones of different lengths with a transcript, and if wanted a question and an answer."""
    rows = []
    for number in range(count):
        seconds = 0.5 + 0.1 * (number % 5)
        text = TEXTS[number % len(TEXTS)]
        row = {
            "id": f"row-{number}",
            "audio": {"bytes": encoded(tone(number, seconds)), "path": None},
            "text": text,
            "language": LANGUAGES[number % 2],
            "duration": seconds,
        }
        if answered:
            question = [{"type": "audio", "text": None}, {"type": "text", "text": "\nwhat is said here"}]
            answer = [{"type": "text", "text": f"{text} {text}"}]
            row["messages"] = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append(row | {name: values[number] for name, values in columns.items()})
    return Dataset.from_list(rows)
