"""Stage 2 of a model whose connector reads with Whisper's decoder (`whisper_reader`): LoRA on the LLM, by text.

    python -m benchmarks.small adapt --data DATA --parents PARENTS --out OUT --run NAME --minutes 25

What such a connector gives the LLM is nearly one embedding of its own per token that Whisper wrote, so it can be had
from Whisper's readings (`hear`) without the audio, as TASU does with simulated CTC posteriors (arXiv 2511.03310). Half
of the turns ask for the words themselves: the answer is the transcript, where there is one, else what Whisper wrote.
The others are the LLM's own answers to instructions about the transcript, by the divergence from its distribution
without the adapter. A second call goes on from `adapter/`; `log.txt` has losses and agreement.
"""

import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import AutoTokenizer

from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.training import autocast
from benchmarks.small.answering import Answerer, Turn, prompts
from benchmarks.small.corpora import recordings
from benchmarks.small.hearing import load_readings, trustworthy
from modeling_speechllm.parents import reading_vocabulary

END = 50257  # of Whisper's text tokens
LOG_EVERY = 10
TRANSCRIBE = "Transcribe the speech."  # what the pipeline asks without an instruction
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def pairs(data: Path, readings: Path) -> list[tuple[str, str, str]]:
    """(id, what Whisper read, the transcript or else the reading) of recordings for training."""
    known, found = load_readings(readings), []
    for source in ("cv_en", "cv_unlabelled"):
        for recording in recordings(data, source):
            read = known.get(recording.id)
            if read is None or recording.split != "train" or not read["text"]:
                continue
            if recording.text is not None or trustworthy({"read": read}, recording.seconds()):
                found.append((recording.id, read["text"], recording.text or read["text"]))
    return found


def heard(answerer: Answerer, whisper: AutoTokenizer, vocabulary: dict[int, list[int]], text: str) -> torch.Tensor:
    """What the connector would give of a reading, (tokens, size)."""
    ids = [id for id in whisper(" " + text, add_special_tokens=False).input_ids if id in vocabulary]
    rows = [answerer.table[torch.tensor(vocabulary[id])].mean(0) for id in ids]
    return torch.stack(rows) if rows else answerer.table.new_zeros(0, answerer.table.shape[1])


def adapt(
    data: Path, parents: Path, out: Path, name: str, minutes: float, batch: int = 8, rank: int = 16, lr: float = 4e-4,
    answered: int = 600, share: float = 0.5, gold_share: float = 0.5, seed: int = 0,
) -> None:  # fmt: skip
    """Trains LoRA for so many minutes; `answered` recordings have an answer of the LLM, `share` of the turns ask for
    the words themselves, `gold_share` of those about recordings with a transcript."""
    folder = out / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    answerer = Answerer(parents / "smollm2-135m-instruct")
    whisper = AutoTokenizer.from_pretrained(parents / "whisper-base")
    vocabulary = reading_vocabulary(str(parents / "whisper-base"), str(parents / "smollm2-135m-instruct"), END)
    rows = pairs(data, out / "readings.jsonl")
    random.Random(seed).shuffle(rows)
    gold = [row for row in rows if row[0].startswith("cv_en/")]
    pool = {task: texts for task, texts in prompts().items() if task != "repeat"} | {"": [""]}
    rng = random.Random(seed)
    chosen = rows[:answered]
    turns = [Turn(rng.choice(pool[rng.choice(sorted(pool))]), answerer.text(written)) for _, _, written in chosen]
    begin = time.monotonic()
    with autocast(torch.device("cpu")):
        answers = answerer.answers(turns, 24)
    log(
        folder,
        "adapt: answers",
        rows=len(rows),
        gold=len(gold),
        answers=len(answers),
        seconds=time.monotonic() - begin,
    )
    torch.manual_seed(seed)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS)
    if (folder / "adapter").exists():
        adapted = PeftModel.from_pretrained(answerer.model, folder / "adapter", is_trainable=True)
    else:
        adapted = get_peft_model(answerer.model, lora)
    trained = [parameter for parameter in answerer.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    repeat = [*prompts()["repeat"], *[TRANSCRIBE] * 6]
    begin, recent, step = time.monotonic(), [], 0
    while (spent := (time.monotonic() - begin) / (minutes * 60)) < 1:
        rng = random.Random(f"{seed}|adapt {step}")
        student, teacher, flags = [], [], []
        for _ in range(batch):
            words = rng.random() < share
            if words:
                _, read, written = rng.choice(gold if rng.random() < gold_share else rows)
                instruction = rng.choice(repeat)
                answer = answerer.tokenizer(written, add_special_tokens=False).input_ids
                answer = [*answer, answerer.tokenizer.eos_token_id]
            else:
                number = rng.randrange(len(chosen))
                (_, read, written), instruction, answer = chosen[number], turns[number].instruction, answers[number]
                teacher.append(Turn(instruction, answerer.text(written), answer))
            student.append((words, Turn(instruction, heard(answerer, whisper, vocabulary, read), answer)))
        student.sort(key=lambda pair: pair[0])  # those with a teacher first, in its order
        flags = torch.tensor([words for words, turn in student for _ in turn.answer])
        labels = torch.tensor([token for _, turn in student for token in turn.answer])
        with autocast(torch.device("cpu")):
            scores = answerer.answer_logits([turn for _, turn in student]).float().log_softmax(-1)
            with torch.no_grad(), adapted.disable_adapter():
                wanted = answerer.answer_logits(teacher).float().log_softmax(-1) if teacher else scores[:0]
        divergence = F.kl_div(scores[~flags], wanted, log_target=True, reduction="none").sum(-1)
        spelled = F.nll_loss(scores[flags], labels[flags], reduction="none")
        loss = (divergence.sum() + spelled.sum()) / len(labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 20, 1.0, (1 - spent) / 0.7)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        right = (scores.argmax(-1) == labels).float()
        recent.append(torch.stack([loss, spelled.mean(), right[flags].mean(), right[~flags].mean()]).detach())
        step += 1
        if step % LOG_EVERY == 0:
            values = torch.stack(recent[-LOG_EVERY:]).nanmean(0).tolist()
            names = ("loss", "words", "repeated", "agreement")
            log(folder, "adapt", step=step, **dict(zip(names, values, strict=True)), seconds=time.monotonic() - begin)
        if step % 50 == 0:
            adapted.save_pretrained(folder / "adapter")
    adapted.save_pretrained(folder / "adapter")
    log(folder, "adapt: done", steps=step, seconds=time.monotonic() - begin)
