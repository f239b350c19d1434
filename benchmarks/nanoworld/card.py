"""The embedded model's card: its facts, measured on the model in its folder, and the build's own figures.

    python -m benchmarks.nanoworld.card --folder speechllm/nano                        # measures the folder's model
    python -m benchmarks.nanoworld.card --folder speechllm/nano --out build/nanoworld  # takes over a new build too
    python -m benchmarks.nanoworld.card --folder speechllm/nano --scores build/nanoworld/evaluation  # or its scores

The first measures memory, silence, foreign speech and failures, and keeps scores and times of the build from the facts
that are there.
"""

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nanoworld import speech, train_connector, train_encoder, train_llm
from benchmarks.nanoworld.logbook import stage_seconds
from benchmarks.nanoworld.world import LANGUAGES
from hub_cards.contamination import find_overlap
from hub_cards.evaluations import run_entries
from hub_cards.facts import merge_facts, read_facts, write_facts
from hub_cards.measure import hardware_name, model_facts, package_versions, weight_bytes
from hub_cards.model_card import write_card

EVALUATE = "python -m benchmarks.nanoworld.evaluate --out build/nanoworld"
MEASURE = "python -m benchmarks.nanoworld.card --folder speechllm/nano"
TRANSCRIBE = "Transcribe the speech."
DATASETS = {"seen": "nano world", "unseen": "nano world, instructions in words that no training saw"}
STAGES = {  # stages of the build, in its order: what was trained, and for what
    "llm": ("language model on the world's texts and conversations, from scratch", "llm"),
    "encoder": ("CTC over the LLM's tokens, from scratch", "encoder"),
    "encoder-warped": ("CTC on spectra warped in time and pitch", "encoder"),
    "llm-spoken": ("language model on transcripts as the encoder spells them", "llm"),
    "connector": ("cross-entropy on answers about spoken requests", "connector"),
}
SEEDS = {"llm": train_llm.SEED, "encoder": train_encoder.SEED, "connector": train_connector.SEED}
FOREIGN = [("fr", "Éteins la lumière dans la cuisine."), ("it", "Spegni la luce in cucina."), ("pl", "Zgaś światło.")]
PROSE = {
    "intended_use": "The first command of a newcomer, tests and demonstrations of the toolkit: it exists so that "
    "these work anywhere, offline, and so that every claim can be tested with real learning. Real use composes "
    "pretrained models.",
    "limits": [
        "Only the requests, words and kinds of instruction of the nano world are understood: home devices and rooms, "
        "times and numbers, small sums, colours, places, everyday questions. Anything else gets a confident answer "
        "from that world.",
        "Its speech is synthetic (espeak-ng). Recordings of people, noise and far microphones were not trained on.",
    ],
    "files": {
        "helpers/ctc_head.safetensors": "the encoder's CTC head over the LLM's tokens, the cascade's recogniser",
        "examples/": "recordings with instructions and the expected answers",
    },
}
MEMORY_SCRIPT = """
import resource, sys
import speechllm
from transformers import pipeline
pipe = pipeline("speech-instruct", model=sys.argv[1], pipeline_class=speechllm.SpeechInstructPipeline, device="cpu")
pipe(sys.argv[2], instruction="Transcribe the speech.")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def evaluation_facts(folder: Path) -> list[dict[str, Any]]:
    """Entries of the section `evaluation` from what `speechllm evaluate` wrote in `OUT/evaluation`."""
    entries = []
    for kind, name in DATASETS.items():
        results = json.loads((folder / kind / "results.json").read_text(encoding="utf-8"))
        told = {"dataset": {"name": name, "split": "test"}, "command": EVALUATE}
        exact = results["metrics"][results["headline"]]["title"]
        entries += [entry | told for entry in run_entries(results) if entry["metric"] == exact]
    recogniser = {
        "task": "transcribe",
        "language": "all",
        "metric": "recogniser's word error rate, in Chinese by character",
        "unit": "%",
        "higher_is_better": False,
        "n": results["rows"]["scored"],
        "systems": {"cascade": {k: results["overall"]["cascade"]["heard_wer"][k] for k in ("value", "low", "high")}},
    }
    return [*entries, recogniser | told]


def stages_facts(seconds: dict[str, float], cores: int) -> list[dict[str, Any]]:
    """Entries of the section `training` from the wall seconds of the build's stages."""
    return [
        {
            "objective": objective,
            "trainer": "benchmarks.nanoworld.build",
            "train_groups": [group],
            "seeds": {"seed": SEEDS[group]},
            "hours": seconds[name] / 3600,
            "hardware": f"CPU, {cores} cores; LLM and encoder side by side",
            "finished": True,
        }
        for name, (objective, group) in STAGES.items()
        if name in seconds
    ]


def build_facts(out: Path, cores: int) -> dict[str, Any]:
    """What a build has measured: scores and wall times."""
    stages = [stage | {"packages": package_versions()} for stage in stages_facts(stage_seconds(out), cores)]
    return {"evaluation": evaluation_facts(out / "evaluation"), "training": stages}


def data_facts() -> dict[str, Any]:
    """The spoken requests, counted by the code that speaks them, and what training and test share."""
    from datasets import Dataset

    splits = {name: speech.utterances(name) for name in ("train", "test")}
    rows = {name: Dataset.from_dict({"text": [u.text for u in found]}) for name, found in splits.items()}
    entry = {
        "name": "nano world, spoken by espeak-ng",
        "split": "train",
        "license": "apache-2.0",
        "rows": len(rows["train"]),
        "notes": ["texts and speech are generated by benchmarks/nanoworld; voices of the test are none of training."],
    }
    overlap = find_overlap(rows["train"], rows["test"], "nano world, train", "nano world, test")
    return {"data": [entry], "contamination": [overlap]}


def behaviour(pipe: Any) -> dict[str, list[dict[str, str]]]:
    """What the model answers to silence, noise and languages it does not know."""
    noise = np.random.default_rng(0).normal(0, 0.03, 2 * speech.SAMPLING_RATE).astype(np.float32)
    quiet = [("2 s of zeros", np.zeros_like(noise)), ("2 s of white noise, -30 dB", noise)]
    foreign = [(f"{code}: {text}", speech.speak(text, code)) for code, text in FOREIGN]

    def cases(recordings: list) -> list[dict[str, str]]:
        return [
            {"audio": name, "instruction": instruction, "answer": ask(pipe, samples, instruction)}
            for name, samples in recordings
            for instruction in (TRANSCRIBE, "Which language is spoken?")
        ]

    return {"silence": cases(quiet), "foreign_speech": cases(foreign)}


def ask(pipe: Any, samples: np.ndarray, instruction: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of all-zero audio
        return pipe((samples, speech.SAMPLING_RATE), instruction=instruction)[0]["generated_text"]


def failures(pipe: Any) -> list[dict[str, str]]:
    """For each language the first test recording that is transcribed wrongly."""
    found = []
    for language in LANGUAGES:
        for utterance in speech.utterances("test"):
            if utterance.language == language:
                answer = ask(pipe, speech.record(utterance), TRANSCRIBE)
                if answer != utterance.text:
                    case = {"language": language, "text": utterance.text, "instruction": TRANSCRIBE}
                    found.append(case | {"expected": utterance.text, "answer": answer})
                    break
    return found


def memory(folder: Path) -> list[dict[str, Any]]:
    """Peak memory of a process that loads the model and answers one question, with Python and torch in it."""
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(folder), str(folder / "examples" / "en.wav")]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    what = "one answer, the whole process with torch"
    return [{"device": hardware_name(), "dtype": "float32", "what": what, "bytes": peak, "command": MEASURE}]


def folder_facts(folder: Path) -> dict[str, Any]:
    """All that can be measured on the model in its folder."""
    from transformers import pipeline

    import speechllm

    pipe = pipeline("speech-instruct", model=str(folder), pipeline_class=speechllm.SpeechInstructPipeline)
    facts = model_facts(pipe.model, pipe.processor)
    total, stored = facts["model"]["parameters"]["total"], weight_bytes(folder)
    facts["model"] |= {
        "name": "SpeechLLM nano",
        "summary": f"A complete speech LLM of {total / 1e6:.1f} M parameters ({stored / 1e6:.1f} MB), trained from "
        "scratch on a closed world of spoken requests in six languages. It is no general recogniser and no general "
        "assistant.",
        "license": "apache-2.0",
        "languages": list(LANGUAGES),
        "weight_bytes": stored,
        "dtype": "float16 on disk",
        "package_name": "nano",
    }
    instructions = sorted(
        {
            q["instruction"]
            for row in json.loads((folder / "examples" / "examples.json").read_text("utf-8"))
            for q in row["questions"]
        }
    )
    facts["prompt"]["instructions"] = [*instructions, "(and the others of benchmarks/nanoworld/prompts.py)"]
    measured = {"behaviour": behaviour(pipe), "failures": failures(pipe), "memory": memory(folder)}
    return facts | data_facts() | measured | PROSE


def write_nano_card(folder: Path, build: dict[str, Any]) -> None:
    """Facts and card of the folder; `build` holds the sections that only a build knows."""
    facts = merge_facts(merge_facts(read_facts(folder), build), folder_facts(folder))
    counts = facts["model"]["parameters"]
    for stage in facts.get("training") or []:
        stage["trained_parameters"] = counts[stage["train_groups"][0]]
    write_facts(folder, facts)
    write_card(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("speechllm/nano"))
    parser.add_argument("--out", type=Path, help="folder of a new build, whose scores and times are taken over")
    parser.add_argument("--cores", type=int, default=2, help="cores that the build had")
    parser.add_argument("--scores", type=Path, help="folder of an evaluation, whose scores are taken over")
    arguments = parser.parse_args()
    build = build_facts(arguments.out, arguments.cores) if arguments.out else {}
    if arguments.scores:
        build["evaluation"] = evaluation_facts(arguments.scores)
    write_nano_card(arguments.folder, build)
