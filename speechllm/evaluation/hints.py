"""What a run's figures say at once: why some are missing, and what is so wrong that no figure need be compared."""

import math
from collections.abc import Mapping, Sequence

from .bootstrap import Estimate
from .config import EvaluationConfig
from .metrics import bleu_tokenizer
from .rows import Item

MANY_ANSWERS = 20  # per cent
POOR_BOUND = 50  # per cent of the words that the LLM gets wrong although it reads them


def find_hints(
    items: Sequence[Item],
    overall: Mapping[str, Mapping[str, Estimate]],
    kinds: Mapping[str, str],
    config: EvaluationConfig,
) -> list[str]:
    """
    Sentences for the terminal and the report.

    Args:
        items: those that are scored.
        overall: estimates by system and metric.
        kinds: metric's name -> its group, see [`Scores`].
        config: settings.
    """
    speech = {name: found.value for name, found in overall["speech"].items()}
    found = []
    if not any(kinds[name] in ("task", "form") and not math.isnan(value) for name, value in speech.items()):
        found.append(
            f"No scores: of the task {config.task} they come from --judge, or from rows with a reference or a form. "
            "How answers fail is in the report."
        )
    if config.task == "translate":
        found += _mixed_tokenizers(items)
    if speech["repeating"] > MANY_ANSWERS:
        found.append(
            f"{speech['repeating']:.0f} % of the answers repeat themselves: a larger --max_new_tokens will not help."
        )
    elif speech["cut"] > MANY_ANSWERS:
        found.append(
            f"{speech['cut']:.0f} % of the answers are cut at {config.max_new_tokens} tokens: raise --max_new_tokens, "
            "or see in answers.jsonl whether they would ever end."
        )
    bound = overall.get("text_bound", {}).get("wer")
    if bound is not None and bound.value > POOR_BOUND:
        found.append(
            f"The text bound has {bound.value:.0f} % word errors: the LLM itself cannot write this language, or does "
            "not do what it is asked. No connector mends that."
        )
    return found


def _mixed_tokenizers(items: Sequence[Item]) -> list[str]:
    """Why there is no BLEU over all rows, where they are tokenised in different ways."""
    languages: dict[str, set[str]] = {}
    for item in items:
        languages.setdefault(bleu_tokenizer(item.target_language), set()).add(item.target_language or "not given")
    if len(languages) < 2:
        return []
    told = "; ".join(f"{name}: {', '.join(sorted(codes))}" for name, codes in sorted(languages.items()))
    return [f"BLEU has no value over target languages of different tokenisers ({told}), only by target language."]


__all__ = ["find_hints"]
