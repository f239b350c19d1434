"""Stage 5: the embedded model's folder: weights, processor, CTC head, packaged recordings, a card of measured facts.

    python -m benchmarks.nanoworld.package --out build/nanoworld --folder speechllm/nano

Each recording is a test utterance (unseen voice, unseen sentence) about which the pipeline, reading the written file,
answers every packaged question right. The card is made by `card.py`.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

from benchmarks.nanoworld import speech
from benchmarks.nanoworld.card import build_facts, write_nano_card
from benchmarks.nanoworld.tasks import Example, draw
from benchmarks.nanoworld.world import LANGUAGES, Frame, frames_of

SEED = 5
# For each language a kind of request and what is asked about it.
SHOWN = {
    "en": ("switch", ("transcribe", "translate", "device", "place")),
    "zh": ("weather", ("transcribe", "translate", "place", "day")),
    "vi": ("alarm", ("transcribe", "translate", "number", "day")),
    "id": ("shopping", ("transcribe", "translate", "number", "intent")),
    "es": ("hours", ("transcribe", "translate", "place", "context")),
    "de": ("sum", ("transcribe", "translate", "sum", "count_words")),
}


def shown_prompt(task: str, frame: Frame, language: str, rng: random.Random) -> Example:
    """An example with a prompt in English (transcribing in the language itself), translating to or from English."""
    while True:
        example = draw(task, frame, language, rng)
        wanted = language if task == "transcribe" else "en"
        into_english = task != "translate" or language == "en" or "English" in example.instruction
        if example.prompt.language == wanted and into_english:
            return example


def make_examples(out: Path, folder: Path, pipe) -> list[dict]:
    """Writes one recording per language and `examples.json`, see the module's description."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    known = {(frame.key, frame.text(language)): frame for frame in frames_of("test") for language in LANGUAGES}
    listing = []
    for language, (kind, tasks) in SHOWN.items():
        path = folder / f"{language}.wav"
        candidates = [u for u in speech.utterances("test") if (u.language, u.kind) == (language, kind)]
        for utterance in candidates:
            frame = known[utterance.key, utterance.text]
            rng = random.Random(f"{SEED}|{utterance.text}")
            examples = [shown_prompt(task, frame, language, rng) for task in tasks]
            soundfile.write(path, speech.record(utterance), speech.SAMPLING_RATE, subtype="PCM_16")
            answers = [pipe(str(path), instruction=example.instruction)[0]["generated_text"] for example in examples]
            if answers == [example.answer for example in examples]:
                break
        else:
            raise RuntimeError(f"No {kind} request in {language!r} of which everything was answered right.")
        questions = [{"instruction": example.instruction, "expected": example.answer} for example in examples]
        row = {"file": path.name, "language": language, "text": utterance.text, "voice": utterance.voice}
        listing.append(row | {"questions": questions})
    (folder / "examples.json").write_text(json.dumps(listing, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return listing


def make_package(out: Path, folder: Path, cores: int = 2) -> None:
    """Copies the finished model and writes CTC head, recordings and card beside it."""
    from transformers import pipeline

    import speechllm  # noqa: F401  registers the pipeline

    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted((out / "nano").iterdir()):
        shutil.copyfile(source, folder / source.name)
    (folder / "helpers").mkdir(exist_ok=True)  # engines load every *.safetensors of the top
    shutil.copyfile(out / "ctc_head.safetensors", folder / "helpers" / "ctc_head.safetensors")
    pipe = pipeline("speech-instruct", model=str(folder))
    make_examples(out, folder / "examples", pipe)
    write_nano_card(folder, build_facts(out, cores))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nanoworld"))
    parser.add_argument("--folder", type=Path, default=Path("speechllm/nano"))
    arguments = parser.parse_args()
    make_package(arguments.out, arguments.folder)
