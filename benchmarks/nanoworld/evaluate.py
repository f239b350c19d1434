"""What the nano model can do, on voices and sentences that no training saw.

    python -m benchmarks.nanoworld.evaluate --out build/nanoworld
    python -m benchmarks.nanoworld.evaluate --out build/nanoworld --model speechllm/nano
    python -m benchmarks.nanoworld.card --folder speechllm/nano --scores build/nanoworld/evaluation

Writes the questions (`questions.py`, once) and lets `speechllm evaluate` ask and score them in three ways: the LLM
reads the true transcript (text bound), the LLM reads the encoder's greedy CTC transcript (cascade), and the SpeechLLM
hears the recording (speech). Scores are exact matches in per cent, letter by letter. Paraphrases that no training saw
are asked too. Prints tables with half the width of 95 % intervals, writes `OUT/evaluation.json`; reports with pictures
are in `OUT/evaluation/seen` and `OUT/evaluation/unseen`, whence the last command takes the card's figures. A killed
run goes on with the same command.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch

from benchmarks.nanoworld.questions import KINDS, write_questions
from benchmarks.nanoworld.world import LANGUAGES

WAYS = {"text_bound": "text bound", "cascade": "cascade", "speech": "speech"}
METRIC = "exact"
LONGEST_ANSWER = 48  # tokens
TITLES = {"tasks": "task", "languages": "language", "unseen_prompts": "task, unseen prompts"}


def ask(folder: Path, model: Path, out: Path, batch_size: int, limit: int | None) -> dict:
    """`results.json` of one folder of questions."""
    from speechllm.evaluation.config import EvaluationConfig
    from speechllm.evaluation.run import evaluate as run

    return run(
        EvaluationConfig(
            dataset=[str(folder)],
            model=str(model),
            task="question",
            text_bound=True,
            cascade="ctc_head",
            headline=METRIC,
            max_new_tokens=LONGEST_ANSWER,
            batch_size=batch_size,
            limit=limit,
            output_dir=str(out),
        )
    )


def table(results: dict, grouping: str) -> dict[str, dict]:
    """Scores of each way by the values of a grouping, as `{"value", "low", "high", "rows"}`, and their mean."""
    lines = {
        name: {way: systems[way][METRIC] for way in WAYS} for name, systems in results["groups"][grouping].items()
    }
    return lines | {"mean": {way: results["means"][grouping][way] for way in WAYS}}


def format_table(title: str, scores: dict[str, dict]) -> str:
    """A Markdown table of `table`'s result, with speech as per cent of the text bound."""
    from speechllm.evaluation.bootstrap import Estimate
    from speechllm.evaluation.tables import cell_in_short

    lines = [f"| {title} | n | {' | '.join(WAYS.values())} | speech / bound |", "|---|---:|---:|---:|---:|---:|"]
    for name, line in scores.items():
        share = 100 * line["speech"]["value"] / line["text_bound"]["value"] if line["text_bound"]["value"] else 0.0
        cells = [cell_in_short(Estimate(**line[way]), "%") for way in WAYS]
        name = name.replace("_", " ")
        lines.append(f"| {name} | {line['speech']['rows']} | {' | '.join(cells)} | {share:.1f} |")
    return "\n".join(lines)


def meets_bar(tasks: dict, languages: dict) -> bool:
    """The bar: bound >= 95, speech >= 85 % of it on average over tasks, speech >= 75 % of it in every language."""
    bound, speech = (tasks["mean"][way]["value"] for way in ("text_bound", "speech"))
    known = [languages[name] for name in LANGUAGES if name in languages]
    each = all(line["speech"]["value"] >= 0.75 * line["text_bound"]["value"] for line in known)
    return bound >= 95 and speech >= 0.85 * bound and each


def evaluate(
    out: Path,
    model_folder: Path,
    threads: int = 2,
    device: str = "cpu",
    batch_size: int = 64,
    limit: int | None = None,
) -> dict:
    """Scores the saved model; prints the tables and writes `out/evaluation.json`, of another model than
    `out/nano` `out/evaluation-of-NAME.json`."""
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    torch.set_num_threads(threads)
    head = model_folder / "helpers" / "ctc_head.safetensors"
    if not head.exists():
        head.parent.mkdir(exist_ok=True)
        shutil.copyfile(out / "ctc_head.safetensors", head)
    folder = write_questions(out, threads)
    own = model_folder.resolve() == (out / "nano").resolve()
    name = "evaluation" if own else f"evaluation-of-{model_folder.resolve().name}"
    place = out / (name if limit is None else f"{name}-{limit}")
    seen, unseen = (ask(folder / name, model_folder, place / name, batch_size, limit) for name in KINDS)
    scores = {
        "recordings": len({path.name for path in (folder / "audio").glob("*.wav")}),
        "questions": seen["rows"]["scored"],
        "heard_wer": seen["overall"]["cascade"]["heard_wer"]["value"],
        "tasks": table(seen, "task"),
        "languages": table(seen, "language"),
        "unseen_prompts": table(unseen, "task"),
    }
    scores["meets_bar"] = meets_bar(scores["tasks"], scores["languages"])
    for key, title in TITLES.items():
        print(format_table(title, scores[key]), end="\n\n")
    print(f"Recogniser's word error rate: {scores['heard_wer']:.1f} %; bar met: {scores['meets_bar']}")
    (place.parent / f"{place.name}.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
    return scores


def digit_accuracy(model_folder: Path, data: Path, rows: list[dict], out: Path) -> dict[str, float]:
    """Per cent of spoken digits that the model writes down right, asked for the number, and chance."""
    from benchmarks.nanoworld.lexicon import NUMBERS
    from speechllm.evaluation.config import EvaluationConfig
    from speechllm.evaluation.run import evaluate as run

    values = {word: str(value) for value, word in NUMBERS["en"].items()}
    folder = out / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "audio": str((data / row["audio"]).absolute()),
            "id": row["audio"],
            "instruction": "Which number is mentioned?",
            "reference": values[row["text"]],
            "language": "en",
        }
        for row in rows
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    settings = {"task": "question", "headline": METRIC, "max_new_tokens": 8, "output_dir": str(out / "digits-scores")}
    found = run(EvaluationConfig(dataset=[str(folder)], model=str(model_folder), **settings))
    return {"recordings": len(rows), "accuracy": found["overall"]["speech"][METRIC]["value"], "chance": 10.0}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nanoworld"))
    parser.add_argument("--model", type=Path, help="model folder, defaults to OUT/nano")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--limit", type=int, help="so many questions of each kind, to try it")
    arguments = parser.parse_args()
    evaluate(
        arguments.out,
        arguments.model or arguments.out / "nano",
        arguments.threads,
        arguments.device,
        arguments.batch_size,
        arguments.limit,
    )
