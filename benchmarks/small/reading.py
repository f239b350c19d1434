"""Stage 1: the connector learns to read by CTC, from stored encoder frames.

    python -m benchmarks.small read --parents PARENTS --out OUT --run NAME --steps 2000

Resumable; a batch is a function of the step alone. `OUT/runs/NAME/log.txt` has losses and word error rates of unseen
speakers, `connector.safetensors` (float16) the trained weights, `vocabulary.json` what they read.
"""

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.training import Optimizer, autocast, load_checkpoint, save_checkpoint
from benchmarks.small.corpora import normalized
from benchmarks.small.frame_store import FrameStore
from benchmarks.small.hearing import trustworthy
from benchmarks.small.vocabulary import Vocabulary
from modeling_speechllm.connectors import build_connector
from modeling_speechllm.ctc_compress import CTCCompress, runs

POOL = 16  # batches drawn together and sorted by length
CHECK_EVERY, SAVE_EVERY, LOG_EVERY = 250, 250, 25
TEST_SOURCES = ("cv_en", "cv_other")


@dataclass
class ReadingSettings:
    """A run of stage 1.

    Args:
        steps, batch: updates, recordings in each.
        lr, warmup, decay: peak rate, updates to it, share of the run over which it falls to zero.
        masks: time masks per second of speech; mask_width: longest, in encoder frames; channels: share of the frames'
            channels that are zero throughout a recording.
        sources: stores to train on.
        hidden_size, blocks, heads, dropout: the connector's.
        seed: of weights, order and masks.
    """

    steps: int = 2000
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.6
    masks: float = 1.0
    mask_width: int = 20
    channels: float = 0.1
    sources: tuple[str, ...] = ("cv_en", "cv_unlabelled")
    hidden_size: int = 384
    blocks: int = 3
    heads: int = 6
    dropout: float = 0.1
    seed: int = 0


@dataclass
class Example:
    """A recording to learn from: where its frames are, and the classes it speaks."""

    store: FrameStore
    id: str
    text: str
    classes: list[int] | None = None

    @property
    def length(self) -> int:
        return self.store.rows[self.id]["frames"]


def transcripts(out: Path, source: str, split: str) -> list[Example]:
    """Recordings of a store with a text: its own, else Whisper's reading where that is `trustworthy`."""
    store = FrameStore(out / "frames" / source, 512)
    examples = []
    for row in store.rows.values():
        text = row["text"] or (row["read"]["text"] if row["read"] and trustworthy(row) else "")
        if row["split"] == split and normalized(text):
            examples.append(Example(store, row["id"], normalized(text)))
    return examples


def mask(frames: torch.Tensor, rng: random.Random, settings: ReadingSettings) -> torch.Tensor:
    """SpecAugment on encoder frames (frames, size): spans of time, and channels, set to zero."""
    frames = frames.clone()
    for _ in range(round(settings.masks * len(frames) / 50)):
        width = rng.randint(0, settings.mask_width)
        start = rng.randint(0, max(len(frames) - width, 0))
        frames[start : start + width] = 0.0
    dropped = rng.sample(range(frames.shape[1]), int(settings.channels * frames.shape[1]))
    frames[:, dropped] = 0.0
    return frames


def batch_at(step: int, examples: list[Example], settings: ReadingSettings) -> list[Example]:
    """The examples of a step: an epoch is a permutation, in pools of batches sorted by length."""
    size, pools = settings.batch, max(len(examples) // (settings.batch * POOL), 1)
    pool, turn = divmod(step, POOL)
    order = list(range(len(examples)))
    random.Random(f"{settings.seed}|epoch {pool // pools}").shuffle(order)
    chosen = order[pool % pools * size * POOL :][: size * POOL]
    chosen.sort(key=lambda index: examples[index].length)
    parts = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    random.Random(f"{settings.seed}|pool {pool}").shuffle(parts)
    return [examples[index] for index in parts[turn % len(parts)]]


def read_loss(connector: CTCCompress, frames: list[torch.Tensor], classes: list[list[int]]) -> torch.Tensor:
    """CTC, mean over recordings of -log p(transcript), per token."""
    lengths = torch.tensor([len(part) for part in frames])
    device = next(connector.parameters()).device
    with autocast(device):
        logits, places = connector.read(pad_sequence(frames, batch_first=True).to(device), lengths.to(device))
    targets = torch.tensor([index for part in classes for index in part], device=device)
    sizes = torch.tensor([len(part) for part in classes], device=device)
    losses = F.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        targets,
        places,
        sizes,
        connector.blank,
        "none",
        zero_infinity=True,
    )
    return losses.sum() / sizes.sum()


@torch.no_grad()
def greedy(connector: CTCCompress, frames: list[torch.Tensor], batch: int = 32) -> list[list[int]]:
    """Classes that CTC reads greedily in each recording."""
    connector.eval()
    device = next(connector.parameters()).device
    order = sorted(range(len(frames)), key=lambda index: len(frames[index]))
    found: list[list[int]] = [[] for _ in frames]
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        padded = pad_sequence([frames[index].float() for index in part], batch_first=True).to(device)
        lengths = torch.tensor([len(frames[index]) for index in part], device=device)
        with autocast(device):
            logits, places = connector.read(padded, lengths)
        best = logits.argmax(-1)
        _, begins = runs(best, places, connector.blank)
        for index, row, used in zip(part, best, begins, strict=True):
            found[index] = row[used].tolist()
    return found


def word_errors(connector: CTCCompress, vocabulary: Vocabulary, examples: list[Example]) -> tuple[float, list[str]]:
    """Word error rate of greedy CTC, and what it read."""
    read = [vocabulary.text(row) for row in greedy(connector, [e.store.frames(e.id) for e in examples])]
    return jiwer.wer([example.text for example in examples], read), read


def read(
    out: Path, parents: Path, name: str, settings: ReadingSettings, minutes: float = 1e9, device: str = "cpu"
) -> None:
    """Trains (on, if there is a checkpoint) for `settings.steps` updates, or until `minutes` are over in all; then the
    rate falls with the time."""
    folder = out / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(parents / "smollm2-135m-instruct")
    examples = [example for source in settings.sources for example in transcripts(out, source, "train")]
    if (folder / "vocabulary.json").exists():
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
    else:
        vocabulary = Vocabulary.of_texts([example.text for example in examples], tokenizer)
        vocabulary.save(folder / "vocabulary.json")
        (folder / "settings.json").write_text(json.dumps(asdict(settings)), encoding="utf-8")
    for example in examples:
        example.classes = vocabulary.spell(example.text, tokenizer)
    for store in {id(example.store): example.store for example in examples}.values():
        store.load(device)
    known = [e for e in examples if e.classes and 1.2 * len(e.classes) <= e.length / 4]
    torch.manual_seed(settings.seed)
    connector = new_connector(vocabulary, settings).to(device)
    table = AutoModelForCausalLM.from_pretrained(parents / "smollm2-135m-instruct", dtype=torch.float32)
    connector.load_vocabulary(torch.tensor(vocabulary.token_ids), table.get_input_embeddings().weight)
    del table
    connector.table.requires_grad_(False)
    optimizer = Optimizer(connector, settings.steps, settings.lr, ("head", "norm"), settings.warmup, settings.decay)
    checkpoint = folder / "checkpoint.safetensors"
    done, seconds = load_checkpoint(checkpoint, connector, optimizer)
    tests = {source: transcripts(out, source, "test") for source in TEST_SOURCES}
    size = sum(parameter.numel() for parameter in connector.parameters())
    hours = sum(example.length for example in known) / 50 / 3600
    log(folder, "start", step=done, left_out=len(examples) - len(known), examples=len(known), hours=hours,
        classes=len(vocabulary.pieces), parameters=size, **{k: len(v) for k, v in tests.items()})  # fmt: skip
    begin, cpu, recent = time.monotonic() - seconds, time.process_time(), []
    for step in range(done, settings.steps):
        connector.train()
        chosen = batch_at(step, known, settings)
        rng = random.Random(f"{settings.seed}|mask {step}")
        frames = [mask(example.store.frames(example.id).float(), rng, settings) for example in chosen]
        loss = read_loss(connector, frames, [example.classes for example in chosen])
        loss.backward()
        spent = (time.monotonic() - begin) / (minutes * 60)
        optimizer.update(max(step, int(spent * settings.steps)))  # the schedule ends with the time
        recent.append(loss.item())
        over = spent >= 1 or step + 1 == settings.steps
        if (step + 1) % LOG_EVERY == 0:
            log(folder, "read", step=step + 1, loss=sum(recent[-LOG_EVERY:]) / LOG_EVERY,
                seconds=time.monotonic() - begin, cpu=time.process_time() - cpu)  # fmt: skip
        if (step + 1) % CHECK_EVERY == 0 or over:
            for source, rows in tests.items():
                rate, texts = word_errors(connector, vocabulary, rows)
                log(folder, f"unseen speakers, {source}", step=step + 1, wer=rate)
            for example, text in list(zip(rows, texts, strict=True))[:5]:
                log(folder, f"  {example.text} | {text}")
        if (step + 1) % SAVE_EVERY == 0 or over:
            save_checkpoint(checkpoint, connector, optimizer, step + 1, time.monotonic() - begin)
            state = {name: value.to(torch.float16) if value.is_floating_point() else value
                     for name, value in connector.state_dict().items()}  # fmt: skip
            save_file(state, folder / "connector.safetensors")
        if over:
            break
    log(folder, "read: done", seconds=time.monotonic() - begin)


def new_connector(vocabulary: Vocabulary, settings: ReadingSettings) -> CTCCompress:
    """The connector of a run, untrained, between Whisper base (512) and SmolLM2-135M (576)."""
    connector = build_connector(
        {
            "type": "ctc_compress",
            "vocabulary": len(vocabulary.pieces),
            "hidden_size": settings.hidden_size,
            "blocks": settings.blocks,
            "heads": settings.heads,
            "ffn_size": 4 * settings.hidden_size,
            "dropout": settings.dropout,
        },
        512,
        576,
    )
    torch.nn.init.constant_(connector.head.bias[-1:].data, 2.0)
    return connector
