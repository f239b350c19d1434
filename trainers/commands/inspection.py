"""`speechllm inspect`: what is in the data and, with a model, what a training on it takes on this machine.

output_dir/report.json      all figures
output_dir/lengths.png      the lengths, where matplotlib is installed
"""

import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from processing_speechllm.audio import AudioError, load_audio

from ..data.bad_rows import BadRows
from ..data.settings import ModelSettings, described
from ..data.shards import write_text
from ..data.statistics import DataStatistics, describe_rows
from .arguments import DataArguments
from .estimate import count_row_tokens, estimate_memory, in_bytes, in_time
from .inputs import load_speech_model, load_training_rows

BAR = 40  # characters of the longest bar
SHOWN = 8  # values of a column that are listed
ROOM = 0.8  # share of memory that is planned with
TARGET_SECONDS = 240.0  # audio per batch above which larger batches gain little


@dataclass
class InspectConfig(ModelSettings):
    """
    What is looked at beside the data of [`DataArguments`]; a model, as for a training, is not needed.

    Args:
        output_dir (`str`, *optional*):
            Folder for the figures as JSON and the lengths as a picture. `--out` is the same.
        objective (`str`, *optional*, defaults to `"imitate"`):
            The command that is planned: align, imitate or distill.
        batch_size (`int`, *optional*, defaults to 8):
            Rows per batch of the estimate and the probe.
        probe_updates (`int`, *optional*, defaults to 4):
            Updates that are timed; 0 for none. Nothing is kept of them.
    """

    output_dir: str | None = field(default=None, metadata={"help": "Folder for figures.", "aliases": ["--out"]})
    objective: str = described("The command that is planned: align, imitate, distill.", "imitate")
    batch_size: int = described("Rows per batch of estimate and probe.", 8)
    probe_updates: int = described("Updates that are timed; 0 for none.", 4)

    def __post_init__(self):
        super().__post_init__()
        if self.objective not in ("align", "imitate", "distill"):
            raise ValueError(f"objective={self.objective!r} is not one of align, imitate, distill.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")
        if self.has_model():
            self.check_names()

    def has_model(self) -> bool:
        """Whether a model was named, or a part or setting of one."""
        named = (self.model, self.audio, self.text, self.connector, self.gguf_file)
        return any(value is not None for value in named) or self.pad_to_window


def inspect(config: InspectConfig, data: DataArguments, trainers: dict[str, tuple[type, type]]) -> dict[str, Any]:
    """
    The command: prints the report and writes it; returns the figures.

    Args:
        config, data: settings.
        trainers: command -> trainer and config class.

    Raises:
        ValueError: data or models that cannot be used.
    """
    if data.streaming:
        raise ValueError("A stream is not read to its end here. Set streaming false.")
    bad_rows = BadRows(None, max_share=1.0, minimum=1)
    rows, kept = load_training_rows(data.dataset, data, bad_rows, say=print, transcribed=False)
    statistics = describe_rows(rows)
    unreadable = bad_rows.read()
    report: dict[str, Any] = {"data": statistics.to_dict(), "filters": str(kept), "unreadable": unreadable}
    print("\n".join(data_lines(statistics, unreadable, str(kept))), flush=True)
    if config.has_model():
        report["model"] = plan(config, rows, trainers)
        print("\n".join(plan_lines(report["model"], config)), flush=True)
    if config.output_dir is not None:
        folder = Path(config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "report.json", json.dumps(report, indent=2, ensure_ascii=False, default=str))
        print(f"\nFigures: {folder / 'report.json'}{draw(statistics, folder / 'lengths.png')}")
    return report


# The data in words


def data_lines(statistics: DataStatistics, unreadable: list[dict[str, str]], kept: str) -> list[str]:
    """The report on the data, 80 columns wide but for names."""
    q, pace = statistics.quantiles, statistics.characters_per_second
    lines = [
        "",
        f"{statistics.rows:,} rows, {in_time(statistics.seconds)} of audio ({kept})",
        f"  seconds per row   min {q['min']:.2f}, 5% {q['5%']:.2f}, median {q['median']:.2f}, 95% {q['95%']:.2f}, "
        f"max {q['max']:.2f}",
    ]
    most = max(count for _, _, count in statistics.histogram)
    for start, stop, count in statistics.histogram:
        bar = "█" * round(BAR * count / most) or "▏" * bool(count)
        lines.append(f"  {start:7.1f} -{stop:6.1f} s  {count:8,}  {bar}".rstrip())
    for name, values in (("languages", statistics.languages), ("speakers", statistics.speakers)):
        lines.append(f"  {name:<17} {_shares(values)}")
    rates = ", ".join(f"{name} ({count:,})" for name, count in list(statistics.rates.items())[:SHOWN])
    note = "" if statistics.headers_read == statistics.rows else f", of {statistics.headers_read:,} files looked at"
    lines.append(f"  {'audio':<17} {rates}{note}")
    if pace:
        lines.append(
            f"  characters per s  mean {pace['mean']:.1f}, 5% {pace['5%']:.1f}, median {pace['median']:.1f}, "
            f"95% {pace['95%']:.1f}"
        )
    licences = _shares(statistics.licences) if statistics.licences else "no column; settle it before you publish"
    lines.append(f"  {'licence':<17} {licences}")
    if unreadable:
        lines.append(f"  {len(unreadable):,} rows cannot be read, the first:")
        lines += [f"      {row['id']}: {row['finding']}" for row in unreadable[:3]]
    for name, found in statistics.findings.items():
        lines.append(f"  {found.count:,} rows {name}: {', '.join(found.first)}")
    if not unreadable and not statistics.findings:
        lines.append("  nothing odd was found")
    return lines


def _shares(values: dict[str, float]) -> str:
    if not values:
        return "no column"
    named = [f"{name} {in_time(seconds)}" for name, seconds in list(values.items())[:SHOWN]]
    more = f", ... ({len(values)} in all)" if len(values) > SHOWN else ""
    return ", ".join(named) + more


def draw(statistics: DataStatistics, path: Path) -> str:
    """Draws the lengths; returns what is said of the picture."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return '; a picture needs matplotlib: pip install "speechllm[eval]"'
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    starts, stops, counts = zip(*statistics.histogram, strict=True)
    widths = [stop - start for start, stop in zip(starts, stops, strict=True)]
    axes.bar(starts, counts, widths, align="edge", color="#4477aa", edgecolor="white")
    axes.set(xlabel="seconds per row", ylabel="rows")
    axes.set_title(f"{statistics.rows:,} rows, {in_time(statistics.seconds)}", loc="left")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return f", {path}"


# The model


def plan(config: InspectConfig, rows: Dataset, trainers: dict[str, tuple[type, type]]) -> dict[str, Any]:
    """Tokens, memory, time and settings of a training of the model on these rows."""
    model, processor = load_speech_model(config, ["connector"])
    model.freeze("encoder", "llm")
    tokens = count_row_tokens(rows, processor)
    seconds = np.asarray(rows["duration"][:], dtype=float)
    total = max(float(seconds.sum()), 1e-3)
    positions = getattr(model.config.text_config, "max_position_embeddings", None)
    per_row = int((tokens.audio + tokens.text).max()) + 20
    labels = int(tokens.audio.max() if config.objective == "align" else tokens.text.max())
    memory = {
        name: estimate_memory(model, config.batch_size * per_row, config.batch_size * labels, checkpointed)
        for name, checkpointed in (("plain", False), ("checkpointed", True))
    }
    found: dict[str, Any] = {
        "parameters": {
            g: sum(p.numel() for m in ms for p in m.parameters()) for g, ms in model.group_modules().items()
        },
        "audio_tokens_per_second": float(tokens.audio.sum() / total),
        "text_tokens_per_second": float(tokens.for_ctc.sum() / total),
        "infeasible": tokens.infeasible(),
        "positions": positions,
        "beyond_window": tokens.beyond(positions),
        "longest": per_row,
        "memory": {name: {**vars(one), "total": one.total} for name, one in memory.items()},
        "device_memory": device_memory(),
    }
    found["cache"] = cache_cost(model, processor, rows, total)
    told = [place for place, text in enumerate(rows["text"][:]) if text]
    if config.probe_updates and told:  # rows without a transcript cannot be trained on
        some = rows.select(told) if len(told) < len(rows) else rows
        found["probe"] = probe(config, model, processor, some, trainers[config.objective])
        updates = max(len(rows) / config.batch_size, 1)
        found["epoch_seconds"] = found["probe"]["seconds_per_update"] * updates
    found["settings"] = choose_settings(config, found, seconds)
    return found


def device_memory() -> dict[str, Any]:
    """The memory that a training would have here."""
    if torch.cuda.is_available():
        return {"device": torch.cuda.get_device_name(), "bytes": torch.cuda.get_device_properties(0).total_memory}
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"device": "cpu", "bytes": pages}


def cache_cost(model: Any, processor: Any, rows: Dataset, total: float) -> dict[str, Any]:
    """Bytes of the encoder's frames on disk in 16 bits, and seconds to make them, from a few rows timed here; and what
    is wrong with those of them that cannot be decoded, which their headers did not tell."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tower = model.model.audio_tower.to(device).eval()
    rate = processor.feature_extractor.sampling_rate
    heard, frames, elapsed, unreadable = 0.0, 0, 0.0, []
    for row in rows.select(range(0, len(rows), max(len(rows) // 4, 1))):
        audio = row["audio"] if isinstance(row["audio"], list) else [row["audio"]]
        try:
            samples = [load_audio(one, rate) for one in audio if one is not None]
        except AudioError as error:
            unreadable.append(str(error))
            continue
        if not samples:
            continue
        inputs = processor.audio_inputs(samples)
        features = torch.from_numpy(inputs["input_features"]).to(device, model.dtype)
        mask = torch.from_numpy(inputs["input_features_mask"]).to(device)
        with torch.inference_mode():
            if not heard:  # the first pass warms up
                tower(features, mask)
            started = time.perf_counter()
            frames += int(tower(features, mask).lengths.sum())
            elapsed += time.perf_counter() - started
        heard += sum(len(one) for one in samples) / rate
    heard = max(heard, 1e-3)
    layers = len(model.config.audio_layers) or 1
    size = frames / heard * total * model.config.audio_size * layers * 2
    seconds = elapsed / heard * total
    return {"bytes": size, "seconds": seconds, "frames_per_second": frames / heard, "unreadable": unreadable}


class _Times(TrainerCallback):
    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def probe(
    config: InspectConfig, model: Any, processor: Any, rows: Dataset, classes: tuple[type, type]
) -> dict[str, float]:
    """Seconds of an update, measured over a few on rows spread over the data, the first one left out."""
    trainer_class, config_class = classes
    updates = config.probe_updates + 1
    wanted = min(len(rows), updates * config.batch_size)
    some = rows.select([place * len(rows) // wanted for place in range(wanted)])
    times = _Times()
    with tempfile.TemporaryDirectory() as folder:
        args = config_class(
            output_dir=folder,
            max_steps=updates,
            per_device_train_batch_size=config.batch_size,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            max_bad_share=1.0,
        )
        trainer = trainer_class(model, args, train_dataset=some, processing_class=processor, callbacks=[times])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    each = (times.ends[-1] - times.ends[0]) / max(len(times.ends) - 1, 1)
    return {"seconds_per_update": each, "updates": len(times.ends) - 1, "peak_bytes": peak}


def choose_settings(config: InspectConfig, found: dict[str, Any], seconds: np.ndarray) -> dict[str, Any]:
    """The settings that the figures speak for."""
    room = ROOM * found["device_memory"]["bytes"]
    plain, checkpointed = found["memory"]["plain"], found["memory"]["checkpointed"]
    held = plain["frozen"] + plain["trained"]
    settings: dict[str, Any] = {}
    longest = float(np.percentile(seconds, 99.5))
    if found["beyond_window"]:
        per_second = found["audio_tokens_per_second"] + found["text_tokens_per_second"]
        longest = min(longest, (found["positions"] - 20) / max(per_second, 1e-3))
    settings["max_seconds"] = max(int(longest), 1) if found["beyond_window"] else int(np.ceil(longest))
    batch = config.batch_size * float(seconds.max())
    for is_checkpointed, memory in ((False, plain), (True, checkpointed)):
        per_second = memory["activations"] / max(batch, 1e-3)
        fits = (room - held) / max(per_second, 1)
        settings["activation_checkpointing"] = is_checkpointed
        if fits >= TARGET_SECONDS:
            break
    settings["batch_seconds"] = int(min(max(fits, 0), TARGET_SECONDS))
    if settings["batch_seconds"] < settings["max_seconds"]:
        settings["batch_seconds"] = settings["max_seconds"]
        settings["accelerate_config"] = "fsdp2"  # one row does not fit on one device
    if found["infeasible"]:
        settings["connector"] = "one of a smaller stride, where CTC is wanted"
    encoder, epoch = found["cache"]["seconds"], found.get("epoch_seconds")
    if epoch:
        settings["frames_cache"] = "worth it" if encoder > 0.2 * epoch else "saves little"
    return settings


def plan_lines(found: dict[str, Any], config: InspectConfig) -> list[str]:
    """The report on model and training."""
    memory, cache, probe_ = found["memory"], found["cache"], found.get("probe")
    sizes = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in found["parameters"].items())
    plain, checkpointed = memory["plain"], memory["checkpointed"]
    lines = [
        "",
        f"Model: {sizes}",
        f"  tokens per second  {found['audio_tokens_per_second']:.1f} of audio, {found['text_tokens_per_second']:.1f} "
        "of transcript",
        f"  infeasible for CTC {found['infeasible']:,} rows (more transcript tokens than audio tokens)",
        f"  beyond the LLM     {found['beyond_window']:,} rows; its window has {found['positions'] or 'no known'} "
        f"positions, the longest row takes about {found['longest']:,}",
        f"  memory, estimated  {in_bytes(plain['total'])} for {config.batch_size} of the longest rows: frozen "
        f"{in_bytes(plain['frozen'])}, trained {in_bytes(plain['trained'])}, activations "
        f"{in_bytes(plain['activations'])} ({in_bytes(checkpointed['activations'])} checkpointed)",
        f"  memory here        {in_bytes(found['device_memory']['bytes'])} ({found['device_memory']['device']})",
    ]
    if probe_:
        peak = f", peak {in_bytes(probe_['peak_bytes'])}" if probe_["peak_bytes"] else ""
        lines.append(
            f"  time, measured     {probe_['seconds_per_update']:.2g} s per update of {config.batch_size} rows "
            f"({config.objective}, {probe_['updates']} updates{peak}): {in_time(found['epoch_seconds'])} per epoch"
        )
    else:
        reason = (
            "no row has a transcript; speechllm transcribe writes them" if config.probe_updates else "not asked for"
        )
        lines.append(f"  time               not measured: {reason}")
    share = f", {cache['seconds'] / found['epoch_seconds']:.0%} of an epoch" if probe_ else ""
    cost = "not measured: no row that was tried can be decoded"
    if cache["frames_per_second"]:
        cost = f"{in_bytes(cache['bytes'])} on disk, {in_time(cache['seconds'])} of encoding{share}"
    lines += [f"  cannot be decoded  {finding}" for finding in cache["unreadable"]]
    lines += [
        f"  caching frames     {cost}",
        "  settings           " + ", ".join(f"{name}: {value}" for name, value in found["settings"].items()),
    ]
    return lines


__all__ = ["InspectConfig", "data_lines", "inspect", "plan", "plan_lines"]
