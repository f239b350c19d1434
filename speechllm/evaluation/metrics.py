"""Metrics as sums over rows: each row gives statistics, a function of their sums is the metric.

So overall values, those of a language or a kind of prompt, their bootstrap intervals and paired differences all come
from one table of statistics, and corpus metrics (word error rate, BLEU, macro-F1) are resampled as they should be.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .behaviour import word_errors
from .bootstrap import Value
from .normalise import answer_normalised, answer_tokens, base_code, by_character, loose, plain, whisper_normalised
from .packages import need

LETTER_BY_LETTER = "letter by letter, but for white space"


@dataclass(frozen=True)
class Metric:
    """
    One metric of one system over all rows.

    Args:
        name: its key in `results.json`.
        title: what tables call it.
        unit: `"%"`, or `""` for metrics with a scale of their own.
        higher_is_better: None where neither is.
        statistics (`np.ndarray` of shape `(rows, k)`): what each row adds.
        value: summed statistics (..., k) -> metric (...); NaN where there is nothing to score.
        note: what a reader must know, such as sacreBLEU's signature.
        is_share: whether it is a share of rows, for the interval where all rows are alike.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool | None
    statistics: np.ndarray
    value: Value
    note: str = ""
    is_share: bool = False


def ratio(scale: float = 100.0) -> Value:
    """Sums (..., 2) of a numerator and a denominator -> their ratio; NaN over zero."""

    def value(sums: np.ndarray) -> np.ndarray:
        sums = np.asarray(sums, dtype=float)
        counted = sums[..., 1] > 0
        return np.where(counted, scale * sums[..., 0] / np.where(counted, sums[..., 1], 1), np.nan)

    return value


def share(
    name: str,
    title: str,
    flags: Sequence[bool | float | None],
    higher_is_better: bool | None = False,
    note: str = "",
    unit: str = "%",
) -> Metric:
    """The mean of flags or scores over the rows that have one; in per cent where that is the unit."""
    statistics = np.array([(0.0, 0.0) if flag is None else (float(flag), 1.0) for flag in flags]).reshape(-1, 2)
    value = ratio(100.0 if unit == "%" else 1.0)
    return Metric(name, title, unit, higher_is_better, statistics, value, note, is_share=unit == "%")


# Transcribing


def character_errors(reference: str, answer: str, language: str | None) -> tuple[int, int]:
    """Wrong characters and characters of the reference, after Whisper's normaliser, spaces left out where words are
    not divided by them."""
    jiwer = need("jiwer", "A character error rate")
    texts = [whisper_normalised(text, language) for text in (reference, answer)]
    if by_character(language):
        texts = [text.replace(" ", "") for text in texts]
    measured = jiwer.process_characters(*texts)
    errors = measured.substitutions + measured.deletions + measured.insertions
    return errors, measured.hits + measured.substitutions + measured.deletions


def error_rates(
    references: Sequence[Sequence[str]], answers: Sequence[str], languages: Sequence[str | None]
) -> list[Metric]:
    """WER (by character where there are no spaces) and CER, pooled over rows; of several references the nearest."""
    pooled = {}
    for name, errors_of in (("wer", word_errors), ("cer", character_errors)):
        rows = []
        for options, answer, language in zip(references, answers, languages, strict=True):
            found = [errors_of(reference, answer, language) for reference in options]
            rows.append(min(found, key=lambda counts: counts[0] / max(counts[1], 1)))
        pooled[name] = np.array(rows, dtype=float).reshape(-1, 2)
    note = "Whisper's normaliser; a word is a character in zh, ja, th, lo, my, yue, km, bo"
    return [
        Metric("wer", "word error rate", "%", False, pooled["wer"], ratio(), note),
        Metric("cer", "character error rate", "%", False, pooled["cer"], ratio(), "Whisper's normaliser"),
    ]


# Translating


def bleu_tokenizer(language: str | None) -> str:
    """sacreBLEU's tokenizer for a language to translate to: `zh`, `char` for other writings without spaces, or
    `13a`."""
    code = base_code(language)
    if code == "zh":
        return "zh"
    return "char" if code is not None and by_character(code) else "13a"


def translation_scores(
    references: Sequence[Sequence[str]], answers: Sequence[str], languages: Sequence[str | None]
) -> list[Metric]:
    """BLEU and chrF of sacreBLEU (Post 2018), of the statistics that sacreBLEU itself sums.

    With languages of different tokenizers BLEU has no value over all of them, only by language.
    """
    sacrebleu = need("sacrebleu", "BLEU")
    metrics = []
    for name, title in (("bleu", "BLEU"), ("chrf", "chrF")):
        tokenizers = sorted({bleu_tokenizer(language) for language in languages}) if name == "bleu" else [""]
        scorers = {
            tokenizer: sacrebleu.BLEU(tokenize=tokenizer) if tokenizer else sacrebleu.CHRF()
            for tokenizer in tokenizers
        }
        blocks, signatures = [], []
        for tokenizer, scorer in scorers.items():
            mine = [not tokenizer or bleu_tokenizer(language) == tokenizer for language in languages]
            blocks.append(_sacrebleu_statistics(scorer, references, answers, mine))
            signatures.append(str(scorer.get_signature()))
        value = _pooled_sacrebleu(list(scorers.values()), blocks[0].shape[1])
        note = "sacreBLEU: " + "; ".join(signatures)
        metrics.append(Metric(name, title, "", True, np.concatenate(blocks, axis=1), value, note))
    return metrics


def _sacrebleu_statistics(
    scorer: Any, references: Sequence[Sequence[str]], answers: Sequence[str], mine: Sequence[bool]
) -> np.ndarray:
    """Statistics (rows, k) of the rows that are the scorer's, zeros for the others."""
    most = max(map(len, references), default=1)
    streams = [[options[place] if place < len(options) else None for options in references] for place in range(most)]
    # What sacrebleu.significance resamples too; there is no public name for it.
    rows = np.array(scorer._extract_corpus_statistics(list(answers), streams), dtype=float)
    return np.where(np.asarray(mine)[:, None], rows, 0.0)


def _pooled_sacrebleu(scorers: list[Any], width: int) -> Value:
    def one(sums: np.ndarray) -> float:
        used = [place for place in range(len(scorers)) if sums[place * width : (place + 1) * width].any()]
        if len(used) != 1:
            return float("nan")
        (place,) = used
        part = sums[place * width : (place + 1) * width]
        return scorers[place]._compute_score_from_stats([int(round(number)) for number in part]).score

    return lambda sums: np.apply_along_axis(one, -1, np.asarray(sums, dtype=float))


# Questions


def squad_scores(
    references: Sequence[Sequence[str]], answers: Sequence[str], languages: Sequence[str | None]
) -> list[Metric]:
    """F1 and exact match of SQuAD (Rajpurkar et al. 2016) with MLQA's normalisation, and equality letter by letter;
    the best reference counts."""
    f1, match, equal = [], [], []
    for options, answer, language in zip(references, answers, languages, strict=True):
        f1.append(max(token_f1(reference, answer, language) for reference in options))
        normalised = answer_normalised(answer, language)
        match.append(any(answer_normalised(reference, language) == normalised for reference in options))
        equal.append(any(plain(reference) == plain(answer) for reference in options))
    return [
        share("f1", "F1", f1, True, "SQuAD's, with MLQA's normalisation"),
        share("exact_match", "exact match", match, True, "SQuAD's, with MLQA's normalisation"),
        share("exact", "exact answers", equal, True, LETTER_BY_LETTER),
    ]


def token_f1(reference: str, answer: str, language: str | None) -> float:
    """Harmonic mean of precision and recall over the answer's tokens, 1 where both have none."""
    wanted, given = answer_tokens(reference, language), answer_tokens(answer, language)
    if not wanted or not given:
        return float(wanted == given)
    common = sum((Counter(wanted) & Counter(given)).values())
    return 2 * common / (len(wanted) + len(given))


def exact(references: Sequence[Sequence[str]], answers: Sequence[str]) -> Metric:
    """Equality letter by letter with one of the references; rows without references do not count."""
    flags = [
        any(plain(reference) == plain(answer) for reference in options) if options else None
        for options, answer in zip(references, answers, strict=True)
    ]
    return share("exact", "exact answers", flags, True, LETTER_BY_LETTER)


# Classes


def class_scores(wanted: Sequence[str], answers: Sequence[str]) -> list[Metric]:
    """Accuracy, and macro-F1 over the labels that are right or are answered somewhere; labels compare but for case and
    punctuation at their ends."""
    wanted, answers = [loose(label) for label in wanted], [loose(answer) for answer in answers]
    labels = {label: place for place, label in enumerate(sorted({*wanted, *answers}))}
    counts = np.zeros((len(wanted), 3, len(labels)))  # right, wanted, answered
    for row, (label, answer) in enumerate(zip(wanted, answers, strict=True)):
        counts[row, 0, labels[label]] = label == answer
        counts[row, 1, labels[label]] = 1
        counts[row, 2, labels[answer]] = 1
    right = [label == answer for label, answer in zip(wanted, answers, strict=True)]
    return [
        share("accuracy", "accuracy", right, True),
        Metric("macro_f1", "macro-F1", "%", True, counts.reshape(len(wanted), -1), _macro_f1),
    ]


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """Sums (..., 3 x labels) -> macro-F1 (...). Systems that are compared may have answered other labels."""
    sums = np.asarray(sums, dtype=float)
    right, wanted, answered = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    total = wanted + answered
    scores = 2 * right / np.where(total > 0, total, 1)
    present = (total > 0).sum(-1)
    return np.where(present > 0, 100 * scores.sum(-1) / np.where(present > 0, present, 1), np.nan)


__all__ = [
    "Metric",
    "bleu_tokenizer",
    "character_errors",
    "class_scores",
    "error_rates",
    "exact",
    "ratio",
    "share",
    "squad_scores",
    "token_f1",
    "translation_scores",
]
