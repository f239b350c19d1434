"""`/v1/audio/transcriptions`: a chat about one recording that asks for its words, as `DEFAULT_INSTRUCTION` does."""

import asyncio
import json
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from processing_speechllm.audio import LoadedAudio
from processing_speechllm.audio_decoding import AudioError
from processing_speechllm.chat_messages import instruction_chat
from processing_speechllm.pipeline_prompts import DEFAULT_INSTRUCTION

from .handlers import SpeechChatHandler
from .requests import RequestError

KNOWN = {"file", "model", "temperature", "response_format"}
SHOWN = 80  # characters of a transcript that is too long
REMEDIES = {
    "language": "The model finds it out",
    "prompt": "Give instructions of your own in /v1/chat/completions",
    "stream": "Stream from /v1/chat/completions",
    "timestamp_granularities[]": "This model writes no times",
}


class SpeechTranscriptionHandler:
    """
    Hands each recording to the chat's handler.

    Args:
        chat: the handler of `/v1/chat/completions`.
    """

    def __init__(self, chat: SpeechChatHandler):
        self.chat = chat

    async def handle_request(self, request: Request) -> Response:
        """
        Raises:
            RequestError: a form that cannot be used, or a transcript that is too long for one answer.
        """
        async with request.form() as form:
            body = self.chat_of(form, await self.recording(form))
            as_text = form.get("response_format") == "text"
        response = await self.chat.handle_request(body, request.state.request_id)
        answer = json.loads(response.body)
        (choice,) = answer["choices"]
        text = choice["message"]["content"]
        if choice["finish_reason"] == "length":
            raise RequestError(
                f"The transcript is longer than one answer ({answer['usage']['completion_tokens']} tokens); it goes "
                f"on after {text[-SHOWN:]!r}. Cut the recording, or ask for it in /v1/chat/completions with a larger "
                "max_tokens. If it repeats itself, neither helps: the model does not get the words of this recording; "
                "send a clearer one, or serve another model.",
                param="file",
            )
        return PlainTextResponse(text) if as_text else JSONResponse({"text": text})

    async def recording(self, form: Any) -> LoadedAudio:
        """The form's file, decoded; messages about it have its name."""
        file = form.get("file")
        if not hasattr(file, "read"):
            raise RequestError('The form has no file. Send one: curl -F "file=@recording.wav".', param="file")
        source = {"bytes": await file.read(), "path": file.filename}
        try:
            return await asyncio.to_thread(self.chat.model_manager.processor.loaded, source)
        except AudioError as error:
            raise RequestError(str(error), param="file") from error

    @staticmethod
    def chat_of(form: Any, audio: LoadedAudio) -> dict:
        """The chat that asks for the words of a recording, with the form's options."""
        for name in form:
            harmless = name == "stream" and form[name] == "false"
            if name not in KNOWN and not harmless:
                remedy = REMEDIES.get(name, f"Known: {', '.join(sorted(KNOWN))}")
                raise RequestError(f"The option {name} is not carried out here. {remedy}; leave it out.", param=name)
        if form.get("response_format", "json") not in ("json", "text"):
            raise RequestError(
                f"response_format is {form['response_format']!r}. Give json or text.", param="response_format"
            )
        body: dict[str, Any] = {}
        if "model" in form:
            body["model"] = form["model"]
        if "temperature" in form:
            try:
                body["temperature"] = float(form["temperature"])
            except (ValueError, TypeError) as error:  # a file, in the latter case
                raise RequestError(
                    f"temperature is {form['temperature']!r}. Give a number.", param="temperature"
                ) from error
        return {**body, "messages": instruction_chat([audio], DEFAULT_INSTRUCTION)}


__all__ = ["SpeechTranscriptionHandler"]
