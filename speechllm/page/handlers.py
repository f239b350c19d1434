"""What happens on the page: values of its components -> updates of its components.

Outputs of an event are lists in the order that each method names; `layout.py` lists the components in that order.
"""

import html
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .client import Client
from .conversation import Conversation
from .hearing import Heard, Hearing
from .microphones import Microphones
from .recordings import PageError, read_recording
from .samples import Sample

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no hidden network
import gradio as gr  # noqa: E402  reads the environment

KEPT = "What you said is kept under “Record or upload”."
GUESS = (
    "The model could not make this out, so its answer is a guess. It may be noise, or speech unlike what it was "
    "trained on."
)


def problem(error: PageError | None = None) -> Any:
    """The box with what went wrong; hidden without an error. The text is shown as it is, not as markup."""
    text = "" if error is None else f'<div class="problem" role="alert">{html.escape(str(error))}</div>'
    return gr.HTML(text, visible=error is not None)


def heard_updates(heard: Heard | None, hearing: Hearing) -> list[Any]:
    """For the transcript, the languages and the remark."""
    heard = heard or Heard()
    guess = heard.understood is False
    return [
        gr.Textbox(heard.transcript, visible=hearing.tells_transcript),
        gr.Label(heard.languages, visible=hearing.tells_language),
        gr.HTML(f'<div class="guess" role="status">{GUESS}</div>' if guess else "", visible=guess),
    ]


class Handlers:
    """
    What happens when a button is pressed: inputs of components -> their updates.

    Args:
        client: who answers.
        hearing: tells what was heard; None where that is not known.
        samples: packaged recordings.
        microphones: whose live turns are asked about.
    """

    def __init__(
        self,
        client: Client,
        hearing: Hearing | None,
        samples: Sequence[Sample],
        microphones: Microphones,
    ):
        self.client, self.hearing, self.samples, self.microphones = client, hearing, samples, microphones

    def ask(
        self, path: str | None, instruction: str, remember: bool, conversation: Conversation
    ) -> Iterator[list[Any]]:
        """For the recording, the chat and the problem. A recording that came to nothing stays, or comes back."""
        kept = gr.skip()
        try:
            recording = read_recording(path) if path else None
            for _ in conversation.ask(self.client, instruction, recording, remember):
                yield [None, conversation.messages(), problem()]
                kept = path
        except PageError as error:
            yield [kept, conversation.messages(), problem(error)]

    def ask_spoken(
        self, names: str, instruction: str, remember: bool, conversation: Conversation
    ) -> Iterator[list[Any]]:
        """Live turns by their names, one after the other; outputs as in `ask`. One that came to nothing is put where
        recordings are."""
        for recording in self.microphones.take(names):
            while conversation.busy:  # with a question that was typed
                time.sleep(0.05)
            try:
                for _ in conversation.ask(self.client, instruction, recording, remember):
                    yield [gr.skip(), conversation.messages(), problem()]
            except PageError as error:
                told = PageError(f"{error} {KEPT}")
                yield [recording.path, conversation.messages(), problem(told)]

    def tell(self, conversation: Conversation) -> list[Any]:
        """What was heard in the last turn, if it has a recording of which that was not told yet: `heard_updates`."""
        turn = conversation.turns[-1] if conversation.turns else None
        tells = self.hearing is not None and self.hearing.tells_anything
        if not tells or turn is None or turn.recording is None or turn.told:
            return [gr.skip()] * 3
        turn.told = True
        return heard_updates(self.hearing.hear(turn.recording.samples), self.hearing)

    def new(self) -> list[Any]:
        """An empty page: for the recording, the conversation, the chat, the problem, and `heard_updates`."""
        heard = [gr.skip()] * 3 if self.hearing is None else heard_updates(None, self.hearing)
        return [None, Conversation(), [], problem(), *heard]

    def pick(self, index: int) -> list[Any]:
        """A packaged recording; for the recording, the instruction and the suggestions."""
        sample = self.samples[index]
        return [sample.path, sample.instructions[0], suggestions(sample.instructions)]


def suggestions(instructions: Sequence[str]) -> gr.Dataset:
    """Instructions to choose from."""
    return gr.Dataset(samples=[[text] for text in instructions])


__all__ = ["Handlers", "heard_updates", "problem", "suggestions"]
