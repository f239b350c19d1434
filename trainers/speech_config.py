"""What the configs of all speech trainers share."""

import json
from dataclasses import dataclass, field

import torch
from trl import SFTConfig

from modeling_speechllm.pretrained_speechllm import GROUPS


@dataclass
class SpeechTrainingConfig(SFTConfig):
    """
    Arguments that all speech trainers share, on top of [`trl.SFTConfig`].

    Args:
        > Parameters that control what is trained
        train_groups (`list[str]`, *optional*, defaults to `["connector"]`):
            Groups whose parameters are trained, of `encoder`, `connector` and `llm`; the others are frozen and run
            without dropout. With a PEFT config, groups named here are trained in full beside the adapters.
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
        max_bad_share (`float`, *optional*, defaults to `0.01`):
            Stop when more than this share of the rows cannot be used; fewer are set aside, counted and listed in
            `bad_rows` under the output folder.

    > [!NOTE]
    > Defaults that differ from [`trl.SFTConfig`]: `max_length` is None (nothing is truncated), `remove_unused_columns`
    > is False (rows carry audio), `bf16` is off where no accelerator is present, `logging_nan_inf_filter` is off (a
    > loss that is not finite stops the run), `report_to` is "none".
    """

    train_groups: list[str] = field(
        default_factory=lambda: ["connector"],
        metadata={"help": "Groups that are trained: encoder, connector, llm. The others are frozen."},
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
    max_bad_share: float = field(
        default=0.01, metadata={"help": "Stop when more than this share of the rows cannot be used."}
    )

    # Parameters whose default values are overridden from SFTConfig
    max_length: int | None = field(default=None, metadata={"help": "Not used: nothing is truncated."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows carry audio; must be False."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Not used: a loss that is not finite stops the run."}
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Where metrics go: none, tensorboard, wandb, trackio, ..."}
    )

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = torch.accelerator.is_available()
        self.dataset_kwargs = (self.dataset_kwargs or {}) | {"skip_prepare_dataset": True}
        super().__post_init__()
        self._check_speech()

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
        for name in ("augmentation", "chat_template_kwargs"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, json.loads(getattr(self, name)))
        if self.frames_cache and self.augmentation:
            raise ValueError(
                "frames_cache holds the encoder's outputs for the audio as it is; augmentation would change nothing. "
                "Drop one of them."
            )
        if self.average_best == 1 or self.average_best < 0:
            raise ValueError(f"average_best={self.average_best} must be 0 (off) or at least 2.")
        if self.average_best and self.save_total_limit is not None:
            raise ValueError("average_best needs every checkpoint. Unset save_total_limit.")
        if (self.average_best or self.early_stopping_patience) and self.eval_strategy == "no":
            raise ValueError(
                "average_best and early_stopping_patience choose by the evaluation metric. Set eval_strategy and give "
                "an eval_dataset."
            )
        if (self.average_best or self.early_stopping_patience) and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "loss", False


__all__ = ["SpeechTrainingConfig"]
