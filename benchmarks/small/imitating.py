"""Stage 2: the LLM that hears answers as the LLM that reads, and writes down what was said.

    python -m benchmarks.small answers --parents PARENTS --out OUT
    python -m benchmarks.small imitate --parents PARENTS --out OUT --run NAME --start READING_RUN

`answers`: of each recording the LLM (frozen, without adapter) answers an instruction about the transcript. `imitate`:
the student, connector and LoRA on the LLM, hears the recording and gets the divergence from the teacher's distribution
over these answers. To the task `repeat` the answer is the transcript itself, by cross-entropy: an LLM of this size
cannot repeat a sentence reliably. CTC goes on beside, so that the connector keeps reading; the encoder stays.
"""

import json
import random
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch.nn import functional as F

from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.training import autocast
from benchmarks.small.answering import Answerer, Turn, prompts
from benchmarks.small.augmentation import Augmentation
from benchmarks.small.reading import RATE, Example, ReadingSettings, batch_at, ctc, half, load_reader, transcripts

LOG_EVERY = 25
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class ImitationSettings:
    """A run of stage 2.

    Args:
        steps, batch, warmup: updates, recordings in each, updates to the peak rates of AdamW (linear decay).
        lr, connector_lr: of LoRA and of the connector.
        rank: of LoRA; 0 leaves the LLM as it is, and trains the connector alone.
        ctc_weight: of CTC beside the imitation.
        repeat_share: share of turns that ask for the words themselves (0 where the LLM is not trained).
        seed: of order, instructions and augmentation.
    """

    steps: int = 1500
    batch: int = 48
    lr: float = 4e-4
    connector_lr: float = 1e-4
    warmup: int = 100
    rank: int = 16
    ctc_weight: float = 0.3
    repeat_share: float = 0.4
    sources: tuple[str, ...] = ("cv_en", "cv_unlabelled")
    seed: int = 0


def teacher_answers(
    out: Path, parents: Path, sources: list[str], count: int, device: str = "cpu", limit: int = 32, batch: int = 64
) -> None:
    """Writes OUT/answers.json: of at most `count` recordings, drawn, an instruction and the ids of the answer of the
    LLM that reads the transcript."""
    answerer = Answerer(parents / "smollm2-135m-instruct", device)
    examples = [example for source in sources for example in transcripts(out / "mel", source, "train")]
    random.Random(0).shuffle(examples)
    pool = {task: texts for task, texts in prompts().items() if task != "repeat"} | {"": [""]}
    turns = []
    for example in examples[:count]:
        rng = random.Random(f"answer|{example.id}")
        turns.append(Turn(rng.choice(pool[rng.choice(sorted(pool))]), answerer.text(example.written)))
    with autocast(torch.device(device)):
        answers = answerer.answers(turns, limit, batch)
    rows = {e.id: [t.instruction, a] for e, t, a in zip(examples, turns, answers, strict=False)}
    (out / "answers.json").write_text(json.dumps(rows), encoding="utf-8")
    print(f"{len(rows)} answers; the first: {turns[0].instruction!r} {answerer.decode(answers[0])!r}")


def imitate(
    out: Path, parents: Path, name: str, start: str, settings: ImitationSettings, minutes: float, device: str = "cpu"
) -> None:
    """Trains from run `start`; writes `connector.safetensors` and, with LoRA, `adapter/`."""
    folder = out / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    answerer = Answerer(parents / "smollm2-135m-instruct", device)
    reader, vocabulary = load_reader(out / "runs" / start, parents, device)
    connector = reader.connector
    connector.load_vocabulary(torch.tensor(vocabulary.token_ids, device=device), answerer.table)
    vocabulary.save(folder / "vocabulary.json")
    reading = json.loads((out / "runs" / start / "settings.json").read_text(encoding="utf-8"))
    (folder / "settings.json").write_text(json.dumps(reading), encoding="utf-8")
    (folder / "imitation.json").write_text(json.dumps(asdict(settings)), encoding="utf-8")
    if (out / "runs" / start / "encoder").exists() and not (folder / "encoder").exists():
        (folder / "encoder").symlink_to((out / "runs" / start / "encoder").resolve())
    answers = json.loads((out / "answers.json").read_text(encoding="utf-8"))
    examples = [example for source in settings.sources for example in transcripts(out / "mel", source, "train")]
    for example in examples:
        example.classes = vocabulary.spell(example.text, answerer.tokenizer)
    for store in {id(example.store): example.store for example in examples}.values():
        store.load(device)
    examples = [
        example
        for example in examples
        if example.fits(RATE / 2 ** (1 + reading["convolutions"]))
        and (example.id in answers or settings.rank and cased(example))
    ]
    order = ReadingSettings(batch=settings.batch, seed=settings.seed)
    torch.manual_seed(settings.seed)
    if settings.rank:
        lora = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=LORA_TARGETS)
        adapted = get_peft_model(answerer.model, lora)
    connector.table.requires_grad_(False)
    own = [parameter for parameter in connector.parameters() if parameter.requires_grad]
    adapter = [parameter for parameter in answerer.model.parameters() if parameter.requires_grad]
    groups = [{"params": own, "peak": settings.connector_lr}, {"params": adapter, "peak": settings.lr}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01)
    augment, generator = Augmentation(), torch.Generator(device)
    repeat = prompts()["repeat"]
    recent, begin = [], time.monotonic()
    log(folder, "imitate: start", examples=len(examples), answered=sum(e.id in answers for e in examples))
    for step in range(settings.steps):
        rng = random.Random(f"{settings.seed}|imitate {step}")
        chosen = batch_at(step, examples, order)
        generator.manual_seed(settings.seed * 1_000_003 + step)
        with autocast(torch.device(device)):
            with torch.no_grad():
                frames, lengths = reader.frames(*augment(*reader.batch(chosen), generator))
            output = connector(frames, lengths)
        reading_loss = ctc(output.ctc_logits, output.ctc_lengths, [example.classes for example in chosen])
        heard = [row[used].float() for row, used in zip(output.embeddings, output.used, strict=True)]
        turns, read, repeats = [], [], []
        for example, request in zip(chosen, heard, strict=True):
            known = example.id in answers
            repeated = settings.rank > 0 and cased(example) and (not known or rng.random() < settings.repeat_share)
            if repeated:
                ids = answerer.tokenizer(example.written, add_special_tokens=False).input_ids
                instruction, answer = rng.choice(repeat), [*ids, answerer.tokenizer.eos_token_id]
            else:
                instruction, answer = answers[example.id]
            turns.append(Turn(instruction, request, answer))
            read.append(Turn(instruction, answerer.text(example.written), answer))
            repeats += [repeated] * len(answer)
        with autocast(torch.device(device)):
            student = answerer.answer_logits(turns).float().log_softmax(-1)
            with torch.no_grad(), adapted.disable_adapter() if settings.rank else nullcontext():
                teacher = answerer.answer_logits(read).float().log_softmax(-1)
        flags = torch.tensor(repeats, device=device)
        labels = torch.tensor([token for turn in turns for token in turn.answer], device=device)
        divergence = F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
        spelled = F.nll_loss(student, labels, reduction="none")
        loss = torch.where(flags, spelled, divergence).mean() + settings.ctc_weight * reading_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*own, *adapter], 1.0)
        spent = (time.monotonic() - begin) / (minutes * 60)
        rate = min((step + 1) / settings.warmup, 1 - step / settings.steps, max(1 - spent, 0.0))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        right = (student.argmax(-1) == labels).float()
        recent.append(torch.stack([loss, reading_loss, right[~flags].mean(), right[flags].mean()]).detach())
        over = spent >= 1 or step + 1 == settings.steps
        if (step + 1) % LOG_EVERY == 0 or over:
            values = torch.stack(recent[-LOG_EVERY:]).nanmean(0).tolist()
            numbers = dict(zip(("loss", "ctc", "agreement", "repeated"), values, strict=True))
            log(folder, "imitate", step=step + 1, **numbers, seconds=time.monotonic() - begin)
        if over:
            break
    save_file(half(connector), folder / "connector.safetensors")
    if settings.rank:
        adapted.save_pretrained(folder / "adapter")
    log(folder, "imitate: done", seconds=time.monotonic() - begin)


def cased(example: Example) -> bool:
    """Whether its text is written as people write, not in lower case throughout."""
    return example.written != example.written.lower()
