"""What the commands need beside the config of a trainer or of the cache: which model, which data, how to launch."""

from dataclasses import dataclass, field

from ..data.filters import FilterSettings
from ..data.settings import ModelSettings, described, read_mapping


@dataclass
class DataArguments:
    """
    Data of the commands that read rows.

    Args:
        dataset (`list[str]`):
            Hub ids, folders or files, joined in this order. What each is taken for is said; see docs/data.md.
        dataset_config (`str`, *optional*), dataset_revision (`str`, *optional*):
            Configuration, and branch, tag or commit, of Hub datasets.
        dataset_split (`str`, *optional*, defaults to `"train"`):
            Split of Hub datasets and folders, or a slice of it, `train[:1000]`.
        dataset_language (`str`, *optional*):
            Language of the rows that do not tell theirs, such as `de`.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the data as it comes, without a copy on disk. A training needs `max_steps` then.
        columns (`dict`, *optional*):
            Other names of columns, `{"sentence": "text"}`.
        min_seconds, max_seconds, max_characters_per_second, max_wer, wer_column, max_hours_per_language (*optional*):
            Limits on the rows, see [`FilterSettings`]; what they remove is counted and printed.
    """

    dataset: list[str] = field(default_factory=list, metadata={"help": "Hub ids, folders or files of any layout."})
    dataset_config: str | None = described("Configuration of Hub datasets.")
    dataset_revision: str | None = described("Branch, tag or commit of Hub datasets.")
    dataset_split: str = described("Split of Hub datasets and folders, or a slice, train[:1000].", "train")
    dataset_language: str | None = described("Language of rows that do not tell theirs.")
    streaming: bool = described("Read the data as it comes. A training needs max_steps then.", False)
    columns: dict | str | None = described('Other names of columns, {"sentence": "text"}.')
    min_seconds: float | None = described("Shorter rows are left out.")
    max_seconds: float | None = described("Longer rows are left out.")
    max_characters_per_second: float | None = described("Faster rows are left out.")
    max_wer: float | None = described("Rows with a higher recogniser's WER are left out.")
    wer_column: str = described("Column of that WER, 0.1 being 10 per cent.", "wer")
    max_hours_per_language: float | None = described("Cap per language.")

    def __post_init__(self):
        self.dataset = [self.dataset] if isinstance(self.dataset, str) else self.dataset
        self.columns = read_mapping(self.columns, "columns")
        if self.columns is not None and not isinstance(self.columns, dict):
            raise ValueError(f'columns={self.columns!r} must be a mapping, such as {{"sentence": "text"}}.')
        if not self.dataset:
            raise ValueError("Name the data: dataset: [folder, manifest or Hub id, ...], or --dataset FOLDER.")

    def filters(self, seed: int) -> FilterSettings:
        """The limits on the rows."""
        return FilterSettings(
            self.min_seconds,
            self.max_seconds,
            self.max_characters_per_second,
            self.max_wer,
            self.wer_column,
            self.max_hours_per_language,
            seed,
        )


@dataclass
class ScriptArguments(ModelSettings, DataArguments):
    """
    Adapters and evaluation data of `speechllm align`, `imitate` and `distill`, beside [`DataArguments`] and
    [`ModelSettings`].

    Args:
        quantization (`str`, *optional*):
            `"8bit"` or `"4bit"`: the LLM's linear layers by bitsandbytes, frozen. Needs `speechllm[quantization]`.
        lora_groups (`list[str]`, *optional*):
            Groups that get LoRA adapters, of `encoder`, `connector` and `llm`.
        lora_rank (`int`), lora_alpha (`int`), lora_dropout (`float`):
            Settings of the adapters.
        lora_modules (`list[str]`, *optional*):
            Names of the linear layers that get them, such as `k_proj`. By default all.
        eval_dataset (`list[str]`, *optional*), eval_split (`str`, *optional*):
            Data of the evaluation loss, within the same limits, and their split: by default `validation` of Hub
            datasets and of folders that have one, else `train`.
        target_weights (`dict`, *optional*):
            Target sets and how often each is drawn, `{"T": 1, "MI": 2}`; 0 leaves a set out. By default rows are taken
            as they are.
    """

    quantization: str | None = described("The frozen LLM in 8bit or 4bit, by bitsandbytes.")
    lora_groups: list[str] | None = described("Groups that get LoRA adapters: encoder, connector, llm.")
    lora_rank: int = described("Rank of the adapters.", 16)
    lora_alpha: int = described("Scale of the adapters, over the rank.", 32)
    lora_dropout: float = described("Dropout of the adapters.", 0.0)
    lora_modules: list[str] | None = described("Names of linear layers that get adapters, by default all.")
    eval_dataset: list[str] | None = described("Data of the evaluation loss.")
    eval_split: str | None = described("Split for evaluation; by default validation, of data without one train.")
    target_weights: dict | str | None = described('Target sets and their weights, {"T": 1, "MI": 2}.')

    def __post_init__(self):
        DataArguments.__post_init__(self)
        ModelSettings.__post_init__(self)
        self.eval_dataset = [self.eval_dataset] if isinstance(self.eval_dataset, str) else self.eval_dataset
        self.target_weights = read_mapping(self.target_weights, "target_weights")
        if self.target_weights is not None:
            weights = self.target_weights if isinstance(self.target_weights, dict) else {}
            if not weights or any(not isinstance(w, (int, float)) or w < 0 for w in weights.values()):
                raise ValueError(
                    f'target_weights={self.target_weights!r} must give each set a weight, such as {{"T": 1, "MI": 2}}.'
                )
        self.check_names()
        if self.gguf_file is not None and self.quantization is not None:
            raise ValueError("gguf_file is dequantised as it is read. Leave quantization out, or give no gguf_file.")


@dataclass
class LaunchArguments:
    """
    How a command is started.

    Args:
        accelerate_config (`str`, *optional*):
            Start the command through `accelerate launch`, with a packaged config (`single_gpu`, `ddp`, `fsdp2`,
            `zero2`, `zero3`) or a file of `accelerate config`. See docs/scaling.md.
    """

    accelerate_config: str | None = described("Launch with single_gpu, ddp, fsdp2, zero2, zero3, or a file.")


__all__ = ["DataArguments", "LaunchArguments", "ScriptArguments"]
