"""Log-mel features of every recording, and what Whisper reads in those that have no transcript.

    python -m benchmarks.small hear --data DATA --parents PARENTS --out OUT --source cv_en cv_unlabelled

Features are those of the recording's own length, as the product computes them. Whisper's decoder reads with
timestamps: without the silence that pads Whisper's windows it does not find the end by itself, but it does say when a
segment ends. A label is kept for training when Whisper's confidence and end say so (`trustworthy`).
`readings.jsonl` in OUT keeps what was read: recordings that stand in it are not read again, also on another machine.
"""

import json
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
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
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.ids = {name: self.tokenizer.convert_tokens_to_ids(name) for name in (START, ENGLISH, TRANSCRIBE, ZERO)}
        self.device = device

    @torch.inference_mode()
    def frames(self, mel: torch.Tensor) -> torch.Tensor:
        """Log-mel features (clips, bins, 2 * frames) -> encoder frames (clips, frames, size)."""
        encoder = self.encoder
        hidden = F.gelu(encoder.conv1(mel.to(self.device, torch.bfloat16)))
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        return encoder.layer_norm(hidden)

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


def log_mel(extractor: WhisperFeatureExtractor, clips: list[np.ndarray], device: str) -> torch.Tensor:
    """Clips (samples,), zero-padded to the longest and to whole encoder frames -> log-mel features (clips, bins,
    frames)."""
    size = -(-max(map(len, clips)) // HOP) * HOP
    waves = np.stack([np.pad(clip, (0, size - len(clip))) for clip in clips])
    return torch.as_tensor(extractor._torch_extract_fbank_features(waves, device=device))


def trustworthy(row: dict, seconds: float) -> bool:
    """Whether Whisper's reading of a recording is good enough to learn from: likely, not repetitive, read to the end,
    and written in words (it writes some numbers in digits)."""
    return (
        row["read"]["logprob"] > -0.5
        and row["read"]["compression"] < 2.0
        and row["read"]["end"] is not None
        and row["read"]["end"] > seconds - 1.5
        and row["read"]["tokens"] > 1
        and not any(letter.isdigit() for letter in row["read"]["text"])
    )


def load_readings(path: Path) -> dict[str, dict]:
    """What Whisper read, by the recordings' ids."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]  # a cut line is dropped
    return {row.pop("id"): row for row in rows}


def hear(
    recordings: list[Recording],
    parent: Path,
    store: FrameStore,
    readings: Path,
    read: bool = True,
    device: str = "cpu",
    batch_seconds: float = BATCH_SECONDS,
    workers: int = 1,
) -> None:
    """Adds to the store what is not there yet: log-mel features, with Whisper's reading as `read` unless that is off;
    `batch_seconds` of audio at a time. Recordings under 0.3 s or over Whisper's 30 s are counted and left out.

    Args:
        parent: Whisper's folder. Its decoder is loaded only if some recording was not read yet.
        readings: file of what was read, read and added to.
    """
    extractor = WhisperFeatureExtractor.from_pretrained(parent)
    known = load_readings(readings)
    todo = [recording for recording in recordings if recording.id not in store.rows]
    whisper = Whisper(parent, device) if read and any(row.id not in known for row in todo) else None
    with ThreadPoolExecutor(workers) as pool:
        lengths = dict(zip([r.id for r in todo], pool.map(Recording.seconds, todo), strict=True))
        kept = sorted((r for r in todo if 0.3 < lengths[r.id] <= 30), key=lambda recording: lengths[recording.id])
        if len(kept) < len(todo):
            print(f"{store.folder.name}: {len(todo) - len(kept)} of {len(todo)} recordings left out for their length")
        for batch in tqdm(batches_of(kept, lengths, batch_seconds), desc=f"hear {store.folder.name}", mininterval=10):
            clips = list(pool.map(Recording.samples, batch))
            mel = log_mel(extractor, clips, device)
            if whisper is not None and (new := [row for row in batch if row.id not in known]):
                known |= read_new(whisper, mel, batch, new, readings)
            rows = [
                {"id": row.id, "split": row.split, "text": row.text, "read": known.get(row.id) if read else None}
                for row in batch
            ]
            sizes = [-(-len(clip) // HOP) for clip in clips]
            store.append(rows, [part.T[: 2 * size].cpu() for part, size in zip(mel, sizes, strict=True)])


def batches_of(kept: list[Recording], lengths: dict[str, float], batch_seconds: float) -> list[list[Recording]]:
    """Recordings, sorted by length, in batches of at most so many seconds with their padding; in a random order."""
    batches, batch = [], []
    for recording in kept:
        if batch and lengths[recording.id] * (len(batch) + 1) > batch_seconds:
            batches.append(batch)
            batch = []
        batch.append(recording)
    batches += [batch] if batch else []
    Random(0).shuffle(batches)
    return batches


def read_new(
    whisper: Whisper, mel: torch.Tensor, batch: list[Recording], new: list[Recording], readings: Path
) -> dict[str, dict]:
    """Reads those of a batch that were not read yet, and adds them to the file."""
    chosen = [index for index, row in enumerate(batch) if row in new]
    frames = whisper.frames(mel[chosen])
    found = whisper.read(frames, min(8 + math.ceil(frames.shape[1] * HOP / RATE * 8), 200))
    with readings.open("a", encoding="utf-8") as stream:
        for row, text in zip(new, found, strict=True):
            stream.write(json.dumps({"id": row.id} | text, ensure_ascii=False) + "\n")
    return {row.id: text for row, text in zip(new, found, strict=True)}
