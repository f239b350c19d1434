"""`pipeline("speech-instruct")`: an audio and an instruction in, the model's answer out.

What is unusual here:
- A batch is tokenized and padded in one piece by the processor inside `_forward`. The base class's collate function
  would pad audio and text on the same side, while LLM prompts pad left and audio features pad right.
- The processor is saved with the model, so `pipeline("speech-instruct", model=folder)` reloads all of it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import Dataset
from transformers import GenerationConfig, Pipeline
from transformers.utils.chat_template_utils import Chat, is_valid_message

from .audio import as_audio_list
from .chat_format import instruction_chat

DEFAULT_INSTRUCTION = "Transcribe the speech."
ROW_KEYS = {"audio", "instruction", "messages"}


@dataclass
class Prompt:
    """One request: a chat whose audio blocks hold their audios, or take them from `audio` in order."""

    messages: list[dict]
    audio: list
    is_chat: bool  # given as a chat, so answered by the chat continued; else by the answer alone
    languages: list[dict] | None = None  # what was heard in each audio, if asked for

    @property
    def continues(self) -> bool:
        """Whether the chat ends in an assistant's message, to be continued (as in transformers' pipelines)."""
        return self.messages[-1]["role"] == "assistant"


class SpeechInstructPipeline(Pipeline):
    """
    Ask a SpeechLLM about recordings.

    ```python
    pipe = pipeline("speech-instruct", model="folder or Hub id")
    pipe("request.wav", instruction="Which room is it about?")  # [{"generated_text": "the kitchen"}]
    pipe(["a.wav", "b.wav"], instruction="Transcribe.")  # one such list per audio
    pipe({"audio": ["a.wav", "b.wav"], "instruction": "Is it the same speaker?"})  # two audios in one prompt
    pipe([{"role": "user", "content": [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "Reply."}]}])
    pipe(samples, sampling_rate=8000)  # a bare array needs its rate
    for answer in pipe(dataset, instruction="Translate into German.", batch_size=8): ...  # lazily
    ```

    Every input gives a list with one `{"generated_text": ...}` per returned sequence; a list of inputs gives a list of
    such lists; a dataset or generator gives an iterator. The text is the answer alone for instructions, and for chats
    the chat with the answer as its last message, as in the text-generation pipeline; `return_full_text` chooses.
    Without an instruction the audio is transcribed (`DEFAULT_INSTRUCTION`).

    A row (a dict, or a row of a dataset) has `audio` (one, a list, or none) and `instruction`, or `messages` with
    `audio` for the audio blocks that have none of their own; further keys are ignored.

    Unless the model's generation config or the call says otherwise, `max_new_tokens` is 256, or what the LLM's
    positions leave. A request for more than they hold is an error.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=256)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("The pipeline has no processor. Pass processor=... beside a model that is an object.")
        self.feature_extractor = None  # else the base class collates features itself, see above
        self._generation_defaults["pad_token_id"] = self.tokenizer.pad_token_id

    def _sanitize_parameters(
        self,
        instruction: str | None = None,
        sampling_rate: float | None = None,
        audio: Any = None,
        language: str | None = None,
        return_language: bool | None = None,
        processor_kwargs: dict | None = None,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        skip_special_tokens: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        """Sort a call's options: all that are not the pipeline's own go to `generate`."""
        if return_full_text is not None and return_tensors:
            raise ValueError("return_full_text and return_tensors exclude each other. Pass one of them.")
        if repeated := sorted(set(generate_kwargs or {}) & set(kwargs)):
            raise ValueError(f"{', '.join(repeated)} given twice: directly and in generate_kwargs. Keep one.")
        preprocess = {"instruction": instruction, "audio": audio}
        forward = {
            "sampling_rate": sampling_rate,
            "language": language,
            "return_language": return_language,
            "processor_kwargs": processor_kwargs,
        }
        postprocess = {
            "return_full_text": return_full_text,
            "return_tensors": return_tensors,
            "skip_special_tokens": skip_special_tokens,
        }
        given = [
            {key: value for key, value in options.items() if value is not None}
            for options in (preprocess, forward, postprocess)
        ]
        if generate_kwargs or kwargs:
            given[1]["generate_kwargs"] = {**(generate_kwargs or {}), **kwargs}
        if instruction is not None:
            check_instruction(instruction)
        if language is not None or return_language:
            self._check_language(language)
        return tuple(given)

    def _check_language(self, language: str | None) -> None:
        """Raise a `ValueError` unless the connector knows languages, and this one among them."""
        connector = self.model.config.connector
        languages = connector.get("languages")
        if not languages or not connector.get("gate"):
            raise ValueError(
                f"The {connector['type']} connector of this model has no language bank with a gate. Leave out "
                "`language` and `return_language`."
            )
        if language is not None and language not in languages:
            raise ValueError(f"The language bank has no entry {language!r}. It has: {', '.join(languages)}.")

    def __call__(self, inputs: Any, **kwargs) -> Any:
        """
        Answer one request or many.

        Args:
            inputs: an audio in any form `load_audio` takes, a row, a chat, a list of any of these, or a generator or
                dataset of them.
            instruction (`str`, *optional*): what to do with the audio; rows may bring their own.
            sampling_rate (`float`, *optional*): rate in Hz of bare arrays.
            audio (*optional*): audio or list of audios for the bare audio blocks of a chat.
            language (`str`, *optional*): hint which language is spoken, of the connector's `languages`; selects the
                entry of the query bank for all audios of the call.
            return_language (`bool`, *optional*): add `"language"` to each answer: for every audio of the prompt the
                most probable language, `{"label": ..., "score": ...}`, and the posterior `"scores"` over all.
            return_full_text (`bool`, *optional*): chat with the answer, or the answer alone.
            return_tensors (`bool`, *optional*): return `generated_token_ids` instead of text.
            skip_special_tokens (`bool`, *optional*, defaults to `True`): leave special tokens out of the text.
            processor_kwargs (`dict`, *optional*): options of the processor.
            generate_kwargs (`dict`, *optional*), **kwargs: for `generate`: `max_new_tokens`, `num_beams`, `streamer`.
            batch_size (`int`, *optional*, defaults to 1): prompts per forward pass.

        Raises:
            AudioError: an audio that cannot be used; the message says why and what to do.
            ValueError: an instruction, a row or a chat that cannot be used, or a request over the LLM's positions.
        """
        return super().__call__(self._as_inputs(inputs), **kwargs)

    def _as_inputs(self, inputs: Any) -> Any:
        """A list for many, a generator for streams, anything else for one; arrays of samples are never taken apart."""
        if isinstance(inputs, (list, tuple)):
            if len(inputs) == 0:
                raise ValueError("The list of inputs is empty. Pass at least one audio.")
            if all(map(is_valid_message, inputs)):
                return Chat(list(inputs))
            items = as_audio_list(inputs)
            return items if items[0] is inputs[0] else items[0]
        one = (str, bytes, bytearray, memoryview, os.PathLike, Mapping, Chat, Dataset)
        if isinstance(inputs, one) or any(hasattr(inputs, name) for name in ("__array__", "get_all_samples", "read")):
            return inputs
        if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):  # a `datasets.Dataset` or its like
            return (inputs[index] for index in range(len(inputs)))
        return (row for row in inputs) if isinstance(inputs, Iterable) else inputs

    def preprocess(self, inputs: Any, instruction: str | None = None, audio: Any = None) -> dict[str, Prompt]:
        """One input in any form -> its chat. Audios are decoded with the rest of the batch, in `_forward`."""
        if isinstance(inputs, Mapping) and "messages" in inputs:
            inputs, audio = Chat(inputs["messages"]), inputs.get("audio")
        if isinstance(inputs, Chat):
            if instruction is not None:
                raise ValueError("A chat holds its instruction. Put it in a message, and drop `instruction`.")
            return {"prompt": Prompt(inputs.messages, as_audio_list(audio), is_chat=True)}
        if isinstance(inputs, Mapping) and ROW_KEYS & set(inputs):
            instruction = inputs.get("instruction") if inputs.get("instruction") is not None else instruction
            inputs = as_audio_list(inputs.get("audio"))
            if not inputs and instruction is None:
                raise ValueError("The row has neither audio nor instruction. Give at least one.")
        else:
            inputs = [inputs]
        instruction = DEFAULT_INSTRUCTION if instruction is None else instruction
        check_instruction(instruction)
        return {"prompt": Prompt(instruction_chat(inputs, instruction), [], is_chat=False)}

    def _forward(
        self,
        model_inputs: dict,
        sampling_rate: float | None = None,
        language: str | None = None,
        return_language: bool | None = None,
        processor_kwargs: dict | None = None,
        generate_kwargs: dict | None = None,
    ) -> dict:
        prompts = model_inputs["prompt"]
        prompts = prompts if isinstance(prompts, list) else [prompts]
        continues = {prompt.continues for prompt in prompts}
        if len(continues) > 1:
            raise ValueError(
                "Some chats of the batch end with the assistant (to be continued) and some with the user. Call the "
                "pipeline for each kind, or with batch_size=1."
            )
        encoded = self.processor.apply_chat_template(
            [prompt.messages for prompt in prompts],
            audio=[audio for prompt in prompts for audio in prompt.audio],
            sampling_rate=sampling_rate,
            add_generation_prompt=not any(continues),
            continue_final_message=any(continues),
            tokenize=True,
            return_dict=True,
            processor_kwargs=processor_kwargs,
        ).to(self.device, dtype=self.model.dtype)
        length = encoded["input_ids"].shape[1]
        posteriors = None
        if (language is not None or return_language) and "input_features" in encoded:
            encoded, posteriors = self._hear(encoded, language)
        sequences = self.model.generate(**encoded, **self._fitted(generate_kwargs or {}, length))
        new_tokens = sequences[:, length:]
        if return_language:
            prompts = self._with_languages(prompts, posteriors)
        return {"new_tokens": new_tokens.reshape(len(prompts), -1, new_tokens.shape[-1]), "prompt": prompts}

    def _hear(self, encoded: Any, language: str | None) -> tuple[dict, Any]:
        """Encode the audio once, for the answer and for the posterior (audios, languages) of its language."""
        features = encoded["input_features"]
        labels = None
        if language is not None:
            index = self.model.config.connector["languages"].index(language)
            labels = features.new_full((len(features),), index).long()
        audio = self.model.get_audio_features(features, encoded["input_features_mask"], labels)
        heard = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        return heard | {"audio_embeds": audio.pooler_output}, audio.connector.language_logits.float().softmax(-1)

    def _with_languages(self, prompts: list[Prompt], posteriors: Any) -> list[Prompt]:
        """The prompts with the most probable language of each of their audios and the posterior over all."""
        rows = iter([] if posteriors is None else posteriors.tolist())
        names = self.model.config.connector["languages"]
        heard = []
        for prompt in prompts:
            scores = [dict(zip(names, next(rows), strict=True)) for _ in range(count_audio(prompt.messages))]
            labels = [max(row, key=row.get) for row in scores]
            languages = [
                {"label": label, "score": row[label], "scores": row} for label, row in zip(labels, scores, strict=True)
            ]
            heard.append(replace(prompt, languages=languages))
        return heard

    def _fitted(self, generate_kwargs: dict, length: int) -> dict:
        """Generation options for prompts of `length` tokens, checked against the LLM's positions."""
        chosen = self._get_set_generation_params({**self._generate_kwargs, **generate_kwargs})
        options = self._prepare_generate_kwargs(generate_kwargs)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is None:  # no fixed number of positions, as in BLOOM
            return options
        by_default = "max_new_tokens" not in chosen and "max_length" not in chosen
        wanted = 1 if by_default else chosen.get("max_new_tokens") or chosen["max_length"] - length
        if length + wanted > limit:
            raise ValueError(
                f"The prompt takes {length} tokens and {wanted} more are to be generated, {length + wanted} in all, "
                f"but the LLM has {limit} positions. Lower max_new_tokens, or use a shorter audio, chat or "
                "instruction."
            )
        if by_default:
            room = min(self._default_generation_config.max_new_tokens, limit - length)
            options = self._prepare_generate_kwargs(generate_kwargs, max_new_tokens=room)
        return options

    def postprocess(
        self,
        model_outputs: dict,
        return_full_text: bool | None = None,
        return_tensors: bool = False,
        skip_special_tokens: bool = True,
    ) -> list[dict]:
        prompt = model_outputs["prompt"]
        prompt = prompt[0] if isinstance(prompt, list) else prompt
        sequences = model_outputs["new_tokens"][0]
        if return_tensors:
            return [{"generated_token_ids": sequence} for sequence in sequences]
        full = prompt.is_chat if return_full_text is None else return_full_text
        answers = [self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens) for ids in sequences]
        language = {} if prompt.languages is None else {"language": prompt.languages}
        return [{"generated_text": with_answer(prompt, answer) if full else answer, **language} for answer in answers]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save model and processor, so that `pipeline("speech-instruct", model=save_directory)` finds both."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def count_audio(messages: list[dict]) -> int:
    """Audio blocks in a chat."""
    contents = [message.get("content") for message in messages]
    return sum(block["type"] == "audio" for blocks in contents if isinstance(blocks, list) for block in blocks)


def check_instruction(instruction: Any) -> None:
    """Raise a `ValueError` unless `instruction` is text."""
    if not isinstance(instruction, str):
        raise ValueError(
            f"The instruction must be a string, not {type(instruction).__name__}. To ask each audio something else, "
            'pass rows: [{"audio": ..., "instruction": ...}, ...].'
        )
    if not instruction.strip():
        raise ValueError(f'The instruction is empty. Say what to do, or leave it out for "{DEFAULT_INSTRUCTION}"')


def with_answer(prompt: Prompt, answer: str) -> list[dict]:
    """The chat with the answer as its last message, or at the end of it if that was to be continued."""
    if not prompt.continues:
        return [*prompt.messages, {"role": "assistant", "content": answer}]
    *before, last = prompt.messages
    content = last["content"]
    content = content + answer if isinstance(content, str) else [*content, {"type": "text", "text": answer}]
    return [*before, {**last, "content": content}]


__all__ = ["SpeechInstructPipeline"]
