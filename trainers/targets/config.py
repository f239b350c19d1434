"""Settings of `speechllm targets`; each field's help is the command line's."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ..data.settings import must_be_mapping, read_mapping

TARGET_SETS = ("T", "BI", "MI", "TMI", "continuation", "free")


def described(text: str, default: Any) -> Any:
    """A dataclass field with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class TargetsConfig:
    """
    What is asked of which LLM, and where the answers go. Which data is said as for every command.

    Settings of the first four groups make the rows; a run that is resumed must keep them. Those of the last group say
    only how the work is done and may change.
    """

    # data
    output_dir: str = field(metadata={"help": "Folder for the rows; an unfinished run in it is resumed."})
    source_license: str | None = described("Licence of the source, kept per row. Default: the dataset's own.", None)
    max_bad_share: float = described("Stop when more than this share of the recordings cannot be read.", 0.01)
    utterances_per_row: int = described("Consecutive utterances asked about together, each an audio block.", 1)
    rows_per_shard: int = described("Source rows (or groups) per parquet file; the unit of resuming.", 500)

    # targets
    target_set: Literal["T", "BI", "MI", "TMI", "continuation", "free"] = described(
        "T: the transcript. BI: the LLM's answers to task prompts. MI: its answers to random templates. TMI: one T "
        "and MI. continuation: it continues the transcript. free: it replies to the transcript alone.",
        "BI",
    )
    prompts_per_row: int | None = described(
        "Prompts per row, all different; with TMI, templates beside the one T. Default: 2 for MI and TMI, else 1.",
        None,
    )
    tasks: list[str] | None = described("Names of the tasks to draw from. Default: all.", None)
    task_weights: dict[str, float] | str | None = described(
        "How often each task is drawn, as JSON, 1 where it is not named; '{\"template_translate\": 95}' gives the "
        "packaged templates BLOOMZMMS' share of translations, 95 per cent. Default: tasks in turn, each as often.",
        None,
    )
    fixed_prompt: str | None = described(
        "One prompt for every row, {audio} where the speech stands, in place of those of the pool: for T, the T of "
        "TMI, and continuation.",
        None,
    )
    prompt_languages: list[str] | None = described(
        "Languages that prompts are drawn in, or all. Default: each row's own where the pool has it, else English.",
        None,
    )
    prompt_split: Literal["train", "unseen_prompts", "unseen_tasks"] = described(
        "Prompts to train on, held-out prompts of the same tasks, or held-out tasks.", "train"
    )
    task_folder: str | None = described("Folder of task prompts (YAML). Default: the packaged pool.", None)
    template_folder: str | None = described("Folder of templates (YAML). Default: the packaged pool.", None)
    seed: int = described("Seed of the draws of prompts and of sampling.", 0)

    # LLM
    model: str | None = described(
        "Hub id or folder of a causal LM or a SpeechLLM, or the endpoint's name of it. Not needed for T.", None
    )
    revision: str | None = described("Branch, tag or commit of a Hub model; for an endpoint only noted.", None)
    gguf_file: str | None = described("GGUF file in the model's folder that holds its weights.", None)
    base_url: str | None = described("OpenAI-compatible endpoint, as http://localhost:8000/v1. Default: local.", None)
    dtype: str = described("Number format of a local model: auto, float32, bfloat16 or float16.", "auto")
    quantization: Literal["8bit", "4bit"] | None = described("A local model in 8 or 4 bits, by bitsandbytes.", None)
    chat_template_kwargs: dict[str, Any] | str | None = described(
        "Variables of the chat template as JSON, for example '{\"enable_thinking\": false}'. Train with the same.",
        None,
    )

    # generation
    max_new_tokens: int | None = described(
        "Limit of an answer's length; answers that meet it are marked and counted. Default: the task's own, else 256.",
        None,
    )
    temperature: float = described("0 is greedy; above, answers are sampled with a seed of their own.", 0.0)
    top_p: float = described("Sample from the most probable tokens that have this share together.", 1.0)

    # work
    batch_size: int = described("Prompts per batch of a local model.", 16)
    concurrency: int = described("Requests at a time to an endpoint.", 16)
    retries: int = described("Tries more after a busy, failing or silent endpoint, with growing pauses.", 8)
    timeout: float = described("Seconds to wait for an endpoint's answer.", 300.0)
    api_key_variable: str | None = described("Environment variable that holds the endpoint's key.", None)

    def __post_init__(self):
        self.chat_template_kwargs = must_be_mapping(self.chat_template_kwargs, "chat_template_kwargs")
        if self.prompts_per_row is None:
            self.prompts_per_row = 2 if self.target_set in ("MI", "TMI") else 1
        if self.target_set not in TARGET_SETS:
            raise ValueError(f"target_set must be one of {', '.join(TARGET_SETS)}, not {self.target_set!r}.")
        if self.target_set in ("T", "free") and self.prompts_per_row != 1:
            raise ValueError(f"prompts_per_row must be 1 with target_set={self.target_set!r}: there is one target.")
        if self.target_set != "T" and not self.model:
            raise ValueError(f"target_set={self.target_set!r} asks an LLM. Give model, a Hub id or a folder.")
        if self.tasks is not None and self.target_set != "BI":
            raise ValueError(f"tasks are for target_set='BI', not {self.target_set!r}. Leave them out.")
        self.task_weights = read_mapping(self.task_weights, "task_weights")
        if self.task_weights is not None:
            weights = list(self.task_weights.values()) if isinstance(self.task_weights, dict) else [-1]
            if not weights or any(not isinstance(w, (int, float)) or w < 0 for w in weights):
                raise ValueError(
                    f'task_weights={self.task_weights!r} must give tasks weights, such as {{"translate": 3}}.'
                )
            if self.target_set not in ("BI", "MI", "TMI"):
                raise ValueError(f"task_weights are for target_set BI, MI and TMI, not {self.target_set!r}.")
        if self.fixed_prompt is not None and self.target_set not in ("T", "TMI", "continuation"):
            raise ValueError(f"fixed_prompt is for target_set T, TMI and continuation, not {self.target_set!r}.")
        if isinstance(self.prompt_languages, str):
            self.prompt_languages = [self.prompt_languages]
        names = ("utterances_per_row", "rows_per_shard", "prompts_per_row", "max_new_tokens", "batch_size")
        for name in (*names, "concurrency"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.retries < 0:
            raise ValueError("temperature and retries must not be negative, and top_p must be in (0, 1].")

    def row_settings(self) -> dict[str, Any]:
        """The settings that make the rows, without those of the work and of where the folders are."""
        places = ("output_dir", "task_folder", "template_folder")
        work = ("max_bad_share", "batch_size", "concurrency", "retries", "timeout", "api_key_variable", "base_url")
        return {name: value for name, value in vars(self).items() if name not in places + work}
