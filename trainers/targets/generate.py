"""
Targets: the LLM's own answers about transcripts, which a connector then learns to bring about from the speech.

Target sets: T (the transcript), BI (answers to task prompts, MTBI), MI (answers to random templates, BLOOMZMMS), TMI
(one T and MI), continuation (BLSP), free (the LLM's reply to the transcript alone, AZeroS).

What is unusual here:
- The unit of work is a shard: a fixed run of source rows that becomes one parquet file. What a row is asked follows
  from the seed and its place in the source, its answer from its own seed. A killed run loses the shards it had begun
  and writes the same ones again; no state is kept beside the files.
- A shard's counts stand in the footer of its file, so that one `os.replace` puts both in place.
- Processes share nothing and never wait for each other: process p of n writes every nth shard.
- The source's columns are carried over as Arrow data, audio undecoded: paths stay paths, bytes stay bytes.

    output_dir/manifest.json                        settings, source, LLM; the report once all is done
    output_dir/dropped.jsonl                        questions without a row, and why
    output_dir/data/train-00000-of-00042.parquet    rows
"""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from ..data.layouts.folders import cut_notes
from ..data.shards import close_run, finished, open_run, write_shard
from .answer_language import is_other_language, main_code
from .backends import Answer, Question, identify, load_backend
from .config import TargetsConfig
from .prompts import (
    TEMPLATE_FOLDER,
    Prompt,
    Task,
    by_language,
    choose_pool,
    draw_prompts,
    load_tasks,
    nearest,
    select_prompts,
    user_turn,
)
from .sources import PIECE, describe_source, prepare_source, read_groups

REPEAT, CONTINUE = "repeat", "continue"  # tasks that a pool needs for the target sets T and continuation
FIXED = "fixed"  # in place of the language of `fixed_prompt`
FREE = Task("free", (Prompt("free", "", ""),), max_new_tokens=512)
NEW_TOKENS = 256  # limit of answers to tasks that have none of their own
Pools = list[dict[str | None, list[Task]]]  # one per kind of target, each as `by_language` gives it
MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
GENERATED = Features(
    {
        "messages": MESSAGES,
        "task": Value("string"),
        "prompt_id": Value("string"),
        "target": Value("string"),
        "finish_reason": Value("string"),
        "model": Value("string"),
        "revision": Value("string"),
        "seed": Value("int64"),
        "source_license": Value("string"),
    }
)


class Backend(Protocol):
    """What answers questions; see `target_backends`."""

    def answer(self, questions: list[Question], progress: Callable[[int], None]) -> list[Answer]: ...


@dataclass(frozen=True)
class Item:
    """One row to be: its place in the shard, what is asked of which transcripts, the seed of its answer, the limit of
    its length, and the languages it is asked in and should come in, where that is known."""

    row: int
    target: str
    task: str
    prompt_id: str
    chat: list[dict]
    seed: int
    texts: list[str | None]
    limit: int | None = None
    asked_in: str | None = None
    expected: str | None = None

    def answer(self) -> Answer | None:
        """The answer where no LLM is needed: no transcript, or target T, the transcript itself."""
        if not all(text and text.strip() for text in self.texts):
            return Answer("", "no_transcript")
        return Answer("\n".join(text.strip() for text in self.texts), "stop") if self.target == "T" else None

    def question(self) -> Question:
        """The teacher's chat: each audio block replaced by its transcript, all else as the student gets it."""
        rest = iter(self.texts)
        chat = [
            {
                "role": message["role"],
                "content": [
                    {"type": "text", "text": next(rest).strip()} if block["type"] == "audio" else block
                    for block in message["content"]
                ],
            }
            for message in self.chat
        ]
        return Question(chat, self.seed, self.limit)


def generate_targets(config: TargetsConfig, dataset: Dataset, backend: Backend | None = None) -> dict[str, Any]:
    """
    Write the targets of a dataset; resume what an earlier run with these settings left.

    Args:
        config: settings.
        dataset: the source, as `load_rows` gives it: columns `audio`, `text`, optionally `language`, `id`, any.
        backend: an LLM of your own, in place of the one that `config` names; its name and revision are noted as
            `config` gives them.

    Returns:
        the report: `utterances` in the source, `asked` questions, `rows` written, `cut_at_limit` rows marked
        `finish_reason` "length", `other_language` answers plainly not in the language asked for, rows by
        `prompt_languages`, `dropped` (by reason), `shards`, `shards_done`, `complete`. With several processes it
        covers what all have finished by now; the last one to finish gets the whole and writes it to the manifest.

    Raises:
        ValueError: a source without the columns, prompts that do not fit the target set, or a folder with a run of
            other settings, another source or LLM, by name.
        BackendError: the endpoint does not answer; the finished shards stay.
    """
    state = process_state()
    source = prepare_source(dataset, GENERATED)
    pools = load_pools(config)
    output = Path(config.output_dir)
    asks = config.target_set != "T"
    name, revision = config.model, config.revision
    if not asks:
        name, revision = None, None
    elif backend is None and config.base_url is None:
        name, revision = identify(config.model, config.revision)
    fingerprint = {
        "settings": config.row_settings(),
        "source": describe_source(source),
        "prompts": _digest([repr((task.prompts, task.max_new_tokens)) for pool in pools for task in pool[None]]),
        "llm": {"model": name, "revision": revision},
    }
    open_run(output, fingerprint)

    groups = math.ceil(len(source) / config.utterances_per_row)
    shards = math.ceil(groups / config.rows_per_shard)
    per_row = config.prompts_per_row + (config.target_set == "TMI")
    mine = [shard for shard in range(shards) if shard % state.num_processes == state.process_index]
    todo = [shard for shard in mine if finished(output, shard, shards) is None]
    source_license = config.source_license or source.info.license or None
    constants = {"model": name, "revision": revision, "source_license": source_license}

    spans = [
        (shard, shard * config.rows_per_shard, min((shard + 1) * config.rows_per_shard, groups)) for shard in todo
    ]
    total = sum(stop - start for _, start, stop in spans) * per_row
    with tqdm(total=total, unit=" answers", desc="targets", disable=not state.is_local_main_process) as bar:
        for shard, start, stop in spans:
            table = read_groups(source, start, stop, config.utterances_per_row)
            items = [item for row in range(len(table)) for item in plan_row(config, pools, table, row, start + row)]
            if asks and backend is None:
                backend = load_backend(config, state.device)
            answers = answer_items(items, backend, bar.update)
            rows, counts = build_rows(table, items, answers, constants)
            write_shard(output, shard, shards, rows, counts)
    return close_run(output, fingerprint, shards, partial(summary, len(source)))


def process_state(cpu: bool = False, **options: Any) -> PartialState:
    """
    This process and the others.

    Args:
        cpu: whether they are to run on one, where there are accelerators too.
        **options: of the process group, as `timeout`.
    """
    on_cpu = cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, **options)  # without the flag it takes processes on a CPU for one each


def main(config: TargetsConfig, dataset: Dataset) -> dict[str, Any]:
    """`generate_targets`, and the report in words."""
    report = generate_targets(config, dataset)
    print(f"{report['rows']} rows of {report['utterances']} utterances in {config.output_dir}")
    for reason, count in report["dropped"].items():
        print(f"  {count} of {report['asked']} questions dropped: {reason.replace('_', ' ')} (see dropped.jsonl)")
    if config.target_set != "free":
        counts = sorted(report["prompt_languages"].items(), key=lambda item: -item[1])
        print(f"  asked in: {', '.join(f'{language} {count}' for language, count in counts)}")
    for note in cut_notes(report["cut_at_limit"], report["rows"]):
        print(f'  {note} (finish_reason is "length")')
    if report["other_language"]:
        print(
            f"  {report['other_language']} answers ({report['other_language'] / report['rows']:.0%}) are not in the "
            "language asked for. Take an LLM that speaks it, or ask in one that it speaks: prompt_languages"
        )
    if not report["complete"]:
        print(f"  {report['shards_done']} of {report['shards']} shards; other processes are still at work")
    return report


# What is asked


def load_pools(config: TargetsConfig) -> Pools:
    """What a row's prompts are drawn from: one pool per kind of target, by the language of the row.

    Raises:
        ValueError: a pool without the task that the target set needs, or with nothing left of it.
    """

    def select(folder: str | Path | None, names: list[str] | None) -> dict[str | None, list[Task]]:
        wanted = None if config.prompt_languages == ["all"] else config.prompt_languages
        tasks = select_prompts(load_tasks(folder), config.prompt_split, names, wanted)
        return by_language(tasks) if config.prompt_languages is None else {None: tasks}

    def one(name: str) -> dict[str | None, list[Task]]:
        if config.fixed_prompt is None:
            return select(config.task_folder, [name])
        return {None: [Task(name, (Prompt(f"{name}/{FIXED}/1", FIXED, config.fixed_prompt),))]}

    templates = config.template_folder or TEMPLATE_FOLDER
    if config.task_weights:
        known = [task.name for task in load_tasks(config.task_folder if config.target_set == "BI" else templates)]
        for name in config.task_weights:
            if name not in known:
                raise ValueError(f"task_weights: the pool has no {name!r}.{nearest(name, known)}")
    match config.target_set:
        case "T":
            return [one(REPEAT)]
        case "BI":
            return [select(config.task_folder, config.tasks)]
        case "MI":
            return [select(templates, None)]
        case "TMI":
            return [one(REPEAT), select(templates, None)]
        case "continuation":
            return [one(CONTINUE)]
    return [{None: [FREE]}]


def plan_row(config: TargetsConfig, pools: Pools, table: pa.Table, row: int, index: int) -> list[Item]:
    """The rows to be of one source row (or group), a function of the seed and its `index` in the source."""
    texts = table["text"][row].as_py()
    texts = texts if isinstance(texts, list) else [texts]
    languages = table["language"][row].as_py() if "language" in table.column_names else None
    languages = languages if isinstance(languages, list) else [languages]
    rng = random.Random(f"{config.seed}|0|{index}")
    kinds = {"TMI": ["T", "MI"]}.get(config.target_set, [config.target_set])
    items = []
    spoken = main_code(languages[0])
    for kind, pool in zip(kinds, pools, strict=True):
        count = 1 if kind == "T" else config.prompts_per_row
        weights = None if kind == "T" else config.task_weights
        for task, prompt in draw_prompts(choose_pool(pool, spoken, count), count, rng, weights):
            wording, target = prompt.wording(languages, rng)
            chat = user_turn(wording, len(texts))
            limit = None if config.max_new_tokens is not None else task.max_new_tokens or NEW_TOKENS
            same = prompt.language if spoken in (prompt.language, None) and prompt.language != FIXED else None
            expected = None if kind == "T" else spoken if kind == "free" else target or same
            digest = hashlib.sha256(f"{config.seed}|{index}|{len(items)}".encode()).digest()
            seed = int.from_bytes(digest[:4], "big") >> 1  # endpoints take 31 bits
            asked_in = prompt.language
            items.append(Item(row, kind, task.name, prompt.id, chat, seed, texts, limit, asked_in, expected))
    return items


def answer_items(items: list[Item], backend: Backend | None, progress: Callable[[int], None]) -> list[Answer]:
    """One answer per item, in order; only those that need it go to the LLM."""
    answers = [item.answer() for item in items]
    open_items = [index for index, answer in enumerate(answers) if answer is None]
    progress(len(items) - len(open_items))
    if open_items:
        given = backend.answer([items[index].question() for index in open_items], progress)
        for index, answer in zip(open_items, given, strict=True):
            answers[index] = answer
    return answers


# What is written


def build_rows(
    table: pa.Table, items: list[Item], answers: list[Answer], constants: dict[str, str | None]
) -> tuple[pa.Table, dict[str, Any]]:
    """
    The rows of a shard, and its counts.

    An answer at the limit of new tokens is kept and marked by `finish_reason` "length": what follows it is not the end
    of the turn. No answer, or an empty one, gives no row but a count and an entry in `dropped`.
    """
    kept, columns, dropped = [], {name: [] for name in GENERATED}, []
    asked_in, other_language = Counter(), 0
    ids = table["id"].to_pylist()
    for item, answer in zip(items, answers, strict=True):
        if answer.finish_reason not in ("stop", "length") or not answer.text:
            reason = "empty_answer" if answer.finish_reason in ("stop", "length") else answer.finish_reason
            dropped.append({"id": str(ids[item.row]), "prompt_id": item.prompt_id, "reason": reason})
            dropped[-1]["detail"] = answer.detail
            continue
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer.text}]}
        kept.append(item.row)
        asked_in[item.asked_in] += 1
        other_language += item.expected is not None and is_other_language(answer.text, item.expected)
        values = constants if item.target != "T" else {**constants, "model": None, "revision": None}
        values = values | {
            "messages": [*item.chat, reply],
            "task": item.task,
            "prompt_id": item.prompt_id,
            "target": item.target,
            "finish_reason": answer.finish_reason,
            "seed": item.seed,
        }
        for name, column in columns.items():
            column.append(values[name])
    schema = GENERATED.arrow_schema
    features = Features({**Features.from_arrow_schema(table.schema), **GENERATED})
    pieces = [kept[start : start + PIECE] for start in range(0, max(len(kept), 1), PIECE)]
    rows = pa.concat_tables([table.take(pa.array(piece, pa.int64())) for piece in pieces])
    for name, column in columns.items():
        rows = rows.append_column(schema.field(name), pa.array(column, schema.field(name).type))
    counts = {
        "asked": len(items),
        "rows": len(kept),
        "cut_at_limit": columns["finish_reason"].count("length"),
        "other_language": other_language,
        "prompt_languages": asked_in,
        "dropped": dropped,
    }
    return rows.cast(features.arrow_schema), counts


def summary(utterances: int, done: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> dict[str, Any]:
    """The report over finished shards."""
    names = ("asked", "rows", "cut_at_limit", "other_language")
    report: dict[str, Any] = {"utterances": utterances}
    report |= {name: sum(counts.get(name, 0) for counts in done) for name in names}
    report["prompt_languages"] = dict(sum((Counter(counts.get("prompt_languages")) for counts in done), Counter()))
    return report | {"dropped": dict(sorted(Counter(entry["reason"] for entry in dropped).items()))}


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
