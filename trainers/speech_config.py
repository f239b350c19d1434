"""What the configs of all speech trainers share."""

import os
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from peft import PeftModel
from trl import SFTConfig

from modeling_speechllm.pretrained_speechllm import GROUPS
from processing_speechllm import SpeechLLMProcessor

from .checkpoints.trained_parts import PARTS
from .data.settings import must_be_mapping

ANSWERS = "The loss stands on assistant turns always: leave it out."
COLUMNS = "Rows come as load_rows gives them; name their columns there (`columns`)."
LOADED = "It is for models given by name: load the model with it."
NOT_ACTED_ON = {  # inherited settings, and what to do in their place
    "label_smoothing_factor": "Imitation takes a loss of yours by compute_loss_func.",
    "loss_type": "Imitation takes a loss of yours by compute_loss_func.",
    "assistant_only_loss": ANSWERS,
    "completion_only_loss": ANSWERS,
    "pad_to_multiple_of": "Batches are padded to their longest row; batch_seconds or group_by_length pad less.",
    "eos_token": "Answers end as the chat template ends them: set processor.chat_template.",
    "pad_token": "Set processor.tokenizer.pad_token.",
    "chat_template_path": "Set processor.chat_template.",
    "packing_strategy": "Audio is not packed; batch_seconds fills batches.",
    "eval_packing": "Audio is not packed; batch_seconds fills batches.",
    "truncation_mode": "Nothing is truncated; max_seconds filters rows.",
    "shuffle_dataset": "Rows are shuffled in every epoch, unless train_sampling_strategy is sequential.",
    "dataset_num_proc": "Rows are prepared as they are read, by dataloader_num_workers.",
    "dataset_text_field": COLUMNS,
    "length_column_name": "Lengths are in the column duration: rename yours.",
    "label_names": COLUMNS,
    "model_init_kwargs": LOADED,
    "trust_remote_code": LOADED,
    "router_aux_loss_coef": "An LLM of experts is trained without their auxiliary loss.",
    "neftune_noise_alpha": "To vary the input, set augmentation.",
    "use_liger_kernel": "Only positions with labels get logits already.",
    "liger_kernel_config": "Only positions with labels get logits already.",
    "auto_find_batch_size": "Set batch_seconds, which bounds the memory of a batch.",
    "average_tokens_across_devices": "Losses are always divided by the items of all devices.",
    "dataloader_drop_last": "Each row comes once in an epoch, whatever the batch size.",
    "logging_nan_inf_filter": "A loss that is not finite stops the run.",
}

LOWER_IS_BETTER = set(  # terms and figures that evaluations have beside `loss`
    "input output language divergence cross_entropy end_token ctc language_ctc infeasible cut_tokens".split()
)


@dataclass
class SpeechTrainingConfig(SFTConfig):
    """
    Arguments that all speech trainers share, on top of [`trl.SFTConfig`].

    Args:
        > Parameters that control what is trained
        train_groups (`list[str]`, *optional*, defaults to `["connector"]`):
            Groups whose parameters are trained, of `encoder`, `connector` and `llm`; the others are frozen and run
            without dropout. With a PEFT config, groups named here are trained in full beside the adapters.
        learning_rates (`dict[str, float]`, *optional*):
            Peak learning rates of parts of the model, in place of `learning_rate`: of `encoder`, `connector`, `llm`
            (its adapters too) and `gate`, a query bank's language gate. All follow the one schedule.
        save_trained_only (`bool`, *optional*, defaults to `True`):
            Checkpoints hold the trained groups alone, with the ids and revisions of the frozen parents, where these
            are known (after `from_parts`). Otherwise, and under FSDP, they are whole.
        average_best (`int`, *optional*, defaults to `0`):
            After training, average the weights of this many checkpoints with the best evaluation metric (BLOOMZMMS
            takes 3). Every checkpoint must be kept, so `save_total_limit` must be unset. 0 is off.
        early_stopping_patience (`int`, *optional*):
            Stop after this many evaluations without a better metric (LAD takes 6).

        > Parameters that control the data
        batch_seconds (`float`, *optional*):
            Batches of at most so many seconds of audio, padding included, on each device, in place of
            `per_device_train_batch_size` rows.
        batch_tokens (`int`, *optional*):
            The same by the LLM's tokens, audio and text, padding included.
        buffer_size (`int`, *optional*, defaults to `1000`):
            Rows of streaming data that are held to be shuffled and sorted into batches.
        frames_cache (`str`, *optional*):
            Folder written by `speechllm encode`: encoder outputs (and teacher states) are read from it.
        augmentation (`dict`, *optional*):
            Settings of [`AugmentationSettings`]: speed perturbation, noise, SpecAugment. By default none. BLOOMZMMS:
            `{"speed_factors": [0.9, 1.0, 1.1]}`.
        chat_template_kwargs (`dict`, *optional*):
            Options of the chat template, those that the targets were generated with; Qwen3 takes
            `{"enable_thinking": False}`.
        share_prefix (`bool`, *optional*):
            Read what all rows of a batch begin with, a chat template's start and system prompt, once for all of them,
            where the LLM is frozen and its family allows it (`speed/prefix.py`); by default on a CPU.
        max_bad_share (`float`, *optional*, defaults to `0.01`):
            Stop when more than this share of the rows cannot be used; fewer are set aside, counted and listed in
            `bad_rows` under the output folder.

        > Inherited, with defaults of their own

        train_sampling_strategy (`str`, *optional*):
            `"random"`, `"sequential"` or `"group_by_length"`; by default the last where rows have durations, as those
            of `load_rows` and of the commands have.
        dataloader_num_workers (`int`, *optional*):
            Processes that read batches; by default one less than a device has cores, 8 at most, and none below 4.
        gradient_checkpointing (`bool`, *optional*):
            Compute activations again in the backward pass; by default where they would not fit into memory twice, by
            an estimate (`speed/memory.py`), and where the model is sharded. Also called `activation_checkpointing`.

    > [!NOTE]
    > Further defaults that differ from [`trl.SFTConfig`]: `max_length` is None (nothing is truncated),
    > `remove_unused_columns` is False (rows carry audio), `bf16` is off where no accelerator is present,
    > `logging_nan_inf_filter` is off (a loss that is not finite stops the run), `report_to` is "none".
    """

    train_groups: list[str] = field(
        default_factory=lambda: ["connector"],
        metadata={"help": "Groups that are trained: encoder, connector, llm. The others are frozen."},
    )
    learning_rates: dict | str | None = field(
        default=None, metadata={"help": 'Peak learning rates of parts: {"llm": 2e-5, "gate": 5e-4}.'}
    )
    save_trained_only: bool = field(
        default=True, metadata={"help": "Checkpoints hold the trained groups alone, where the parents are known."}
    )
    average_best: int = field(
        default=0, metadata={"help": "After training, average this many checkpoints with the best metric."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better metric."}
    )
    batch_seconds: float | None = field(
        default=None, metadata={"help": "Seconds of audio per batch, padding included, in place of a batch size."}
    )
    batch_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens of audio and text per batch, padding included, in place of a batch size."},
    )
    buffer_size: int = field(
        default=1000, metadata={"help": "Rows of streaming data that are held to be sorted into batches."}
    )
    frames_cache: str | None = field(
        default=None, metadata={"help": "Folder written by `speechllm encode`, read in place of running the encoder."}
    )
    augmentation: dict | str | None = field(
        default=None, metadata={"help": 'Speed, noise, SpecAugment: {"speed_factors": [0.9, 1.0, 1.1], ...}.'}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'Options of the chat template, {"enable_thinking": false}.'}
    )
    share_prefix: bool | None = field(
        default=None, metadata={"help": "Read what all rows begin with once, with a frozen LLM; by default on a CPU."}
    )
    max_bad_share: float = field(
        default=0.01, metadata={"help": "Stop when more than this share of the rows cannot be used."}
    )

    # Parameters whose default values are overridden from SFTConfig
    train_sampling_strategy: str | None = field(
        default=None, metadata={"help": "random, sequential, group_by_length; the last where rows have durations."}
    )
    dataloader_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that read batches; by default as many as cores allow."}
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "Compute activations again in the backward pass; by default if they must."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Not used: nothing is truncated."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows carry audio; must be False."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Not used: a loss that is not finite stops the run."}
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Where metrics go: none, tensorboard, wandb, trackio, ..."}
    )

    def __post_init__(self):
        # What nobody set: the trainer, which knows data and model, has the last word on it.
        self.groups_by_default = self.train_sampling_strategy is None
        self.workers_by_default = self.dataloader_num_workers is None
        self.checkpoints_by_default = self.activation_checkpointing is None and self.gradient_checkpointing is None
        if self.groups_by_default:
            self.train_sampling_strategy = "group_by_length"
        if self.workers_by_default:
            self.dataloader_num_workers = spare_cores()
        self._check_inherited()
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # the launch config's
        if self.bf16 is None and not self.fp16:
            self.bf16 = torch.accelerator.is_available() or launched == "bf16"
        elif not (self.bf16 or self.fp16) and launched != "no":
            os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # what was set has the last word
        if (self.bf16 or self.bf16_full_eval) and not torch.accelerator.is_available():
            self.use_cpu = True  # else transformers asks for it
        metric = (self.metric_for_best_model or "").removeprefix("eval_")
        if self.greater_is_better is None and metric in LOWER_IS_BETTER:
            self.greater_is_better = False  # else transformers takes all but `loss` for the greater the better
        self.dataset_kwargs = (self.dataset_kwargs or {}) | {"skip_prepare_dataset": True}
        super().__post_init__()
        self._check_speech()

    def _check_inherited(self) -> None:
        """Raises a ValueError for inherited settings that would not be acted on, by name."""
        defaults = {item.name: item.default for item in fields(self)}
        for name, remedy in NOT_ACTED_ON.items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name}={getattr(self, name)!r} has no effect on a speech trainer. {remedy}")
        more = sorted(set(self.dataset_kwargs or {}) - {"skip_prepare_dataset"})
        if more:
            raise ValueError(f"dataset_kwargs: {', '.join(more)} has no effect. Rows come as load_rows gives them.")
        strategies = ("random", "sequential", "group_by_length")
        if self.train_sampling_strategy not in strategies:
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} is not one of {', '.join(strategies)}. For "
                "batches of like cost set batch_seconds or batch_tokens."
            )
        if self.train_sampling_strategy == "sequential" and (self.batch_seconds or self.batch_tokens):
            raise ValueError("batch_seconds and batch_tokens sort rows by length. Leave train_sampling_strategy out.")
        dealt = self.accelerator_config if isinstance(self.accelerator_config, dict) else {}
        if dealt.get("split_batches") or dealt.get("dispatch_batches"):
            raise ValueError("accelerator_config: batches are dealt to processes here. Leave split_batches out.")

    def _check_speech(self) -> None:
        unknown = sorted(set(self.train_groups) - set(GROUPS))
        if unknown:
            raise ValueError(f"train_groups: no group {', '.join(unknown)}. Groups: {', '.join(GROUPS)}.")
        if self.max_length is not None or self.packing or self.padding_free:
            raise ValueError(
                "max_length, packing and padding_free are not for audio: an audio's placeholders cannot be cut. "
                "Filter rows by duration, and leave these three at their defaults."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would drop the audio. Leave it False.")
        if self.batch_seconds is not None and self.batch_tokens is not None:
            raise ValueError("batch_seconds and batch_tokens are both set. Choose one budget.")
        for name in ("batch_seconds", "batch_tokens"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        for name in ("augmentation", "chat_template_kwargs", "learning_rates"):
            setattr(self, name, must_be_mapping(getattr(self, name), name))
        self._check_learning_rates()
        if self.frames_cache and self.augmentation:
            raise ValueError(
                "frames_cache holds the encoder's outputs for the audio as it is; augmentation would change nothing. "
                "Drop one of them."
            )
        if self.average_best == 1 or self.average_best < 0:
            raise ValueError(f"average_best={self.average_best} must be 0 (off) or at least 2.")
        if self.average_best and self.save_total_limit is not None:
            raise ValueError("average_best needs every checkpoint. Unset save_total_limit.")
        if self.average_best and self.load_best_model_at_end:
            raise ValueError(
                "average_best ends with the mean of the best checkpoints, load_best_model_at_end with the best one. "
                "Set one of them."
            )
        if (self.average_best or self.early_stopping_patience) and self.eval_strategy == "no":
            raise ValueError(
                "average_best and early_stopping_patience choose by the evaluation metric. Set eval_strategy and give "
                "an eval_dataset."
            )
        if (self.average_best or self.early_stopping_patience) and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "loss", False

    @staticmethod
    def _rate(part: str, given: Any) -> float:
        """A learning rate as a number; YAML reads 5e-4 as text."""
        try:
            rate = 0.0 if isinstance(given, bool) else float(given)
        except (TypeError, ValueError):
            rate = 0.0
        if not 0 < rate < float("inf"):
            raise ValueError(f"learning_rates: {part} has {given!r}. Give a positive number.")
        return rate

    def _check_learning_rates(self) -> None:
        """Raises a ValueError for rates of parts that there are not, for no numbers, and where they would not act."""
        if self.learning_rates is None:
            return
        if not self.learning_rates:
            raise ValueError("learning_rates is empty. Name parts with their rates, {'llm': 2e-5}, or leave it out.")
        if unknown := sorted(map(str, set(self.learning_rates) - set(PARTS))):
            raise ValueError(f"learning_rates: no part {', '.join(unknown)}. Parts: {', '.join(PARTS)}.")
        self.learning_rates = {part: self._rate(part, rate) for part, rate in self.learning_rates.items()}
        optim = str(getattr(self.optim, "value", self.optim))
        if "lomo" in optim or "layerwise" in optim:
            raise ValueError(f"optim={optim!r} has one rate for all. Take another optim, or leave learning_rates out.")


def spare_cores() -> int:
    """Workers that a device's share of the cores bears beside its training: none below 4 cores, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(share - 1, 8) if share >= 4 else 0


def check_given(
    trainer: type, model: Any, args: Any, processor: Any, collator: Any, loss_func: Any, others: dict[str, Any]
) -> None:
    """
    Refuses what `SFTTrainer` would take and a speech trainer cannot, by name.

    Args:
        trainer: class of the trainer.
        model, args, processor, collator, loss_func: what it is given; `others` are its further arguments.

    Raises:
        TypeError, ValueError: with the finding and the remedy.
    """
    name = trainer.__name__
    if isinstance(model, PeftModel):
        raise TypeError(
            f"{name} puts the adapters on by itself: give the SpeechLLM and peft_config. To go on from a "
            "PeftModel, give its model.merge_and_unload()."
        )
    if getattr(getattr(model, "config", None), "model_type", None) != "speechllm":
        kind = f"the name {model!r}" if isinstance(model, str) else f"a {type(model).__name__}"
        raise TypeError(
            f"{name} trains a SpeechLLMForConditionalGeneration, not {kind}. Load one with from_pretrained, or "
            "compose one with from_parts."
        )
    if args is not None and not isinstance(args, trainer.config_class):
        wanted = trainer.config_class.__name__
        raise TypeError(
            f"args of {name} is a {wanted}, not a {type(args).__name__}. Build one: {wanted}(output_dir, ...) has "
            "all settings of SFTConfig that apply to speech."
        )
    if not isinstance(processor, SpeechLLMProcessor):
        found = "none was given" if processor is None else f"a {type(processor).__name__} was given"
        raise TypeError(
            f"{name} needs the model's SpeechLLMProcessor as processing_class; {found}. Load it with "
            "SpeechLLMProcessor.from_pretrained(folder), or make it with SpeechLLMProcessor.from_parts."
        )
    if collator is not None and not isinstance(collator, trainer.collator_class):
        raise TypeError(
            f"data_collator of {name} is a {trainer.collator_class.__name__}, not a {type(collator).__name__}: its "
            "batches carry what the loss is divided by. Derive yours from it, or leave it out."
        )
    if loss_func is not None and not trainer.takes_loss_func:
        raise ValueError(f"{name} has losses of its own; compute_loss_func is for SpeechImitationTrainer.")
    unused = sorted({"formatting_func", "quantization_config", "model_init"} & set(others))
    if unused:
        raise ValueError(
            f"{name} does not act on {', '.join(unused)}: rows come as load_rows gives them, the model as it was "
            "loaded. Leave it out."
        )


__all__ = ["SpeechTrainingConfig", "check_given"]
