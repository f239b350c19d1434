"""Settings of `speechllm evaluate`; each field's help is the command line's."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from trainers.commands.arguments import described
from trainers.data.settings import must_be_mapping, read_mapping

TASKS = ("transcribe", "translate", "question", "classify", "instruct")
MAX_NEW_TOKENS = {"transcribe": 200, "translate": 200, "question": 50, "classify": 50, "instruct": 256}
# Say how the work is done, not what comes out.
WORK = ("output_dir", "batch_size", "concurrency", "retries", "timeout", "max_bad_share", "judge_key_variable")
# Of the scores, which are computed anew from the answers.
SCORING = ("bootstrap_samples", "headline", "judge", "judge_base_url", "judge_max_new_tokens")


@dataclass
class EvaluationConfig:
    """
    What is asked of which models about which rows, and where answers and scores go.

    A folder holds one run: a second run in it must have the same settings, but for those of scoring (bootstrap,
    headline, judge) and of the work (`batch_size`, ...). It then goes on where the first one stopped.
    """

    # data
    dataset: list[str] = field(default_factory=list, metadata={"help": "Hub ids, folders or files of any layout."})
    output_dir: str | None = described("Folder for answers, results and report; an unfinished run in it goes on.")
    task: Literal["transcribe", "translate", "question", "classify", "instruct"] | None = described(
        "What is asked, and the metrics with it."
    )
    dataset_config: str | None = described("Configuration of Hub datasets.")
    dataset_revision: str | None = described("Branch, tag or commit of Hub datasets.")
    dataset_split: str | None = described(
        "Split, or a slice, test[:100]. Default: test; of local data without, train."
    )
    dataset_language: str | None = described("Language of rows that do not tell theirs.")
    columns: dict | str | None = described('Other names of columns, {"sentence": "text"}.')
    limit: int | None = described("So many rows, spread evenly over the data. Default: all.")
    max_bad_share: float = described("Share of rows that may be unusable.", 0.05)

    # models
    model: str | None = described("The SpeechLLM: a folder or Hub id, or nano.")
    dtype: str = described("Precision of the weights: auto, float32, bfloat16, float16.", "auto")
    text_bound: bool = described("Beside it: its own LLM reads the true transcript.", False)
    cascade: str | None = described(
        "Beside it: a recogniser (Hub id or folder of any ASR model of transformers), then the same LLM. ctc_head: "
        "the model's own encoder with the CTC head that lies beside it. connector: the words that the model's own "
        "connector reads (ctc_compress)."
    )
    tell_language: bool = described(
        "Tell a Whisper cascade the row's language; by default it finds out itself.", False
    )
    cascade_num_beams: int | None = described(
        "Beams of the cascade's recogniser; 1 is greedy. Default: as its pipeline decodes, Whisper with five."
    )
    second: str | None = described("Beside it: another SpeechLLM, compared by a paired test.")
    text_before: str | None = described(
        "Beside the text bound: the LLM as it was before training reads the transcript too (a folder or Hub id)."
    )

    # prompts
    instruction: str | None = described("One instruction for all rows that bring none of their own.")
    prompt_language: str = described("Language of the task's own instructions; row: that of the row.", "en")
    prompts: Literal["all", "seen", "unseen"] = described(
        "Of the task's own instructions: those that trainings see, held-out ones, or all.", "all"
    )
    target_language: str | None = described("Language of the answers, where rows do not say it.")
    chat_template_kwargs: dict | str | None = described("Variables of the chat template, as JSON.")
    seed: int = described("Seed of the draw of instructions and of the bootstrap.", 0)

    # decoding
    max_new_tokens: int | None = described("Limit of an answer's length. Default: 50 to 256, by task.")
    num_beams: int = described("Beams; 1 is greedy.", 1)
    constrain: bool = described("classify: only labels can be answered.", True)
    label_scores: bool = described("classify: the log-probability of every label with each answer.", False)
    batch_size: int = described("Prompts per batch; rows are sorted by length.", 16)

    # judge
    judge: str | None = described("LLM that judges answers 0 to 5: a folder or Hub id, or the endpoint's name of it.")
    judge_base_url: str | None = described("OpenAI-compatible endpoint of the judge, as http://localhost:8000/v1.")
    judge_key_variable: str | None = described("Environment variable that holds the endpoint's key.")
    judge_max_new_tokens: int = described("Limit of a judgement's length.", 512)
    concurrency: int = described("Requests at a time to the judge's endpoint.", 8)
    retries: int = described("Tries more after a busy, failing or silent endpoint.", 8)
    timeout: float = described("Seconds to wait for the endpoint.", 300.0)

    # scores
    bootstrap_samples: int = described("Resamples of the 95 per cent intervals.", 1000)
    headline: str | None = described("Metric of the tables by language and prompt kind. Default: the task's first.")

    def __post_init__(self):
        self.dataset = [self.dataset] if isinstance(self.dataset, str) else self.dataset
        self.columns = read_mapping(self.columns, "columns")
        self.chat_template_kwargs = must_be_mapping(self.chat_template_kwargs, "chat_template_kwargs") or {}
        if self.columns is not None and not isinstance(self.columns, dict):
            raise ValueError(f'columns={self.columns!r} must be a mapping, such as {{"sentence": "text"}}.')
        for name, remedy in (
            ("model", "--model FOLDER"),
            ("dataset", "--dataset FOLDER"),
            ("task", f"--task, one of {', '.join(TASKS)}"),
            ("output_dir", "--output_dir FOLDER"),
        ):
            if not getattr(self, name):
                raise ValueError(f"There is no {name}. Give it: {remedy}.")
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, not {self.task!r}.")
        if self.max_new_tokens is None:
            self.max_new_tokens = MAX_NEW_TOKENS[self.task]
        for name in ("max_new_tokens", "num_beams", "batch_size", "judge_max_new_tokens", "bootstrap_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, not {self.limit}. Leave it out for all rows.")
        if self.cascade_num_beams is not None and self.cascade_num_beams < 1:
            raise ValueError(f"cascade_num_beams must be at least 1, not {self.cascade_num_beams}: 1 is greedy.")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share must be from 0 to 1, not {self.max_bad_share}.")
        if self.text_before is not None and not self.text_bound:
            raise ValueError("text_before is compared with the text bound. Add --text_bound.")
        if self.judge_base_url is not None and self.judge is None:
            raise ValueError("judge_base_url needs the endpoint's name of the LLM. Add --judge NAME.")

    def answer_settings(self) -> dict[str, Any]:
        """The settings that make the answers, without where things lie."""
        places = ("dataset", "model", "second", "text_before", "cascade")  # told by what is in them
        return json.loads(
            json.dumps({k: v for k, v in vars(self).items() if k not in (*WORK, *SCORING, *places)}, default=str)
        )


__all__ = ["EvaluationConfig", "TASKS"]
