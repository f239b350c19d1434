"""Stage 3: the connector, trained on the LLM's own answers; encoder and LLM are frozen.

    python -m benchmarks.nanoworld.train_connector --out build/nanoworld
    python -m benchmarks.nanoworld.train_connector --out build/fsdd --data DIGITS --steps 300 \\
        --audio WHISPER --text build/nanoworld/llm --stride 4 --width 8

For each sentence the LLM answers a few prompts about the transcript; the connector learns, by cross-entropy, to make
it give the same answers to the recording. The second command joins any other encoder and trains on a folder of spoken
digits (`manifest.jsonl`), then reports through the pipeline how many digits of the unseen speakers are right.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoFeatureExtractor, PreTrainedModel

from benchmarks.nanoworld.answering import Question, Reader
from benchmarks.nanoworld.clips import Clip, digit_clips, digit_rows, nano_clips
from benchmarks.nanoworld.connector_start import start_from_ctc
from benchmarks.nanoworld.conversations import IGNORED, REQUEST_FIRST_SHARE, TASK_WEIGHTS, Encoder
from benchmarks.nanoworld.logbook import log
from benchmarks.nanoworld.tasks import draw, tasks_for
from benchmarks.nanoworld.tokenizer import get_tokenizer
from benchmarks.nanoworld.train_encoder import load_trained
from benchmarks.nanoworld.training import Optimizer, autocast, load_checkpoint, save_checkpoint
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechLLMProcessor

STEPS = 1600
BATCH = 64  # recordings
POOL = 8  # batches drawn together and sorted by length
LR = 5e-4
SEED = 3
PROMPTS_PER_SENTENCE = 5
SAVE_EVERY = 100
CHECK_EVERY = 200


def compose(audio: Path, text: Path, **settings) -> SpeechLLMForConditionalGeneration:
    """Encoder folder and LLM folder joined by a new stack-MLP connector of these settings; both come out frozen."""
    settings = {"type": "stack_mlp"} | settings
    torch.manual_seed(SEED)
    return SpeechLLMForConditionalGeneration.from_parts(audio=str(audio), text=str(text), connector=settings)


def imitation_targets(path: Path, reader: Reader, clips: list[Clip]) -> dict[str, list[dict]]:
    """For every sentence among the clips a few instructions and the LLM's greedy answers to them, kept in `path`."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    encoder = reader.encoder
    sentences = {clip.request.text(clip.language): clip for clip in clips}
    rows, questions = [], []
    for sentence, clip in sentences.items():
        rng = random.Random(f"{SEED}|{sentence}")
        tasks = tasks_for(clip.request, clip.language)
        for task in rng.choices(tasks, [TASK_WEIGHTS.get(task, 1.0) for task in tasks], k=PROMPTS_PER_SENTENCE):
            example = draw(task, clip.request, clip.language, rng)
            first = rng.random() < REQUEST_FIRST_SHARE
            rows.append((sentence, task))
            request, answer = encoder.ids(sentence), encoder.ids(example.answer)
            questions.append(Question(example.instruction, request, answer, first))
    targets: dict[str, list[dict]] = {}
    # Where the exact answer is the greedy one there is nothing to generate.
    differing = [question for question, right in zip(questions, reader.exact(questions), strict=True) if not right]
    for question, answer in zip(differing, reader.greedy(differing), strict=True):
        question.answer = answer
    for (sentence, task), question in zip(rows, questions, strict=True):
        row = {
            "task": task,
            "instruction": question.instruction,
            "answer": question.answer,
            "first": question.request_first,
        }
        targets.setdefault(sentence, []).append(row)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(targets, ensure_ascii=False), encoding="utf-8")
    partial.replace(path)
    return targets


def batch_at(step: int, clips: list[Clip], targets: dict[str, list[dict]]) -> list[Question]:
    """The questions of a step, a function of the step alone: an epoch is a permutation of the recordings, in pools of
    batches that are sorted by length."""
    batches = min(POOL, max(len(clips) // BATCH, 1))
    pool, turn = divmod(step, batches)
    pools_per_epoch = max(len(clips) // (batches * BATCH), 1)
    order = list(range(len(clips)))
    random.Random(f"{SEED}|epoch {pool // pools_per_epoch}").shuffle(order)
    start = pool % pools_per_epoch * batches * BATCH
    chosen = sorted(order[start : start + batches * BATCH], key=lambda index: len(clips[index].frames))
    parts = [chosen[first : first + BATCH] for first in range(0, len(chosen), BATCH)]
    random.Random(f"{SEED}|pool {pool}").shuffle(parts)
    rng = random.Random(f"{SEED}|step {step}")
    questions = []
    for index in parts[turn]:
        clip = clips[index]
        row = rng.choice(targets[clip.request.text(clip.language)])
        questions.append(Question(row["instruction"], clip.frames, row["answer"], row["first"]))
    return questions


def check(reader: Reader, clips: list[Clip], count: int = 600) -> dict[str, float]:
    """Exact answers on unseen recordings, in all, by task and by language."""
    rng = random.Random(SEED)
    names, questions = [], []
    for clip in rng.sample(clips, min(count, len(clips))):
        task = rng.choice(tasks_for(clip.request, clip.language))
        example = draw(task, clip.request, clip.language, rng)
        names.append((task, clip.language))
        questions.append(Question(example.instruction, clip.frames, reader.encoder.ids(example.answer)))
    hits: dict[str, list[bool]] = {"all": []}
    for (task, language), right in zip(names, reader.exact(questions), strict=True):
        for name in ("all", task, language):
            hits.setdefault(name, []).append(right)
    return {name: sum(found) / len(found) for name, found in hits.items()}


def fit(
    out: Path,
    model: PreTrainedModel,
    encoder: Encoder,
    clips: list[Clip],
    unseen: list[Clip],
    steps: int,
    lr: float = LR,
    adamw_names: tuple[str, ...] = ("",),
) -> None:
    """Trains the connector to the end (from the last checkpoint, if any).

    Muon would move every direction of its matrices alike and undo a good start; all is AdamW's unless names say not.
    """
    reader, projector = Reader(model, encoder), model.model.multi_modal_projector
    begin = time.monotonic()
    targets = imitation_targets(out / "targets.json", reader, clips)
    log(out, "connector: targets", sentences=len(targets), seconds=time.monotonic() - begin)
    optimizer, checkpoint = Optimizer(projector, steps, lr, adamw_names), out / "connector.checkpoint.safetensors"
    done, seconds = load_checkpoint(checkpoint, projector, optimizer)
    parameters = sum(parameter.numel() for parameter in projector.parameters())
    log(out, "connector: start", step=done, parameters=parameters, recordings=len(clips))
    begin, recent = time.monotonic() - seconds, []
    for step in tqdm(range(done, steps), desc="connector", initial=done, total=steps, mininterval=5):
        with autocast(model.device):
            logits, labels = reader.logits(batch_at(step, clips, targets))
        loss = F.cross_entropy(logits.float(), labels[labels != IGNORED])
        loss.backward()
        optimizer.update(step)
        recent.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0:
            spent = time.monotonic() - begin
            save_checkpoint(checkpoint, projector, optimizer, step + 1, spent)
            mean = sum(recent[-SAVE_EVERY:]) / len(recent[-SAVE_EVERY:])
            log(out, "connector", step=step + 1, loss=mean, seconds=spent)
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            log(out, "connector: validation", step=step + 1, **check(reader, unseen))
    log(out, "connector: done", seconds=time.monotonic() - begin)


def train(
    out: Path, steps: int = STEPS, stride: int = 1, width: int = 3, threads: int = 2, device: str = "cpu"
) -> None:
    """Trains the nano connector and saves the whole SpeechLLM with its processor to `out/nano`, in half precision."""
    folder = out / "nano"
    if (folder / "model.safetensors").exists():
        return
    torch.set_num_threads(threads)
    ctc = load_trained(out).to(device)
    gates = {"hidden_size": len(ctc.head.weight), "activation": "sigmoid", "norm": False, "bias": True}
    model = compose(out / "encoder", out / "llm", stride=stride, width=width, **gates).to(device)
    tower = model.model.audio_tower
    clips, unseen = nano_clips(out, "train", tower), nano_clips(out, "validation", tower)
    encoder = Encoder(get_tokenizer(out / "llm"))
    start_from_ctc(model.model.multi_modal_projector, ctc, model.get_input_embeddings().weight, clips, encoder.audio)
    fit(out, model, encoder, clips, unseen, steps)
    processor = SpeechLLMProcessor.from_parts(out / "encoder", out / "llm", model.config, max_audio_seconds=60.0)
    save(model, processor, folder)


def save(model: PreTrainedModel, processor: SpeechLLMProcessor, folder: Path) -> None:
    """Model in float16, to be loaded in float32, and processor, without names of local folders."""
    model.config.parents = None
    processor.save_pretrained(folder)
    model.half().save_pretrained(folder)
    model.config.dtype = model.config.audio_config.dtype = model.config.text_config.dtype = torch.float32
    model.config.save_pretrained(folder)


def train_digits(
    out: Path,
    data: Path,
    audio: Path,
    text: Path,
    unseen: tuple[str, ...],
    steps: int,
    stride: int,
    width: int,
    threads: int,
    device: str,
) -> None:
    """Trains a connector from any encoder to the nano LLM on spoken digits; reports accuracy on unseen speakers."""
    from benchmarks.nanoworld.evaluate import digit_accuracy

    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    model = compose(audio, text, stride=stride, width=width, hidden_size=512).to(device)
    extractor, tower = AutoFeatureExtractor.from_pretrained(audio), model.model.audio_tower
    clips = digit_clips(data, out, "train", digit_rows(data, unseen, False), tower, extractor)
    rows = digit_rows(data, unseen, True)
    unseen_clips = digit_clips(data, out, "unseen", rows, tower, extractor)
    fit(out, model, Encoder(get_tokenizer(text)), clips, unseen_clips, steps, lr=2e-3, adamw_names=("norm",))
    save(model, SpeechLLMProcessor.from_parts(audio, text, model.config), out / "model")
    log(out, "digits: unseen speakers", **digit_accuracy(out / "model", data, rows, out))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nanoworld"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stride", type=int, default=1, help="encoder frames per audio token")
    parser.add_argument("--width", type=int, default=3, help="encoder frames stacked into one audio token")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="folder of spoken digits with a manifest.jsonl")
    parser.add_argument("--audio", type=Path, help="speech encoder, with --data")
    parser.add_argument("--text", type=Path, help="nano LLM folder, with --data")
    parser.add_argument("--unseen", nargs="+", default=["george", "theo"], help="test speakers, with --data")
    arguments = vars(parser.parse_args())
    if arguments["data"] is None:
        train(**{name: arguments[name] for name in ("out", "steps", "stride", "width", "threads", "device")})
    else:
        train_digits(**arguments)
