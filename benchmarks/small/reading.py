"""Stage 1: the connector learns to read by CTC, on Whisper's encoder, trained with it where `--encoder_lr` is not 0.

    python -m benchmarks.small read --parents PARENTS --out OUT --run NAME --steps 2000

From stored log-mel features (`hear`), augmented on the device. Beside the connector's CTC over tokens, a head on the
encoder's frames reads letters, and one block in the middle of the connector reads tokens (Lee & Watanabe 2021, arXiv
2102.03216); both are for training only. Resumable; a batch is a function of the step alone. `log.txt` has losses and
word error rates of unseen speakers; `connector.safetensors` and `encoder/` (float16) are what was trained,
`vocabulary.json` what is read.
"""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.training import Optimizer, autocast, load_checkpoint, save_checkpoint
from benchmarks.small.augmentation import Augmentation
from benchmarks.small.corpora import normalized
from benchmarks.small.frame_store import FrameStore
from benchmarks.small.hearing import trustworthy
from benchmarks.small.vocabulary import LETTERS, Vocabulary
from modeling_speechllm.audio_encoders import load_encoder
from modeling_speechllm.audio_towers import WhisperTower, build_audio_tower
from modeling_speechllm.connectors import build_connector
from modeling_speechllm.ctc_compress import CTCCompress, runs

POOL = 16  # batches drawn together and sorted by length
CHECK_EVERY, SAVE_EVERY, LOG_EVERY = 500, 500, 50
TEST_SOURCES = ("cv_en", "cv_other")
AUDIO_SIZE, BINS, TEXT_SIZE = 512, 80, 576  # Whisper base, its log-mel features, SmolLM2-135M
RATE = 100  # log-mel frames per second
SPELLED = " " + LETTERS


@dataclass
class ReadingSettings:
    """A run of stage 1.

    Args:
        steps, batch: updates, recordings in each.
        lr, encoder_lr: peak rates of connector and encoder; an encoder_lr of 0 leaves the encoder as it is.
        warmup, decay: updates to the peak rate, share of the run over which it falls to zero.
        natural: how often a recording of people comes in an epoch in which one of text-to-speech comes once.
        letters_weight, middle_weight: of CTC over letters on the encoder, and over tokens in the middle.
        sources: stores to train on.
        convolutions, hidden_size, blocks, heads: the connector's; dropout: its own, and a trained encoder's.
        seed: of weights, order and augmentation.
    """

    steps: int = 2000
    batch: int = 32
    lr: float = 1e-3
    encoder_lr: float = 1.5e-4
    warmup: int = 200
    decay: float = 0.7
    natural: int = 3
    letters_weight: float = 0.2
    middle_weight: float = 0.2
    sources: tuple[str, ...] = ("cv_en", "cv_unlabelled")
    convolutions: int = 2
    hidden_size: int = 384
    blocks: int = 6
    heads: int = 6
    dropout: float = 0.1
    seed: int = 0


@dataclass
class Example:
    """A recording to learn from: where its features are, and the classes it speaks.

    Args:
        written: its text as people write it; text: normalized.
    """

    store: FrameStore
    id: str
    text: str
    written: str = ""
    classes: list[int] | None = None

    @property
    def length(self) -> int:
        return self.store.rows[self.id]["frames"]

    @property
    def seconds(self) -> float:
        return self.length / RATE

    @property
    def mel(self) -> torch.Tensor:
        """Log-mel features, (length, bins), float32."""
        return self.store.frames(self.id).float()

    def fits(self, places: float = 12.5) -> bool:
        """Whether it can be spelled, in fewer tokens than CTC has places, so many a second."""
        return bool(self.classes) and 1.2 * len(self.classes) <= self.seconds * places


def transcripts(folder: Path, source: str, split: str) -> list[Example]:
    """Recordings of a store with a text: their own, else Whisper's reading where that is `trustworthy`."""
    store = FrameStore(folder / source, BINS)
    examples = []
    for row in store.rows.values():
        seconds = row["frames"] / RATE
        text = row["text"] or (row["read"]["text"] if row["read"] and trustworthy(row, seconds) else "")
        if row["split"] == split and normalized(text):
            examples.append(Example(store, row["id"], normalized(text), text))
    return examples


class Reader(nn.Module):
    """Whisper's encoder as the product runs it, and a connector behind it."""

    def __init__(self, tower: WhisperTower, connector: CTCCompress):
        super().__init__()
        self.tower, self.connector = tower, connector
        self.letters = nn.Sequential(nn.LayerNorm(AUDIO_SIZE), nn.Linear(AUDIO_SIZE, len(SPELLED) + 1))

    @property
    def device(self) -> torch.device:
        return next(self.connector.parameters()).device

    def frames(self, mels: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mel features (batch, frames, bins) of at most one window, lengths -> encoder frames, lengths."""
        return self.tower.encode(mels.transpose(1, 2), lengths), (lengths + 1) // 2

    def batch(self, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        """Padded log-mel features and lengths, on the device."""
        parts = [example.mel for example in examples]
        lengths = torch.tensor([len(part) for part in parts])
        return pad_sequence(parts, batch_first=True).to(self.device), lengths.to(self.device)


def trained_reader(parents: Path, vocabulary: Vocabulary, settings: ReadingSettings) -> Reader:
    """A reader with a new connector, in float32."""
    encoder = load_encoder(str(parents / "whisper-base"), dtype=torch.float32)
    encoder.requires_grad_(settings.encoder_lr > 0)
    encoder.embed_positions.requires_grad_(False)
    for layer in encoder.layers:
        layer.dropout = settings.dropout if settings.encoder_lr else 0.0
    reader = Reader(build_audio_tower(encoder.config, encoder=encoder), new_connector(vocabulary, settings))
    reader.connector.table.requires_grad_(False)
    return reader


def load_reader(folder: Path, parents: Path, device: str = "cpu") -> tuple[Reader, Vocabulary]:
    """What a run trained, in float32, and what it reads. The connector's table is what the LLM gives it."""
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    settings = ReadingSettings(**json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    own = folder / "encoder"
    encoder = load_encoder(str(own if own.exists() else parents / "whisper-base"), dtype=torch.float32)
    reader = Reader(build_audio_tower(encoder.config, encoder=encoder), new_connector(vocabulary, settings))
    reader.connector.load_state_dict(load_file(folder / "connector.safetensors"), strict=False)
    return reader.float().to(device).eval(), vocabulary


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


def ctc(logits: torch.Tensor, places: torch.Tensor, classes: list[list[int]]) -> torch.Tensor:
    """CTC per token, from logits (batch, places, classes + 1), the blank last."""
    device = logits.device
    targets = torch.tensor([index for part in classes for index in part], device=device)
    sizes = torch.tensor([len(part) for part in classes], device=device)
    scores = logits.float().log_softmax(-1).transpose(0, 1)
    losses = F.ctc_loss(scores, targets, places, sizes, logits.shape[-1] - 1, "none", zero_infinity=True)
    return losses.sum() / sizes.sum()


def read_loss(
    reader: Reader, mels: torch.Tensor, lengths: torch.Tensor, examples: list[Example], settings: ReadingSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole loss, and CTC over tokens alone."""
    connector, classes = reader.connector, [example.classes for example in examples]
    middle: list[torch.Tensor] = []
    block = connector.blocks[len(connector.blocks) // 2]
    handle = block.register_forward_hook(lambda module, args, output: middle.append(output))
    with autocast(reader.device):
        frames, lengths = reader.frames(mels, lengths)
        logits, places = connector.read(frames, lengths)
        halfway = connector.head(connector.output_norm(middle[0]))
        letters = reader.letters(frames)
    handle.remove()
    spelled = [[SPELLED.index(letter) for letter in example.text if letter in SPELLED] for example in examples]
    main = ctc(logits, places, classes)
    loss = main + settings.middle_weight * ctc(halfway, places, classes)
    return loss + settings.letters_weight * ctc(letters, lengths, spelled), main.detach()


@torch.no_grad()
def greedy(reader: Reader, examples: Sequence[Example], batch: int = 32) -> list[list[int]]:
    """Classes that CTC reads greedily in each recording."""
    reader.eval()
    order = sorted(range(len(examples)), key=lambda index: examples[index].length)
    found: list[list[int]] = [[] for _ in examples]
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        with autocast(reader.device):
            logits, places = reader.connector.read(*reader.frames(*reader.batch([examples[i] for i in part])))
        best = logits.argmax(-1)
        _, begins = runs(best, places, reader.connector.blank)
        for index, row, used in zip(part, best, begins, strict=True):
            found[index] = row[used].tolist()
    return found


def word_errors(reader: Reader, vocabulary: Vocabulary, examples: list[Example]) -> tuple[float, list[str]]:
    """Word error rate of greedy CTC, and what it read."""
    read = [vocabulary.text(row) for row in greedy(reader, examples)]
    return jiwer.wer([example.text for example in examples], read), read


def half(module: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict in float16."""
    state = module.state_dict()
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


class TwoRates(Optimizer):
    """AdamW with a peak rate for the encoder and one for the rest; matrices decay. `rate` is a share of the peaks."""

    def __init__(self, reader: Reader, settings: ReadingSettings):
        made = []
        parts = (reader.tower, settings.encoder_lr), (reader.connector, settings.lr), (reader.letters, settings.lr)
        for part, peak in parts:
            trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
            for decay, dims in ((0.01, (2, 3)), (0.0, (1,))):
                chosen = [parameter for parameter in trained if parameter.ndim in dims]
                made.append({"params": chosen, "lr": peak, "peak": peak, "weight_decay": decay})
        made = [group for group in made if group["params"]]
        self.parameters = [parameter for group in made for parameter in group["params"]]
        self.parts = [torch.optim.AdamW(made, betas=(0.9, 0.98), fused=reader.device.type != "cpu")]
        self.warmup, self.decay = settings.warmup, settings.decay

    def share(self, step: int, done: float) -> float:
        """Of the peak rates: linear up, flat, linear down to zero as `done` goes to 1."""
        return min((step + 1) / self.warmup, 1.0, max((1 - done) / self.decay, 0.0))

    def update(self, step: int, done: float, clip: float = 1.0) -> None:
        """Clips, steps and clears the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, clip)
        for group in self.parts[0].param_groups:
            group["lr"] = group["peak"] * self.share(step, done)
        self.parts[0].step()
        self.parts[0].zero_grad(set_to_none=True)


def save_trained(folder: Path, reader: Reader, settings: ReadingSettings) -> None:
    """What was trained, in float16."""
    save_file(half(reader.connector), folder / "connector.safetensors")
    if settings.encoder_lr:
        reader.tower.encoder.config.save_pretrained(folder / "encoder")
        save_file(half(reader.tower.encoder), folder / "encoder/model.safetensors", metadata={"format": "pt"})


def read(
    out: Path, parents: Path, name: str, settings: ReadingSettings, minutes: float = 1e9, device: str = "cpu"
) -> None:
    """Trains (on, if there is a checkpoint) for `settings.steps` updates, or until `minutes` are over in all; then the
    rate falls with the time."""
    folder = out / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(parents / "smollm2-135m-instruct")
    examples = [example for source in settings.sources for example in transcripts(out / "mel", source, "train")]
    if (folder / "vocabulary.json").exists():
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
    else:
        vocabulary = Vocabulary.of_texts([example.text for example in examples], tokenizer)
        vocabulary.save(folder / "vocabulary.json")
        (folder / "settings.json").write_text(json.dumps(asdict(settings)), encoding="utf-8")
    for store in {id(example.store): example.store for example in examples}.values():
        store.load(device)
    for example in examples:
        example.classes = vocabulary.spell(example.text, tokenizer)
    places = RATE / 2 ** (1 + settings.convolutions)
    known = [example for example in examples if example.fits(places)]
    epoch = [e for e in known for _ in range(1 if e.store.folder.name.startswith("tts") else settings.natural)]
    torch.manual_seed(settings.seed)
    reader = trained_reader(parents, vocabulary, settings).to(device)
    optimizer = TwoRates(reader, settings)
    checkpoint = folder / "checkpoint.safetensors"
    done, seconds = load_checkpoint(checkpoint, reader, optimizer)
    tests = {source: transcripts(out / "mel", source, "test") for source in TEST_SOURCES}
    tests = {source: rows for source, rows in tests.items() if rows}
    log(folder, "start", step=done, left_out=len(examples) - len(known), examples=len(known),
        hours=sum(example.seconds for example in known) / 3600, classes=len(vocabulary.pieces),
        trained=sum(parameter.numel() for parameter in optimizer.parameters),
        **{source: len(rows) for source, rows in tests.items()})  # fmt: skip
    augment = Augmentation()
    generator = torch.Generator(device)
    begin, cpu, recent = time.monotonic() - seconds, time.process_time(), []
    for step in range(done, settings.steps):
        reader.train()
        chosen = batch_at(step, epoch, settings)
        generator.manual_seed(settings.seed * 1_000_003 + step)
        mels, lengths = augment(*reader.batch(chosen), generator)
        loss, main = read_loss(reader, mels, lengths, chosen, settings)
        loss.backward()
        spent = (time.monotonic() - begin) / (minutes * 60)
        optimizer.update(step, max(step / settings.steps, spent))  # the schedule ends with the time
        recent.append(main)
        over = spent >= 1 or step + 1 == settings.steps
        if (step + 1) % LOG_EVERY == 0:
            log(folder, "read", step=step + 1, loss=torch.stack(recent[-LOG_EVERY:]).mean().item(),
                seconds=time.monotonic() - begin, cpu=time.process_time() - cpu)  # fmt: skip
        if (step + 1) % CHECK_EVERY == 0 or over:
            for source, rows in tests.items():
                wer, texts = word_errors(reader, vocabulary, rows)
                log(folder, f"unseen speakers, {source}", step=step + 1, wer=wer)
            for example, text in list(zip(rows, texts, strict=True))[:5]:
                log(folder, f"  {example.text} | {text}")
        if (step + 1) % SAVE_EVERY == 0 or over:
            save_checkpoint(checkpoint, reader, optimizer, step + 1, time.monotonic() - begin)
            save_trained(folder, reader, settings)
        if over:
            break
    log(folder, "read: done", seconds=time.monotonic() - begin)


def new_connector(vocabulary: Vocabulary, settings: ReadingSettings) -> CTCCompress:
    """The connector of a run, untrained, between Whisper base (512) and SmolLM2-135M (576)."""
    connector = build_connector(
        {
            "type": "ctc_compress",
            "vocabulary": len(vocabulary.pieces),
            "convolutions": settings.convolutions,
            "hidden_size": settings.hidden_size,
            "blocks": settings.blocks,
            "heads": settings.heads,
            "ffn_size": 4 * settings.hidden_size,
            "dropout": settings.dropout,
        },
        AUDIO_SIZE,
        TEXT_SIZE,
    )
    torch.nn.init.constant_(connector.head.bias[-1:].data, 2.0)
    return connector
