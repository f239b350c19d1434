"""Stage 1: the nano LLM, a small Llama trained from scratch on text.

    python -m benchmarks.nanoworld.train_llm --out build/nanoworld

Unusual: the loss stands on the answers, plus a small part on everything else (it forms word meanings and copying
early); the request's tokens are sometimes spaced out by placeholders (see `conversations.py`).
"""

import argparse
import random
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.nanoworld.conversations import IGNORED, Encoder, collate, draw_conversation, draw_scrambled
from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.tokenizer import get_tokenizer
from benchmarks.nanoworld.training import Optimizer, autocast, load_checkpoint, save_checkpoint

STEPS = 2900
BATCH = 64  # conversations
POOL = 8  # batches drawn together and sorted by length
LR = 3e-3
DECAY = 0.4  # share of the updates over which the rate falls
REST_WEIGHT = 0.1  # of the loss on instructions and requests
SCRAMBLED_FROM = 1000  # updates; from here on some requests are scrambled, see `draw_scrambled`
SCRAMBLED_SHARE = 0.2
HARD_FROM = 1504  # updates; from here on there are more sums and contexts
SPOKEN_FROM = 2904  # after STEPS: a second phase, on requests spaced as speech is
SPOKEN_STEPS = 600
SPOKEN_LR = 1e-3
SPOKEN_SHARE = 0.7
SEED = 1
SAVE_EVERY = 100
CHECK_EVERY = 200


def llm_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """About 3.7 M parameters, embeddings tied."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def batch_at(step: int, encoder: Encoder, cache: dict) -> dict[str, torch.Tensor]:
    """The batch of a step, a function of the step alone; a pool of batches is sorted by length to save padding."""
    pool = step // POOL
    if cache.get("pool") != pool:
        rng = random.Random(f"{SEED}|{pool}")
        first = pool * POOL  # what a pool holds must not depend on where a run was resumed
        share = SCRAMBLED_SHARE if first >= SCRAMBLED_FROM else 0.0
        samples = []
        for _ in range(POOL * BATCH):
            if share and rng.random() < share:
                conversation = draw_scrambled(rng)
            else:
                conversation = draw_conversation("train", rng, hard=first >= HARD_FROM)
            samples.append(encoder.sample(conversation, rng, SPOKEN_SHARE if first >= SPOKEN_FROM else 0.0))
        samples.sort(key=lambda sample: len(sample[0]))
        batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
        rng.shuffle(batches)
        cache |= {"pool": pool, "batches": batches}
    return collate(cache["batches"][step % POOL], encoder.tokenizer.pad_token_id)


def losses(model: LlamaForCausalLM, batch: dict[str, torch.Tensor], audio: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the answers, and of the other tokens (placeholders left out)."""
    with autocast(model.device):
        hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        target, answer = batch["input_ids"][:, 1:], batch["labels"][:, 1:] != IGNORED
        rest = batch["attention_mask"][:, 1:].bool() & ~answer & (target != audio)
        used = answer | rest
        logits = model.lm_head(hidden[:, :-1][used])
    each = F.cross_entropy(logits.float(), target[used], reduction="none")
    is_answer = answer[used]
    return each[is_answer].mean(), each[~is_answer].mean()


@torch.no_grad()
def exact_match(
    model: LlamaForCausalLM, encoder: Encoder, count: int = 600, spoken_share: float = 0.0
) -> dict[str, float]:
    """Share of answers that greedy decoding gets exactly right on validation sentences, in all and by task."""
    rng = random.Random(SEED + 1)
    rows = []
    for _ in range(count):
        conversation = draw_conversation("validation", rng)
        conversation.examples = conversation.examples[:1]
        rows.append((conversation.examples[0].task, encoder.sample(conversation, rng, spoken_share)))
    rows.sort(key=lambda row: len(row[1][0]))
    right: dict[str, list[bool]] = {}
    for start in range(0, count, 50):
        part = rows[start : start + 50]
        batch = collate([sample for _, sample in part], encoder.tokenizer.pad_token_id)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with autocast(model.device):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        # Greedy decoding gives the answer exactly if every token is the best one after the right prefix.
        wrong = (logits[:, :-1].argmax(-1) != batch["labels"][:, 1:]) & (batch["labels"][:, 1:] != IGNORED)
        for (task, _), bad in zip(part, wrong.any(1).tolist(), strict=True):
            right.setdefault(task, []).append(not bad)
    everything = [hit for hits in right.values() for hit in hits]
    return {"all": sum(everything) / len(everything)} | {task: sum(h) / len(h) for task, h in sorted(right.items())}


def run_phase(
    out: Path, name: str, model: LlamaForCausalLM, encoder: Encoder, optimizer: Optimizer, start: int
) -> None:
    """Trains one phase to its end, from its last checkpoint if any; `start` is the updates of earlier phases."""
    checkpoint = out / f"{name}.checkpoint.safetensors"
    done, seconds = load_checkpoint(checkpoint, model, optimizer)
    log(out, f"{name}: start", step=done, parameters=sum(parameter.numel() for parameter in model.parameters()))
    begin, cache, seen = time.monotonic() - seconds, {}, 0
    for step in tqdm(range(done, optimizer.steps), desc=name, initial=done, total=optimizer.steps, mininterval=5):
        batch = {key: tensor.to(model.device) for key, tensor in batch_at(start + step, encoder, cache).items()}
        answers, rest = losses(model, batch, encoder.audio)
        (answers + REST_WEIGHT * rest).backward()
        optimizer.update(step)
        seen += int(batch["attention_mask"].sum())
        last = step + 1 == optimizer.steps
        if last or (step + 1) % SAVE_EVERY == 0:
            spent = time.monotonic() - begin
            save_checkpoint(checkpoint, model, optimizer, step + 1, spent)
            log(out, name, step=step + 1, answers=answers.item(), rest=rest.item(), seconds=spent, tokens=seen)
        if last or (step + 1) % CHECK_EVERY == 0:
            log(out, f"{name}: validation", step=step + 1, **exact_match(model, encoder))
            log(out, f"{name}: validation, spoken", step=step + 1, **exact_match(model, encoder, spoken_share=1.0))
            if last:
                log(out, f"{name}: done", seconds=time.monotonic() - begin)


def train(out: Path, threads: int = 1, device: str = "cpu") -> None:
    """Trains to the end (from the last checkpoint, if any) and saves LLM and tokenizer to `out/llm`."""
    folder = out / "llm"
    if (folder / "model.safetensors").exists():
        return
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    tokenizer = get_tokenizer(folder)
    model = LlamaForCausalLM(llm_config(tokenizer)).to(device)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    encoder = Encoder(tokenizer)
    run_phase(out, "llm", model, encoder, Optimizer(model, STEPS, LR, decay=DECAY), 0)
    spoken = Optimizer(model, SPOKEN_STEPS, SPOKEN_LR, warmup=20, decay=1.0)
    run_phase(out, "llm-spoken", model, encoder, spoken, SPOKEN_FROM)
    model.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nanoworld"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    train(**vars(parser.parse_args()))
