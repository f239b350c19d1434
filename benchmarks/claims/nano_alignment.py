"""Word times of the nano world's recordings, by the CTC head that lies beside the embedded model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from speechllm import NANO
from speechllm.evaluation.recognisers import CTC_HEAD_FILE
from trainers.commands.inputs import load_checkpoint
from trainers.data.ctc_alignment import Token, TokenTimes, text_tokens

BLANK = 0  # the LLM's padding token, which no transcript holds


class HeadCTC:
    """The embedded encoder and its CTC head, as `trainers.data.word_times` takes an aligner."""

    def __init__(self):
        self.model, self.processor = load_checkpoint(NANO, "float32")
        self.head, self.name, self.blank = load_file(Path(NANO) / CTC_HEAD_FILE), "nano CTC head", BLANK
        frame = 2 * self.processor.feature_extractor.hop_length / self.processor.feature_extractor.sampling_rate
        self.times = TokenTimes(frame / 2, frame)

    def load(self, source: str) -> np.ndarray:
        """Samples (samples,) of an audio."""
        return self.processor.load_audio(source)

    def tokens(self, text: str) -> list[Token]:
        """The LLM's tokens of the transcript."""
        return text_tokens(self.processor.tokenizer, text)

    @torch.no_grad()
    def __call__(self, audio: list[np.ndarray]) -> Iterator[tuple[torch.Tensor, TokenTimes]]:
        """For each audio log-probabilities (frames, vocabulary) and when the frames sound."""
        inputs = self.processor.audio_inputs(audio)
        features, mask = (torch.from_numpy(inputs[name]) for name in ("input_features", "input_features_mask"))
        frames = self.model.model.audio_tower(features, mask)
        logits = F.linear(frames.last_hidden_state, self.head["weight"].float(), self.head["bias"].float())
        places = torch.cat([torch.tensor([BLANK]), self.head["token_ids"].long()])
        for row, length in zip(logits.log_softmax(-1), frames.lengths.tolist(), strict=True):
            whole = torch.full((length, self.model.config.text_config.vocab_size), -1e4)
            whole[:, places] = row[:length]
            yield whole, self.times


__all__ = ["HeadCTC"]
