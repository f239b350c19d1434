"""Who answers: the speech LLM, and beside it text bound, cascade, a second speech LLM, the LLM before training.

What is unusual here:
- Batches are planned over all rows before anything is asked, so that a resumed run asks in the batches of the first.
- A row that one of them cannot take (unreadable audio, too long a prompt) is a finding: the others' answers to it are
  not scored either, so that all are compared on the same rows.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import cached_file

from processing_speechllm.audio import AudioError
from trainers.commands.inputs import load_checkpoint
from trainers.data.loading import source_name
from trainers.targets.backends import load_llm

from .answering import Answerer, TooLong, agreement
from .config import EvaluationConfig
from .recognisers import (
    CONNECTOR,
    CTC_HEAD,
    CTC_HEAD_FILE,
    ConnectorRecogniser,
    CTCHeadRecogniser,
    PipelineRecogniser,
    Recogniser,
)
from .rows import Item, Rows
from .store import Lines

TITLES = {
    "speech": "speech",
    "text_bound": "text bound",
    "cascade": "cascade",
    "second": "second model",
    "text_before": "LLM before",
}
Batches = Sequence[Sequence[Item]]


def systems_of(config: EvaluationConfig) -> list[str]:
    """The systems that the settings ask for, in the order of the tables."""
    wanted = {
        "speech": True,
        "text_bound": config.text_bound,
        "cascade": config.cascade is not None,
        "second": config.second is not None,
        "text_before": config.text_before is not None,
    }
    return [name for name in TITLES if wanted[name]]


def plan_batches(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """All items by length, longest first, so that what does not fit in memory fails at once."""
    ordered = sorted(items, key=lambda item: (-item.seconds, item.id))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def row_facts(item: Item) -> dict[str, Any]:
    """What a reader of the answers wants to see of their row."""
    facts = {
        "asked": item.asked,
        "references": item.references,
        "text": item.transcript,
        "language": item.language,
        "target_language": item.target_language,
        "task": item.task,
        "prompt_kind": item.prompt_kind,
    }
    return {name: value for name, value in facts.items() if value not in (None, [])}


class Runner:
    """
    Asks the systems what is not answered yet.

    Args:
        config: settings.
        rows: what is asked.
        store: of the answers.
        batches: this process's share of `plan_batches`.
        device: where models run.
        progress: makes a progress bar's update function: name and number of answers -> function of how many more.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        rows: Rows,
        store: Lines,
        batches: Batches,
        device: torch.device,
        progress: Callable[[str, int], Any],
    ):
        self.config, self.rows, self.store, self.batches = config, rows, store, batches
        self.device, self.progress = device, progress
        self.recogniser: Recogniser | None = None

    def run(self, systems: Sequence[str]) -> None:
        """All systems, those of one model together. The text bound comes first: agreement compares with it."""
        own = [name for name in ("text_bound", "speech", "cascade") if name in systems and self._todo(name)]
        if own:
            answerer = self._load_speech(self.config.model)
            for name in own:
                self._run_system(name, answerer)
            del answerer
        if "second" in systems and self._todo("second"):
            self._run_system("second", self._load_speech(self.config.second))
        if "text_before" in systems and self._todo("text_before"):
            self._run_system("text_before", self._load_text_before())

    def _todo(self, system: str) -> list[Sequence[Item]]:
        """Batches with an item that the system has not answered and that nobody has set aside."""
        return [batch for batch in self.batches if any(self._is_open(system, item) for item in batch)]

    def _is_open(self, system: str, item: Item) -> bool:
        return (system, item.id) not in self.store and not self.is_bad(item)

    def is_bad(self, item: Item) -> bool:
        """Whether a system has found that it cannot take the row."""
        return any("finding" in self.store.lines.get((system, item.id), ()) for system in TITLES)

    def _load_speech(self, name: str) -> Answerer:
        model, processor = load_checkpoint(name, self.config.dtype)
        return self._answerer(model.to(self.device), processor)

    def _answerer(self, model: Any, processor: Any) -> Answerer:
        config = self.config
        return Answerer(model, processor, config.max_new_tokens, config.num_beams, config.chat_template_kwargs)

    def _load_text_before(self) -> Answerer:
        """The LLM before training, asked with the template and the tokens of the one after."""
        _, processor = load_checkpoint(self.config.model, self.config.dtype)
        model, tokenizer = load_llm(self.config.text_before, dtype=self.config.dtype)
        before = getattr(tokenizer, "tokenizer", tokenizer).get_vocab()
        after = processor.tokenizer.get_vocab()
        moved = [token for token, place in before.items() if after.get(token, place) != place]
        if moved:
            raise ValueError(
                f"text_before {self.config.text_before} has other tokens than the model's LLM ({len(moved)} differ, "
                f"such as {moved[0]!r}). Give the LLM that the model was made from."
            )
        return self._answerer(model.to(self.device), processor)

    def _load_recogniser(self, answerer: Answerer) -> Recogniser:
        config = self.config
        if config.cascade == CONNECTOR:
            return ConnectorRecogniser(answerer.model, answerer.processor)
        if config.cascade != CTC_HEAD:
            asked = config.dtype, config.tell_language, config.cascade_num_beams
            return PipelineRecogniser(config.cascade, self.device, *asked)
        try:
            head = cached_file(config.model, CTC_HEAD_FILE)
        except OSError as error:
            raise ValueError(f"{config.model} has no {CTC_HEAD_FILE}. Give a recogniser: --cascade HUB_ID.") from error
        return CTCHeadRecogniser(answerer.model, answerer.processor, head)

    def _run_system(self, system: str, answerer: Answerer) -> None:
        recogniser = self._load_recogniser(answerer) if system == "cascade" else None
        update = self.progress(TITLES[system], sum(map(len, self.batches)))
        todo = set(map(id, self._todo(system)))
        for batch in self.batches:
            if id(batch) in todo:
                self.store.add(self._answer_batch(system, answerer, recogniser, batch))
            update(len(batch))

    def _answer_batch(
        self, system: str, answerer: Answerer, recogniser: Recogniser | None, batch: Sequence[Item]
    ) -> list[dict[str, Any]]:
        """The lines of a batch: answers and findings."""
        items, lines = [item for item in batch if not self.is_bad(item)], []
        begin = time.perf_counter()
        audio: dict[str, list[np.ndarray]] = {}
        if system not in ("text_bound", "text_before"):
            rate = recogniser.sampling_rate if recogniser else None
            for item in items:
                try:
                    audio[item.id] = [_load(answerer.processor, part, rate) for part in self.rows.audio(item)]
                except AudioError as error:
                    lines.append(self._finding(system, item, str(error)))
            items = [item for item in items if item.id in audio]
        heard: dict[str, list[str]] = {}
        if recogniser is not None and items:
            heard = transcribe(recogniser, items, audio)
        chats = {item.id: self._chat(system, item, heard) for item in items}
        given = {} if heard or system in ("text_bound", "text_before") else audio
        fitting, encoded = self._encode(system, answerer, items, chats, given, lines)
        if not fitting:
            return lines
        labels = [item.labels for item in fitting] if self.config.constrain and fitting[0].labels else None
        replies = answerer.answer(encoded, labels)
        seconds = (time.perf_counter() - begin) / len(fitting)
        extras: list[dict[str, Any]] = [{} for _ in fitting]
        if system in ("speech", "cascade") and self.config.text_bound:
            self._compare(answerer, fitting, encoded, extras)
        if self.config.label_scores and fitting[0].labels and system != "text_before":
            for item, prompt, extra in zip(fitting, answerer.embeddings(encoded), extras, strict=True):
                extra["scores"] = answerer.label_scores(prompt, item.labels, self.config.batch_size)
        for item, reply, extra in zip(fitting, replies, extras, strict=True):
            line = {"id": item.id, "system": system, "answer": reply.text, "tokens": reply.tokens}
            line |= {"finish_reason": reply.finish_reason, "seconds": round(seconds, 6)}
            if heard:
                line["heard"] = " ".join(heard[item.id])
            lines.append(line | extra | row_facts(item))
        return lines

    def _chat(self, system: str, item: Item, heard: dict[str, list[str]]) -> list[dict]:
        if system in ("text_bound", "text_before"):
            return item.read(item.texts)
        return item.read(heard[item.id]) if heard else item.chat

    def _encode(
        self,
        system: str,
        answerer: Answerer,
        items: list[Item],
        chats: dict[str, list[dict]],
        audio: dict[str, list[np.ndarray]],
        lines: list[dict[str, Any]],
    ) -> tuple[list[Item], dict[str, torch.Tensor]]:
        """The items whose prompts fit, and these prompts; findings of the others are added to the lines."""

        def encode(some: Sequence[Item]) -> dict[str, torch.Tensor]:
            rate = answerer.processor.feature_extractor.sampling_rate
            sources = [(part, rate) for item in some for part in audio.get(item.id, ())]
            return answerer.encode([chats[item.id] for item in some], sources)

        if not items:
            return [], {}
        try:
            return items, encode(items)
        except TooLong:
            fitting = []
            for item in items:
                try:
                    encode([item])
                    fitting.append(item)
                except TooLong as error:
                    lines.append(self._finding(system, item, str(error)))
            return fitting, encode(fitting) if fitting else {}

    def _compare(
        self, answerer: Answerer, items: list[Item], encoded: dict[str, torch.Tensor], extras: list[dict[str, Any]]
    ) -> None:
        """Adds to each item how its prompt agrees with the true transcript, by tokens of the text bound's answer."""
        answers = [self.store.lines[("text_bound", item.id)]["answer"] for item in items]
        tokens = [answerer.answer_tokens(answer) for answer in answers]
        heard = answerer.log_probabilities(answerer.embeddings(encoded), tokens)
        read = answerer.encode([item.read(item.texts) for item in items])
        read = answerer.log_probabilities(answerer.embeddings(read), tokens)
        for extra, of_heard, of_read in zip(extras, heard, read, strict=True):
            extra["agreement"] = agreement(of_heard, of_read)

    def _finding(self, system: str, item: Item, finding: str) -> dict[str, Any]:
        source = source_name(self.rows.data[item.row]["audio"])
        return {"id": item.id, "system": system, "finding": finding, "source": source}


def _load(processor: Any, source: Any, rate: int | None) -> np.ndarray:
    """One audio, checked as the processor does, at the recogniser's rate if that is given."""
    own = processor.feature_extractor.sampling_rate
    samples = processor.load_audio(source)
    if rate is None or rate == own:
        return samples
    import soxr

    return np.ascontiguousarray(soxr.resample(samples, own, rate, quality="HQ"), dtype=np.float32)


def transcribe(
    recogniser: Recogniser, items: Sequence[Item], audio: dict[str, list[np.ndarray]]
) -> dict[str, list[str]]:
    """What the recogniser hears in each item's audios; a recording that several ask about is heard once."""
    keys = {item.id: [(part.tobytes(), item.language) for part in audio[item.id]] for item in items}
    sources = {key: part for item in items for key, part in zip(keys[item.id], audio[item.id], strict=True)}
    texts = recogniser.transcribe(list(sources.values()), [language for _, language in sources])
    known = dict(zip(sources, texts, strict=True))
    return {item.id: [known[key] for key in keys[item.id]] for item in items}


def all_bad(store: Lines) -> Iterator[dict[str, str]]:
    """Rows that a system could not take, each once."""
    seen = set()
    for line in store.lines.values():
        if "finding" in line and line["id"] not in seen:
            seen.add(line["id"])
            yield {name: line[name] for name in ("id", "source", "finding")}


__all__ = ["TITLES", "Runner", "all_bad", "plan_batches", "row_facts", "systems_of", "transcribe"]
