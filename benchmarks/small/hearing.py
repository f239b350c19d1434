"""Whisper's encoder frames of every recording, and what Whisper's decoder reads in them.

    python -m benchmarks.small hear --data DATA --parents PARENTS --out OUT --source cv_en cv_unlabelled

Frames are computed on the recording's own length, as the product does. The decoder reads from the same frames with
timestamps: without the silence that pads Whisper's windows it does not find the end by itself, but it does say when
a segment ends. A label is kept for training when Whisper's confidence and end say so (`trustworthy`).
"""

import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from benchmarks.small.corpora import RATE, Recording
from benchmarks.small.frame_store import FrameStore

HOP = 320  # samples per encoder frame
BATCH_SECONDS = 240
START, ENGLISH, TRANSCRIBE, ZERO, NO_SPEECH = (
    "<|startoftranscript|>",
    "<|en|>",
    "<|transcribe|>",
    "<|0.00|>",
    "<|nospeech|>",
)


class Whisper:
    """Encoder in bfloat16 and a greedy decoder that also tells how sure it was."""

    def __init__(self, folder: Path, device: str = "cpu"):
        self.model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval().to(device)
        self.encoder = self.model.model.encoder.to(torch.bfloat16)
        self.head = self.model.proj_out.weight.detach().to(torch.bfloat16)
        self.extractor = WhisperFeatureExtractor.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.ids = {name: self.tokenizer.convert_tokens_to_ids(name) for name in (START, ENGLISH, TRANSCRIBE, ZERO)}
        self.device = device

    @torch.inference_mode()
    def frames(self, clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Clips of nearly equal length, (samples,) each, zero-padded to the longest -> encoder frames (clips, frames,
        size) and log-mel features (clips, 2 * frames, bins)."""
        size = -(-max(map(len, clips)) // HOP) * HOP
        waves = torch.stack([F.pad(clip, (0, size - len(clip))) for clip in clips])
        mel = torch.as_tensor(self.extractor._torch_extract_fbank_features(waves.numpy(), device=self.device))
        encoder = self.encoder
        hidden = F.gelu(encoder.conv1(mel.to(self.device, torch.bfloat16)))
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        return encoder.layer_norm(hidden), mel.transpose(1, 2)

    @torch.inference_mode()
    def read(self, frames: torch.Tensor, limit: int) -> list[dict]:
        """Greedy texts up to the first end of a segment, from frames (clips, frames, size).

        Each has `text`, `logprob` (mean over tokens), `compression` (zlib) and `end` (seconds, None if it never came).
        """
        decoder, eos = self.model.model.decoder, self.model.config.eos_token_id
        first_time = self.ids[ZERO]
        current = torch.tensor([list(self.ids.values())] * len(frames), device=self.device)
        frames = frames.float()
        cache, tokens, scores = None, [], []
        ends = torch.full((len(frames),), -1, device=self.device)
        done = torch.zeros(len(frames), dtype=torch.bool, device=self.device)
        for step in range(limit):
            output = decoder(current, encoder_hidden_states=frames, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits = F.linear(output.last_hidden_state[:, -1].to(torch.bfloat16), self.head).float()
            logits[:, eos + 1 : first_time + 1] = -torch.inf
            if step == 0:
                logits[:, eos:] = -torch.inf
                logits[:, self.tokenizer.convert_tokens_to_ids("Ġ")] = -torch.inf
            logprobs = logits.log_softmax(-1)
            # Whisper's own rule: where times together are likelier than any text, it is a time.
            timed = logprobs[:, first_time:].logsumexp(-1) > logprobs[:, : eos + 1].amax(-1)
            logprobs[timed, : eos + 1] = -torch.inf
            score, token = logprobs.max(-1)
            ended = (token >= eos) & ~done
            ends = torch.where(ended & (token > eos), token - first_time, ends)
            done |= token >= eos
            tokens.append(token.masked_fill(done, eos))
            scores.append(score.masked_fill(done, 0.0))
            current = token.masked_fill(done, eos)[:, None]
            if done.all():
                break
        tokens, scores = torch.stack(tokens, 1), torch.stack(scores, 1)
        rows = []
        for ids, score, end in zip(tokens.tolist(), scores.sum(1).tolist(), ends.tolist(), strict=True):
            ids = [token for token in ids if token < eos]
            text = self.tokenizer.decode(ids).strip()
            data = text.encode()
            ratio = len(data) / max(len(zlib.compress(data)), 1)
            row = {"text": text, "logprob": score / max(len(ids), 1), "compression": ratio, "tokens": len(ids)}
            rows.append(row | {"end": end * 0.02 if end >= 0 else None})
        return rows


def trustworthy(row: dict, seconds: float) -> bool:
    """Whether Whisper's reading of a recording is good enough to learn from: likely, not repetitive, read to the end,
    and written in words (it writes some numbers in digits)."""
    return (
        row["read"]["logprob"] > -0.7
        and row["read"]["compression"] < 2.0
        and row["read"]["end"] is not None
        and row["read"]["end"] > seconds - 1.5
        and row["read"]["tokens"] > 1
        and not any(letter.isdigit() for letter in row["read"]["text"])
    )


def hear(
    recordings: list[Recording],
    whisper: Whisper,
    store: FrameStore,
    read: bool = True,
    batch_seconds: float = BATCH_SECONDS,
    workers: int = 1,
    mels: FrameStore | None = None,
) -> None:
    """Adds to the store what is not there yet: frames, and Whisper's reading as `read`; `batch_seconds` of audio at a
    time. With `mels`, log-mel features to that one. Recordings under 0.3 s or over Whisper's 30 s are counted and left
    out."""
    todo = [recording for recording in recordings if recording.id not in store.rows]
    with ThreadPoolExecutor(workers) as pool:
        lengths = dict(zip([r.id for r in todo], pool.map(Recording.seconds, todo), strict=True))
        kept = sorted((r for r in todo if 0.3 < lengths[r.id] <= 30), key=lambda recording: lengths[recording.id])
        if len(kept) < len(todo):
            print(f"{store.folder.name}: {len(todo) - len(kept)} of {len(todo)} recordings left out for their length")
        batches, batch = [], []
        for recording in kept:
            if batch and lengths[recording.id] * (len(batch) + 1) > batch_seconds:
                batches.append(batch)
                batch = []
            batch.append(recording)
        batches += [batch] if batch else []
        Random(0).shuffle(batches)
        for batch in tqdm(batches, desc=f"hear {store.folder.name}", mininterval=10):
            clips = [torch.from_numpy(samples) for samples in pool.map(Recording.samples, batch)]
            frames, mel = whisper.frames(clips)
            limit = min(8 + math.ceil(frames.shape[1] * HOP / RATE * 8), 200)
            found = whisper.read(frames, limit) if read else [None] * len(batch)
            rows = [
                {"id": recording.id, "split": recording.split, "text": recording.text, "read": text}
                for recording, text in zip(batch, found, strict=True)
            ]
            sizes = [-(-len(clip) // HOP) for clip in clips]
            if mels is not None:
                copies = [dict(row) for row in rows]
                mels.append(copies, [part[: 2 * size].cpu() for part, size in zip(mel, sizes, strict=True)])
            store.append(rows, [part[:size].cpu() for part, size in zip(frames, sizes, strict=True)])
