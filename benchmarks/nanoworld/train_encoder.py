"""Stage 2: the nano speech encoder, a small Whisper encoder trained from scratch with CTC.

    python -m benchmarks.nanoworld.train_encoder --out build/nanoworld

Its targets are the LLM's own tokens of the transcript, restricted to those that requests contain, plus a blank. The
linear CTC head is kept beside the model (`ctc_head.safetensors`: weight, bias, token_ids) for the cascade baseline.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, WhisperConfig

from benchmarks.nanoworld import speech
from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.tokenizer import get_tokenizer
from benchmarks.nanoworld.training import Optimizer, autocast, load_checkpoint, save_checkpoint
from benchmarks.nanoworld.world import LANGUAGES, frames
from modeling_speechllm.audio_towers import AudioTower, build_audio_tower

STEPS = 2600
BATCH = 64  # utterances
POOL = 16  # batches drawn together and sorted by length
LR = 2e-3
SEED = 2
MILD_AFTER = 900  # updates; from here on augmentation is milder, see `augment`
WARPED_FROM = STEPS  # a second phase, on voices with other vocal tracts
WARPED_STEPS = 900
WARPED_LR = 1e-3
SAVE_EVERY = 100
CHECK_EVERY = 300


def encoder_config() -> WhisperConfig:
    """About 3.5 M parameters; 64 mel bins at 50 Hz, frames at 25 Hz, a window of ten seconds."""
    return WhisperConfig(
        d_model=256,
        encoder_layers=4,
        encoder_attention_heads=4,
        encoder_ffn_dim=1024,
        num_mel_bins=speech.MEL_BINS,
        max_source_positions=speech.WINDOW_SECONDS * speech.SAMPLING_RATE // speech.HOP // 2,
        dropout=0.0,
        architectures=["WhisperEncoder"],
    )


class CTCEncoder(nn.Module):
    """The audio tower with a linear head over (blank, request tokens...)."""

    def __init__(self, tower: AudioTower, token_ids: list[int]):
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.config.d_model, len(token_ids) + 1)
        self.register_buffer("token_ids", torch.tensor(token_ids))

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, mel, mel_frames) and mask -> logits (batch, frames, classes) and lengths (batch,)."""
        output = self.tower(features, mask)
        return self.head(output.last_hidden_state), output.lengths

    def best_tokens(self, logits: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
        """Greedy CTC: the LLM token ids of each row, repeats and blanks removed."""
        found = []
        for best, length in zip(logits.argmax(-1), lengths.tolist(), strict=True):
            classes = torch.unique_consecutive(best[:length])
            found.append(self.token_ids[classes[classes > 0] - 1].tolist())
        return found


def request_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens that requests of the world can contain."""
    return sorted({i for f in frames() for lang in LANGUAGES for i in tokenizer(f.text(lang))["input_ids"]})


def new_encoder(tokenizer: PreTrainedTokenizerFast) -> CTCEncoder:
    """Untrained encoder and head."""
    return CTCEncoder(build_audio_tower(encoder_config()), request_tokens(tokenizer))


def pad_features(features: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips (mel_frames, mel) -> (batch, mel, mel_frames), zero past each end, and the mask (batch, mel_frames)."""
    lengths = torch.tensor([len(feature) for feature in features])
    padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
    return padded.transpose(1, 2), torch.arange(padded.shape[1]) < lengths[:, None]


def augment(feature: torch.Tensor, rng: np.random.Generator, mild: bool = False) -> torch.Tensor:
    """Random level, coloured noise and SpecAugment on one Whisper log-mel (mel_frames, mel).

    Strong: masks up to 8 bins and 160 ms, noise from 10 dB below the loudest bin. Mild: 5 bins, 80 ms, 30 dB, rarer.
    """
    share, loudest, bins, mel_frames = (0.3, 3.0, 6, 5) if mild else (0.6, 1.0, 9, 9)
    power = 10.0 ** (4.0 * feature - 4.0)
    if rng.random() < share:
        colour = np.interp(np.arange(feature.shape[1]), np.linspace(0, feature.shape[1], 5), rng.uniform(-1, 1, 5))
        level = power.amax().log10().item() - rng.uniform(loudest, loudest + 4.0)
        grain = rng.exponential(1.0, feature.shape)
        power = power + torch.from_numpy(grain * 10.0 ** (level + colour)).float()
    power = power * 10.0 ** rng.uniform(-0.6, 0.6)
    logarithm = power.clamp(min=1e-10).log10()
    feature = (torch.maximum(logarithm, logarithm.amax() - 8.0) + 4.0) / 4.0
    mean = feature.mean()
    for _ in range(2):
        width = rng.integers(0, bins)
        start = rng.integers(0, feature.shape[1] - width)
        feature[:, start : start + width] = mean
        width = rng.integers(0, min(mel_frames, len(feature) // 4))
        start = rng.integers(0, len(feature) - width)
        feature[start : start + width] = mean
    return feature


def warp(feature: torch.Tensor, factor: float) -> torch.Tensor:
    """Stretches the mel axis of one log-mel (mel_frames, mel) by a factor: another length of vocal tract."""
    places = (torch.arange(feature.shape[1]) * factor).clamp(max=feature.shape[1] - 1)
    below = places.floor().long()
    above = (below + 1).clamp(max=feature.shape[1] - 1)
    return torch.lerp(feature[:, below], feature[:, above], places - below)


class Batches:
    """Batches of augmented utterances as a function of the step alone."""

    def __init__(self, rows: list[dict], features: list[np.ndarray], targets: list[list[int]]):
        self.features, self.targets = features, targets
        self.lengths = np.array([len(feature) for feature in features])
        self.pool = -1
        self.batches: list[np.ndarray] = []

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
        if step // POOL != self.pool:
            self.pool = step // POOL
            rng = np.random.default_rng([SEED, self.pool])
            per_epoch = len(self.features) // (POOL * BATCH)  # pools; each epoch is a permutation of the utterances
            order = np.random.default_rng([SEED, 7, self.pool // per_epoch]).permutation(len(self.features))
            chosen = order[self.pool % per_epoch * POOL * BATCH :][: POOL * BATCH]
            self.batches = np.split(chosen[np.argsort(self.lengths[chosen], kind="stable")], POOL)
            rng.shuffle(self.batches)
        chosen = self.batches[step % POOL]
        rng = np.random.default_rng([SEED, 1, step])
        features = [torch.from_numpy(self.features[i].astype(np.float32)) for i in chosen]
        if step >= WARPED_FROM:
            features = [warp(f, rng.uniform(0.85, 1.18)) if rng.random() < 0.7 else f for f in features]
        features = [augment(feature, rng, mild=step >= MILD_AFTER) for feature in features]
        return *pad_features(features), [self.targets[i] for i in chosen]


def ctc_loss(logits: torch.Tensor, lengths: torch.Tensor, targets: list[list[int]]) -> torch.Tensor:
    """CTC per target token."""
    flat = torch.tensor([label for target in targets for label in target], device=logits.device)
    sizes = torch.tensor([len(target) for target in targets], device=logits.device)
    log_probabilities = logits.float().log_softmax(-1).transpose(0, 1)
    total = F.ctc_loss(log_probabilities, flat, lengths, sizes, blank=0, reduction="sum", zero_infinity=True)
    return total / sizes.sum()


def edit_distance(left: list, right: list) -> int:
    """Insertions, deletions and substitutions between two sequences."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


@torch.no_grad()
def recognise(model: CTCEncoder, features: list[np.ndarray], batch: int = 50) -> list[list[int]]:
    """Greedy CTC token ids of many clips, in their order."""
    model.eval()
    device = model.head.weight.device
    order = np.argsort([len(feature) for feature in features], kind="stable")
    found: list[list[int]] = [[] for _ in features]
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        padded, mask = pad_features([torch.from_numpy(features[i].astype(np.float32)) for i in part])
        with autocast(device):
            logits, lengths = model(padded.to(device), mask.to(device))
        for i, tokens in zip(part, model.best_tokens(logits, lengths), strict=True):
            found[i] = tokens
    model.train()
    return found


def validate(model: CTCEncoder, rows: list[dict], features: list, tokenizer: PreTrainedTokenizerFast) -> dict:
    """Token error rate and exact sentences, in all and by language."""
    references = [tokenizer(row["text"])["input_ids"] for row in rows]
    found = recognise(model, features)
    errors = sum(edit_distance(a, b) for a, b in zip(found, references, strict=True))
    result = {"token_errors": errors / sum(map(len, references))}
    exact = [a == b for a, b in zip(found, references, strict=True)]
    result["exact"] = sum(exact) / len(exact)
    for language in LANGUAGES:
        hits = [hit for hit, row in zip(exact, rows, strict=True) if row["language"] == language]
        result[language] = sum(hits) / len(hits)
    return result


def run_phase(
    out: Path,
    name: str,
    model: CTCEncoder,
    batches: Batches,
    optimizer: Optimizer,
    start: int,
    tokenizer: PreTrainedTokenizerFast,
    checked: tuple[list[dict], list[np.ndarray]],
) -> None:
    """Trains one phase to its end, from its last checkpoint if any; `start` is the updates of earlier phases."""
    checkpoint, device = out / f"{name}.checkpoint.safetensors", model.head.weight.device
    done, seconds = load_checkpoint(checkpoint, model, optimizer)
    parameters = sum(parameter.numel() for parameter in model.tower.parameters())
    log(out, f"{name}: start", step=done, parameters=parameters, utterances=len(batches.features))
    begin, recent = time.monotonic() - seconds, []
    for step in tqdm(range(done, optimizer.steps), desc=name, initial=done, total=optimizer.steps, mininterval=5):
        padded, mask, targets = batches.at(start + step)
        with autocast(device):
            logits, lengths = model(padded.to(device), mask.to(device))
        loss = ctc_loss(logits, lengths, targets)
        loss.backward()
        optimizer.update(step)
        recent.append(loss.item())
        last = step + 1 == optimizer.steps
        if last or (step + 1) % SAVE_EVERY == 0:
            spent = time.monotonic() - begin
            save_checkpoint(checkpoint, model, optimizer, step + 1, spent)
            log(out, name, step=step + 1, loss=float(np.mean(recent[-SAVE_EVERY:])), seconds=spent)
        if last or (step + 1) % CHECK_EVERY == 0:
            log(out, f"{name}: validation", step=step + 1, **validate(model, *checked, tokenizer))
            if last:
                log(out, f"{name}: done", seconds=time.monotonic() - begin)


def train(out: Path, threads: int = 1, device: str = "cpu") -> None:
    """Trains to the end (from the last checkpoint, if any) and saves `out/encoder` and `out/ctc_head.safetensors`."""
    folder = out / "encoder"
    if (folder / "model.safetensors").exists():
        return
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    tokenizer = get_tokenizer(out / "llm")
    model = new_encoder(tokenizer).to(device)
    classes = {token: index + 1 for index, token in enumerate(model.token_ids.tolist())}
    rows, features = speech.load(out, "train")
    batches = Batches(rows, features, [[classes[i] for i in tokenizer(row["text"])["input_ids"]] for row in rows])
    checked = speech.load(out, "validation")
    first = Optimizer(model, STEPS, LR, warmup=200)
    run_phase(out, "encoder", model, batches, first, 0, tokenizer, checked)
    second = Optimizer(model, WARPED_STEPS, WARPED_LR, warmup=20, decay=1.0)
    run_phase(out, "encoder-warped", model, batches, second, WARPED_FROM, tokenizer, checked)
    head = {"weight": model.head.weight, "bias": model.head.bias, "token_ids": model.token_ids}
    save_file({name: tensor.detach().cpu() for name, tensor in head.items()}, out / "ctc_head.safetensors")
    model.tower.encoder.save_pretrained(folder)
    speech.feature_extractor().save_pretrained(folder)


def load_trained(out: Path) -> CTCEncoder:
    """The trained encoder with its CTC head."""
    from safetensors.torch import load_file

    from modeling_speechllm.audio_encoders import load_encoder

    encoder, head = load_encoder(str(out / "encoder")), load_file(out / "ctc_head.safetensors")
    model = CTCEncoder(build_audio_tower(encoder.config, encoder=encoder), head["token_ids"].tolist())
    model.head.load_state_dict({"weight": head["weight"], "bias": head["bias"]})
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nanoworld"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    train(**vars(parser.parse_args()))
