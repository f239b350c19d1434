"""What a training command needs beside its trainer's config: which model, which data."""

import json
from dataclasses import dataclass, field


@dataclass
class ScriptArguments:
    """
    Model and data of `speechllm align`, `imitate` and `distill`.

    Args:
        > Parameters that control the model
        model (`str`, *optional*):
            SpeechLLM to go on from, a folder or Hub id. With `connector`, its encoder and LLM get a new connector.
        audio (`str`, *optional*), text (`str`, *optional*):
            Speech encoder and LLM to join, in place of `model`.
        connector (`dict` or `str`, *optional*):
            Connector between them: a preset or `{"type": ..., settings}`.
        pad_to_window (`bool`, *optional*, defaults to `False`):
            Pad audio to the encoder's window, as Whisper was pretrained.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the weights. `"auto"` is that of the LLM's checkpoint.
        lora_groups (`list[str]`, *optional*):
            Groups that get LoRA adapters, of `encoder`, `connector` and `llm`.
        lora_rank (`int`), lora_alpha (`int`), lora_dropout (`float`):
            Settings of the adapters.

        > Parameters that control the data
        dataset (`list[str]`):
            Training data: Hub ids, folders or manifests, joined in this order. See docs/data.md.
        dataset_name (`str`, *optional*), dataset_split (`str`, *optional*, defaults to `"train"`):
            Configuration and split of Hub datasets.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the data as it comes, without a copy on disk. Needs `max_steps`.
        eval_dataset (`list[str]`, *optional*), eval_split (`str`, *optional*, defaults to `"validation"`):
            Data of the evaluation loss.
        columns (`dict`, *optional*):
            Other names of columns, `{"sentence": "text"}`.
        min_seconds, max_seconds, max_characters_per_second, max_wer, wer_column, max_hours_per_language (*optional*):
            Filters, see docs/data.md.
        target_weights (`dict`, *optional*):
            Target sets and how often each is drawn, `{"T": 1, "MI": 2}`. By default rows are taken as they are.
        accelerate_config (`str`, *optional*):
            Launch through Accelerate with one of the packaged configs (`single_gpu`, `ddp`, `fsdp2`, `zero2`, `zero3`)
            or a file of yours.
    """

    model: str | None = field(default=None, metadata={"help": "SpeechLLM to go on from, a folder or Hub id."})
    audio: str | None = field(default=None, metadata={"help": "Speech encoder, a folder or Hub id."})
    text: str | None = field(default=None, metadata={"help": "LLM, a folder or Hub id."})
    connector: dict | str | None = field(default=None, metadata={"help": "Preset, or settings with a type."})
    pad_to_window: bool = field(default=False, metadata={"help": "Pad audio to the encoder's window."})
    dtype: str = field(
        default="auto", metadata={"help": "Precision of the weights: auto, float32, bfloat16, float16."}
    )
    lora_groups: list[str] | None = field(default=None, metadata={"help": "Groups that get LoRA adapters."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters, over the rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of the adapters."})
    dataset: list[str] = field(default_factory=list, metadata={"help": "Hub ids, folders or manifests."})
    dataset_name: str | None = field(default=None, metadata={"help": "Configuration of Hub datasets."})
    dataset_split: str = field(default="train", metadata={"help": "Split of Hub datasets."})
    streaming: bool = field(default=False, metadata={"help": "Read the data as it comes. Needs max_steps."})
    eval_dataset: list[str] | None = field(default=None, metadata={"help": "Data of the evaluation loss."})
    eval_split: str = field(default="validation", metadata={"help": "Split of Hub datasets for evaluation."})
    columns: dict | str | None = field(
        default=None, metadata={"help": 'Other names of columns, {"sentence": "text"}.'}
    )
    min_seconds: float | None = field(default=None, metadata={"help": "Shorter rows are left out."})
    max_seconds: float | None = field(default=None, metadata={"help": "Longer rows are left out."})
    max_characters_per_second: float | None = field(default=None, metadata={"help": "Faster rows are left out."})
    max_wer: float | None = field(default=None, metadata={"help": "Rows with a higher recogniser's WER are left out."})
    wer_column: str = field(default="wer", metadata={"help": "Column of that WER, 0.1 being 10 per cent."})
    max_hours_per_language: float | None = field(default=None, metadata={"help": "Cap per language."})
    target_weights: dict | str | None = field(
        default=None, metadata={"help": 'Target sets and their weights, {"T": 1, "MI": 2}.'}
    )
    accelerate_config: str | None = field(
        default=None, metadata={"help": "single_gpu, ddp, fsdp2, zero2, zero3, or a file."}
    )

    def __post_init__(self):
        for name in ("connector", "columns", "target_weights"):
            value = getattr(self, name)
            if isinstance(value, str) and value.startswith("{"):
                setattr(self, name, json.loads(value))
        if self.model is None and (self.audio is None or self.text is None):
            raise ValueError("Name a model: `model`, or both `audio` (speech encoder) and `text` (LLM).")
        if self.model is not None and (self.audio is not None or self.text is not None):
            raise ValueError("Give either `model` or `audio` and `text`, not both.")
        if not self.dataset:
            raise ValueError("Name the training data: dataset: [folder, manifest or Hub id, ...].")


__all__ = ["ScriptArguments"]
