"""Stage 1: the connector learns to read by CTC, from stored encoder frames.

    python -m benchmarks.small read --parents PARENTS --out OUT --run NAME --steps 2000

With `--encoder_rank` the encoder is trained too, by LoRA, from stored log-mel features (`hear --mel`); the stage
`again` then makes its frames, to `OUT/runs/NAME/frames`. Resumable; a batch is a function of the step alone. `log.txt`
has losses and word error rates of unseen speakers, `connector.safetensors` (float16) the trained weights,
`vocabulary.json` what they read.
"""

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jiwer
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.training import Optimizer, autocast, load_checkpoint, save_checkpoint
from benchmarks.small.corpora import normalized
from benchmarks.small.frame_store import FrameStore
from benchmarks.small.hearing import trustworthy
from benchmarks.small.vocabulary import Vocabulary
from modeling_speechllm.audio_encoders import load_encoder
from modeling_speechllm.audio_towers import build_audio_tower
from modeling_speechllm.connector_base import length_mask
from modeling_speechllm.connectors import build_connector
from modeling_speechllm.ctc_compress import CTCCompress, runs

POOL = 16  # batches drawn together and sorted by length
CHECK_EVERY, SAVE_EVERY, LOG_EVERY = 250, 250, 25
TEST_SOURCES = ("cv_en", "cv_other")
AUDIO_SIZE, BINS, TEXT_SIZE = 512, 80, 576  # Whisper base, its log-mel features, SmolLM2-135M
RATES = {AUDIO_SIZE: 50, BINS: 100}  # per second
ENCODER_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@dataclass
class ReadingSettings:
    """A run of stage 1.

    Args:
        steps, batch: updates, recordings in each.
        lr, warmup, decay: peak rate, updates to it, share of the run over which it falls to zero.
        encoder_rank: rank of LoRA on the encoder, which is trained too then; 0 leaves it as it is.
        masks: time masks per second of speech; mask_width: longest, in encoder frames; channels: share of the frames'
            channels (in bands, of log-mel features) that are zero throughout a recording.
        sources: stores to train on.
        hidden_size, blocks, heads, dropout: the connector's.
        seed: of weights, order and masks.
    """

    steps: int = 2000
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.6
    encoder_rank: int = 0
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

    @property
    def seconds(self) -> float:
        return self.length / RATES[self.store.size]

    @property
    def values(self) -> torch.Tensor:
        """Encoder frames or log-mel features, (length, size), float32."""
        return self.store.frames(self.id).float()

    def fits(self) -> bool:
        """Whether it can be spelled, in fewer tokens than CTC has places (12.5 a second)."""
        return bool(self.classes) and 1.2 * len(self.classes) <= self.seconds * 12.5


def transcripts(folder: Path, source: str, split: str) -> list[Example]:
    """Recordings of a store in a folder of them (`OUT/frames`, `OUT/mel`) with a text: their own, else Whisper's
    reading where that is `trustworthy`."""
    store = FrameStore(folder / source, BINS if folder.name == "mel" else AUDIO_SIZE)
    examples = []
    for row in store.rows.values():
        seconds = row["frames"] / RATES[store.size]
        text = row["text"] or (row["read"]["text"] if row["read"] and trustworthy(row, seconds) else "")
        if row["split"] == split and normalized(text):
            examples.append(Example(store, row["id"], normalized(text)))
    return examples


def mask(values: torch.Tensor, rng: random.Random, settings: ReadingSettings) -> torch.Tensor:
    """SpecAugment on encoder frames or log-mel features (length, size): spans of time, and channels, set to zero."""
    values = values.clone()
    length, size = values.shape
    rate = RATES[size]
    for _ in range(round(settings.masks * length / rate)):
        width = rng.randint(0, settings.mask_width * rate // 50)
        start = rng.randint(0, max(length - width, 0))
        values[start : start + width] = 0.0
    count = int(settings.channels * size)
    if size == BINS:
        for _ in range(2):
            width = rng.randint(0, count)
            start = rng.randint(0, size - width)
            values[:, start : start + width] = 0.0
    else:
        values[:, rng.sample(range(size), count)] = 0.0
    return values


def encoded(tower: nn.Module, mels: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel features (length, bins) of some recordings -> padded encoder frames, lengths."""
    lengths = torch.tensor([len(part) for part in mels], device=mels[0].device)
    padded = pad_sequence(mels, batch_first=True)
    output = tower(padded.transpose(1, 2), length_mask(lengths, padded.shape[1]))
    return output.last_hidden_state, output.lengths


class Reader(nn.Module):
    """A connector, and before it the encoder where that is trained too."""

    def __init__(self, connector: CTCCompress, tower: nn.Module | None = None):
        super().__init__()
        self.connector, self.tower = connector, tower

    def frames(self, values: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder frames or log-mel features (length, size) of some recordings -> padded encoder frames, lengths."""
        values = [part.to(next(self.connector.parameters()).device) for part in values]
        if self.tower is not None:
            return encoded(self.tower, values)
        lengths = torch.tensor([len(part) for part in values], device=values[0].device)
        return pad_sequence(values, batch_first=True), lengths

    def read(self, values: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """CTC logits (recordings, places, classes + 1) and places, in bfloat16."""
        with autocast(next(self.connector.parameters()).device):
            return self.connector.read(*self.frames(values))


def trained_encoder(folder: Path, rank: int) -> tuple[nn.Module, nn.Module]:
    """Whisper's encoder as the product runs it, with LoRA, and the adapter around it that can be saved and merged."""
    encoder = load_encoder(str(folder), dtype=torch.float32).requires_grad_(False)
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=ENCODER_TARGETS, lora_dropout=0.05)
    adapter = get_peft_model(encoder, lora)
    return build_audio_tower(encoder.config, encoder=encoder), adapter


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


def read_loss(reader: Reader, values: list[torch.Tensor], classes: list[list[int]]) -> torch.Tensor:
    """CTC, mean over recordings of -log p(transcript), per token."""
    logits, places = reader.read(values)
    device = logits.device
    targets = torch.tensor([index for part in classes for index in part], device=device)
    sizes = torch.tensor([len(part) for part in classes], device=device)
    losses = F.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        targets,
        places,
        sizes,
        reader.connector.blank,
        "none",
        zero_infinity=True,
    )
    return losses.sum() / sizes.sum()


@torch.no_grad()
def greedy(reader: Reader, values: list[torch.Tensor], batch: int = 32) -> list[list[int]]:
    """Classes that CTC reads greedily in each recording."""
    reader.eval()
    order = sorted(range(len(values)), key=lambda index: len(values[index]))
    found: list[list[int]] = [[] for _ in values]
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        logits, places = reader.read([values[index].float() for index in part])
        best = logits.argmax(-1)
        _, begins = runs(best, places, reader.connector.blank)
        for index, row, used in zip(part, best, begins, strict=True):
            found[index] = row[used].tolist()
    return found


def word_errors(reader: Reader, vocabulary: Vocabulary, examples: list[Example]) -> tuple[float, list[str]]:
    """Word error rate of greedy CTC, and what it read."""
    read = [vocabulary.text(row) for row in greedy(reader, [example.values for example in examples])]
    return jiwer.wer([example.text for example in examples], read), read


@torch.no_grad()
def encode_again(
    out: Path, parents: Path, name: str, sources: list[str], device: str = "cpu", batch: int = 64
) -> None:
    """Frames of sources' recordings by the encoder that run `name` trained, from their log-mel features, to the run's
    own folder of stores."""
    folder = out / "runs" / name
    encoder = load_encoder(str(parents / "whisper-base"), dtype=torch.float32)
    merged = PeftModel.from_pretrained(encoder, folder / "encoder_adapter").merge_and_unload()
    tower = build_audio_tower(merged.config, encoder=merged.requires_grad_(False).to(device))
    for source in sources:
        store = FrameStore(out / "mel" / source, BINS)
        again = FrameStore(folder / "frames" / source, AUDIO_SIZE, write=True)
        todo = sorted((row for id, row in store.rows.items() if id not in again.rows), key=lambda row: row["frames"])
        for start in range(0, len(todo), batch):
            rows = todo[start : start + batch]
            with autocast(torch.device(device)):
                frames, lengths = encoded(tower, [store.frames(row["id"]).float().to(device) for row in rows])
            parts = [part[:length].cpu() for part, length in zip(frames, lengths.tolist(), strict=True)]
            again.append([dict(row) for row in rows], parts)
        log(folder, f"frames of {source}", recordings=len(again.rows))


def half(module: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict in float16."""
    state = module.state_dict()
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def read(
    out: Path, parents: Path, name: str, settings: ReadingSettings, minutes: float = 1e9, device: str = "cpu"
) -> None:
    """Trains (on, if there is a checkpoint) for `settings.steps` updates, or until `minutes` are over in all; then the
    rate falls with the time."""
    folder, stores = out / "runs" / name, out / ("mel" if settings.encoder_rank else "frames")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(parents / "smollm2-135m-instruct")
    examples = [example for source in settings.sources for example in transcripts(stores, source, "train")]
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
    known = [example for example in examples if example.fits()]
    torch.manual_seed(settings.seed)
    connector = new_connector(vocabulary, settings)
    table = AutoModelForCausalLM.from_pretrained(parents / "smollm2-135m-instruct", dtype=torch.float32)
    connector.load_vocabulary(torch.tensor(vocabulary.token_ids), table.get_input_embeddings().weight)
    del table
    connector.table.requires_grad_(False)
    tower, adapter = None, None
    if settings.encoder_rank:
        tower, adapter = trained_encoder(parents / "whisper-base", settings.encoder_rank)
    reader = Reader(connector, tower).to(device)
    trained = reader if settings.encoder_rank else connector
    optimizer = Optimizer(
        trained, settings.steps, settings.lr, ("head", "norm", "lora"), settings.warmup, settings.decay
    )
    checkpoint = folder / "checkpoint.safetensors"
    done, seconds = load_checkpoint(checkpoint, trained, optimizer)
    tests = {source: transcripts(stores, source, "test") for source in TEST_SOURCES}
    tests = {source: rows for source, rows in tests.items() if rows}
    size = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    log(folder, "start", step=done, left_out=len(examples) - len(known), examples=len(known),
        hours=sum(example.seconds for example in known) / 3600, classes=len(vocabulary.pieces), trained=size,
        **{source: len(rows) for source, rows in tests.items()})  # fmt: skip
    begin, cpu, recent = time.monotonic() - seconds, time.process_time(), []
    for step in range(done, settings.steps):
        reader.train()
        chosen = batch_at(step, known, settings)
        rng = random.Random(f"{settings.seed}|mask {step}")
        values = [mask(example.values, rng, settings) for example in chosen]
        loss = read_loss(reader, values, [example.classes for example in chosen])
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
                rate, texts = word_errors(reader, vocabulary, rows)
                log(folder, f"unseen speakers, {source}", step=step + 1, wer=rate)
            for example, text in list(zip(rows, texts, strict=True))[:5]:
                log(folder, f"  {example.text} | {text}")
        if (step + 1) % SAVE_EVERY == 0 or over:
            save_checkpoint(checkpoint, trained, optimizer, step + 1, time.monotonic() - begin)
            save_file(half(connector), folder / "connector.safetensors")
        if over:
            break
    if adapter is not None:
        adapter.half().save_pretrained(folder / "encoder_adapter")
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
        AUDIO_SIZE,
        TEXT_SIZE,
    )
    torch.nn.init.constant_(connector.head.bias[-1:].data, 2.0)
    return connector
