"""An LLM that judges answers from 0 to 5, by one pinned prompt, `judge_prompt.txt`.

Every judgement is kept as it came. One that cannot be read is counted as such and has no score: nothing is guessed.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from trainers.targets.backends import Answer, EndpointBackend, LocalBackend, Question, identify, load_llm

from .config import EvaluationConfig
from .rows import Item
from .store import Lines

PROMPT = (Path(__file__).parent / "judge_prompt.txt").read_text(encoding="utf-8")
CHUNK = 64  # judgements between two writes to the disk
_SCORE = re.compile(r"^\W*score\W*:[^\w.,−–—-]*([0-5])(?:\s*/\s*5)?\W*$", re.IGNORECASE | re.MULTILINE)
_FOLLOWED = re.compile(r"^\W*instruction followed\W*:\W*(yes|no)\W*$", re.IGNORECASE | re.MULTILINE)
_FIELD = re.compile(r"\{(request|reference|answer)\}")


class Judge(Protocol):
    """What answers questions; see `trainers.targets.backends`."""

    def answer(self, questions: list[Question], progress: Callable[[int], None]) -> list[Answer]: ...


def judge_question(item: Item, answer: str) -> Question:
    """The pinned prompt about one answer. The speech is its transcript, or [speech] where that is unknown."""
    texts = [f"«{text}»" for text in item.texts] if item.texts else ["[speech]"] * _count_audios(item)
    request = "\n".join(
        message["content"]
        if isinstance(message["content"], str)
        else "".join(block["text"] for block in message["content"])
        for message in item.read(texts)
    )
    fields = {"request": request, "reference": "\n".join(item.references) or "(none)", "answer": answer or "(empty)"}
    prompt = _FIELD.sub(lambda match: fields[match[1]], PROMPT)
    return Question([{"role": "user", "content": [{"type": "text", "text": prompt}]}], seed=0)


def _count_audios(item: Item) -> int:
    contents = (message["content"] for message in item.chat)
    return sum(block["type"] == "audio" for content in contents if isinstance(content, list) for block in content)


def parse_judgement(text: str) -> dict[str, Any]:
    """`score` (0 to 5) and `followed`, each None unless the judgement says it once, or several times alike."""
    scores = set(_SCORE.findall(text))
    followed = {word.lower() for word in _FOLLOWED.findall(text)}
    return {
        "score": int(scores.pop()) if len(scores) == 1 else None,
        "followed": followed.pop() == "yes" if len(followed) == 1 else None,
    }


def judge_key(config: EvaluationConfig) -> str | None:
    """The key of the judge's endpoint, if it needs one.

    Raises:
        ValueError: the environment variable is not set.
    """
    variable = config.judge_key_variable
    if config.judge_base_url is None or variable is None:
        return None
    if not os.environ.get(variable):
        raise ValueError(f"The environment variable {variable} is not set. Put the key of the judge's endpoint there.")
    return os.environ[variable]


def load_judge(config: EvaluationConfig, device: torch.device) -> Judge:
    """The judge that the settings name.

    Raises:
        ValueError: no key in the environment variable.
    """
    if config.judge_base_url is None:
        model, tokenizer = load_llm(config.judge)
        return LocalBackend(
            model.to(device), tokenizer, batch_size=config.batch_size, max_new_tokens=config.judge_max_new_tokens
        )
    return EndpointBackend(
        config.judge_base_url,
        config.judge,
        api_key=judge_key(config),
        concurrency=config.concurrency,
        retries=config.retries,
        timeout=config.timeout,
        max_new_tokens=config.judge_max_new_tokens,
    )


def judge_fingerprint(config: EvaluationConfig) -> dict[str, Any]:
    """Who judges by which prompt; not where the endpoint is, which may move."""
    name, revision = (config.judge, None) if config.judge_base_url is not None else identify(config.judge)
    digest = hashlib.sha256(PROMPT.encode()).hexdigest()[:16]
    limit = config.judge_max_new_tokens
    return {"model": name, "revision": revision, "prompt": f"sha256:{digest}", "max_new_tokens": limit}


def judge_answers(
    judge: Judge, answers: Sequence[tuple[Item, str, str]], store: Lines, progress: Callable[[int], None]
) -> None:
    """
    Judges what is not judged yet.

    Args:
        judge: who judges.
        answers: (item, system, answer).
        store: of the judgements.
        progress: is told how many more are done.
    """
    todo = [entry for entry in answers if (entry[1], entry[0].id) not in store]
    progress(len(answers) - len(todo))
    for start in range(0, len(todo), CHUNK):
        part = todo[start : start + CHUNK]
        given = judge.answer([judge_question(item, answer) for item, _, answer in part], progress)
        store.add(
            {"id": item.id, "system": system, "judgement": judgement.text, "finish_reason": judgement.finish_reason}
            | ({"detail": judgement.detail} if judgement.detail else {})
            | parse_judgement(judgement.text)
            for (item, system, _), judgement in zip(part, given, strict=True)
        )


__all__ = [
    "PROMPT",
    "judge_answers",
    "judge_fingerprint",
    "judge_key",
    "judge_question",
    "load_judge",
    "parse_judgement",
]
