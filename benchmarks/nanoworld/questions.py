"""The test of the nano world as rows of `speechllm evaluate`: every test recording is asked all its tasks, once each.

OUT/questions/audio/00000.wav, ...      recordings of sentences and voices that no training saw
OUT/questions/seen/manifest.jsonl       prompts that training saw
OUT/questions/unseen/manifest.jsonl     paraphrases that it did not see
"""

import json
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import soundfile
from tqdm import tqdm

from benchmarks.nanoworld import speech
from benchmarks.nanoworld.recordings import write_recording
from benchmarks.nanoworld.tasks import draw, tasks_for
from benchmarks.nanoworld.world import LANGUAGES, Frame, frames

SEED = 4
KINDS = {"seen": "seen", "unseen": "unseen_prompt"}  # folder: the row's prompt_kind


def questions_about(number: int, utterance: speech.Utterance, request: Frame, held_out: bool) -> list[dict]:
    """Rows without their audio: one per task that makes sense for the request."""
    rng = random.Random(f"{SEED}|{number}|{utterance.text}")
    rows = []
    for task in tasks_for(request, utterance.language):
        example = draw(task, request, utterance.language, rng, held_out)
        rows.append(
            {
                "id": f"{number:05d}-{task}",
                "instruction": example.instruction,
                "reference": example.answer,
                "text": utterance.text,
                "language": utterance.language,
                "target_language": answer_language(task, example.answer, request, utterance.language),
                "task": task,
                "prompt_kind": KINDS["unseen" if held_out else "seen"],
            }
        )
    return rows


def answer_language(task: str, answer: str, request: Frame, language: str) -> str | None:
    """The language that an answer is in; None for digits."""
    if task == "translate":
        return next(code for code in LANGUAGES if code != language and request.text(code) == answer)
    if task in ("intent", "language"):
        return "en"
    return None if task in ("number", "sum", "count_words") else language


def _record(job: tuple[Path, speech.Utterance]) -> float | None:
    """Seconds of a recording, which is made unless an earlier run has."""
    path, _ = job
    return soundfile.info(path).duration if path.exists() else write_recording(job)


def write_questions(out: Path, workers: int = 2) -> Path:
    """Writes recordings and questions, once; returns their folder."""
    folder = out / "questions"
    manifests = {name: folder / name / "manifest.jsonl" for name in KINDS}
    if all(path.exists() for path in manifests.values()):
        return folder
    for path in [folder / "audio", *(path.parent for path in manifests.values())]:
        path.mkdir(parents=True, exist_ok=True)
    requests = {(frame.key, frame.text(language)): frame for frame in frames() for language in speech.BASE_VOICES}
    utterances = speech.utterances("test")
    paths = [folder / "audio" / f"{place:05d}.wav" for place in range(len(utterances))]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        seconds = pool.map(_record, zip(paths, utterances, strict=True), chunksize=8)
        lengths = list(tqdm(seconds, total=len(paths), desc="test recordings", mininterval=5))
    rows: dict[str, list[dict]] = {name: [] for name in KINDS}
    kept = [place for place, length in enumerate(lengths) if length is not None]
    for number, place in enumerate(kept):  # espeak-ng crashes on a few
        utterance = utterances[place]
        request = requests[utterance.key, utterance.text]
        facts = {"audio": f"../audio/{paths[place].name}", "duration": lengths[place], "voice": utterance.voice}
        for name in KINDS:
            rows[name] += [facts | row for row in questions_about(number, utterance, request, name == "unseen")]
    for name, path in manifests.items():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[name]), encoding="utf-8")
        partial.replace(path)
    return folder
