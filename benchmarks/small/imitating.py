"""Stage 2: the LLM that hears answers as the LLM that reads, and can repeat what was said.

    python -m benchmarks.small imitate --parents PARENTS --out OUT --run NAME --start READING_RUN

Of each recording the LLM (frozen, without adapter) answers instructions about the transcript; the student, connector
and LoRA on the LLM, hears the recording and gets the divergence from the teacher's distribution over these answers. To
`REPEAT` the answer is the transcript itself, by cross-entropy: an LLM of this size cannot repeat a sentence reliably.
CTC goes on beside, so that the connector keeps reading.
"""

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch.nn import functional as F

from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.training import autocast
from benchmarks.small.answering import REPEAT, SEEN, Answerer, Turn
from benchmarks.small.measuring import frames_of, load_run
from benchmarks.small.reading import Example, Reader, ReadingSettings, batch_at, half, mask, read_loss, transcripts
from modeling_speechllm.ctc_compress import CTCCompress

LOG_EVERY = 25
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class ImitationSettings:
    """A run of stage 2.

    Args:
        steps, batch, lr, warmup: updates, recordings in each, peak rates of AdamW (linear decay), updates to it.
        rank: of LoRA; 0 leaves the LLM as it is, and trains the connector alone.
        ctc_weight: of CTC beside the imitation.
        repeat_share: share of turns that ask to repeat (0 where the LLM is not trained).
        answers: instructions answered per recording; limit: tokens of an answer.
        recordings: how many, drawn from the sources; seed: of draw, order and masks.
    """

    steps: int = 1500
    batch: int = 32
    lr: float = 2e-4
    warmup: int = 100
    rank: int = 16
    ctc_weight: float = 0.3
    repeat_share: float = 0.3
    answers: int = 2
    limit: int = 32
    recordings: int = 8000
    sources: tuple[str, ...] = ("cv_en", "cv_unlabelled")
    seed: int = 0


def teacher_answers(
    path: Path, answerer: Answerer, examples: list[Example], settings: ImitationSettings
) -> dict[str, list]:
    """Per recording (instruction, answer ids) of the LLM that reads the transcript; kept in `path`."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    rows, turns = [], []
    for example in examples:
        rng = random.Random(f"{settings.seed}|{example.id}")
        for instruction in rng.sample([i for i in SEEN if i != REPEAT], settings.answers):
            rows.append((example.id, instruction))
            turns.append(Turn(instruction, answerer.text(example.text)))
    targets: dict[str, list] = {}
    for (id, instruction), answer in zip(rows, answerer.answers(turns, settings.limit, batch=256), strict=True):
        targets.setdefault(id, []).append([instruction, answer])
    path.write_text(json.dumps(targets), encoding="utf-8")
    return targets


def heard_batch(connector: CTCCompress, frames: list[torch.Tensor]) -> list[torch.Tensor]:
    """With gradients, what the LLM is given of each recording (tokens, size)."""
    device = next(connector.parameters()).device
    lengths = torch.tensor([len(part) for part in frames], device=device)
    with autocast(device):
        output = connector(torch.nn.utils.rnn.pad_sequence(frames, batch_first=True).to(device), lengths)
    return [row[used].float() for row, used in zip(output.embeddings, output.used, strict=True)]


def imitate(
    out: Path, parents: Path, name: str, start: str, settings: ImitationSettings, minutes: float, device: str = "cpu"
) -> None:
    """Trains from the connector of run `start`; writes `connector.safetensors` and, with LoRA, `adapter/`."""
    folder = out / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    answerer = Answerer(parents / "smollm2-135m-instruct", device)
    connector, vocabulary = load_run(out / "runs" / start, device)
    vocabulary.save(folder / "vocabulary.json")
    reading = json.loads((out / "runs" / start / "settings.json").read_text(encoding="utf-8"))
    (folder / "settings.json").write_text(json.dumps(reading), encoding="utf-8")
    (folder / "imitation.json").write_text(json.dumps(asdict(settings)), encoding="utf-8")
    frames = frames_of(out, start)
    if frames != out / "frames" and not (folder / "frames").exists():
        (folder / "frames").symlink_to(frames.resolve())
    examples = [example for source in settings.sources for example in transcripts(frames, source, "train")]
    for example in examples:
        example.classes = vocabulary.spell(example.text, answerer.tokenizer)
    for store in {id(example.store): example.store for example in examples}.values():
        store.load(device)
    examples = [example for example in examples if example.fits()]
    random.Random(settings.seed).shuffle(examples)
    examples = examples[: settings.recordings]
    begin = time.monotonic()
    targets = teacher_answers(folder / "answers.json", answerer, examples, settings)
    log(folder, "imitate: answers", recordings=len(targets), seconds=time.monotonic() - begin)
    torch.manual_seed(settings.seed)
    if settings.rank:
        lora = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=LORA_TARGETS)
        adapted = get_peft_model(answerer.model, lora)
    connector.table.requires_grad_(False)
    trained = [p for p in [*connector.parameters(), *answerer.model.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=0.01)
    masks = ReadingSettings(**reading)
    order = ReadingSettings(batch=settings.batch, seed=settings.seed)
    recent: list[list[float]] = []
    for step in range(settings.steps):
        rng = random.Random(f"{settings.seed}|imitate {step}")
        chosen = batch_at(step, examples, order)
        frames = [mask(example.values, rng, masks) for example in chosen]
        connector.train()
        ctc = read_loss(Reader(connector), frames, [example.classes for example in chosen])
        connector.eval()  # what the LLM hears in training is what it hears later, but for the masks
        heard = heard_batch(connector, frames)
        turns, read, repeats = [], [], []
        for example, request in zip(chosen, heard, strict=True):
            repeat = settings.rank > 0 and rng.random() < settings.repeat_share
            instruction, answer = (REPEAT, None) if repeat else rng.choice(targets[example.id])
            if repeat:
                ids = answerer.tokenizer(example.text, add_special_tokens=False).input_ids
                answer = [*ids, answerer.tokenizer.eos_token_id]
            turns.append(Turn(instruction, request, answer))
            read.append(Turn(instruction, answerer.text(example.text), answer))
            repeats += [repeat] * len(answer)
        with autocast(torch.device(device)):
            student = answerer.answer_logits(turns).float().log_softmax(-1)
            with torch.no_grad():
                if settings.rank:
                    with adapted.disable_adapter():
                        teacher = answerer.answer_logits(read).float().log_softmax(-1)
                else:
                    teacher = answerer.answer_logits(read).float().log_softmax(-1)
        flags = torch.tensor(repeats, device=device)
        labels = torch.tensor([token for turn in turns for token in turn.answer], device=device)
        divergence = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
        spelled = F.nll_loss(student, labels, reduction="none")
        loss = torch.where(flags, spelled, divergence).mean() + settings.ctc_weight * ctc
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        spent = (time.monotonic() - begin) / (minutes * 60)
        rate = min((step + 1) / settings.warmup, 1 - step / settings.steps, max(1 - spent, 0.0))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        agreed = (student.argmax(-1) == labels)[~flags].float().mean().item()
        recent.append([loss.item(), ctc.item(), agreed])
        over = spent >= 1
        if (step + 1) % LOG_EVERY == 0 or over:
            values = torch.tensor(recent[-LOG_EVERY:]).mean(0).tolist()
            numbers = dict(zip(("loss", "ctc", "agreement"), values, strict=True))
            log(folder, "imitate", step=step + 1, **numbers, seconds=time.monotonic() - begin)
        if over:
            break
    save_file(half(connector), folder / "connector.safetensors")
    if settings.rank:
        adapted.save_pretrained(folder / "adapter")
    log(folder, "imitate: done", seconds=time.monotonic() - begin)
