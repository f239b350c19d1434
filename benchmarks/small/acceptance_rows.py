"""Rows of the acceptance, as `speechllm evaluate` reads them: manifests that name recordings of no training.

What is spoken here by text-to-speech, distorted or made up comes into a folder beside the manifest, once.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import soundfile
import torch
from torchaudio.functional import highpass_biquad, lowpass_biquad, resample

from benchmarks.small.corpora import RATE, recordings
from benchmarks.small.speaking import TEST_PITCH, sentences
from trainers.targets.prompts import load_tasks, select_prompts

LABELS = 5  # per row: the right one, and others drawn
ESPEAK = ("en-us+f2", "en-gb-x-rp+m3", "en-us+m6", "en-gb-x-rp+anika")  # voices of another synthesis
SCENARIOS = {"qa": "question", "iot": "smart home", "play": "play media", "general": "chat", "takeaway": "food order"}
UNUSED = ("translate", "language", "repeat")
FORMS = {  # checks of docs/evaluation.md for prompts that ask for a form
    "Classify the sentiment in one word.": {"one_word": True},
    "Does the speaker ask, tell or order something? Answer with one word.": {"one_word": True},
    "Write only the first word.": {"one_word": True},
    "Write only the last word.": {"one_word": True},
    "Give the number of words in digits.": {"number": True},
    "What is this about? Answer in one or two words.": {"max_words": 2},
    "Summarise what was said in one sentence.": {"max_sentences": 1},
    "Ask one question about what was said.": {"question": True},
    "Write a question that this answers.": {"question": True},
    "Say the same thing in other words.": {"not_transcript": True},
    "Say this in simpler words.": {"not_transcript": True},
    "Turn the statement into its contrary.": {"not_transcript": True},
}


def spread(rows: list, count: int) -> list:
    """At most `count` rows, evenly spread."""
    return rows if len(rows) <= count else [rows[place * len(rows) // count] for place in range(count)]


def write_rows(path: Path, rows: Iterable[dict]) -> Path:
    """A manifest, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)
    return path


def words(data: Path, source: str, count: int) -> list[dict]:
    """Read sentences of speakers of no training, with transcripts."""
    test = [recording for recording in recordings(data, source) if recording.split == "test" and recording.text]
    return [
        {"id": recording.id, "audio": str(recording.path), "text": recording.text, "language": "en"}
        for recording in spread(test, count)
    ]


def drinks(data: Path, count: int) -> list[dict]:
    """Commands of people to a coffee machine: which drink (of ten), and which size where one is said. There is no
    transcript."""
    rows = []
    for slot, question in (("coffeeDrink", "Which drink is ordered?"), ("size", "Which size is ordered?")):
        known = [(r, r.row["slots"][slot].strip()) for r in recordings(data, "picovoice") if slot in r.row["slots"]]
        labels = sorted({value for _, value in known})
        rows += [
            {
                "id": f"{recording.id} {slot}",
                "audio": str(recording.path),
                "recording": recording.id,
                "label": value,
                "labels": labels,
                "instruction": f"{question} Choose one: {', '.join(labels)}.",
                "task": slot,
                "language": "en",
            }
            for recording, value in spread(known, count // 2)
        ]
    return rows


def commands(data: Path, folder: Path, count: int, seed: int = 0) -> list[dict]:
    """Sentences of SLURP (which scenario) and CLINC (which intent) that no training has, half of them spoken by the
    voice of the training at a pitch of its own, half by another synthesis; with five labels each."""
    rows = []
    for corpus, question in (("slurp", "What is this about?"), ("clinc", "What does the speaker want?")):
        rng = Random(f"{seed}|{corpus}")
        known = [row | {"label": label_of(row)} for row in sentences(data) if row["corpus"] == corpus and row["label"]]
        every = sorted({row["label"] for row in known} - {"oos"})
        test = [row for row in known if row["split"] == "test" and row["label"] in every]
        rng.shuffle(test)
        for number, row in enumerate(test[: count // 2]):
            others = rng.sample([label for label in every if label != row["label"]], LABELS - 1)
            labels = sorted([row["label"], *others])
            voice = "hibari" if number % 2 else ESPEAK[number // 2 % len(ESPEAK)]
            path = folder / f"{corpus}_{number:04d}_{voice}.ogg"
            if not path.exists():
                write_audio(path, spoken(row["text"], voice, number))
            rows.append(
                {
                    "id": path.stem,
                    "audio": str(path),
                    "text": row["text"],
                    "label": row["label"],
                    "labels": labels,
                    "instruction": f"{question} Choose one: {', '.join(labels)}.",
                    "task": f"{corpus}, {'hibari' if voice == 'hibari' else 'espeak'}",
                    "language": "en",
                }
            )
    return rows


def label_of(row: dict) -> str:
    """SLURP's scenario or CLINC's intent in words."""
    label = row["label"].split()[0] if row["corpus"] == "slurp" else row["label"]
    return SCENARIOS.get(label, label.replace("_", " "))


def spoken(text: str, voice: str, seed: int) -> np.ndarray:
    """A text as samples at 16 kHz."""
    if voice == "hibari":
        from benchmarks.small.speaking import voice as hibari

        wave = torch.from_numpy(hibari()(text, speed=1 / TEST_PITCH, seed=seed))
        return resample(wave, round(hibari().sample_rate * TEST_PITCH), RATE).numpy()
    from speechllm.speech_synthesis.espeak import speak

    return speak(text, voice)


def behaviour(data: Path, count: int, seed: int = 0) -> list[dict]:
    """Four requests about each recording: two seen prompts, one of which asks for a form that code can check, one
    unseen wording, one of an unseen task."""
    tasks = [task for task in load_tasks() if task.name not in UNUSED]
    pools = {
        kind: [
            (task.name, prompt.text) for task in select_prompts(tasks, split, None, ["en"]) for prompt in task.prompts
        ]
        for split, kind in (("train", "seen"), ("unseen_prompts", "unseen_prompt"), ("unseen_tasks", "unseen_task"))
    }
    rows = []
    for row in words(data, "cv_en", count):
        rng = Random(f"{seed}|{row['id']}")
        formal = [pair for pair in pools["seen"] if pair[1] in FORMS]
        free = [pair for pair in pools["seen"] if pair[1] not in FORMS]
        drawn = [("seen", *rng.choice(formal)), ("seen", *rng.choice(free))]
        drawn += [(kind, *rng.choice(pools[kind])) for kind in ("unseen_prompt", "unseen_task")]
        for number, (kind, task, text) in enumerate(drawn):
            form = {"form": json.dumps(FORMS[text])} if text in FORMS else {}
            rows.append(
                row | {"id": f"{row['id']} {number}", "recording": row["id"], "instruction": text}
                | {"prompt_kind": kind, "task": task} | form
            )  # fmt: skip
    return rows


# Sounds


def write_audio(path: Path, samples: np.ndarray) -> None:
    """float32 samples (samples,) at 16 kHz to an Ogg Opus file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    soundfile.write(partial, np.clip(samples, -1, 1), RATE, format="OGG", subtype="OPUS")
    partial.replace(path)


def pink(rng: np.random.Generator, size: int) -> np.ndarray:
    """Noise with a spectrum of 1/f, RMS 1."""
    spectrum = np.fft.rfft(rng.normal(size=size)) / np.sqrt(np.maximum(np.arange(size // 2 + 1), 1))
    wave = np.fft.irfft(spectrum, size)
    return wave / np.sqrt(np.mean(wave**2))


def hum(rng: np.random.Generator, size: int) -> np.ndarray:
    """A mains hum of 50 or 60 Hz with harmonics."""
    time, base = np.arange(size) / RATE, rng.choice([50, 60])
    return sum(np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6)) / k for k in range(1, 8))


def chords(rng: np.random.Generator, size: int) -> np.ndarray:
    """Major and minor chords, two a second, plucked."""
    wave = np.zeros(size)
    for start in range(0, size, RATE // 2):
        time = np.arange(min(RATE // 2, size - start)) / RATE
        root = 220 * 2 ** (rng.integers(-5, 8) / 12)
        for step in (0, rng.choice([3, 4]), 7, 12):
            for k in range(1, 6):
                wave[start : start + len(time)] += np.sin(2 * np.pi * root * 2 ** (step / 12) * k * time) / k
        wave[start : start + len(time)] *= np.exp(-3 * time)
    return wave


SOUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "silence": lambda rng, size: 1e-4 * rng.normal(size=size),
    "white noise": lambda rng, size: rng.normal(size=size),
    "pink noise": pink,
    "hum": hum,
    "music": chords,
}
QUESTIONS = ("Transcribe the speech.", "What is this about?", "What does the speaker want?", "Reply as in a chat.")


def no_speech(folder: Path, count: int, seed: int = 0) -> list[dict]:
    """Sounds without speech, 1 to 10 s, peaks of 0.01 to 0.5 (silence as it is); `count` of each kind."""
    rows = []
    for kind, make in SOUNDS.items():
        rng = np.random.default_rng([seed, *kind.encode()])
        for number in range(count):
            wave = make(rng, int(RATE * rng.uniform(1, 10)))
            level = 1.0 if kind == "silence" else 10 ** rng.uniform(-2, -0.3) / np.abs(wave).max()
            path = folder / f"{kind.replace(' ', '_')}_{number:03d}.ogg"
            if not path.exists():
                write_audio(path, level * wave)
            row = {"id": path.stem, "audio": str(path), "instruction": QUESTIONS[number % len(QUESTIONS)]}
            rows.append(row | {"task": kind, "language": "en"})
    return rows


def noisy(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With pink noise 10 dB below the speech (mean power over the recording)."""
    return samples + pink(rng, len(samples)) * np.sqrt(np.mean(samples**2)) * 10 ** (-10 / 20)


def telephone(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """300 to 3,400 Hz, through 8 kHz."""
    wave = resample(torch.from_numpy(samples), RATE, RATE // 2)
    for _ in range(2):
        wave = lowpass_biquad(highpass_biquad(wave, RATE // 2, 300), RATE // 2, 3400)
    return resample(wave, RATE // 2, RATE).numpy()[: len(samples)]


def at_speed(speed: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Faster or slower, with the pitch, as a tape."""
    return lambda samples, rng: resample(torch.from_numpy(samples), round(RATE * speed), RATE).numpy()


CONDITIONS = {"10 dB noise": noisy, "telephone": telephone, "speed 0.9": at_speed(0.9), "speed 1.1": at_speed(1.1)}


def distorted(rows: list[dict], condition: str, folder: Path) -> Iterator[dict]:
    """The rows with their recordings under a condition of `CONDITIONS`."""
    for row in rows:
        path = folder / condition.replace(" ", "_") / f"{row['id'].replace('/', '_').replace(' ', '_')}.ogg"
        if not path.exists():
            samples, rate = soundfile.read(row["audio"], dtype="float32")
            if rate != RATE:
                raise ValueError(f"{row['audio']}: {rate} Hz; expected {RATE} Hz. Convert it.")
            write_audio(path, CONDITIONS[condition](samples, np.random.default_rng([len(samples), 7])))
        yield row | {"audio": str(path)}
