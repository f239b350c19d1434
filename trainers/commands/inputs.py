"""Model and rows of a command, from its settings."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, List, Value, concatenate_datasets, interleave_datasets
from datasets import IterableDataset as Stream
from transformers import PreTrainedConfig

from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.pretrained_speechllm import GROUPS
from modeling_speechllm.quantization import quantization_config
from processing_speechllm import SpeechLLMProcessor

from ..data.bad_rows import BadRows
from ..data.filters import FilterReport, filter_rows
from ..data.layouts.layout import SPLIT_NAMES
from ..data.layouts.recognition import local_splits
from ..data.loading import load_rows, with_durations
from ..data.settings import ModelSettings
from .arguments import DataArguments

logger = logging.getLogger(__name__)


def load_speech_model(
    arguments: ModelSettings, trained_groups: Sequence[str] = (), quantization: str | None = None
) -> tuple[SpeechLLMForConditionalGeneration, SpeechLLMProcessor]:
    """
    The model and processor that settings name.

    Args:
        arguments: settings that name a model.
        trained_groups: groups that will be trained. A checkpoint whose other groups were trained before is no longer
            its parents and a connector, so these are forgotten and it is saved whole.
        quantization: `8bit` or `4bit` for the LLM, see [`quantization_config`].

    Raises:
        ValueError: settings that name no model or two, or a checkpoint that is no SpeechLLM.
        OSError: a model that cannot be found.
    """
    arguments.check_names()
    if arguments.model is None:
        options = {"dtype": arguments.dtype}
        if quantization is not None:
            options["quantization_config"] = quantization_config(quantization)
        model = SpeechLLMForConditionalGeneration.from_parts(
            arguments.audio,
            arguments.text,
            arguments.connector,
            gguf_file=arguments.gguf_file,
            pad_to_window=arguments.pad_to_window,
            **options,
        )
        return model, SpeechLLMProcessor.from_parts(
            arguments.audio, arguments.text, model.config, gguf_file=arguments.gguf_file
        )
    model, processor = load_checkpoint(arguments.model, arguments.dtype, quantization)
    settings, _ = PreTrainedConfig.get_config_dict(arguments.model)
    if not set(settings.get("trained_groups") or GROUPS) <= set(trained_groups):
        model.config.parents = None
    if arguments.connector is not None:
        model.replace_connector(arguments.connector)
        processor.follow(model.config)
    return model, processor


def load_checkpoint(
    name: str, dtype: str, quantization: str | None = None
) -> tuple[SpeechLLMForConditionalGeneration, SpeechLLMProcessor]:
    """
    The SpeechLLM and processor of a folder or Hub id.

    Raises:
        ValueError: a checkpoint that is no SpeechLLM.
        OSError: a model that cannot be found.
    """
    settings, _ = PreTrainedConfig.get_config_dict(name)
    if settings.get("model_type") != "speechllm":
        raise ValueError(
            f"{name} is a {settings.get('model_type')} model, not a SpeechLLM. Give a SpeechLLM checkpoint as "
            "`model`, or join two models with `audio` and `text`."
        )
    options: dict[str, Any] = {"dtype": dtype}
    if quantization is not None:
        options["quantization_config"] = quantization_config(quantization, whole=not settings.get("trained_groups"))
    return (
        SpeechLLMForConditionalGeneration.from_pretrained(name, **options),
        SpeechLLMProcessor.from_pretrained(name),
    )


def load_training_rows(
    sources: Sequence[str],
    arguments: DataArguments,
    bad_rows: BadRows,
    seed: int = 0,
    split: str | None = None,
    streaming: bool = False,
    say: Callable[[str], None] = logger.info,
    transcribed: bool = True,
) -> tuple[Dataset | Stream, FilterReport]:
    """
    The rows of all sources one after the other, with `duration`, within the limits of the settings.

    Args:
        sources: as `load_rows` takes them.
        arguments: settings of the data.
        bad_rows: where rows whose audio cannot be read are listed.
        seed: of the choice that `max_hours_per_language` makes.
        split: of every source, by default that of the settings.
        streaming: read rows as they are needed.
        say: told what each source was taken for.
        transcribed: refuse data without transcripts; otherwise their `text` is None.

    Returns:
        the rows, and what the limits removed; of a stream the counts grow as it is read.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: columns are missing, or the sources' columns do not fit together.
    """
    parts = []
    for source in sources:
        part = load_rows(
            source,
            split or arguments.dataset_split,
            streaming,
            arguments.dataset_config,
            arguments.columns,
            arguments.dataset_revision,
            arguments.dataset_language,
            transcribed=transcribed,
            say=say,
        )
        if "text" not in (part.column_names or ["text"]):
            part = part.add_column("text", [None] * len(part), feature=Value("string"))
        parts.append(with_durations(part, bad_rows))
    rows = parts[0]
    if len(parts) > 1:
        try:
            rows = concatenate_datasets(parts)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"The datasets {', '.join(sources)} do not fit together: {_unlike(sources, parts) or error}. Columns "
                "of one name must hold the same kind of values; rename one of them with `columns`, or train on the "
                "datasets in turn."
            ) from error
    return filter_rows(rows, arguments.filters(seed))


def _unlike(sources: Sequence[str], parts: Sequence[Dataset | Stream]) -> str:
    """The first column that is a list in some datasets and one value in others, in words; "" if there is none."""
    for name in dict.fromkeys(name for part in parts for name in part.features or ()):
        kinds = {
            source: part.features[name]
            for source, part in zip(sources, parts, strict=True)
            if name in (part.features or ())
        }
        lists = [source for source, kind in kinds.items() if isinstance(kind, List)]
        if 0 < len(lists) < len(kinds):
            others = [source for source in kinds if source not in lists]
            return f"{name!r} is a list in {', '.join(lists)} and one value in {', '.join(others)}"
    return ""


def evaluation_split(source: str, wanted: str | None) -> str:
    """The split to evaluate on: the one wanted, else `validation` of Hub datasets and of folders that have one, else
    `train`: data with a place of their own."""
    if wanted is not None:
        return wanted
    if not Path(source).expanduser().exists():
        return "validation"
    found = {SPLIT_NAMES.get(name.replace("_", "-").split("-")[0]) for name in local_splits(source)}
    return "validation" if "validation" in found else "train"


def weigh_targets(rows: Dataset, weights: dict[str, float], seed: int) -> tuple[Dataset, Counter]:
    """
    Rows drawn by their column `target`, each set as often as its weight says.

    Rows without one, recordings with their transcripts beside generated targets, are of the set `T`. The sets are
    interleaved at random until every row of every set has come at least once
    (`stopping_strategy="all_exhausted"`), so nothing is lost, and rows of sets that are smaller than their weight come
    more than once in an epoch. Sets of weight 0 are left out.

    Args:
        rows: rows with `target`.
        weights: of each set.
        seed: of the order.

    Returns:
        the rows, and how many come of each set.

    Raises:
        ValueError: a stream, no such column, sets without a weight, or weights without rows.
    """
    if isinstance(rows, Stream):
        raise ValueError("target_weights counts the rows of each set, and a stream has no end. Set streaming false.")
    if "target" not in rows.column_names:
        raise ValueError(
            f"target_weights needs the column 'target'; the rows have {', '.join(rows.column_names)}. Make targets "
            "with `speechllm targets`, or leave target_weights out."
        )
    targets = ["T" if target is None else target for target in rows["target"][:]]
    found = Counter(targets)
    missing = sorted(str(name) for name in found if name not in weights)
    absent = sorted(name for name, weight in weights.items() if weight and name not in found)
    if missing or absent:
        raise ValueError(
            f"target_weights must name the sets of the data, {', '.join(map(str, found))}: "
            + "; ".join(
                [f"{name} has no weight (0 leaves it out)" for name in missing]
                + [f"{name} has no rows" for name in absent]
            )
            + "."
        )
    names = sorted(name for name, weight in weights.items() if weight)
    if not names:
        raise ValueError("target_weights are all 0: no rows would be left. Give one set a weight.")
    sets = [rows.select([place for place, target in enumerate(targets) if target == name]) for name in names]
    total = sum(weights[name] for name in names)
    mixed = sets[0]
    if len(sets) > 1:
        shares = [weights[name] / total for name in names]
        mixed = interleave_datasets(sets, shares, seed=seed, stopping_strategy="all_exhausted")
    return mixed, Counter("T" if target is None else target for target in mixed["target"][:])


__all__ = ["evaluation_split", "load_checkpoint", "load_speech_model", "load_training_rows", "weigh_targets"]
