"""Answers to metrics: the task's, how answers fail, the form asked for, the judge, agreement with the text bound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .behaviour import is_empty, is_refusal, is_repeating, is_same, is_transcript
from .bootstrap import Difference, Estimate, Resamples, difference, estimate, interval, interval_without_spread
from .config import EvaluationConfig
from .forms import follows, has_form
from .hints import find_hints
from .languages import is_in_language
from .metrics import Metric, class_scores, error_rates, exact, ratio, share, squad_scores, translation_scores
from .normalise import MLQA_LANGUAGES, base_code
from .rows import Item

TRANSCRIBING_TASKS = ("transcribe", "repeat")
GROUPINGS = {
    "language": "language",
    "target_language": "target language",
    "prompt_kind": "prompt kind",
    "task": "task",
}
PAIRS = (  # what is compared by a paired test
    ("speech", "text_bound"),
    ("speech", "cascade"),
    ("speech", "second"),
    ("text_bound", "text_before"),
)
HEADLINES = {
    "transcribe": "wer",
    "translate": "bleu",
    "question": "f1",
    "classify": "accuracy",
    "instruct": "judge_score",
}


@dataclass
class Answers:
    """One system's lines, and the judgements of them or None, of items in order."""

    lines: list[dict[str, Any]]
    judgements: list[dict[str, Any]] | None = None

    @property
    def texts(self) -> list[str]:
        return [line["answer"] for line in self.lines]


def candidate_languages(items: Sequence[Item]) -> list[str]:
    """Languages among which that of an answer is told: those spoken and those asked for."""
    codes = {code for item in items for code in (item.language, item.target_language, item.form.get("language"))}
    return sorted({base_code(code) for code in codes if code is not None})


def task_metrics(items: Sequence[Item], texts: Sequence[str], task: str) -> list[Metric]:
    """The metrics of a task over one system's answers."""
    references = [item.references for item in items]
    languages = [item.target_language or item.language for item in items]
    match task:
        case "transcribe":
            return [*error_rates(references, texts, languages), exact(references, texts)]
        case "translate":
            return [*translation_scores(references, texts, [item.target_language for item in items])]
        case "question":
            return squad_scores(references, texts, languages)
        case "classify":
            return class_scores([options[0] for options in references], texts)
    return [exact(references, texts)] if any(references) else []


def form_metrics(items: Sequence[Item], answers: Answers, candidates: Sequence[str]) -> list[Metric]:
    """Whether answers have the form asked for, by code and by the judge, and the judge's score."""
    metrics = []
    if answers.judgements is not None:
        scores = [judgement["score"] for judgement in answers.judgements]
        followed = [judgement["followed"] for judgement in answers.judgements]
        unread = [score is None for score in scores]
        metrics.append(
            share("judge_score", "judge, 0 to 5", scores, True, "judgements that cannot be read left out", "")
        )
        metrics.append(share("judge_form", "form, by the judge", followed, True))
        metrics.append(share("judge_unread", "judgements not readable", unread, None))
    if any(item.form for item in items):
        checks = [
            has_form(follows(item.form, text, item.transcript, item.target_language or item.language, candidates))
            if item.form
            else None
            for item, text in zip(items, answers.texts, strict=True)
        ]
        metrics.append(share("form", "form, by code", checks, True, "instruction-following rate"))
    return metrics


def behaviour_metrics(items: Sequence[Item], answers: Answers, candidates: Sequence[str]) -> list[Metric]:
    """How often answers fail in which way; each over the answers where it can be told."""
    texts = answers.texts
    wrong = [is_in_language(text, item.target_language, candidates) for item, text in zip(items, texts, strict=True)]
    transcribed = [
        None
        if item.transcript is None or item.task in TRANSCRIBING_TASKS or _asks_for_transcript(item)
        else is_transcript(text, item.transcript, item.language)
        for item, text in zip(items, texts, strict=True)
    ]
    metrics = [
        share("wrong_language", "in the wrong language", [None if right is None else not right for right in wrong]),
        share("empty", "empty", [is_empty(text) for text in texts]),
        share("repeating", "repeating", [is_repeating(text) for text in texts]),
        share("refusing", "refusing", [is_refusal(text) for text in texts]),
        share("transcribing", "transcribing instead", transcribed),
        share("cut", "cut at the limit", [line["finish_reason"] == "length" for line in answers.lines]),
    ]
    return [metric for metric in metrics if metric.statistics[:, 1].any()]


def _asks_for_transcript(item: Item) -> bool:
    """Whether the right answer itself is the transcript."""
    return any(is_transcript(reference, item.transcript, item.language) for reference in item.references)


def agreement_metrics(answers: Answers, bound: Answers | None) -> list[Metric]:
    """How answers agree with the text bound's: equal texts, and token by token of the bound's answer."""
    if bound is None:
        return []
    equal = [is_same(left, right) for left, right in zip(answers.texts, bound.texts, strict=True)]
    metrics = [share("equal_to_bound", "same answer as the bound", equal, True)]
    found = [line.get("agreement") for line in answers.lines]
    if all(found):
        top1 = np.array([(row["top1"], row["tokens"]) for row in found], dtype=float).reshape(-1, 2)
        kl = np.array([(row["kl"], row["tokens"]) for row in found], dtype=float).reshape(-1, 2)
        note = "over the tokens of the bound's answers"
        metrics.append(Metric("top1_with_bound", "same likeliest token", "%", True, top1, ratio(), note))
        metrics.append(Metric("kl_to_bound", "KL from the bound, nats", "", False, kl, ratio(1.0), note))
    return metrics


def recogniser_metrics(items: Sequence[Item], answers: Answers) -> list[Metric]:
    """The word error rate of what a cascade heard, over rows with a transcript."""
    known = [place for place, item in enumerate(items) if item.transcript]
    if not known or not all("heard" in line for line in answers.lines):
        return []
    wer, _ = error_rates(
        [[items[place].transcript] for place in known],
        [answers.lines[place]["heard"] for place in known],
        [items[place].language for place in known],
    )
    statistics = np.zeros((len(items), wer.statistics.shape[1]))
    statistics[known] = wer.statistics
    return [Metric("heard_wer", "recogniser's error rate", "%", False, statistics, wer.value, wer.note)]


@dataclass
class Scores:
    """
    All figures of a run.

    Args:
        metrics: by system, in the order of the tables; `kinds` says which group each is of.
        kinds: metric's name -> `"task"`, `"form"`, `"behaviour"`, `"agreement"` or `"recogniser"`.
        overall: estimates by system and metric.
        groups: by grouping, value and system the estimates of every metric; and under `MEAN` the headline's mean over
            the values.
        differences: by pair ("a - b") and metric of the task.
        headline: name of the metric of the tables by group.
        hints: what the terminal says below its tables.
        notes: what else a reader must know.
        rows: how many were scored.
    """

    metrics: dict[str, dict[str, Metric]]
    kinds: dict[str, str]
    overall: dict[str, dict[str, Estimate]]
    groups: dict[str, dict[str, dict[str, dict[str, Estimate]]]]
    means: dict[str, dict[str, dict[str, Estimate]]]
    differences: dict[str, dict[str, Difference]]
    headline: str | None
    hints: list[str]
    notes: list[str]
    rows: int


def score(items: Sequence[Item], answers: Mapping[str, Answers], config: EvaluationConfig) -> Scores:
    """
    Every metric of every system, with intervals.

    Args:
        items: those that all systems have answered.
        answers: of each system, in the order of the items.
        config: settings.

    Raises:
        ValueError: a headline that is no metric of this run.
    """
    candidates = candidate_languages(items)
    metrics: dict[str, dict[str, Metric]] = {}
    kinds: dict[str, str] = {}
    for system, given in answers.items():
        bound = answers.get("text_bound") if system not in ("text_bound", "text_before") else None
        found = {
            "task": task_metrics(items, given.texts, config.task),
            "form": form_metrics(items, given, candidates),
            "behaviour": behaviour_metrics(items, given, candidates),
            "agreement": agreement_metrics(given, bound),
            "recogniser": recogniser_metrics(items, given),
        }
        metrics[system] = {metric.name: metric for group in found.values() for metric in group}
        kinds |= {metric.name: kind for kind, group in found.items() for metric in group}
    headline = choose_headline(config, kinds)
    resamples = Resamples([item.recording for item in items], config.bootstrap_samples, config.seed)
    overall = {
        system: {name: estimate(m.statistics, m.value, resamples, is_share=m.is_share) for name, m in found.items()}
        for system, found in metrics.items()
    }
    groups, means = group_estimates(items, metrics, headline, resamples)
    differences = {
        f"{left} - {right}": {
            name: difference(
                metric.statistics,
                metrics[right][name].statistics,
                metric.value,
                resamples,
                metrics[right][name].value,
                metric.is_share,
            )
            for name, metric in metrics[left].items()
            if kinds[name] in ("task", "form") and name in metrics[right] and metric.higher_is_better is not None
        }
        for left, right in PAIRS
        if left in metrics and right in metrics
    }
    notes = [*notes_on(items, config), *notes_on_judgements(answers)]
    hints = find_hints(items, overall, kinds, config)
    return Scores(metrics, kinds, overall, groups, means, differences, headline, hints, notes, len(items))


def choose_headline(config: EvaluationConfig, kinds: Mapping[str, str]) -> str | None:
    """The metric of the tables by group: the one asked for, the task's, or of `instruct` the first there is."""
    if config.headline is not None:
        if config.headline not in kinds:
            raise ValueError(f"headline {config.headline!r} is no metric of this run: {', '.join(kinds)}.")
        return config.headline
    if HEADLINES[config.task] in kinds:
        return HEADLINES[config.task]
    return next((name for name, kind in kinds.items() if kind in ("form", "task")), None)


def groups_of(items: Sequence[Item], grouping: str) -> dict[str, np.ndarray]:
    """The rows (rows,) of each value of a grouping; empty unless there are two values or more, and of target languages
    unless some differ from the spoken ones."""
    if grouping == "target_language" and all(item.target_language in (None, item.language) for item in items):
        return {}
    values = [getattr(item, grouping) for item in items]
    names = list(dict.fromkeys("not given" if value is None else value for value in values))
    if len(names) < 2:
        return {}
    order = sorted(names) if grouping != "prompt_kind" else sorted(names, key=lambda name: (name != "seen", name))
    found = np.array(["not given" if value is None else value for value in values])
    return {name: found == name for name in order}


def group_estimates(
    items: Sequence[Item], metrics: Mapping[str, Mapping[str, Metric]], headline: str | None, resamples: Resamples
) -> tuple[dict, dict]:
    """Estimates by grouping, value, system and metric; and the mean of the headline over a grouping's values."""
    groups: dict = {}
    means: dict = {}
    for grouping in GROUPINGS:
        masks = groups_of(items, grouping)
        if not masks:
            continue
        groups[grouping] = {
            value: {
                system: {
                    name: estimate(m.statistics, m.value, resamples, mask, m.is_share) for name, m in found.items()
                }
                for system, found in metrics.items()
            }
            for value, mask in masks.items()
        }
        if headline is not None:
            means[grouping] = {
                system: mean_estimate(found[headline], list(masks.values()), resamples)
                for system, found in metrics.items()
                if headline in found
            }
    return groups, means


def mean_estimate(metric: Metric, masks: Sequence[np.ndarray], resamples: Resamples) -> Estimate:
    """The unweighted mean of a metric over groups of rows, those without a value left out."""
    values = np.array([float(metric.value(metric.statistics[mask].sum(0))) for mask in masks])
    drawn = np.array([resamples.values(metric.statistics, metric.value, mask) for mask in masks])
    known = ~np.isnan(values)
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    low, high = interval(drawn[known].mean(0))
    if low == high:
        low, high = interval_without_spread(float(values[known].mean()), resamples.count, metric.is_share)
    return Estimate(float(values[known].mean()), low, high, int(np.sum(masks)))


def notes_on(items: Sequence[Item], config: EvaluationConfig) -> list[str]:
    """What the metrics could not do as their field does."""
    notes = []
    spoken = {item.target_language or item.language for item in items}
    if config.task == "question":
        strange = sorted({base_code(code) for code in spoken if code is not None} - set(MLQA_LANGUAGES))
        if strange:
            notes.append(f"MLQA has no normaliser for {', '.join(strange)}: no articles are removed there.")
    if config.task in ("transcribe", "question") and None in spoken:
        missing = sum((item.target_language or item.language) is None for item in items)
        notes.append(f"{missing} rows have no language: their texts are normalised without regard to it.")
    if config.task == "translate" and any(item.target_language is None for item in items):
        notes.append(
            "Rows without target_language are tokenised as 13a for BLEU, and their answers' language is not judged."
        )
    recordings = len({item.recording for item in items})
    if recordings < len(items):
        notes.append(f"{len(items)} rows are about {recordings} recordings; the intervals are over recordings.")
    return notes


def notes_on_judgements(answers: Mapping[str, Answers]) -> list[str]:
    """How many judgements have no score."""
    judgements = [line for given in answers.values() for line in given.judgements or []]
    unread = sum(line["score"] is None for line in judgements)
    if not unread:
        return []
    return [f"{unread} of {len(judgements)} judgements could not be read and have no score; see judgements.jsonl."]


__all__ = ["GROUPINGS", "Answers", "Scores", "choose_headline", "groups_of", "score", "task_metrics"]
