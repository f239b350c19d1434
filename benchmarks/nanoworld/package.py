"""Stage 5: the embedded model's folder: weights, processor, CTC head, packaged recordings, a card of measured facts.

    python -m benchmarks.nanoworld.package --out build/nanoworld --folder speechllm/nano

Each recording is a test utterance (unseen voice, unseen sentence) about which the pipeline, reading the written file,
answers every packaged question right. Every number of the card comes from `evaluation.json`, the build's log or the
files.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch

from benchmarks.nanoworld import speech
from benchmarks.nanoworld.evaluate import measured_section
from benchmarks.nanoworld.logbook import stage_seconds
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


CARD = """\
---
license: apache-2.0
language: [en, zh, vi, id, es, de]
pipeline_tag: audio-text-to-text
library_name: transformers
tags: [speechllm, speech-instruct]
---

# SpeechLLM nano

A complete speech LLM of {total:.1f} M parameters ({megabytes:.1f} MB in float16), trained from scratch on a
closed world of spoken requests in six languages: home devices and rooms, times and numbers, small sums,
colours, places, everyday questions. It exists so that the first command works anywhere, offline, and so that
every claim about the toolkit can be tested with real learning. Its speech is synthetic (espeak-ng); it is no
general recogniser and no general assistant. Real use composes pretrained models.

```python
import speechllm
from transformers import pipeline

pipe = pipeline("speech-instruct")
pipe("speechllm/nano/examples/en.wav", instruction="Translate into German.")
```

| Part | Parameters |
|---|---:|
| speech encoder (Whisper style, CTC-trained) | {encoder:.2f} M |
| connector (stacked frames and MLP) | {connector:.2f} M |
| LLM (Llama style, trained on text alone) | {llm:.2f} M |

`ctc_head.safetensors` is the encoder's CTC head over the LLM's tokens ({head:.2f} M parameters): the
cascade's recogniser.

{measured}
## Training

Wall seconds on {cores} CPU cores, LLM and encoder side by side: {times}.
`python -m benchmarks.nanoworld.build` repeats it. The texts and the speech are generated; `benchmarks/nanoworld`
describes and generates them.

## Limits

Only the requests, words and kinds of instruction of the nano world are understood. Anything else gets a
confident answer from that world. Recordings of people, noise and far microphones were not trained on.
"""


def write_card(out: Path, folder: Path, model, cores: int = 2) -> None:
    """The model card, every number of it measured."""
    from safetensors.torch import load_file

    scores = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))

    def millions(module: torch.nn.Module) -> float:
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    head = load_file(out / "ctc_head.safetensors")
    facts = {
        "total": millions(model),
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "encoder": millions(model.model.audio_tower),
        "connector": millions(model.model.multi_modal_projector),
        "llm": millions(model.model.language_model),
        "head": (head["weight"].numel() + head["bias"].numel()) / 1e6,
        "measured": measured_section(scores),
        "cores": cores,
        "times": ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in stage_seconds(out).items()),
    }
    (folder / "README.md").write_text(CARD.format(**facts), encoding="utf-8")


def make_package(out: Path, folder: Path) -> None:
    """Copies the finished model and writes CTC head, recordings and card beside it."""
    from transformers import pipeline

    import speechllm  # noqa: F401  registers the pipeline

    folder.mkdir(parents=True, exist_ok=True)
    for source in [*sorted((out / "nano").iterdir()), out / "ctc_head.safetensors"]:
        shutil.copyfile(source, folder / source.name)
    pipe = pipeline("speech-instruct", model=str(folder))
    make_examples(out, folder / "examples", pipe)
    write_card(out, folder, pipe.model)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/nanoworld"))
    parser.add_argument("--folder", type=Path, default=Path("speechllm/nano"))
    arguments = parser.parse_args()
    make_package(arguments.out, arguments.folder)
