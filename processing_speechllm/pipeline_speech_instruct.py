"""`pipeline("speech-instruct")`: an audio and an instruction in, the model's answer out.

What is unusual here:
- A batch is tokenized and padded in one piece by the processor inside `_forward`. The base class's collate function
  would pad audio and text on the same side, while LLM prompts pad left and audio features pad right.
- The processor is saved with the model, so `pipeline("speech-instruct", model=folder)` reloads all of it.
"""

import copy
import os
from collections.abc import Sized
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import GenerationConfig, Pipeline
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator
from transformers.utils import ModelOutput, logging
from transformers.utils.chat_template_utils import _get_template_variables

from .confidence import audio_confidences, read_embeddings, with_confidences
from .finish_reasons import finish_reasons
from .no_speech import chosen_answer, generate_or_answer, with_no_speech
from .pipeline_prompts import Prompt, as_inputs, check_instruction, collate, make_prompt, with_answer
from .positions import check_positions, default_new_tokens, positions

LENGTHS = ("max_new_tokens", "max_length")
logger = logging.get_logger(__name__)


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

    `num_workers` decode audio of a dataset in processes of their own, which get the processor but not the model.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False
    _load_video_processor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError("The pipeline has no processor. Pass processor=... beside a model that is an object.")
        if self.processor.max_position_embeddings is None:  # saved before processors knew it
            self.processor.max_position_embeddings = positions(self.model)
        self.feature_extractor = None  # else the base class collates features itself, see above
        self._fixed_generation = self._forward_params.pop("generate_kwargs", {})
        if isinstance(assistant := self._fixed_generation.get("assistant_model"), str):
            kind = type(self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model)
            assistant = kind.from_pretrained(assistant, dtype=self.model.dtype).to(self.device)
            self._fixed_generation["assistant_model"] = assistant

    def _sanitize_parameters(
        self,
        instruction: str | None = None,
        sampling_rate: float | None = None,
        audio: Any = None,
        language: str | None = None,
        return_language: bool | None = None,
        return_confidence: bool | None = None,
        return_finish_reason: bool | None = None,
        no_speech_answer: str | bool | None = None,
        processor_kwargs: dict | None = None,
        tools: list | None = None,
        documents: list[dict] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: dict | None = None,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        skip_special_tokens: bool | None = None,
        generate_kwargs: dict | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        """Sort a call's options: the pipeline's own, the chat template's variables, and the rest, for `generate`."""
        if return_full_text is not None and return_tensors:
            raise ValueError("return_full_text and return_tensors exclude each other. Pass one of them.")
        template = {key: kwargs.pop(key) for key in self._template_variables(chat_template) & set(kwargs)}
        for name, options, direct in [
            ("generate_kwargs", generate_kwargs, kwargs),
            ("chat_template_kwargs", chat_template_kwargs, template),
        ]:
            if repeated := sorted(set(options or {}) & set(direct)):
                raise ValueError(f"{', '.join(repeated)} given twice: directly and in {name}. Keep one.")
        named = {"tools": tools, "documents": documents, "chat_template": chat_template}
        template = {**(chat_template_kwargs or {}), **template, **named}
        template = {key: value for key, value in template.items() if value is not None or key not in named}
        preprocess = {"instruction": instruction, "audio": audio, "sampling_rate": sampling_rate}
        forward = {
            "language": language,
            "return_language": return_language,
            "return_confidence": return_confidence,
            "return_finish_reason": return_finish_reason,
            "no_speech_answer": no_speech_answer,
            "processor_kwargs": processor_kwargs,
            "template_kwargs": template or None,
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
        chosen_answer(no_speech_answer, None)
        return tuple(given)

    def _template_variables(self, chat_template: str | None) -> set[str]:
        """Variables that the chat template asks for, and that mean nothing to `generate`: `enable_thinking`, ..."""
        template = chat_template or getattr(self.processor, "chat_template", None)
        if not isinstance(template, str):
            return set()
        own = {"messages", "add_generation_prompt", *self.processor.tokenizer.special_tokens_map}
        return set(_get_template_variables(template)) - own - set(vars(GenerationConfig()))

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
            return_confidence (`bool`, *optional*): add `"confidence"` to each answer: for every audio of the prompt
                the `"score"` of how surely it was made out (see `audio_confidences`), and whether that is enough for
                this checkpoint, `"understood"`: True, False, or None where its processor has no
                `min_audio_confidence`. The answer to audio that was not understood is a guess. Costs one more pass of
                the encoder.
            return_finish_reason (`bool`, *optional*): add `"finish_reason"` to each answer: `"length"` where it was
                cut at the most new tokens that it was given, else `"stop"`.
            no_speech_answer (`str` or `False`, *optional*): what is answered where a connector that reads
                (`ctc_compress`) read nothing in any audio of the prompt, instead of asking the LLM, which would make
                something up. Defaults to the processor's `no_speech_answer`; `False` asks the LLM in any case. Where
                it is looked for, each answer has `"no_speech"`: True if it is this one. With
                `return_dict_in_generate` the LLM is asked too, and `"no_speech"` tells. Costs one more pass of the
                encoder.
            return_full_text (`bool`, *optional*): chat with the answer, or the answer alone.
            return_tensors (`bool`, *optional*): return `generated_token_ids` instead of text.
            skip_special_tokens (`bool`, *optional*, defaults to `True`): leave special tokens out of the text.
            processor_kwargs (`dict`, *optional*): options of the processor.
            tools, documents, chat_template (*optional*): for the chat template, as in `apply_chat_template`.
            chat_template_kwargs (`dict`, *optional*): further variables of the chat template. Those that it names and
                `generate` does not know, such as `enable_thinking`, may be given directly too.
            generate_kwargs (`dict`, *optional*), **kwargs: for `generate`: `max_new_tokens`, `num_beams`, `streamer`;
                what `return_dict_in_generate` adds (`scores`, ...) is in each answer, as tensors by name.
            batch_size (`int`, *optional*, defaults to 1): prompts per forward pass.

        Raises:
            AudioError: an audio that cannot be used; the message says why and what to do.
            ValueError: an instruction, a row or a chat that cannot be used, or a request over the LLM's positions.
        """
        return super().__call__(as_inputs(inputs), **kwargs)

    def preprocess(self, inputs: Any, **options) -> dict[str, Prompt]:
        """One input in any form -> its chat and decoded audios; `instruction`, `audio`, `sampling_rate` as above."""
        return make_prompt(self.processor, inputs, **options)

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        """As the base class's, but workers get the processor alone, and prompts are padded in `_forward`."""
        process = self.preprocess
        if type(self).preprocess is SpeechInstructPipeline.preprocess:
            process = partial(make_prompt, self.processor)
        if isinstance(inputs, Sized):
            dataset = PipelineDataset(inputs, process, preprocess_params)
        else:
            dataset = PipelineIterator(inputs, process, preprocess_params)
            if num_workers:
                logger.warning("A stream is read in this process: num_workers needs a dataset with a length.")
                num_workers = 0
        if num_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns of forks
        loader = DataLoader(dataset, num_workers=num_workers, batch_size=batch_size, collate_fn=collate)
        answers = PipelineIterator(loader, self.forward, forward_params, loader_batch_size=batch_size)
        return PipelineIterator(answers, self.postprocess, postprocess_params)

    def _forward(
        self,
        model_inputs: dict,
        language: str | None = None,
        return_language: bool | None = None,
        return_confidence: bool | None = None,
        return_finish_reason: bool | None = None,
        no_speech_answer: str | bool | None = None,
        processor_kwargs: dict | None = None,
        template_kwargs: dict | None = None,
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
            [prompt.chat for prompt in prompts],
            audio=[audio for prompt in prompts for audio in prompt.audio],
            add_generation_prompt=not any(continues),
            continue_final_message=any(continues),
            tokenize=True,
            return_dict=True,
            processor_kwargs=processor_kwargs,
            **(template_kwargs or {}),
        ).to(self.device, dtype=self.model.dtype)
        posteriors = None
        features, mask = encoded.get("input_features"), encoded.get("input_features_mask")
        if (language is not None or return_language) and "input_features" in encoded:
            encoded, posteriors = self._hear(encoded, language)
        options = self._fitted(generate_kwargs or {}, encoded["input_ids"])
        answer = chosen_answer(no_speech_answer, self.processor.no_speech_answer)
        read = None
        if features is not None and (return_confidence or answer is not None):
            audio = self.model.get_audio_features(features, mask)
            read = read_embeddings(self.processor, audio, mask)
            if "input_features" in encoded:  # else the answer's audio was heard with a hint of its language
                encoded = {**encoded, "audio_outputs": audio}
        if answer is not None:
            prompts = with_no_speech(prompts, [] if read is None else read[1])
        silent = [bool(prompt.no_speech) for prompt in prompts]
        new_tokens, output = generate_or_answer(self.model, self.tokenizer, encoded, options, silent, answer)
        beside = details(output, len(prompts)) if isinstance(output, ModelOutput) else [{}] * len(prompts)
        if return_finish_reason:
            length = encoded["input_ids"].shape[1]
            reasons = finish_reasons(self.model.generation_config, options, new_tokens, length, self.tokenizer)
            if not isinstance(output, ModelOutput):  # then the answer about silence is given, whole
                reasons = [["stop"] * len(row) if quiet else row for row, quiet in zip(reasons, silent, strict=True)]
            beside = [row | {"finish_reason": each} for row, each in zip(beside, reasons, strict=True)]
        if any(continues):
            prompts = [
                replace(prompt, continued=row[kept.bool()].tolist())
                for prompt, row, kept in zip(prompts, encoded["input_ids"], encoded["attention_mask"], strict=True)
            ]
        if return_language:
            prompts = self._with_languages(prompts, posteriors)
        if return_confidence:
            scores = [] if read is None else audio_confidences(*read, self.model.embedding_weight())
            prompts = with_confidences(prompts, scores, self.processor.min_audio_confidence)
        return {"new_tokens": new_tokens, "prompt": prompts, "details": beside}

    def _hear(self, encoded: Any, language: str | None) -> tuple[dict, Any]:
        """Encode the audio once, for the answer and for the posterior (audios, languages) of its language."""
        features = encoded["input_features"]
        labels = None
        if language is not None:
            index = self.model.config.connector["languages"].index(language)
            labels = torch.full((len(features),), index, device=features.device)
        audio = self.model.get_audio_features(features, encoded["input_features_mask"], labels)
        heard = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        return heard | {"audio_embeds": audio.pooler_output}, audio.connector.language_logits.float().softmax(-1)

    def _with_languages(self, prompts: list[Prompt], posteriors: Any) -> list[Prompt]:
        """The prompts with the most probable language of each of their audios and the posterior over all."""
        rows = iter([] if posteriors is None else posteriors.tolist())
        names = self.model.config.connector["languages"]
        heard = []
        for prompt in prompts:
            scores = [dict(zip(names, next(rows), strict=True)) for _ in prompt.audio]
            labels = [max(row, key=row.get) for row in scores]
            languages = [
                {"label": label, "score": row[label], "scores": row} for label, row in zip(labels, scores, strict=True)
            ]
            heard.append(replace(prompt, languages=languages))
        return heard

    def _fitted(self, generate_kwargs: dict, input_ids: torch.Tensor) -> dict:
        """Generation options for prompts `input_ids` (prompts, tokens), checked against the LLM's positions."""
        fixed = {} if "generation_config" in generate_kwargs else self._fixed_generation
        options = fixed | generate_kwargs
        options = {key: value for key, value in options.items() if value is not None or key not in LENGTHS}
        given = options.get("generation_config")
        chosen = self.model.generation_config.to_diff_dict()
        chosen |= {} if given is None else given.to_diff_dict()
        chosen |= options
        for name in ("max_length", "num_beams", "num_return_sequences"):
            number = chosen.get(name)
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} is {number!r}. Give a whole number of 1 or more, or leave it out.")
        length, limit = input_ids.shape[1], positions(self.model)
        by_default = not any(chosen.get(key) is not None for key in LENGTHS)
        if by_default:
            wanted = 1
        elif chosen.get("max_new_tokens") is not None:
            wanted = chosen["max_new_tokens"]
            if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
                raise ValueError(f"max_new_tokens is {wanted!r}. Give 1 or more, or None for the default.")
        else:
            wanted = chosen["max_length"] - length
            if wanted < 1:
                raise ValueError(
                    f"max_length is {chosen['max_length']}, but the prompt alone takes {length} tokens. Raise it, or "
                    "use max_new_tokens, which counts the answer alone."
                )
        audio = int((input_ids == self.processor.audio_token_id).sum(dim=1).max())
        check_positions(length, audio, wanted, limit)
        added = {}
        if chosen.get("pad_token_id") is None:
            added["pad_token_id"] = self.tokenizer.pad_token_id
        if by_default:
            added["max_new_tokens"] = default_new_tokens(length, limit)
        if given is None:
            return options | added
        given = copy.deepcopy(given)  # generate takes no parameters beside a generation_config
        given.update(**added)
        return options | {"generation_config": given}

    def postprocess(
        self,
        model_outputs: dict,
        return_full_text: bool | None = None,
        return_tensors: bool = False,
        skip_special_tokens: bool = True,
    ) -> list[dict]:
        prompt = model_outputs["prompt"]
        prompt = prompt[0] if isinstance(prompt, list) else prompt
        extra = model_outputs["details"]
        extra = extra[0] if isinstance(extra, list) else extra
        sequences = model_outputs["new_tokens"][0]
        heard = {"language": prompt.languages, "confidence": prompt.confidences, "no_speech": prompt.no_speech}
        heard = {key: value for key, value in heard.items() if value is not None}
        extras = [heard | {key: value[index] for key, value in extra.items()} for index in range(len(sequences))]
        if return_tensors:
            pairs = zip(sequences, extras, strict=True)
            return [{"generated_token_ids": sequence, **each} for sequence, each in pairs]
        full = prompt.is_chat if return_full_text is None else return_full_text
        answers = [self._decoded(prompt.continued, ids, skip_special_tokens) for ids in sequences]
        return [
            {"generated_text": with_answer(prompt, answer) if full else answer, **each}
            for answer, each in zip(answers, extras, strict=True)
        ]

    def _decoded(self, before: list[int], ids: torch.Tensor, skip_special_tokens: bool) -> str:
        """The text of new tokens behind those that they continue, without which a first space would be lost."""
        options = {"skip_special_tokens": skip_special_tokens}
        if before:
            start, whole = (self.tokenizer.decode(part, **options) for part in (before, [*before, *ids.tolist()]))
            if whole.startswith(start):
                return whole[len(start) :]
        return self.tokenizer.decode(ids, **options)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save model and processor, so that `pipeline("speech-instruct", model=save_directory)` finds both."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


def details(output: ModelOutput, prompts: int) -> list[dict[str, torch.Tensor]]:
    """
    What `generate` returns beside the sequences (`return_dict_in_generate`), for each prompt: tensors by name, of
    shape (sequences, ...); scores and logits are (sequences, tokens, vocabulary). The cache is left out.

    Raises:
        ValueError: something that is not one row per sequence.
    """
    count = len(output.sequences)
    found = [{} for _ in range(prompts)]
    for name, value in output.items():
        if name in ("sequences", "past_key_values", "cache") or value is None:
            continue
        if isinstance(value, tuple) and all(isinstance(step, torch.Tensor) and len(step) == count for step in value):
            value = torch.stack(value, dim=1)
        if not isinstance(value, torch.Tensor) or len(value) != count:
            raise ValueError(
                f"{name} of `generate` cannot be told apart by answer in the pipeline. Drop output_{name} (and beams, "
                "if it is of scores or logits), or call model.generate on what the processor gives."
            )
        for row, part in zip(found, value.reshape(prompts, -1, *value.shape[1:]), strict=True):
            row[name] = part
    return found


__all__ = ["SpeechInstructPipeline"]
