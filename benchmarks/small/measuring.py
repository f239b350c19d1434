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
from safetensors.torch import load_file

from benchmarks.nanoworld.logbook import log
from benchmarks.small.answering import REPEAT, SEEN, UNSEEN, Answerer, Turn, agreement
from benchmarks.small.corpora import normalized
from benchmarks.small.reading import Example, Reader, ReadingSettings, greedy, new_connector, transcripts
from benchmarks.small.vocabulary import Vocabulary
from modeling_speechllm.ctc_compress import CTCCompress

LIMIT = 24  # tokens of an answer that are compared
MEASURED = (REPEAT, "", SEEN[2], SEEN[5], *UNSEEN[:2])


def load_run(folder: Path, device: str = "cpu") -> tuple[CTCCompress, Vocabulary]:
    """The trained connector of a run, in float32, and its vocabulary."""
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    settings = ReadingSettings(**json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    connector = new_connector(vocabulary, settings)
    connector.load_state_dict(load_file(folder / "connector.safetensors"))
    return connector.float().to(device).eval(), vocabulary


def frames_of(out: Path, name: str) -> Path:
    """The folder of stores whose frames a run reads: those of its own encoder, or all runs'."""
    own = out / "runs" / name / "frames"
    return own if own.exists() else out / "frames"


@torch.inference_mode()
def heard(connector: CTCCompress, example: Example) -> torch.Tensor:
    """What the LLM is given of a recording, (tokens, size)."""
    device = next(connector.parameters()).device
    frames = example.values[None].to(device)
    output = connector(frames, torch.tensor([frames.shape[1]], device=device))
    return output.embeddings[0][output.used[0]]


def read_ways(
    answerer: Answerer, connector: CTCCompress, vocabulary: Vocabulary, examples: list[Example]
) -> tuple[dict[str, list[torch.Tensor]], dict[str, list[str]]]:
    """Each way's requests as embeddings, and the texts of those that have one."""
    frames = [example.values for example in examples]
    texts = {
        "text": [example.text for example in examples],
        "cascade": [normalized(example.store.rows[example.id]["read"]["text"]) for example in examples],
        "hard": [vocabulary.text(row) for row in greedy(Reader(connector), frames)],
    }
    requests = {way: [answerer.text(text) for text in rows] for way, rows in texts.items()}
    size, dtype = answerer.table.shape[1], answerer.table.dtype
    requests["soft"] = [heard(connector, example).to(dtype).reshape(-1, size) for example in examples]
    return requests, texts


def measure(out: Path, parents: Path, name: str, count: int = 100, device: str = "cpu") -> dict:
    """Writes `OUT/runs/NAME/measured.json` and a table to the log; `count` recordings of each source."""
    folder = out / "runs" / name
    answerer = Answerer(parents / "smollm2-135m-instruct", device)
    if (folder / "adapter").exists():
        adapted = PeftModel.from_pretrained(answerer.model, folder / "adapter")
        without = adapted.disable_adapter
    else:
        without = nullcontext
    connector, vocabulary = load_run(folder, device)
    results: dict[str, dict] = {}
    for source in ("cv_en", "cv_other"):
        examples = transcripts(frames_of(out, name), source, "test")[:count]
        requests, texts = read_ways(answerer, connector, vocabulary, examples)
        reference = texts["text"]
        found = {way: {"read_wer": jiwer.wer(reference, rows)} for way, rows in texts.items()} | {"soft": {}}
        with without():
            answers = {
                instruction: answerer.answers([Turn(instruction, request) for request in requests["text"]], LIMIT)
                for instruction in MEASURED
            }
        for way, rows in requests.items():
            repeated = answerer.answers([Turn(REPEAT, row) for row in rows], 48)
            found[way]["repeat_wer"] = jiwer.wer(reference, [normalized(answerer.decode(r)) or "-" for r in repeated])
            if way == "text" and without is nullcontext:
                continue
            shares = {
                instruction: agreement(
                    answerer, [Turn(instruction, row, a) for row, a in zip(rows, answers[instruction], strict=True)]
                )[0]
                for instruction in MEASURED
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
