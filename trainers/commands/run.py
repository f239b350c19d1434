"""The commands `speechllm align`, `imitate`, `distill`, `targets`, `encode` and `inspect`.

The same command goes on with what it left: a training from its last whole checkpoint, targets and caches from the
shards that are written.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import set_seed

from hub_cards.dataset_card import write_dataset_card

from ..alignment_config import SpeechAlignmentConfig
from ..alignment_trainer import SpeechAlignmentTrainer
from ..cache.config import EncodeConfig
from ..cache.encode import encode_dataset
from ..cache.frame_cache import UNREADABLE_ROWS
from ..checkpoints.folders import WEIGHTS, checkpoint_folders, is_whole
from ..checkpoints.lora import lora_config
from ..data.bad_rows import ROWS_BEFORE_JUDGING, BadRows
from ..data.filters import FilterReport
from ..distillation_config import SpeechDistillationConfig
from ..distillation_trainer import SpeechDistillationTrainer
from ..imitation_config import SpeechImitationConfig
from ..imitation_trainer import SpeechImitationTrainer
from ..speech_config import NOT_ACTED_ON, SpeechTrainingConfig
from ..speech_trainer import SpeechTrainer
from ..targets.config import TargetsConfig
from ..targets.generate import main as generate
from ..targets.generate import process_state
from .arguments import DataArguments, LaunchArguments, ScriptArguments
from .card import card_facts
from .checks import check_model, check_names, check_packages
from .estimate import TimeEstimate, training_line
from .inputs import evaluation_split, load_speech_model, load_training_rows, weigh_targets
from .inspection import InspectConfig, inspect
from .launch import LAUNCHED, check_devices, check_processes, launch_config, start_through_accelerate
from .parsing import parse
from .teacher_prompts import make_teacher_inputs

TRAINERS = {
    "align": (SpeechAlignmentTrainer, SpeechAlignmentConfig),
    "imitate": (SpeechImitationTrainer, SpeechImitationConfig),
    "distill": (SpeechDistillationTrainer, SpeechDistillationConfig),
}
CLASSES: dict[str, tuple[type, ...]] = {
    **{name: (config, ScriptArguments, LaunchArguments) for name, (_, config) in TRAINERS.items()},
    "targets": (TargetsConfig, DataArguments, LaunchArguments),
    "encode": (EncodeConfig, DataArguments, LaunchArguments),
    "inspect": (InspectConfig, DataArguments, LaunchArguments),
}
FIRST = {  # settings that people set first: the short help
    **dict.fromkeys(
        TRAINERS,
        ("dataset", "eval_dataset", "model", "audio", "text", "connector", "output_dir", "learning_rate", "max_steps")
        + ("batch_seconds",),
    ),
    "targets": ("dataset", "model", "base_url", "output_dir", "target_set", "tasks", "prompt_languages")
    + ("prompts_per_row", "max_new_tokens", "batch_size"),
    "encode": ("dataset", "model", "audio", "text", "connector", "output_dir", "teacher", "batch_seconds", "device")
    + ("storage_dtype",),
}
HOME = Path(__file__).parents[2]  # where the packages lie side by side
OURS = ("trainers", "modeling_speechllm", "processing_speechllm", "speechllm", "speechllm_cli")


def main(
    command: str,
    arguments: Sequence[str],
    description: str = "",
    example: str = "",
    known_models: Mapping[str, str] | None = None,
    classes: Sequence[type] | None = None,
    work: Callable[..., None] | None = None,
) -> int:
    """
    Runs a command and returns its exit status: 0, 1 (it broke off), 2 (wrong settings or data), 130 (Ctrl-C).

    Args:
        command: of `CLASSES`.
        arguments: the command line after it.
        description, example: of `--help`.
        known_models: names that stand for a model's folder, such as `nano`.
        classes, work: of a command that lives in another package: its settings, the last of them
            [`LaunchArguments`], and what is called with all others.
    """
    # SFTConfig sets this itself, so there is nothing that a user could do about it.
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")
    output_dir = None
    try:
        *settings, launch = parse(
            classes or CLASSES[command],
            arguments,
            f"speechllm {command}",
            description,
            example,
            FIRST.get(command, ()),
            tuple(NOT_ACTED_ON) if command in TRAINERS else (),
        )
        for group in settings:
            if isinstance(getattr(group, "model", None), str):
                group.model = (known_models or {}).get(group.model, group.model)
        if LAUNCHED not in os.environ:
            check(command, settings, launch.accelerate_config)
            if launch.accelerate_config is not None:
                check_devices(launch.accelerate_config, command)
                return start_through_accelerate(launch.accelerate_config, command, arguments)
        output_dir = settings[0].output_dir
        if work is not None:
            work(*settings)
        elif command in TRAINERS:
            train(TRAINERS[command][0], *settings)
        elif command == "targets":
            targets(*settings)
        elif command == "inspect":
            inspect(*settings, TRAINERS)
        else:
            encode(*settings)
        return 0
    except KeyboardInterrupt:
        _report(f"stopped. {_how_to_resume(output_dir)}")
        return 130
    except (ValueError, OSError) as error:
        _report(error)
        return 2
    except (FloatingPointError, RuntimeError, KeyError, TypeError, ImportError) as error:
        if not _is_ours(error):
            raise
        _report(f"{error.args[0] if error.args else error} {_how_to_resume(output_dir)}")
        return 1


def _report(message: object) -> None:
    print("speechllm:", str(message).strip(), file=sys.stderr, flush=True)


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised in this project's code, where errors say what to do."""
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    return file.is_relative_to(HOME) and file.relative_to(HOME).parts[0] in OURS


def _how_to_resume(output_dir: str | None) -> str:
    """Where the same command goes on."""
    if output_dir is None:
        return "Nothing had begun."
    whole = [folder for folder in checkpoint_folders(output_dir) if is_whole(folder)]
    place = f"from {whole[-1]}" if whole else f"with what {output_dir} holds by now"
    return f"The same command goes on {place}."


def check(command: str, settings: Sequence[Any], accelerate_config: str | None) -> None:
    """
    Refuses in this one process whatever can be refused before processes are launched and weights are loaded: packages,
    names, configs; before a launch the data too, whose reading `datasets` keeps.

    Raises:
        ValueError, OSError: with the finding and the remedy.
    """
    config, *others = settings
    check_packages(settings, accelerate_config)
    check_names(settings)
    if accelerate_config is not None:
        launch_config(accelerate_config)
    if command in TRAINERS:
        check_output(config)
        check_model(others[0])
    elif command in ("encode", "inspect"):
        check_model(config)
    if accelerate_config is None or others[0].streaming:
        return
    bad_rows = BadRows(None, max_share=1.0, minimum=1)
    if command in TRAINERS:
        load_data(config, others[0], bad_rows, _say_nothing)
    else:
        data = others[0]
        transcribed = command in ("targets", "encode")
        load_training_rows(data.dataset, data, bad_rows, streaming=data.streaming, transcribed=transcribed)


def check_output(args: SpeechTrainingConfig) -> None:
    """Refuses a training that has no place to go, or one that is taken."""
    if args.output_dir is None:
        raise ValueError("Say where the model goes: output_dir: FOLDER.")
    find_checkpoint(args)


# Training


def train(trainer_class: type[SpeechTrainer], args: SpeechTrainingConfig, script: ScriptArguments) -> None:
    """Builds what the settings name, trains, and leaves a model in `output_dir` that `from_pretrained` loads."""
    if args.output_dir is None:
        raise ValueError("Say where the model goes: output_dir: FOLDER.")
    check_processes(args)
    if script.quantization is not None and getattr(args, "cached_teacher", False):
        raise ValueError(
            "A cached teacher is the LLM in its own precision, and here it is quantised. Leave out cached_teacher, or "
            "quantization."
        )
    say = _say if args.process_index == 0 else _say_nothing
    checkpoint = find_checkpoint(args)
    args.resume_from_checkpoint = None
    if script.streaming and args.max_steps <= 0:
        raise ValueError("streaming data have no known end. Set max_steps.")
    bad_rows = BadRows(Path(args.output_dir) / "bad_rows", args.max_bad_share, ROWS_BEFORE_JUDGING)
    with args.main_process_first(desc="reading the data"):
        rows, evaluation, report = load_data(args, script, bad_rows, say)
    if checkpoint is not None:
        say(f"Going on from {checkpoint}")
    set_seed(args.seed)  # a new connector is drawn by it
    model, processor = load_speech_model(script, args.train_groups, script.quantization)
    adapters = None
    if script.lora_groups and script.model is None and keeps_adapters(script):
        name_base(args, model, processor)
    if script.lora_groups:
        settings = script.lora_rank, script.lora_alpha, script.lora_dropout, script.lora_modules
        adapters = lora_config(model, script.lora_groups, *settings)
    trainer = trainer_class(
        model,
        args,
        train_dataset=rows,
        eval_dataset=evaluation,
        processing_class=processor,
        peft_config=adapters,
    )
    trainer.card = card_facts(script, rows, report)
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    say(f"Training {trained / 1e6:.2f} M parameters ({', '.join(_what_is_trained(args, script))}){_rates(args)}")
    if not script.streaming and args.process_index == 0:
        say(training_line(trainer, rows, processor))
    trainer.add_callback(TimeEstimate(say))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if evaluation is not None and args.eval_strategy == "no":
        evaluate_once(trainer, say)
    place = save_final(trainer, processor)
    found = trainer.bad_rows.read()
    if found:
        say(f"{len(found)} rows could not be used and were left out; they are listed in {trainer.bad_rows.folder}")
    say(f"Model and processor: {place}. Losses: {Path(args.output_dir) / 'trainer_state.json'}")
    if place == Path(args.output_dir):
        say(what_next(trainer_class, place))


def evaluate_once(trainer: SpeechTrainer, say: Callable[[str], None]) -> None:
    """The losses on the evaluation data at the end of a training; what fails there costs no model."""
    try:
        metrics = trainer.evaluate()
    except (ValueError, RuntimeError) as error:
        say(f"The evaluation failed, the model does not: {error}")
        return
    say(f"Evaluation loss {metrics['eval_loss']:.4g}. On the way too: --eval_strategy steps --eval_steps N")


def what_next(trainer_class: type[SpeechTrainer], place: Path) -> str:
    """What to do with a trained model: an aligned one spells, it does not answer yet."""
    if trainer_class is SpeechAlignmentTrainer:
        return (
            "Alignment teaches to spell what is heard, not to answer. Next, teach it that: speechllm targets --model "
            f"{place} --dataset DATA --output_dir TARGETS; then speechllm imitate --model {place} --dataset TARGETS "
            "--output_dir NEW (a recipe: bloomzmms-2)"
        )
    return f'Ask it: speechllm ask RECORDING "INSTRUCTION" --model {place}'


def _say(text: str) -> None:
    print(text, flush=True)


def _say_nothing(text: str) -> None:
    pass


def _what_is_trained(args: SpeechTrainingConfig, script: ScriptArguments) -> list[str]:
    return [*args.train_groups, *(f"LoRA on {group}" for group in script.lora_groups or [])]


def _rates(args: SpeechTrainingConfig) -> str:
    """Peak learning rates of parts that have their own; only one is logged."""
    own = [f"{part} {rate:g}" for part, rate in (args.learning_rates or {}).items()]
    return f", learning rates of their own: {', '.join(own)}" if own else ""


def load_data(
    args: SpeechTrainingConfig, script: ScriptArguments, bad_rows: BadRows, say: Callable[[str], None]
) -> tuple[Any, Any, FilterReport]:
    """Rows to train on and to evaluate on (None without), and what the limits left out, which is said."""
    seed = args.data_seed if args.data_seed is not None else args.seed
    rows, filtered = load_training_rows(script.dataset, script, bad_rows, seed, None, script.streaming, say)
    say("Training data: a stream" if script.streaming else f"Training data: {filtered}")
    if not script.streaming and len(rows) == 0:
        raise ValueError("No rows are left to train on. Loosen the limits, or check the data.")
    if script.target_weights is not None:
        rows, drawn = weigh_targets(rows, script.target_weights, seed)
        say("Rows per epoch: " + ", ".join(f"{count} {name}" for name, count in sorted(drawn.items())))
    if not script.eval_dataset:
        return rows, None, filtered
    splits = {evaluation_split(source, script.eval_split) for source in script.eval_dataset}
    if len(splits) > 1:
        raise ValueError("eval_dataset: name the split of all by eval_split, they differ by default.")
    split = splits.pop()
    evaluation, report = load_training_rows(script.eval_dataset, script, bad_rows, seed, split, say=say)
    say(f"Evaluation data: {report}")
    if split == script.dataset_split and (both := sorted(set(script.dataset) & set(script.eval_dataset))):
        say(
            f"Warning: {', '.join(both)}, split {split}, is trained and evaluated on, so its loss tells nothing of "
            "other rows. Keep some apart: --dataset_split 'train[:90%]' --eval_split 'train[90%:]'."
        )
    return rows, evaluation, filtered


def find_checkpoint(args: SpeechTrainingConfig) -> Path | None:
    """
    Where a training goes on: from the checkpoint that `resume_from_checkpoint` names, or the last whole one of
    `output_dir`; None is anew.

    Raises:
        ValueError: it is to start anew, or there is nothing to go on from, in a folder that is not empty.
    """
    folder, wanted = Path(args.output_dir), args.resume_from_checkpoint
    switch = str(wanted).lower()
    if wanted is not None and switch not in ("true", "false"):
        return Path(wanted)
    whole = [path for path in checkpoint_folders(folder) if is_whole(path)]
    if whole and switch != "false":
        return whole[-1]
    if switch == "true":
        raise ValueError(f"{folder} has no whole checkpoint to go on from. Leave resume_from_checkpoint out.")
    remains = _results(folder)
    if remains:
        raise ValueError(
            f"{folder} holds {', '.join(remains[:3])} already, which a new training would overwrite. Give another "
            "output_dir, or remove the folder."
        )
    return None


def _results(folder: Path) -> list[str]:
    """Names of what an earlier training has finished in a folder."""
    whole = [path.name for path in checkpoint_folders(folder) if is_whole(path)]
    files = (*WEIGHTS, "config.json", "adapter_config.json")
    return whole + [path.name for name in files for path in folder.glob(name)]


def keeps_adapters(script: ScriptArguments) -> bool:
    """Whether a training will end with adapters beside a model and not with a model that they are merged into."""
    return script.quantization is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def name_base(args: SpeechTrainingConfig, model: Any, processor: Any) -> None:
    """Saves what was composed of two parents into `base`, whose name the adapters keep, so that they can be loaded."""
    base = Path(args.output_dir) / "base"
    if args.process_index == 0 and not (base / "config.json").is_file():
        model.save_pretrained(base, trained_only=True)
        processor.save_pretrained(base)
    model.name_or_path = str(base)


def save_final(trainer: SpeechTrainer, processor: Any) -> Path:
    """Saves the trained model with its processor and the history of losses to `output_dir`; returns the model's place.

    LoRA adapters are merged into the weights, so that the folder is a model like any other; where the weights are
    sharded or quantised the adapters are saved as they are, to `output_dir/adapter`.
    """
    folder = Path(trainer.args.output_dir)
    trainer.save_state()
    trainer.card.stage["finished"] = True
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if not hasattr(model, "merge_and_unload"):
        trainer.save_model(str(folder))
        return folder
    plugin = trainer.accelerator.state.deepspeed_plugin
    quantized = getattr(trainer.speech_model, "is_quantized", False)  # merged weights would be rounded once more
    if quantized or trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
        trainer.save_model(str(folder / "adapter"))
        return folder / "adapter"
    if trainer.args.should_save:
        merged = model.merge_and_unload()
        merged.config.parents = None  # the merged groups are no longer theirs
        merged.save_pretrained(folder)
        processor.save_pretrained(folder)
        (folder / "training_args.json").write_text(trainer.args.to_json_string(), encoding="utf-8")
        trainer.write_card(folder, merged)
    return folder


# Targets and caching


def targets(config: TargetsConfig, data: DataArguments) -> None:
    """Writes the LLM's answers about the rows and, once all are there, their card; says what came of it."""
    if data.streaming:
        raise ValueError("targets are numbered by their place in the data; a stream has none. Set streaming false.")
    state = process_state()
    bad_rows = BadRows(Path(config.output_dir) / "unreadable_rows", config.max_bad_share, ROWS_BEFORE_JUDGING)
    with state.main_process_first():
        rows, report = load_training_rows(data.dataset, data, bad_rows, config.seed, say=state.print)
    state.print(f"Data: {report}")
    report = generate(config, rows)
    if report["complete"] and state.is_main_process:
        write_dataset_card(config.output_dir)


def encode(config: EncodeConfig, data: DataArguments) -> None:
    """Writes the cache of the rows, and says what it holds."""
    config.check_names()
    # The first process to finish waits for the last one: longer than the half hour that is the default.
    state = process_state(cpu=config.device == "cpu", timeout=timedelta(days=7))
    # Not the folder's `bad_rows`, which a new run empties.
    bad_rows = BadRows(Path(config.output_dir) / UNREADABLE_ROWS, config.max_bad_share, ROWS_BEFORE_JUDGING)
    with state.main_process_first():
        rows, report = load_training_rows(data.dataset, data, bad_rows, streaming=data.streaming, say=state.print)
    if not data.streaming:
        state.print(f"Data: {report}")
    model, processor = load_speech_model(config)
    device = state.device if config.device is None else config.device
    model.model.audio_tower.to(device)
    if config.teacher != "none":
        model.model.language_model.to(device)
        model.lm_head.to(device)
    teacher_inputs = None if config.teacher == "none" else make_teacher_inputs(processor, config)
    report = encode_dataset(model, processor, rows, config, teacher_inputs)
    state.print(", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in asdict(report).items()))
    if report.bad:
        state.print(f"{report.bad} rows could not be used; they are listed in {Path(config.output_dir) / 'bad_rows'}")
    teacher = "" if config.teacher == "none" else " --cached_teacher true"
    teacher += f" --top_k {config.top_k}" if config.teacher == "top_k" else ""
    state.print(f"Cache: {config.output_dir}. Train from it: --frames_cache {config.output_dir}{teacher}")


__all__ = [
    "CLASSES",
    "TRAINERS",
    "encode",
    "find_checkpoint",
    "main",
    "save_final",
    "start_through_accelerate",
    "targets",
    "train",
]
