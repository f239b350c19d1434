"""How a run reads and what the LLM makes of it, beside the text bound and the cascade, on speakers of no training.

    python -m benchmarks.small measure --parents PARENTS --out OUT --run NAME

- `text`: the LLM reads the transcript (the bound). `cascade`: it reads what Whisper read. `hard`: it reads the words
  of greedy CTC, tokenized anew. `soft`: it hears the connector's embeddings.
- Word error rate of what was read, and of what the LLM gives back when asked to repeat it.
- Agreement: share of tokens of the LLM's own answer to the transcript that are the likeliest after the other input.
  Where the run trained an adapter, the answers are those of the LLM without it.

All texts are normalized (lower case, no punctuation).
"""

import json
from contextlib import nullcontext
from pathlib import Path

import jiwer
import torch
from peft import PeftModel

from benchmarks.nanoworld.logbook import log
from benchmarks.small.answering import Answerer, Turn, agreement, prompts
from benchmarks.small.corpora import normalized
from benchmarks.small.reading import Example, Reader, greedy, load_reader, transcripts
from benchmarks.small.vocabulary import Vocabulary

LIMIT = 24  # tokens of an answer that are compared
REPEAT = prompts()["repeat"][0]
TASKS = ("repeat", "summarise", "reply", "topic", "title")
MEASURED = {
    f"{task}, {kind}": texts[0]
    for kind, held_out in (("seen", False), ("unseen", True))
    for task, texts in prompts(held_out).items()
    if task in TASKS
}


@torch.inference_mode()
def heard(reader: Reader, example: Example) -> torch.Tensor:
    """What the LLM is given of a recording, (tokens, size)."""
    output = reader.connector(*reader.frames(*reader.batch([example])))
    return output.embeddings[0][output.used[0]]


def read_ways(
    answerer: Answerer, reader: Reader, vocabulary: Vocabulary, examples: list[Example]
) -> tuple[dict[str, list[torch.Tensor]], dict[str, list[str]]]:
    """Each way's requests as embeddings, and the texts of those that have one."""
    texts = {
        "text": [example.written for example in examples],
        "cascade": [example.store.rows[example.id]["read"]["text"] for example in examples],
        "hard": [vocabulary.text(row) for row in greedy(reader, examples)],
    }
    requests = {way: [answerer.text(text) for text in rows] for way, rows in texts.items()}
    size, dtype = answerer.table.shape[1], answerer.table.dtype
    requests["soft"] = [heard(reader, example).to(dtype).reshape(-1, size) for example in examples]
    return requests, {way: [normalized(text) or "-" for text in rows] for way, rows in texts.items()}


def measure(out: Path, parents: Path, name: str, count: int = 100, device: str = "cpu") -> dict:
    """Writes `OUT/runs/NAME/measured.json` and a table to the log; `count` recordings of each source."""
    folder = out / "runs" / name
    answerer = Answerer(parents / "smollm2-135m-instruct", device)
    if (folder / "adapter").exists():
        adapted = PeftModel.from_pretrained(answerer.model, folder / "adapter")
        without = adapted.disable_adapter
    else:
        without = nullcontext
    reader, vocabulary = load_reader(folder, parents, device)
    reader.connector.load_vocabulary(torch.tensor(vocabulary.token_ids, device=device), answerer.table)
    results: dict[str, dict] = {}
    batch = 32 if device == "cpu" else 256
    for source in ("cv_en", "cv_other"):
        examples = transcripts(out / "mel", source, "test")[:count]
        requests, texts = read_ways(answerer, reader, vocabulary, examples)
        reference = texts["text"]
        found = {way: {"read_wer": jiwer.wer(reference, rows)} for way, rows in texts.items()} | {"soft": {}}
        with without():
            answers = {
                name: answerer.answers([Turn(prompt, request) for request in requests["text"]], LIMIT, batch)
                for name, prompt in MEASURED.items()
            }
        for way, rows in requests.items():
            repeated = answerer.answers([Turn(REPEAT, row) for row in rows], 60, batch)
            found[way]["repeat_wer"] = jiwer.wer(reference, [normalized(answerer.decode(r)) or "-" for r in repeated])
            if way == "text" and without is nullcontext:
                continue
            shares = {
                name: agreement(answerer, [Turn(prompt, row, a) for row, a in zip(rows, answers[name], strict=True)])[
                    0
                ]
                for name, prompt in MEASURED.items()
            }
            found[way]["agreement"] = shares
            found[way]["agreement_mean"] = sum(shares.values()) / len(shares)
        for way, numbers in found.items():
            log(folder, f"measured {source}, {way}", **{k: v for k, v in numbers.items() if isinstance(v, float)})
        for index in range(min(5, len(reference))):
            log(folder, f"  {reference[index]} | {texts['hard'][index]} | {texts['cascade'][index]}")
        results[source] = found
    (folder / "measured.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    return results
