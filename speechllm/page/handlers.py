"""What happens on the page: values of its components -> updates of its components.

Outputs of an event are lists in the order that each method names; `layout.py` lists the components in that order.
"""

import html
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import soundfile

from .client import Client
from .conversation import Conversation
from .hearing import Heard, Hearing
from .live import Listener
from .recordings import PageError, Recording, check_recording, read_recording
from .samples import Sample

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no hidden network
import gradio as gr  # noqa: E402  reads the environment


def problem(error: PageError | None = None) -> Any:
    """The box with what went wrong; hidden without an error. The text is shown as it is, not as markup."""
    text = "" if error is None else f'<div class="problem" role="alert">{html.escape(str(error))}</div>'
    return gr.HTML(text, visible=error is not None)


def heard_updates(heard: Heard | None, hearing: Hearing) -> list[Any]:
    """For the transcript, the languages and the remark."""
    heard = heard or Heard()
    remark = ""
    if heard.understood is False:
        remark = (
            "⚠️ The model could not make this out, so its answer is a guess. It may be noise, or speech unlike what it "
            "was trained on."
        )
    return [
        gr.Textbox(heard.transcript, visible=hearing.tells_transcript),
        gr.Label(heard.languages, visible=hearing.tells_language),
        gr.Markdown(remark, visible=bool(remark)),
    ]


def read_chunk(path: str) -> tuple[int, np.ndarray]:
    """A piece of the microphone's stream, as (rate in Hz, float32 (samples,))."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return rate, samples.mean(axis=1)


class Handlers:
    """
    What happens when a button is pressed: inputs of components -> their updates.

    Args:
        client: who answers.
        hearing: tells what was heard; None where that is not known.
        samples: packaged recordings.
        listener: makes a [`Listener`] from the pause.
    """

    def __init__(
        self,
        client: Client,
        hearing: Hearing | None,
        samples: Sequence[Sample],
        listener: Callable[[float], Listener] = Listener,
    ):
        self.client, self.hearing, self.samples, self.listener = client, hearing, samples, listener

    def ask(self, path: str | None, instruction: str, conversation: Conversation) -> Iterator[list[Any]]:
        """For the recording, the chat, the problem, and the three of `heard_updates`."""
        try:
            recording = read_recording(path) if path else None
            for row in self._answer(conversation, instruction, recording):
                yield [None, *row]
        except PageError as error:  # what was given stays, so that it can be mended
            yield [gr.skip(), conversation.messages(), problem(error), *self._no_news()]

    def ask_spoken(self, spoken: list[Recording], instruction: str, conversation: Conversation) -> Iterator[list[Any]]:
        """The turns that wait, one after the other, each taken from the list; outputs as in `ask` but the first."""
        while spoken:
            while conversation.busy:  # with a question that was typed
                time.sleep(0.05)
            try:
                yield from self._answer(conversation, instruction, spoken.pop(0))
            except PageError as error:
                yield [conversation.messages(), problem(error), *self._no_news()]

    def _answer(
        self, conversation: Conversation, instruction: str, recording: Recording | None
    ) -> Iterator[list[Any]]:
        for _ in conversation.ask(self.client, instruction, recording):
            yield [conversation.messages(), problem(), *self._no_news()]
        if recording is not None and self.hearing is not None and self.hearing.tells_anything:
            heard = heard_updates(self.hearing.hear(recording.samples), self.hearing)
            yield [conversation.messages(), problem(), *heard]

    def _no_news(self) -> list[Any]:
        return [gr.skip()] * 3

    def listen(
        self, path: str | None, pause: float, listener: Listener | None, spoken: list[Recording]
    ) -> tuple[Any, ...]:
        """A piece of the stream; for the listener, the waiting turns, their number, and the line that tells."""
        if path is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        listener = self.listener(pause) if listener is None else listener
        turns = listener.hear(*read_chunk(path))
        return listener, *self._wait(turns, spoken, "🟢 I hear you" if listener.speaking else "⚪ Listening")

    def finish(self, listener: Listener | None, spoken: list[Recording]) -> tuple[Any, ...]:
        """The microphone is off; outputs as in `listen`."""
        turns = [] if listener is None else listener.finish()
        return None, *self._wait(turns, spoken, "The microphone is off.")

    def _wait(self, turns: list[np.ndarray], spoken: list[Recording], state: str) -> tuple[Any, ...]:
        if not turns:
            return gr.skip(), gr.skip(), state
        spoken.extend(check_recording(turn, "your turn") for turn in turns)
        return spoken, spoken[-1].path, "📨 Your turn is sent."

    def new(self) -> list[Any]:
        """An empty page: for the recording, the conversation, the waiting turns, the chat, the problem, and the three
        of `heard_updates`."""
        heard = self._no_news() if self.hearing is None else heard_updates(None, self.hearing)
        return [None, Conversation(), [], [], problem(), *heard]

    def pick(self, index: int) -> list[Any]:
        """A packaged recording; for the recording, the instruction and the suggestions."""
        sample = self.samples[index]
        return [sample.path, sample.instructions[0], suggestions(sample.instructions)]


def suggestions(instructions: Sequence[str]) -> gr.Dataset:
    """Instructions to choose from."""
    return gr.Dataset(samples=[[text] for text in instructions])


__all__ = ["Handlers", "heard_updates", "problem", "read_chunk", "suggestions"]
