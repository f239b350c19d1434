"""What the LLM makes of a request: read as text, or heard through the connector.

A request stands in the chat before an instruction, on a line of its own, as in the product; it is text (ids of the
LLM's tokens) or audio (embeddings that the connector made). Both go in as embeddings, so that they differ in nothing
else. The instructions are the packaged task pool's.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100
PLACE = "\u241f"  # stands for the request while the chat template is applied
POOL = Path(__file__).parents[2] / "trainers/targets/tasks"
UNUSED = ("translate", "language")  # an LLM of this size speaks English alone


def prompts(held_out: bool = False) -> dict[str, list[str]]:
    """English prompts of the packaged tasks, by task: those that trainings see, or those kept from them."""
    found: dict[str, list[str]] = {}
    for path in sorted(POOL.glob("*.yaml")):
        for name, task in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            kept = {prompt.removeprefix("en/") for prompt in task.get("held_out_prompts", [])}
            texts = [
                text
                for number, text in task["prompts"]["en"].items()
                if (task.get("held_out", False) or str(number) in kept) == held_out
            ]
            if texts and name not in UNUSED:
                found[name] = texts
    return found


@dataclass
class Turn:
    """An instruction, the request as embeddings (tokens, size), and the answer's ids where it is known."""

    instruction: str
    request: torch.Tensor
    answer: list[int] | None = None


class Answerer:
    """SmolLM2 (or any chat LLM in a folder) on requests given as embeddings."""

    def __init__(self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval().requires_grad_(False)
        self.device = device
        self.frames: dict[str, tuple[list[int], list[int]]] = {}

    @property
    def table(self) -> torch.Tensor:
        """The LLM's input embeddings (tokens, size)."""
        return self.model.get_input_embeddings().weight

    def text(self, text: str) -> torch.Tensor:
        """Embeddings of a request in text."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.table[torch.tensor(ids, dtype=torch.long, device=self.device)]

    def around(self, instruction: str) -> tuple[list[int], list[int]]:
        """Ids of the chat before and after the request, up to where the answer begins."""
        if instruction not in self.frames:
            content = f"{PLACE}\n{instruction}" if instruction else PLACE
            chat = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            parts = chat.split(PLACE)
            self.frames[instruction] = tuple(self.tokenizer(p, add_special_tokens=False).input_ids for p in parts)
        return self.frames[instruction]

    def embed(self, turn: Turn) -> torch.Tensor:
        """A turn up to the end of its answer (or of the prompt, without one), (tokens, size)."""
        before, after = self.around(turn.instruction)
        rest = torch.tensor(after + (turn.answer or []), dtype=torch.long, device=self.device)
        return torch.cat([self.table[torch.tensor(before, device=self.device)], turn.request, self.table[rest]])

    def answer_logits(self, turns: list[Turn]) -> torch.Tensor:
        """Logits (answer tokens of all turns in order, vocabulary), each before the token that it predicts."""
        rows = [self.embed(turn) for turn in turns]
        size = max(map(len, rows))
        mask = torch.tensor([[1] * len(row) + [0] * (size - len(row)) for row in rows])
        places = torch.zeros_like(mask, dtype=torch.bool)
        for index, (row, turn) in enumerate(zip(rows, turns, strict=True)):
            places[index, len(row) - len(turn.answer) - 1 : len(row) - 1] = True
        padded = pad_sequence(rows, batch_first=True)
        hidden = self.model.model(inputs_embeds=padded, attention_mask=mask.to(self.device), use_cache=False)
        return self.model.lm_head(hidden.last_hidden_state[places.to(self.device)])

    @torch.inference_mode()
    def answers(self, turns: list[Turn], limit: int, batch: int = 64) -> list[list[int]]:
        """Greedy answers, at most `limit` tokens, the end of the turn included where it was reached."""
        end = self.tokenizer.eos_token_id
        order = sorted(range(len(turns)), key=lambda index: len(turns[index].request))
        found: list[list[int]] = [[] for _ in turns]
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            rows = [self.embed(turns[index]) for index in part]
            size = max(map(len, rows))
            padded = torch.stack([torch.cat([row.new_zeros(size - len(row), row.shape[1]), row]) for row in rows])
            mask = torch.tensor([[0] * (size - len(row)) + [1] * len(row) for row in rows], device=self.device)
            output = self.model.generate(
                inputs_embeds=padded, attention_mask=mask, max_new_tokens=limit, do_sample=False, pad_token_id=end
            )
            for index, row in zip(part, output.tolist(), strict=True):
                found[index] = row[: row.index(end) + 1] if end in row else row
        return found

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


@torch.inference_mode()
def agreement(answerer: Answerer, turns: list[Turn], batch: int = 32) -> tuple[float, list[float]]:
    """Share of the answers' tokens that are the likeliest ones, in all and per turn."""
    shares, hits, count = [], 0, 0
    for start in range(0, len(turns), batch):
        part = turns[start : start + batch]
        best = answerer.answer_logits(part).argmax(-1).tolist()
        for turn in part:
            right = sum(a == b for a, b in zip(turn.answer, best[: len(turn.answer)], strict=True))
            best = best[len(turn.answer) :]
            shares.append(right / len(turn.answer))
            hits, count = hits + right, count + len(turn.answer)
    return hits / count, shares
