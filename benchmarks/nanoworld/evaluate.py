"""What the nano model can do, on voices and sentences that no training saw.

    python -m benchmarks.nanoworld.evaluate --out build/nanoworld

Every test recording is asked all its tasks, once each, in three ways: the LLM reads the true transcript (text, the
upper bound), the LLM reads the encoder's greedy CTC transcript (cascade), and the SpeechLLM hears the recording
(speech). Scores are exact matches in per cent. Paraphrases that no training saw are asked too. Prints tables, writes
`evaluation.json`.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.nanoworld import speech
from benchmarks.nanoworld.answering import Question, Reader
from benchmarks.nanoworld.clips import Clip, nano_clips
from benchmarks.nanoworld.conversations import Encoder
from benchmarks.nanoworld.tasks import TASKS, draw, tasks_for
from benchmarks.nanoworld.train_encoder import CTCEncoder, edit_distance, load_trained, recognise
from benchmarks.nanoworld.world import LANGUAGES

WAYS = ("text", "cascade", "speech")
SEED = 4


def ask(reader: Reader, clips: list[Clip], transcripts: list[list[int]], held_out: bool) -> list[dict]:
    """One row per recording and task: which of the three ways is exactly right."""
    rows: list[dict] = []
    questions: dict[str, list[Question]] = {way: [] for way in WAYS}
    for number, (clip, transcript) in enumerate(zip(clips, transcripts, strict=True)):
        text = clip.request.text(clip.language)
        rng = random.Random(f"{SEED}|{number}|{text}")
        for task in tasks_for(clip.request, clip.language):
            example = draw(task, clip.request, clip.language, rng, held_out)
            rows.append({"task": task, "language": clip.language})
            requests = {"text": reader.encoder.ids(text), "cascade": transcript, "speech": clip.frames}
            for way in WAYS:
                answer = reader.encoder.ids(example.answer)
                questions[way].append(Question(example.instruction, requests[way], answer))
    for way in tqdm(WAYS, desc="held-out prompts" if held_out else "known prompts"):
        for row, right in zip(rows, reader.exact(questions[way]), strict=True):
            row[way] = right
    return rows


def table(rows: list[dict], key: str, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Per cent right of each way by the values of a key, and their mean over those values."""
    result = {}
    for name in names:
        part = [row for row in rows if row[key] == name]
        result[name] = {way: 100 * sum(row[way] for row in part) / len(part) for way in WAYS} | {"n": len(part)}
    mean = {way: sum(line[way] for line in result.values()) / len(result) for way in WAYS}
    return result | {"mean": mean | {"n": len(rows)}}


def format_table(title: str, scores: dict[str, dict[str, float]]) -> str:
    """A Markdown table of `table`'s result, with speech as per cent of the text bound."""
    lines = [f"| {title} | n | text bound | cascade | speech | speech / bound |", "|---|---:|---:|---:|---:|---:|"]
    for name, line in scores.items():
        share = 100 * line["speech"] / line["text"] if line["text"] else 0.0
        cells = [f"{line[way]:.1f}" for way in WAYS]
        lines.append(f"| {name.replace('_', ' ')} | {line['n']} | {' | '.join(cells)} | {share:.1f} |")
    return "\n".join(lines)


def recognition(ctc: CTCEncoder, out: Path, encoder: Encoder) -> tuple[list[list[int]], dict[str, float]]:
    """The encoder's greedy transcripts of the test recordings; token error rate and exact sentences in per cent."""
    rows, features = speech.load(out, "test")
    transcripts = recognise(ctc, features)
    references = [encoder.ids(row["text"]) for row in rows]
    errors = sum(edit_distance(a, b) for a, b in zip(transcripts, references, strict=True))
    exact = sum(a == b for a, b in zip(transcripts, references, strict=True))
    return transcripts, {
        "token_error_rate": 100 * errors / sum(map(len, references)),
        "exact_sentences": 100 * exact / len(rows),
    }


def meets_bar(tasks: dict, languages: dict) -> bool:
    """The bar: bound >= 95, speech >= 85 % of it on average over tasks, speech >= 75 % of it in every language."""
    mean = tasks["mean"]
    each = all(languages[name]["speech"] >= 0.75 * languages[name]["text"] for name in LANGUAGES)
    return mean["text"] >= 95 and mean["speech"] >= 0.85 * mean["text"] and each


def evaluate(out: Path, model_folder: Path, threads: int = 2, device: str = "cpu") -> dict:
    """Scores the saved model; prints the tables and writes `out/evaluation.json`."""
    from modeling_speechllm import SpeechLLMForConditionalGeneration
    from processing_speechllm import SpeechLLMProcessor

    torch.set_num_threads(threads)
    model = SpeechLLMForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32).to(device).eval()
    encoder = Encoder(SpeechLLMProcessor.from_pretrained(model_folder).tokenizer)
    transcripts, recognised = recognition(load_trained(out).to(device), out, encoder)
    clips = nano_clips(out, "test", model.model.audio_tower)
    reader = Reader(model, encoder)
    known, held_out = (ask(reader, clips, transcripts, flag) for flag in (False, True))
    result = {
        "recordings": len(clips),
        "recognition": recognised,
        "tasks": table(known, "task", TASKS),
        "languages": table(known, "language", LANGUAGES),
        "held_out_prompts": table(held_out, "task", TASKS),
    }
    result["meets_bar"] = meets_bar(result["tasks"], result["languages"])
    for title, key in (("task", "tasks"), ("language", "languages"), ("task, unseen prompts", "held_out_prompts")):
        print(format_table(title, result[key]), end="\n\n")
    print(f"CTC: {recognised}; bar met: {result['meets_bar']}")
    (out / "evaluation.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def digit_accuracy(model_folder: Path, data: Path, rows: list[dict]) -> dict[str, float]:
    """Per cent of spoken digits that the pipeline writes down right, asked for the number, and chance."""
    from transformers import pipeline

    import speechllm  # noqa: F401  registers the pipeline
    from benchmarks.nanoworld.lexicon import NUMBERS

    pipe = pipeline("speech-instruct", model=str(model_folder), dtype=torch.float32)
    values = {word: str(value) for value, word in NUMBERS["en"].items()}
    inputs = ({"audio": str(data / row["audio"]), "instruction": "Which number is mentioned?"} for row in rows)
    outputs = pipe(inputs, batch_size=16, max_new_tokens=8)
    right = 0
    for row, output in zip(tqdm(rows, desc="digits"), outputs, strict=True):
        right += output[0]["generated_text"].strip() == values[row["text"]]
    return {"recordings": len(rows), "accuracy": 100 * right / len(rows), "chance": 10.0}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nanoworld"))
    parser.add_argument("--model", type=Path, help="model folder, defaults to OUT/nano")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    evaluate(arguments.out, arguments.model or arguments.out / "nano", arguments.threads, arguments.device)
