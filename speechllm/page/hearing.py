"""What was heard: the language posterior, the transcript that the encoder gives, whether speech was made out.

The OpenAI API carries none of these. They are computed here, in the page's own process, and only where the page has
started the server itself, so that both are of the same weights; with another address they are not shown. A private
route of our own server would be the other way, but engines would then differ in more than their speed.

What is unusual here:
- Only the encoder, the connector and the LLM's embeddings are kept: its layers, nearly all of its size, are dropped
  once loaded. Nothing is loaded before the first recording, nor at all if the checkpoint tells none of the three.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils import cached_file

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor
from processing_speechllm.audio import load_audio
from processing_speechllm.confidence import audio_confidences
from speechllm.evaluation.recognisers import CTC_HEAD_FILE, CTCHeadRecogniser

from .recordings import RATE

READS = ("ctc_compress",)  # connectors with a CTC of their own


@dataclass(frozen=True)
class Heard:
    """What a checkpoint tells of one recording; None where it does not tell."""

    transcript: str | None = None
    languages: dict[str, float] | None = None  # probability by language, by its English name where known
    understood: bool | None = None


class _Embeddings(nn.Module):
    """What is left of an LLM: its table of tokens."""

    def __init__(self, table: nn.Module):
        super().__init__()
        self.table = table

    def get_input_embeddings(self) -> nn.Module:
        return self.table


class Hearing:
    """
    Listens with the ears of a checkpoint, on the CPU.

    Args:
        model: a SpeechLLM's folder or Hub id; loaded when something is first heard.
    """

    def __init__(self, model: str):
        self.name = model
        self._loaded: tuple[Any, Any] | None = None
        self._listening = threading.Lock()  # one recording at a time
        self._closed = False
        self.config = SpeechLLMConfig.from_pretrained(model)
        self.processor = SpeechLLMProcessor.from_pretrained(model)
        connector = self.config.connector
        self.tells_language = bool(connector.get("gate") and connector.get("languages"))
        self.head = ctc_head(model)
        self.tells_transcript = self.head is not None or connector["type"] in READS
        self.tells_understood = self.processor.min_audio_confidence is not None

    @property
    def tells_anything(self) -> bool:
        return self.tells_language or self.tells_transcript or self.tells_understood

    def hear(self, samples: np.ndarray) -> Heard:
        """What is told of samples (samples,) at `RATE`; nothing once it is closed."""
        with self._listening:
            return self._hear(samples) if self.tells_anything and not self._closed else Heard()

    def close(self) -> None:
        """Returns once nothing is heard any more: a process that ends while another thread is in torch is aborted."""
        with self._listening:
            self._closed = True

    @torch.inference_mode()
    def _hear(self, samples: np.ndarray) -> Heard:
        model, recogniser = self._load()
        samples = load_audio((samples, RATE), self.processor.feature_extractor.sampling_rate)
        inputs = self.processor.audio_inputs([samples])
        features = torch.from_numpy(inputs["input_features"]).to(model.dtype)
        mask = torch.from_numpy(inputs["input_features_mask"])
        audio = model.model.get_audio_features(features, mask)
        transcript = None
        if recogniser is not None:
            (transcript,) = recogniser.transcribe([samples], [None])
        elif self.tells_transcript:
            transcript = self._read(audio.connector)
        languages = None
        if self.tells_language:
            scores = audio.connector.language_logits[0].float().softmax(-1).tolist()
            names = map(language_name, self.config.connector["languages"])
            languages = dict(zip(names, scores, strict=True))
        understood = None
        if self.tells_understood:
            embeds, used = audio.pooler_output, audio.connector.used
            embeds = embeds if used is None else embeds[used[0, : len(embeds)]]
            (score,) = audio_confidences(embeds, [len(embeds)], model.get_input_embeddings().weight)
            understood = score >= self.processor.min_audio_confidence
        return Heard(transcript, languages, understood)

    def _read(self, connected: Any) -> str:
        """The tokens that a reading connector read."""
        classes = connected.ctc_logits[0, : int(connected.ctc_lengths[0])].argmax(-1)
        classes = torch.unique_consecutive(classes)
        table = self._loaded[0].model.multi_modal_projector.table.token_ids
        tokens = table[classes[classes < len(table)]].tolist()
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = self._load_ears()
        return self._loaded

    def _load_ears(self) -> tuple[Any, Any]:
        model = SpeechLLMForConditionalGeneration.from_pretrained(self.name, dtype=torch.float32).eval()
        model.model.language_model = _Embeddings(model.get_input_embeddings())
        model.lm_head = nn.Identity()
        head = None if self.head is None else CTCHeadRecogniser(model, self.processor, self.head)
        return model, head


def ctc_head(model: str) -> str | None:
    """The file of the CTC head that lies beside a checkpoint, if there is one."""
    if Path(model).is_dir():
        file = Path(model) / CTC_HEAD_FILE
        return str(file) if file.is_file() else None
    try:
        return cached_file(model, CTC_HEAD_FILE, _raise_exceptions_for_missing_entries=False)
    except OSError:
        return None


def language_name(code: str) -> str:
    """`en` -> `English`; a code that Whisper's list does not know stays as it is."""
    name = LANGUAGES.get(code.split("-")[0].lower())
    return code if name is None else name.title()


__all__ = ["Heard", "Hearing", "ctc_head", "language_name"]
