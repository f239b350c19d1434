"""What a cascade hears with: any ASR model of transformers, the model's own connector where it reads, or its own
encoder with the CTC head beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor

from .normalise import base_code

WHISPER_SECONDS = 30
WHISPER_BATCH_ON_CPU = 2  # more are no faster, and each keeps keys of 30 s for each of its pipeline's five beams
CTC_HEAD, CONNECTOR = "ctc_head", "connector"  # of the model itself
CTC_HEAD_FILE = "helpers/ctc_head.safetensors"  # not at the top: serving engines load all that lie there


class Recogniser(Protocol):
    """Transcripts of audios (samples,) at `sampling_rate` Hz, in languages (codes or None) that may be told."""

    sampling_rate: int

    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[str]: ...


class PipelineRecogniser:
    """
    An ASR model through transformers' own pipeline.

    Args:
        name: Hub id or folder.
        device: where it runs.
        dtype: precision of the weights.
        tell_language: tell Whisper the language; without, it finds out itself. Models that take none ignore it.
        num_beams: of a model that generates; by default those of its pipeline, for Whisper five.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        dtype: str = "auto",
        tell_language: bool = False,
        num_beams: int | None = None,
    ):
        from transformers import pipeline

        if device.type == "cpu" and dtype == "auto":  # half precision, which checkpoints have, is slow there
            dtype = "float32"
        try:
            self.pipe = pipeline("automatic-speech-recognition", model=name, device=device, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"The recogniser {name} cannot be loaded: {reason} Give the folder or Hub id of an ASR model of "
                "transformers."
            ) from error
        self.sampling_rate = self.pipe.feature_extractor.sampling_rate
        self.beams = {} if num_beams is None or not self.pipe.model.can_generate() else {"num_beams": num_beams}
        self.is_whisper = self.pipe.model.config.model_type == "whisper"
        self.tell_language = tell_language and self.is_whisper and self._is_multilingual()
        tokens = self._generation("lang_to_id", {}) if self._is_multilingual() else {}
        self.languages = {token: code.strip("<|>") for code, token in tokens.items()}

    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[str]:
        """See [`Recogniser`]; audios of one language at a time where it is told, and longer than Whisper's window
        apart from shorter ones."""
        texts: list[str] = [""] * len(audio)
        told = [language if self.tell_language and self.knows(language) else None for language in languages]
        long = [self.is_whisper and len(samples) > WHISPER_SECONDS * self.sampling_rate for samples in audio]
        kinds = list(zip(told, long, strict=True))
        for language, is_long in dict.fromkeys(kinds):
            places = [place for place, kind in enumerate(kinds) if kind == (language, is_long)]
            options: dict[str, Any] = {"generate_kwargs": dict(self.beams)} if self.beams else {}
            if self.is_whisper:
                if is_long:
                    options["return_timestamps"] = True  # how it is read whole
                task = {"task": "transcribe"} if self._is_multilingual() else {}
                options["generate_kwargs"] = self.beams | task
                if language is not None:
                    options["generate_kwargs"]["language"] = base_code(language)
            inputs = [{"raw": audio[place], "sampling_rate": self.sampling_rate} for place in places]
            # Whisper pads all audio alike; others hear padding, such as wav2vec2 with its group norm.
            size = min(len(inputs), self.at_a_time or len(inputs)) if self.is_whisper else 1
            outputs = self.pipe(inputs, batch_size=size, **options)
            for place, output in zip(places, outputs, strict=True):
                texts[place] = output["text"].strip()
        return texts

    @property
    def at_a_time(self) -> int | None:
        """How many audios together are heard as fast as more would be; None if more are faster."""
        if self.pipe.device.type != "cpu":
            return None
        return WHISPER_BATCH_ON_CPU if self.is_whisper else 1

    def knows(self, language: str | None) -> bool:
        """Whether the model can be told this language (a code such as `de` or `pt-BR`)."""
        return base_code(language) in self.languages.values()

    @torch.inference_mode()
    def detect_languages(self, audio: Sequence[np.ndarray]) -> list[str | None]:
        """The language that a multilingual Whisper hears in the first half minute of each audio; None by others."""
        if not self.languages:
            return [None] * len(audio)
        heads = [samples[: WHISPER_SECONDS * self.sampling_rate] for samples in audio]
        inputs = self.pipe.feature_extractor(heads, sampling_rate=self.sampling_rate, return_tensors="pt")
        model = self.pipe.model
        tokens = model.detect_language(input_features=inputs["input_features"].to(model.device, model.dtype))
        return [self.languages.get(token) for token in tokens.tolist()]

    def _is_multilingual(self) -> bool:
        return bool(self._generation("is_multilingual", False))

    def _generation(self, name: str, default: Any) -> Any:
        """A value of the generation config, which CTC models lack."""
        return getattr(getattr(self.pipe.model, "generation_config", None), name, default)


class CTCHeadRecogniser:
    """
    The SpeechLLM's own encoder with a linear CTC head over tokens of its LLM, decoded greedily.

    Args:
        model, processor: the SpeechLLM.
        head: a safetensors file with `weight` (classes, dim), `bias` (classes,) and `token_ids` (classes - 1,), the
            LLM's tokens of the classes after the first, which is the blank.
    """

    def __init__(self, model: SpeechLLMForConditionalGeneration, processor: SpeechLLMProcessor, head: str | Path):
        if not Path(head).is_file():
            raise ValueError(f"There is no CTC head {head}. Give a recogniser: --cascade HUB_ID_OR_FOLDER.")
        weights = load_file(head)
        self.model, self.processor = model, processor
        self.weight, self.bias = (weights[name].to(model.device, model.dtype) for name in ("weight", "bias"))
        self.token_ids = weights["token_ids"].to(model.device)
        self.sampling_rate = processor.feature_extractor.sampling_rate

    @torch.inference_mode()
    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[str]:
        """See [`Recogniser`]; languages play no part."""
        inputs = self.processor.audio_inputs(list(audio))
        features = torch.from_numpy(inputs["input_features"]).to(self.model.device, self.model.dtype)
        mask = torch.from_numpy(inputs["input_features_mask"]).to(self.model.device)
        frames = self.model.model.audio_tower(features, mask)
        logits = F.linear(frames.last_hidden_state, self.weight, self.bias)
        texts = []
        for best, length in zip(logits.argmax(-1), frames.lengths.tolist(), strict=True):
            classes = torch.unique_consecutive(best[:length])
            tokens = self.token_ids[classes[classes > 0] - 1].tolist()
            texts.append(self.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())
        return texts


class ConnectorRecogniser:
    """
    The words that a reading connector of a SpeechLLM reads: with `ctc_compress` by greedy CTC, with `whisper_reader`
    whose vectors are the LLM's own the token nearest to each, which is what was written where its selection is hard.

    Args:
        model, processor: the SpeechLLM.

    Raises:
        ValueError: a connector that does not read.
    """

    def __init__(self, model: SpeechLLMForConditionalGeneration, processor: SpeechLLMProcessor):
        table = getattr(model.model.multi_modal_projector, "table", None)
        self.token_ids = getattr(table, "copied_ids", getattr(table, "token_ids", None))
        if self.token_ids is None or (self.token_ids < 0).any():
            raise ValueError(
                f"The connector {model.config.connector['type']} reads no words of its own in the LLM's tokens. Give "
                "a recogniser: --cascade HUB_ID_OR_FOLDER."
            )
        self.model, self.processor = model, processor
        self.sampling_rate = processor.feature_extractor.sampling_rate

    @torch.inference_mode()
    def transcribe(self, audio: Sequence[np.ndarray], languages: Sequence[str | None]) -> list[str]:
        """See [`Recogniser`]; languages play no part."""
        inputs = self.processor.audio_inputs(list(audio))
        features = torch.from_numpy(inputs["input_features"]).to(self.model.device, self.model.dtype)
        mask = torch.from_numpy(inputs["input_features_mask"]).to(self.model.device)
        output = self.model.get_audio_features(features, mask).connector
        if output.ctc_logits is None:
            table = F.normalize(self.model.model.multi_modal_projector.table.weight, dim=-1)
            rows = [(row[used] @ table.T).argmax(-1) for row, used in zip(output.embeddings, output.used, strict=True)]
        else:
            rows = [row[used] for row, used in zip(output.ctc_logits.argmax(-1), output.used, strict=True)]
        tokens = [self.token_ids[row].tolist() for row in rows]
        return [self.processor.tokenizer.decode(row).strip() for row in tokens]


__all__ = [
    "CONNECTOR",
    "CTC_HEAD",
    "CTC_HEAD_FILE",
    "ConnectorRecogniser",
    "CTCHeadRecogniser",
    "PipelineRecogniser",
    "Recogniser",
]
