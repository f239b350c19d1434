"""A warm start for the connector: where the encoder's CTC head emits a token, the LLM's embedding of that token.

Everywhere else the target is the embedding of the audio placeholder, which the LLM has learned to skip. Mean squared
error, no LLM in the loop, so it takes a minute; cross-entropy on the LLM's answers then starts from a connector that
can be read.
"""

import random
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from benchmarks.nanoworld.clips import Clip
from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.train_encoder import CTCEncoder
from benchmarks.nanoworld.training import Optimizer

STEPS = 800
BATCH = 128  # recordings
LR = 2e-3
SKIP_WEIGHT = 0.5  # of positions where nothing is emitted
SEED = 6


def emitted_tokens(best: list[int], stride: int, width: int) -> dict[int, int]:
    """Connector position -> CTC class, for the classes that greedy CTC emits from the best class of each frame.

    A class belongs to the position in the middle of whose frames it begins, or to the next if that one is taken.
    """
    places: dict[int, int] = {}
    for frame, label in enumerate(best):
        if label == 0 or (frame > 0 and best[frame - 1] == label):
            continue
        place = max(frame - (width - stride) // 2, 0) // stride
        places[place if place not in places else place + 1] = label
    return places


def align(out: Path, model: nn.Module, ctc: CTCEncoder, clips: list[Clip], placeholder: int) -> None:
    """Fits the connector to the CTC head's emissions, or loads the fit that is already in `out`."""
    path, projector = out / "connector.aligned.safetensors", model.model.multi_modal_projector
    if path.exists():
        projector.load_state_dict(load_file(path))
        return
    device, table = model.device, model.get_input_embeddings().weight.detach()
    token_ids = ctc.token_ids.tolist()
    settings = projector.config
    optimizer = Optimizer(projector, STEPS, LR)
    rng = random.Random(SEED)
    for step in tqdm(range(STEPS), desc="align", mininterval=5):
        frames = [clip.frames.float().to(device) for clip in rng.sample(clips, min(BATCH, len(clips)))]
        lengths = torch.tensor([len(row) for row in frames], device=device)
        padded = nn.utils.rnn.pad_sequence(frames, batch_first=True)
        output = projector(padded, lengths)
        predicted, counts = output.embeddings, output.lengths
        targets = torch.full(predicted.shape[:2], placeholder, device=device)
        with torch.no_grad():
            best = ctc.head(padded).argmax(-1).tolist()
        for row, (length, count) in enumerate(zip(lengths.tolist(), counts.tolist(), strict=True)):
            for place, label in emitted_tokens(best[row][:length], settings.stride, settings.width).items():
                targets[row, min(place, count - 1)] = token_ids[label - 1]
        weights = torch.where(targets == placeholder, SKIP_WEIGHT, 1.0)
        weights = weights * (torch.arange(predicted.shape[1], device=device) < counts[:, None])
        errors = (predicted - table[targets]).pow(2).mean(-1) / table.var()
        loss = (errors * weights).sum() / weights.sum()
        loss.backward()
        optimizer.update(step)
        if (step + 1) % 100 == 0:
            log(out, "connector: align", step=step + 1, loss=loss.item())
    save_file({name: tensor.cpu() for name, tensor in projector.state_dict().items()}, path)
