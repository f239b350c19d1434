"""Stage 2 of a model whose connector reads with Whisper's decoder (`whisper_reader`): LoRA on the LLM, by text.

    python -m benchmarks.small adapt --data DATA --parents PARENTS --out OUT --run NAME --minutes 60

Turns are made of text (`text_turns.py`), of three kinds:
- the words themselves: the transcript where there is one, else what Whisper wrote; sentences of SLURP, CLINC150 and
  NTREX; and a few words out of any of these. By cross-entropy, as an LLM of this size cannot repeat a sentence;
- a choice among labels, by cross-entropy: intents of SLURP and CLINC150, or which word was said;
- answers of the LLM itself, without the adapter, to instructions about the transcript, by the divergence from its
  distribution.

A second call goes on from `adapter/`; `log.txt` has losses and agreement.
"""

import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional as F

from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.training import autocast
from benchmarks.small.answering import Answerer, Turn, prompts
from benchmarks.small.speaking import sentences
from benchmarks.small.text_turns import Choices, Hearing, cut, pairs

LOG_EVERY = 10
TRANSCRIBE = "Transcribe the speech."  # what the pipeline asks without an instruction
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WORDS, CHOICE, ANSWER = "words", "choice", "answer"
LABEL_WEIGHT = 4.0  # of a label's tokens, which are few


@dataclass
class AdaptSettings:
    """A run of `adapt`.

    Args:
        batch, lr, rank: turns in an update, peak rate of AdamW (linear decay from three tenths of the time on), of
            LoRA.
        answered: recordings with an answer of the LLM; half of them have a transcript.
        words, choices: shares of the turns; the rest are answers.
        spoken, short, gold: shares of the turns for words that are text of no recording; that are a few words out of
            one; and whose recording has a transcript, which Whisper may have misread.
        tokens: that the reader may write, at most.
    """

    batch: int = 8
    lr: float = 4e-4
    rank: int = 16
    answered: int = 1000
    words: float = 0.55
    choices: float = 0.15
    spoken: float = 0.3
    short: float = 0.25
    gold: float = 0.15
    tokens: int = 50_000
    seed: int = 0


def teacher_answers(answerer: Answerer, rows: list[tuple[str, str, str]], path: Path) -> list[Turn]:
    """The LLM's answers to an instruction about each transcript, kept in `path`."""
    pool = {task: texts for task, texts in prompts().items() if task != "repeat"} | {"": [""]}
    turns = []
    for id, _, written in rows:
        rng = random.Random(f"answer|{id}")
        turns.append(Turn(rng.choice(pool[rng.choice(sorted(pool))]), answerer.text(written)))
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [number for number, row in enumerate(rows) if row[0] not in known]
    with autocast(torch.device("cpu")):
        found = answerer.answers([turns[number] for number in missing], 32, 24)
    known |= {rows[number][0]: answer for number, answer in zip(missing, found, strict=True)}
    path.with_suffix(".partial").write_text(json.dumps(known), encoding="utf-8")
    path.with_suffix(".partial").replace(path)
    for turn, (id, _, _) in zip(turns, rows, strict=True):
        turn.answer = known[id]
    return turns


class Turns:
    """Random turns with their kind, and of each answer what the LLM that reads gets in place of it."""

    def __init__(self, answerer: Answerer, hearing: Hearing, data: Path, out: Path, settings: AdaptSettings):
        self.answerer, self.hearing, self.settings = answerer, hearing, settings
        self.rows = pairs(data, out / "readings.jsonl")
        random.Random(0).shuffle(self.rows)
        self.gold = [row for row in self.rows if row[0].startswith("cv_en/")]
        self.plain = [row["text"] for row in sentences(data) if row["split"] == "train"]
        self.choices = Choices(data)
        first = self.gold[: settings.answered // 2]
        known = {id for id, _, _ in first}
        self.answered = [*first, *[row for row in self.rows if row[0] not in known]][: settings.answered]
        self.taught = teacher_answers(answerer, self.answered, out / "adapt_answers.json")
        self.repeat = [*prompts()["repeat"], *[TRANSCRIBE] * 6]

    def ended(self, text: str) -> list[int]:
        tokenizer = self.answerer.tokenizer
        return [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]

    def __call__(self, rng: random.Random) -> tuple[str, Turn, Turn | None]:
        settings, drawn = self.settings, rng.random()
        if drawn < settings.choices:
            text, instruction, answer = self.choices(rng)
            return CHOICE, Turn(instruction, self.hearing(text, rng), self.ended(answer)), None
        if drawn < settings.choices + settings.words:
            if rng.random() < settings.spoken:
                read = written = rng.choice(self.plain)
            else:
                _, read, written = rng.choice(self.gold if rng.random() < settings.gold else self.rows)
            if rng.random() < settings.short:
                read = written = cut(read, rng)
            return WORDS, Turn(rng.choice(self.repeat), self.hearing(read, rng), self.ended(written)), None
        number = rng.randrange(len(self.taught))
        taught, (_, read, _) = self.taught[number], self.answered[number]
        return ANSWER, Turn(taught.instruction, self.hearing(read, rng), taught.answer), taught


def update(
    answerer: Answerer, adapted: PeftModel, turns: Iterable[tuple[str, Turn, Turn | None]]
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of some turns, and per kind the share of tokens that were the likeliest."""
    turns = sorted(turns, key=lambda each: each[0])  # answers first
    kinds = [kind for kind, turn, _ in turns for _ in turn.answer]
    labels = torch.tensor([token for _, turn, _ in turns for token in turn.answer])
    taught = [teacher for _, _, teacher in turns if teacher is not None]
    with autocast(torch.device("cpu")):
        scores = answerer.answer_logits([turn for _, turn, _ in turns]).float().log_softmax(-1)
        with torch.no_grad(), adapted.disable_adapter():
            wanted = answerer.answer_logits(taught).float().log_softmax(-1) if taught else scores[:0]
    count = len(wanted)
    losses = torch.cat(
        [
            F.kl_div(scores[:count], wanted, log_target=True, reduction="none").sum(-1),
            F.nll_loss(scores[count:], labels[count:], reduction="none"),
        ]
    )
    weights = torch.tensor([LABEL_WEIGHT if kind == CHOICE else 1.0 for kind in kinds])
    right = (scores.argmax(-1) == labels).float()
    shares = {}
    for kind in (WORDS, CHOICE, ANSWER):
        of_kind = torch.tensor([each == kind for each in kinds])
        shares[kind] = right[of_kind].mean().item()
        shares[f"{kind}_loss"] = losses.detach()[of_kind].mean().item()
    return (losses * weights).sum() / weights.sum(), shares


def brought_to(rank: int, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LoRA's pairs of another rank at their nearest ones of `rank`; alpha is twice the rank in both."""
    found = {}
    for name in (key for key in weights if ".lora_A." in key):
        other = name.replace(".lora_A.", ".lora_B.")
        left, sizes, right = torch.linalg.svd(weights[other] @ weights[name], full_matrices=False)
        roots = sizes[:rank].sqrt()
        found |= {name: roots[:, None] * right[:rank], other: left[:, :rank] * roots}
    return {key: value.contiguous() for key, value in found.items()}


def adapt(
    data: Path, parents: Path, out: Path, name: str, minutes: float, settings: AdaptSettings, start: str | None = None
) -> None:
    """Trains LoRA for so many minutes, from the adapter that the run has, else from that of the run `start`."""
    folder = out / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    answerer = Answerer(parents / "smollm2-135m-instruct")
    hearing = Hearing(
        parents / "whisper-base", parents / "smollm2-135m-instruct", answerer.table.detach(), settings.tokens
    )
    begin = time.monotonic()
    draw = Turns(answerer, hearing, data, out, settings)
    seconds = time.monotonic() - begin
    log(folder, "adapt: answers", rows=len(draw.rows), gold=len(draw.gold), answers=len(draw.taught), seconds=seconds)
    torch.manual_seed(settings.seed)
    if (folder / "adapter").exists():
        adapted = PeftModel.from_pretrained(answerer.model, folder / "adapter", is_trainable=True)
    else:
        lora = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=LORA_TARGETS)
        adapted = get_peft_model(answerer.model, lora)
        if start is not None:
            weights = load_file(out / "runs" / start / "adapter/adapter_model.safetensors")
            set_peft_model_state_dict(adapted, brought_to(settings.rank, weights))
    trained = [parameter for parameter in answerer.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=0.01)
    begin, recent, step = time.monotonic(), [], 0
    while (spent := (time.monotonic() - begin) / (minutes * 60)) < 1:
        rng = random.Random(f"{settings.seed}|adapt {step}")
        loss, shares = update(answerer, adapted, [draw(rng) for _ in range(settings.batch)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min((step + 1) / 20, 1.0, (1 - spent) / 0.7)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(shares)
        step += 1
        if step % LOG_EVERY == 0:
            means = {
                key: torch.tensor([each[key] for each in recent[-LOG_EVERY:]]).nanmean().item() for key in recent[-1]
            }
            log(folder, "adapt", step=step, **means, seconds=time.monotonic() - begin)
        if step % 50 == 0:
            adapted.save_pretrained(folder / "adapter")
    adapted.save_pretrained(folder / "adapter")
    log(folder, "adapt: done", steps=step, seconds=time.monotonic() - begin)
