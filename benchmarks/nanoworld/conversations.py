"""Training conversations: a request, one to three instructions about it, and their answers, as token ids.

The request stands in the first user turn where the audio embeddings will stand later. In a share of the samples its
tokens are spaced out by the audio placeholder token at the pace of speech, so the LLM, which sees text only, learns
that the placeholder's embedding means nothing and that words may come at any distance: this is what connector outputs
look like.
"""

import functools
import random
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.nanoworld.lexicon import LANGUAGE_NAMES
from benchmarks.nanoworld.prompts import PROMPTS
from benchmarks.nanoworld.tasks import WORD_TASKS, Example, draw, tasks_for
from benchmarks.nanoworld.tokenizer import AUDIO, END, START
from benchmarks.nanoworld.world import LANGUAGES, frames_by_kind, frames_of, number

TASK_WEIGHTS = {"translate": 3.0, "context": 3.0, "sum": 2.0, "transcribe": 1.5, "count_words": 1.5}
HARD_TASK_WEIGHTS = TASK_WEIGHTS | {"context": 10.0, "sum": 12.0}
TURN_SHARES = (0.35, 0.4, 0.25)  # of conversations with one, two and three instructions
SPACED_SHARE = 0.35
REQUEST_FIRST_SHARE = 0.75  # as the pipeline asks
NO_LINE_BREAK_SHARE = 0.25  # instruction and request side by side
IGNORED = -100


@dataclass
class Conversation:
    """What is asked about one request, in order; `request_first` says which stands first in the user turn."""

    request: str
    examples: list[Example]
    request_first: bool


@functools.cache
def words_of(language: str) -> list[str]:
    """Every word (in Chinese, every character) of the training requests."""
    texts = [frame.text(language) for frame in frames_of("train")]
    return sorted({word for text in texts for word in (text if language == "zh" else text.split())})


def draw_scrambled(rng: random.Random) -> Conversation:
    """A conversation about random words or random digits.

    A sentence of the grammar can be copied as a template with some words filled in. A scrambled one can only be copied
    word by word: from these the LLM learns to look at positions.
    """
    language = rng.choice(LANGUAGES)
    glue = "" if language == "zh" else " "
    tasks = ["transcribe"] if language == "zh" else ["transcribe", "transcribe", *WORD_TASKS]
    digits = [rng.randrange(10) for _ in range(rng.randint(2, 5))] if rng.random() < 0.4 else []
    if digits:
        words, tasks = [number(language, digit) for digit in digits], [*tasks, "number", "number", "translate"]
    else:
        words = rng.choices(words_of(language), k=rng.randint(2, 9))
    examples = []
    for task in rng.choices(tasks, k=rng.randint(1, 3)):
        prompt = rng.choice([prompt for prompt in PROMPTS[task] if not prompt.held_out])
        target = rng.choice([other for other in LANGUAGES if other != language])
        instruction = prompt.text.format(language=LANGUAGE_NAMES[target][prompt.language])
        answer = {
            "transcribe": glue.join(words),
            "first_word": words[0],
            "last_word": words[-1],
            "count_words": str(len(words)),
            "number": " ".join(map(str, digits)),
            "translate": ("" if target == "zh" else " ").join(number(target, digit) for digit in digits),
        }[task]
        examples.append(Example(task, prompt, instruction, answer))
    return Conversation(glue.join(words), examples, rng.random() < REQUEST_FIRST_SHARE)


def draw_conversation(split: str, rng: random.Random, hard: bool = False) -> Conversation:
    """A random conversation: kinds by the square root of their size, so that small kinds are heard too.

    `hard` gives sums and contexts, which are learned last, a larger share.
    """
    kinds = {kind: members for kind, members in frames_by_kind(split).items() if members}
    shares = [len(members) ** 0.5 * (2 if hard and kind == "sum" else 1) for kind, members in kinds.items()]
    (members,) = rng.choices(list(kinds.values()), shares)
    frame, language = rng.choice(members), rng.choice(LANGUAGES)
    tasks = tasks_for(frame, language)
    weights = [(HARD_TASK_WEIGHTS if hard else TASK_WEIGHTS).get(task, 1.0) for task in tasks]
    (turns,) = rng.choices((1, 2, 3), TURN_SHARES)
    examples = [draw(task, frame, language, rng) for task in rng.choices(tasks, weights, k=turns)]
    return Conversation(frame.text(language), examples, rng.random() < REQUEST_FIRST_SHARE)


class Encoder:
    """Conversations to ids, equal to the chat template's own, with ids of pieces remembered."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}
        self.audio, self.end, start = tokenizer.convert_tokens_to_ids([AUDIO, END, START])
        self.line_break = self.ids("\n")
        self.user = [start, *self.ids("user\n")]
        self.assistant = [start, *self.ids("assistant\n")]

    def ids(self, text: str) -> list[int]:
        """Token ids of a piece of text."""
        if text not in self.known:
            self.known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.known[text]

    def turn(
        self, instruction: str, request: list[int] | None = None, request_first: bool = False, line_break: bool = True
    ) -> list[int]:
        """Ids of a user turn up to where the assistant's answer begins."""
        content = self.ids(instruction)
        if request is not None:
            gap = self.line_break if line_break else []
            content = request + gap + content if request_first else content + gap + request
        return self.user + content + [self.end] + self.assistant

    def spaced(self, request: list[int], rng: random.Random) -> list[int]:
        """The request with zero to four placeholders around each token."""
        out = [self.audio] * rng.randint(0, 4)
        for token in request:
            out += [token] + [self.audio] * rng.choice((0, 0, 1, 1, 2, 3, 4))
        return out

    def spoken(self, request: list[int], rng: random.Random) -> list[int]:
        """The request as CTC emits it 25 times a second: silence around it, bursts and gaps, some tokens twice.

        As in CTC, twice in a row is once; a token that does follow itself has placeholders in between.
        """
        out = [self.audio] * rng.randint(0, 12)
        for place, token in enumerate(request):
            gap = rng.choice((0, 0, 0, 1, 1, 2, 3, 4, 6, 9))
            if request[place + 1 : place + 2] == [token]:
                gap = max(gap, 1)
            out += [token] * (2 if rng.random() < 0.15 else 1) + [self.audio] * gap
        return out + [self.audio] * rng.randint(0, 10)

    def sample(
        self, conversation: Conversation, rng: random.Random, spoken_share: float = 0.0
    ) -> tuple[list[int], list[int]]:
        """Input ids of a whole conversation and its labels, which stand on answers only."""
        request = self.ids(conversation.request)
        if spoken_share and rng.random() < spoken_share:
            request = self.spoken(request, rng)
        elif rng.random() < SPACED_SHARE:
            request = self.spaced(request, rng)
        ids: list[int] = []
        labels: list[int] = []
        for turn, example in enumerate(conversation.examples):
            shown = request if turn == 0 else None
            line_break = rng.random() >= NO_LINE_BREAK_SHARE
            head = self.turn(example.instruction, shown, conversation.request_first, line_break)
            answer = self.ids(example.answer) + [self.end]
            ids += head + answer
            labels += [IGNORED] * len(head) + answer
        return ids, labels


def collate(samples: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Right-padded ids, attention mask and labels, each (batch, length)."""
    length = max(len(ids) for ids, _ in samples)
    ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in samples])
    labels = torch.tensor([labels + [IGNORED] * (length - len(labels)) for _, labels in samples])
    mask = torch.arange(length) < torch.tensor([len(ids) for ids, _ in samples])[:, None]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
