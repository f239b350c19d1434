"""`speechllm encode` and `speechllm targets` against the bare model on the same batches.

    python -m benchmarks.frozen_passes --encoder WHISPER_BASE --llm SMOLLM2_135M

Encode: everything it does (decode, features, encoder, writing) over the encoder alone on the same batches. Targets:
everything over a loop of nothing but forward passes on the same prompts, as many as the batch's longest answer needs.
Both in turns, CPU seconds (wall seconds on a GPU), the median of the ratios. Also told: which share of the batches'
positions is padding, and which share of the decoded tokens stands in answers.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch

from .loading import FORMATS, rows_of, speech

QUESTIONS = [
    "What is the capital of France?",
    "Name three fruits.",
    "Repeat this sentence: turn off the radio in the kitchen.",
    "Write one sentence about rain.",
    "Is a whale a fish? Answer with yes or no.",
    "Translate 'good morning' into Spanish.",
    "What is two plus three?",
    "Tell me a short story about a dog that finds a bone in the garden and shares it with a cat.",
]


def clock(on_gpu: bool) -> float:
    if on_gpu:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def encoding(encoder: str, llm: str, device: str, clips: int, turns: int) -> str:
    """A row of the table for `encode`."""
    from modeling_speechllm import SpeechLLMForConditionalGeneration
    from processing_speechllm import SpeechLLMProcessor
    from trainers.cache.config import EncodeConfig
    from trainers.cache.encode import BATCHES_PER_WINDOW, encode_share
    from trainers.cache.prepared_rows import batches_by_length, pad_features, prepare_row, windows_of

    model = SpeechLLMForConditionalGeneration.from_parts(encoder, llm).to(device).eval()
    processor = SpeechLLMProcessor.from_parts(encoder, llm, model.config)
    tower = model.model.audio_tower.requires_grad_(False)
    rows = []
    for number in range(clips):
        samples = speech(2.0 + 10.0 * number / max(clips - 1, 1))
        rows.append(rows_of(samples, FORMATS["FLAC"], 1)[0] | {"id": str(number)})
    settings = {"batch_seconds": 60.0, "decoding_threads": 1}
    prepared = [prepare_row(processor, row["id"], row) for row in rows]
    positions = settings["batch_seconds"] * 100
    windows = windows_of(prepared, BATCHES_PER_WINDOW * settings["batch_seconds"])
    batches = [batch for window in windows for batch in batches_by_length(window, positions)]
    pairs = [
        (
            pad_features([feature for row in batch for feature in row.features.values()]).to(device),
            pad_features([mask for row in batch for mask in row.masks]).to(device),
        )
        for batch in batches
    ]

    def bare() -> None:
        with torch.no_grad():
            for features, masks in pairs:
                tower(features, masks)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            encode_share(model, processor, rows, EncodeConfig(output_dir=folder, **settings))

    valid = sum(int(masks.sum()) for _, masks in pairs)
    padding = 1 - valid / sum(masks.numel() for _, masks in pairs)
    ratio, seconds = in_turns(bare, whole, device == "cuda", turns)
    audio = sum(sum(row.seconds.values()) for row in prepared)
    return f"| encode | {audio / seconds:,.0f} audio s/s | {ratio:.2f} | {padding:.0%} padding |"


def answering(llm: str, device: str, questions: int, turns: int) -> str:
    """A row of the table for `targets`."""
    from trainers.targets.backends import LocalBackend, Question, load_llm

    model, tokenizer = load_llm(llm, dtype="float32" if device == "cpu" else "bfloat16")
    backend = LocalBackend(model.to(device), tokenizer, batch_size=16, max_new_tokens=32)
    asked = [
        Question([{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}], number)
        for number in range(questions)
    ]
    answers = backend.answer(asked, lambda done: None)
    prompts = [backend.encode(question.chat) for question in asked]
    tokens = [len(tokenizer(answer.text, add_special_tokens=False)["input_ids"]) for answer in answers]
    order = sorted(range(questions), key=lambda index: (len(prompts[index]), index))
    batches = [order[start : start + 16] for start in range(0, questions, 16)]
    steps = [min(max(tokens[index] for index in batch) + 1, 32) for batch in batches]

    @torch.no_grad()
    def bare() -> None:
        for batch, count in zip(batches, steps, strict=True):
            longest = max(len(prompts[index]) for index in batch)
            rows = [[backend.pad] * (longest - len(prompts[index])) + prompts[index] for index in batch]
            ids = torch.tensor(rows, device=device)
            mask = torch.tensor(
                [[0] * (longest - len(prompts[index])) + [1] * len(prompts[index]) for index in batch], device=device
            )
            cache = None
            for _ in range(count):
                places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
                output = model(ids, attention_mask=mask, position_ids=places, **cache or {}, logits_to_keep=1)
                name = "cache" if output.get("cache") is not None else "past_key_values"
                cache = {name: output[name]}
                ids = output.logits[:, -1].argmax(-1, keepdim=True)
                mask = torch.cat([mask, torch.ones_like(ids)], dim=1)

    ratio, seconds = in_turns(bare, lambda: backend.answer(asked, lambda done: None), device == "cuda", turns)
    made = sum(tokens) + questions
    share = made / sum(len(batch) * count for batch, count in zip(batches, steps, strict=True))
    told = f"{min(share, 1.0):.0%} of decoded tokens in answers"
    return f"| targets | {made / seconds:,.0f} tokens/s | {ratio:.2f} | {told} |"


def in_turns(bare: Any, whole: Any, on_gpu: bool, turns: int) -> tuple[float, float]:
    """(median of bare over whole, median seconds of whole), after one of each."""
    ratios, seconds = [], []
    for turn in range(turns + 1):
        times = []
        for function in (bare, whole):
            begin = clock(on_gpu)
            function()
            times.append(clock(on_gpu) - begin)
        if turn:
            ratios.append(times[0] / times[1])
            seconds.append(times[1])
    return statistics.median(ratios), statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frozen_passes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--encoder", required=True, help="Hub id or folder of a Whisper checkpoint")
    parser.add_argument("--llm", required=True, help="Hub id or folder of a causal LM that chats")
    parser.add_argument("--clips", type=int, default=24, help="clips to encode, of 2 to 12 s")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print("| command | rate | share of the bare model's speed | |\n|---|---:|---:|---|")
    print(encoding(arguments.encoder, arguments.llm, device, arguments.clips, arguments.turns), flush=True)
    print(answering(arguments.llm, device, arguments.questions, arguments.turns), flush=True)


if __name__ == "__main__":
    main()
