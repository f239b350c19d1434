"""A source of utterances, settings and an LLM that echoes, for the tests of target generation.

Run as a script it is one process of such a run: `factories_targets.py FOLDER PAUSE`, with seconds before each answer.
"""

import sys
import time

from datasets import Audio, Dataset

from trainers.targets.backends import Answer
from trainers.targets.config import TargetsConfig
from trainers.targets.generate import generate_targets

TRANSCRIPTS = ["hello world", "what is said here", "turn on the light in the kitchen", "so", "it is late, I go home"]


class Echo:
    """Answers with the seed and the question; transcripts that say "silent" get nothing. Fails at a given call."""

    def __init__(self, fail_at: int | None = None, pause: float = 0.0):
        self.calls, self.fail_at, self.pause, self.questions = 0, fail_at, pause, []

    def answer(self, questions, progress):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        self.questions += questions
        progress(len(questions))
        return [self.reply(question) for question in questions]

    @staticmethod
    def reply(question):
        asked = "".join(block["text"] for block in question.chat[0]["content"])
        return Answer("" if "silent" in asked else f"{question.seed}: {asked}".strip(), "stop")


def source(rows: int = 20, **columns: list) -> Dataset:
    """Utterances with ids, in two languages, half of them files and half bytes."""
    files = [{"path": f"clips/{i}.wav", "bytes": None} for i in range(rows)]
    data = {
        "audio": [file if i % 2 else {"path": None, "bytes": bytes([i])} for i, file in enumerate(files)],
        "text": [f"{TRANSCRIPTS[i % len(TRANSCRIPTS)]} {i}" for i in range(rows)],
        "language": [["en", "de"][i % 2] for i in range(rows)],
        "id": [f"utterance-{i}" for i in range(rows)],
        "duration": [0.5 * i for i in range(rows)],
        **columns,
    }
    return Dataset.from_dict(data).cast_column("audio", Audio(decode=False))


def config(folder, **changes) -> TargetsConfig:
    settings = {"output_dir": str(folder), "model": "some/llm", "rows_per_shard": 3}
    return TargetsConfig(**settings | changes)


if __name__ == "__main__":
    report = generate_targets(config(sys.argv[1], target_set="TMI"), source(), Echo(pause=float(sys.argv[2])))
    print(report["shards_done"], report["complete"])
