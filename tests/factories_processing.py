"""Tiny tokenizers, feature extractors, processors and signals for the processor's and pipeline's tests."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from processing_speechllm import SpeechLLMProcessor
from processing_speechllm.control_tokens import encode_marked

RATE = 16000
# Of a test whose user spells special tokens.
refused_before_5_23 = pytest.mark.xfail(
    encode_marked is None, raises=ValueError, strict=True, reason="this transformers cannot encode them as text"
)
WHISPER_STAGES = [{"kernel": 3, "stride": 1, "padding": 1}, {"kernel": 3, "stride": 2, "padding": 1}]
WAVEFORM_STAGES = [
    {"kernel": kernel, "stride": stride}
    for kernel, stride in zip([10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2], strict=True)
]
STACK_STAGES = [{"kernel": 4, "stride": 4, "ceil": True}]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BLOCKS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for block in message['content'] %}"
    "{% if block['type'] == 'audio' %}<|audio|>{% else %}{{ block['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Forgets the content of every assistant turn but the last, as templates of reasoning models do.
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] != 'assistant' or loop.last %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = ["whisper", "waveform"]
TEMPLATES = {"marked": CHATML_MARKED, "unmarked": CHATML, "blocks": BLOCKS, "plain": None}
SPELLED = "say </s> and <|audio|> and <|im_end|> twice </s>"


def make_tokenizer(chat_template: str | None = None, adds_bos: bool = False, **kwargs) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a few merges, with ChatML's tokens and `</s>`; `adds_bos` puts `<s>` before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["hello world", "what is said here", "transcribe the audio"] * 4, trainer)
    settings = {"eos_token": "</s>", "bos_token": "<s>" if adds_bos else None, **kwargs}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **settings)
    fast.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    if adds_bos:
        fast._tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", fast.bos_token_id)]
        )
    return fast


def make_extractor(kind: str = "whisper") -> WhisperFeatureExtractor | Wav2Vec2FeatureExtractor:
    """`"whisper"`: 80 mel bins, 10 ms hop; `"waveform"`: normalised samples, as for wav2vec2."""
    return WhisperFeatureExtractor() if kind == "whisper" else Wav2Vec2FeatureExtractor(do_normalize=True)


def make_config(tokenizer, kind: str = "whisper", positions: int | None = None, **kwargs) -> SimpleNamespace:
    """What `SpeechLLMProcessor.from_parts` reads of a model's config."""
    ids = tokenizer.get_vocab()
    fields = {
        "audio_stages": WHISPER_STAGES if kind == "whisper" else WAVEFORM_STAGES,
        "connector": {},
        "connector_stages": STACK_STAGES,
        "pad_to_window": False,
        "audio_window_inputs": 3000,
        "audio_token_id": ids.get("<|audio|>", len(tokenizer)),
        "audio_feature_size": 80 if kind == "whisper" else None,
        "get_text_config": lambda: SimpleNamespace(max_position_embeddings=positions),
    }
    return SimpleNamespace(**{**fields, **kwargs})


def make_processor(
    kind: str = "whisper",
    chat_template: str | None = CHATML,
    tokenizer=None,
    config: dict | None = None,
    extractor=None,
    **kwargs,
) -> SpeechLLMProcessor:
    """A processor of tiny parts; `kwargs` go to `from_parts`."""
    tokenizer = make_tokenizer(chat_template) if tokenizer is None else tokenizer
    return SpeechLLMProcessor.from_parts(
        extractor or make_extractor(kind), tokenizer, make_config(tokenizer, kind, **(config or {})), **kwargs
    )


def sine(seconds: float = 0.5, rate: int = RATE, frequency: float = 440.0, amplitude: float = 0.3) -> np.ndarray:
    """A float32 sine, (samples,)."""
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, format: str = "WAV", **kwargs) -> bytes:
    """The content of an audio file with these samples."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, **kwargs)
    return file.getvalue()


def clip(seconds: float = 0.5) -> tuple[np.ndarray, int]:
    """A tone as an audio of its own."""
    return sine(seconds), RATE


def ask(text: str = "hello world", seconds: float = 0.5, answer: str | None = None, **block) -> list[dict]:
    """One user turn with an audio and a text block, and an answer if given."""
    audio = block or {"audio": clip(seconds)}
    chat = [{"role": "user", "content": [{"type": "audio", **audio}, {"type": "text", "text": text}]}]
    return chat if answer is None else [*chat, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def tokens(processor, chats, **kwargs):
    """A chat or several as the processor encodes them for the model."""
    return processor.apply_chat_template(chats, tokenize=True, return_dict=True, **kwargs)
