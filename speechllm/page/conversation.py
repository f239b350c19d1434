"""A chat of several turns, with and without recordings: what the server is sent, and what people see."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .client import Answer, Client
from .recordings import PageError, Recording


@dataclass(eq=False)  # a turn is itself, whatever another one asks
class Turn:
    """One question and its answer."""

    instruction: str
    recording: Recording | None = None
    answer: Answer = field(default_factory=Answer)
    told: bool = False  # whether the page has shown what was heard in it

    def question(self) -> dict[str, Any]:
        """Its message of the user, the recording first, as the pipeline puts it."""
        blocks = [] if self.recording is None else [self.recording.as_block()]
        if self.instruction:
            blocks.append({"type": "text", "text": self.instruction})
        return {"role": "user", "content": blocks}


class Conversation:
    """The turns so far. A turn that fails leaves no trace in what is sent later."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []

    @property
    def busy(self) -> bool:
        """Whether an answer is being made."""
        return bool(self.turns) and self.turns[-1].answer.seconds is None

    def ask(
        self, client: Client, instruction: str, recording: Recording | None = None, remember: bool = True
    ) -> Iterator[Turn]:
        """
        The new turn, again and again while its answer grows.

        Args:
            client: who answers.
            instruction: what is asked, in writing; may be empty beside a recording.
            recording: speech.
            remember: whether the earlier turns are sent too.

        Raises:
            PageError: there is nothing to ask, or the server does not answer.
        """
        if self.busy:
            raise PageError("The last answer is still being made. Wait for it, or begin a new conversation.")
        turn = Turn(instruction.strip(), recording)
        if turn.recording is None and not turn.instruction:
            raise PageError("There is nothing to ask yet. Record or upload something, or write what you want to know.")
        sent = [
            message
            for past in (self.turns if remember else [])
            for message in (past.question(), said(past.answer.text))
        ]
        self.turns.append(turn)
        finished = False
        try:
            yield turn
            for answer in client.answer([*sent, turn.question()]):
                turn.answer = answer
                yield turn
            finished = True
        finally:
            if not finished:
                self.turns.remove(turn)

    def messages(self) -> list[dict[str, Any]]:
        """The chat in the form of Gradio's Chatbot: players, questions, answers, and under each what it took."""
        shown: list[dict[str, Any]] = []
        for turn in self.turns:
            if turn.recording is not None:
                shown.append({"role": "user", "content": {"path": turn.recording.path}})
            if turn.instruction:
                shown.append({"role": "user", "content": turn.instruction})
            done = turn.answer.seconds is not None
            text = turn.answer.text or ("*(an empty answer)*" if done else "…")
            shown.append({"role": "assistant", "content": text})
            if done:
                shown.append({"role": "assistant", "content": f"<small>{facts(turn)}</small>"})
        return shown


def said(text: str) -> dict[str, Any]:
    """An answer as the history of a chat holds it."""
    return {"role": "assistant", "content": text}


def facts(turn: Turn) -> str:
    """What an answer took, in a line."""
    answer = turn.answer
    parts = []
    if turn.recording is not None:
        parts.append(f"{turn.recording.seconds:.1f} s of speech")
    if answer.first_word is not None:
        parts.append(f"first word after {answer.first_word:.2f} s")
    parts.append(f"all after {answer.seconds:.2f} s")
    if answer.tokens is not None:
        parts.append(f"{answer.tokens} token{'s' * (answer.tokens != 1)}")
    if answer.cut:
        parts.append("cut off at the limit of tokens")
    return " · ".join(parts)


__all__ = ["Conversation", "Turn", "facts"]
