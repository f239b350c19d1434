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
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from ..data.shards import finished, open_run, write_shard, write_text
from .backends import Answer, Question, identify, load_backend
from .config import TargetsConfig
from .prompts import TEMPLATE_FOLDER, Prompt, Task, draw_prompts, load_tasks, select_prompts, user_turn
from .sources import PIECE, describe_source, load_source, prepare_source, read_groups

REPEAT, CONTINUE = "repeat", "continue"  # tasks that a pool needs for the target sets T and continuation
FREE = Task("free", (Prompt("free", "", ""),))
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
    """One row to be: its place in the shard, what is asked of which transcripts, and the seed of its answer."""

    row: int
    target: str
    task: str
    prompt_id: str
    chat: list[dict]
    seed: int
    texts: list[str | None]

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
        return Question(chat, self.seed)


def generate_targets(
    config: TargetsConfig, dataset: Dataset | None = None, backend: Backend | None = None
) -> dict[str, Any]:
    """
    Write the targets of a dataset; resume what an earlier run with these settings left.

    Args:
        config: settings.
        dataset: the source, in place of `config.dataset`: columns `audio`, `text`, optionally `language`, `id`, any.
        backend: an LLM of your own, in place of the one that `config` names; its name and revision are noted as
            `config` gives them.

    Returns:
        the report: `utterances` in the source, `asked` questions, `rows` written, `cut_at_limit` rows marked
        `finish_reason` "length", `dropped` (by reason), `shards`, `shards_done`, `complete`. With several processes it
        covers what all have finished by now; the last one to finish gets the whole and writes it to the manifest.

    Raises:
        ValueError: a source without the columns, prompts that do not fit the target set, or a folder with a run of
            other settings, another source or LLM, by name.
        BackendError: the endpoint does not answer; the finished shards stay.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu)  # without the flag it takes processes on a CPU for one each
    source = prepare_source(load_source(config) if dataset is None else dataset, config, GENERATED)
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
        "prompts": _digest([repr(task.prompts) for pool in pools for task in pool]),
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
    return close_run(output, fingerprint, shards, len(source))


def main(config: TargetsConfig) -> dict[str, Any]:
    """The command: `generate_targets`, and the report in words."""
    report = generate_targets(config)
    print(f"{report['rows']} rows of {report['utterances']} utterances in {config.output_dir}")
    for reason, count in report["dropped"].items():
        print(f"  {count} of {report['asked']} questions dropped: {reason.replace('_', ' ')} (see dropped.jsonl)")
    if report["cut_at_limit"]:
        print(f'  {report["cut_at_limit"]} answers cut at {config.max_new_tokens} tokens: finish_reason is "length"')
    if not report["complete"]:
        print(f"  {report['shards_done']} of {report['shards']} shards; other processes are still at work")
    return report


# What is asked


def load_pools(config: TargetsConfig) -> list[list[Task]]:
    """What a row's prompts are drawn from: pool by pool, one pool per kind of target.

    Raises:
        ValueError: a pool without the task that the target set needs, or with nothing left of it.
    """

    def select(folder: str | Path | None, names: list[str] | None) -> list[Task]:
        return select_prompts(load_tasks(folder), config.prompt_split, names, config.prompt_languages)

    templates = config.template_folder or TEMPLATE_FOLDER
    match config.target_set:
        case "T":
            return [select(config.task_folder, [REPEAT])]
        case "BI":
            return [select(config.task_folder, config.tasks)]
        case "MI":
            return [select(templates, None)]
        case "TMI":
            return [select(config.task_folder, [REPEAT]), select(templates, None)]
        case "continuation":
            return [select(config.task_folder, [CONTINUE])]
    return [[FREE]]


def plan_row(config: TargetsConfig, pools: list[list[Task]], table: pa.Table, row: int, index: int) -> list[Item]:
    """The rows to be of one source row (or group), a function of the seed and its `index` in the source."""
    texts = table["text"][row].as_py()
    texts = texts if isinstance(texts, list) else [texts]
    languages = table["language"][row].as_py() if "language" in table.column_names else None
    languages = languages if isinstance(languages, list) else [languages]
    rng = random.Random(f"{config.seed}|0|{index}")
    kinds = {"TMI": ["T", "MI"]}.get(config.target_set, [config.target_set])
    items = []
    for kind, pool in zip(kinds, pools, strict=True):
        for task, prompt in draw_prompts(pool, 1 if kind == "T" else config.prompts_per_row, rng):
            chat = user_turn(prompt.wording(languages, rng), len(texts))
            digest = hashlib.sha256(f"{config.seed}|{index}|{len(items)}".encode()).digest()
            seed = int.from_bytes(digest[:4], "big") >> 1  # endpoints take 31 bits
            items.append(Item(row, kind, task.name, prompt.id, chat, seed, texts))
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
    ids = table["id"].to_pylist()
    for item, answer in zip(items, answers, strict=True):
        if answer.finish_reason not in ("stop", "length") or not answer.text:
            reason = "empty_answer" if answer.finish_reason in ("stop", "length") else answer.finish_reason
            dropped.append({"id": str(ids[item.row]), "prompt_id": item.prompt_id, "reason": reason})
            dropped[-1]["detail"] = answer.detail
            continue
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer.text}]}
        kept.append(item.row)
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
        "dropped": dropped,
    }
    return rows.cast(features.arrow_schema), counts


def close_run(output: Path, fingerprint: dict[str, Any], shards: int, utterances: int) -> dict[str, Any]:
    """The report over all finished shards; once they are all, it goes into the manifest, and what was dropped into
    `dropped.jsonl`. Processes that finish at once write the same."""
    done = [counts for shard in range(shards) if (counts := finished(output, shard, shards)) is not None]
    dropped = [entry for counts in done for entry in counts["dropped"]]
    report = {"utterances": utterances}
    report |= {name: sum(counts[name] for counts in done) for name in ("asked", "rows", "cut_at_limit")}
    report["dropped"] = dict(sorted(Counter(entry["reason"] for entry in dropped).items()))
    report |= {"shards": shards, "shards_done": len(done), "complete": len(done) == shards}
    if report["complete"]:
        for litter in output.glob("data/.*.partial"):  # of killed processes
            litter.unlink(missing_ok=True)
        lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in dropped)
        write_text(output / "dropped.jsonl", lines)
        manifest = json.dumps({"run": fingerprint, "report": report}, indent=2, ensure_ascii=False)
        write_text(output / "manifest.json", manifest)
    return report


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
