"""Text and audio in, tensors out: features per audio, one placeholder per audio token, the LLM's own chat format.

What is unusual here:
- How many placeholders an audio takes is worked out from data (`audio_stages`, `connector_stages`) that the model's
  config carries too, so that processor and model agree for every length.
- The features of an audio are computed alone and only then padded to the right, so a batch gives what its members give
  alone. Nothing is ever truncated.
- Text written by the user that spells a special token stays text (`sanitize_control_tokens` is on by default).
"""

import copy
import math
import numbers
import os
from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np
from transformers import AddedToken, AutoFeatureExtractor, BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .audio import LoadedAudio, as_audio_list, load_audio
from .audio_decoding import AudioLimit
from .chat_format import (
    break_at_spans,
    check_rendering,
    choose_template,
    expand,
    lay_out_content,
    place_masks,
    plain_chat_template,
    render_with_spans,
    span_mask,
    unknown_to,
)
from .chat_messages import collect_audio, instruction_chat, normalize_chats
from .control_tokens import has_marked_text, mark_inputs
from .feature_kinds import FeatureKind, feature_kind
from .gguf_tokenizer import load_tokenizer
from .stages import check_stages, fill, stage_length

MAX_FRAME = 1_000_000  # feature frames or samples; no encoder frame spans more
TEXT_ROOM = 128  # positions of the LLM left for a prompt's text and the answer, of a quarter of them if that is less


class SpeechLLMProcessor(ProcessorMixin):
    """
    Processor of a SpeechLLM: a feature extractor, a tokenizer, and the arithmetic between the two.

    The tokenizer gets the audio placeholder as a special token if it lacks it, its end-of-sequence token as pad token
    if it has none, and left padding (for generation) unless it came with a side of its own. The chat template is, in
    this order, the one given, the tokenizer's, or a plain one (see `CHAT_TEMPLATE`) for LLMs without a chat format.

    Args:
        feature_extractor: one of raw waveforms, as wav2vec2's, or of the kinds in `FEATURE_KINDS`.
        tokenizer: tokenizer of the LLM.
        chat_template (`str`, *optional*): Jinja template.
        audio_token (`str`, *optional*, defaults to `"<|audio|>"`): the placeholder.
        audio_stages (`list[dict]`): feature positions (or samples) to encoder frames, see `stage_length`.
        connector_stages (`list[dict]`): encoder frames to audio tokens.
        pad_to_window (`bool`, *optional*, defaults to `False`): pad the waveform with silence to whole encoder
            windows, as Whisper was pretrained, instead of letting the cost follow the audio's length.
        audio_window (`int`, *optional*, defaults to 3000): feature positions per encoder window, for `pad_to_window`.
        trailing_silence (`float`, *optional*, defaults to 0): seconds of silence put after every audio, for a
            connector that finds the end of speech by it (`whisper_reader`). They are audio as any other: placeholders
            stand for them too.
        max_audio_seconds (`float`, *optional*, defaults to 3600): longer audio is an error.
        max_position_embeddings (`int`, *optional*): positions of the LLM, if it has a fixed number. Audio whose tokens
            leave less of them than `TEXT_ROOM` for text is an error too; see `audio_limit`.
        min_audio_confidence (`float`, *optional*): from which score on this checkpoint has made an audio out, see
            `audio_confidences`. None where that is not known.
        no_speech_answer (`str`, *optional*): what the pipeline answers about audio in which a reading connector read
            nothing, in place of asking the LLM. None asks it.

    Attributes:
        allow_local_files (`bool`): whether audio may be read from paths, defaults to `True`. A server that takes chats
            from others sets it to `False`. It is never saved, as it belongs to the place where the model runs.
    """

    text_kwargs = {"padding": True, "return_tensors": "pt"}

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        chat_template: str | dict[str, str] | None = None,
        audio_token: str = "<|audio|>",
        audio_stages: list[dict] | None = None,
        connector_stages: list[dict] | None = None,
        pad_to_window: bool = False,
        audio_window: int = 3000,
        trailing_silence: float = 0.0,
        max_audio_seconds: float = 3600.0,
        max_position_embeddings: int | None = None,
        min_audio_confidence: float | None = None,
        no_speech_answer: str | None = None,
    ):
        check_stages("audio_stages", audio_stages)
        check_stages("connector_stages", connector_stages)
        if not (isinstance(trailing_silence, (int, float)) and 0 <= trailing_silence < float("inf")):
            raise ValueError(
                f"trailing_silence={trailing_silence!r} must be 0 seconds or more. Leave it out for none."
            )
        if not (isinstance(max_audio_seconds, (int, float)) and 0 < max_audio_seconds < float("inf")):
            raise ValueError(
                f"max_audio_seconds={max_audio_seconds!r} must be a number of seconds over 0. For next to no limit "
                "give a large one, such as 1e6."
            )
        if audio_token not in tokenizer.get_vocab():
            tokenizer.add_tokens([AddedToken(audio_token, special=True, normalized=False)], special_tokens=True)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if "padding_side" not in tokenizer.init_kwargs:
            tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        if chat_template is None:
            chat_template = tokenizer.chat_template or plain_chat_template(tokenizer)
        tokenizer.chat_template = chat_template
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        self.audio_stages = [dict(stage) for stage in audio_stages]
        self.connector_stages = [dict(stage) for stage in connector_stages]
        self.pad_to_window = pad_to_window
        self.audio_window = audio_window
        self.trailing_silence = trailing_silence
        self.max_audio_seconds = max_audio_seconds
        self.max_position_embeddings = max_position_embeddings
        self.min_audio_confidence = min_audio_confidence
        self.no_speech_answer = no_speech_answer
        self.allow_local_files = True
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.feature_stages = self._kind.stages(feature_extractor)
        if pad_to_window and not self._kind.fills_hops:
            raise ValueError(
                f"pad_to_window is for Whisper's extractor; the encoders of {type(feature_extractor).__name__} have "
                "no window to pad to. Leave it False."
            )
        self.min_samples = self._find_min_samples()

    def follow(self, config: Any) -> None:
        """Counts and pads audio as a model wants it whose connector was replaced; `config` is the model's. The
        threshold of confidence was the other connector's, so there is none any more."""
        self.min_audio_confidence = None
        self.connector_stages = [dict(stage) for stage in config.connector_stages]
        self.trailing_silence = config.connector.get("trailing_silence", 0.0)
        self.min_samples = self._find_min_samples()

    @classmethod
    def from_parts(
        cls, audio: Any, text: Any, config: Any, gguf_file: str | None = None, **kwargs
    ) -> "SpeechLLMProcessor":
        """
        Processor for a composed model.

        Args:
            audio: Hub id or folder of the speech encoder, or a feature extractor.
            text: Hub id or folder of the LLM, or a tokenizer. An object is copied, not changed.
            config: the model's config; its `audio_stages`, `connector_stages`, `pad_to_window`, `audio_window_inputs`,
                `connector`, `audio_feature_size` and `audio_token_id` are read, and the positions of its LLM.
            gguf_file: name of a GGUF file in `text`, whose tokenizer is taken where there are no files of one.
            **kwargs: further arguments of the constructor, for example `chat_template` or `max_audio_seconds`.

        Raises:
            ValueError: the tokenizer's placeholder id or the extractor's features are not those of the config.
        """
        by_name = isinstance(audio, str) or hasattr(audio, "__fspath__")
        feature_extractor = AutoFeatureExtractor.from_pretrained(audio) if by_name else copy.deepcopy(audio)
        by_name = isinstance(text, str) or hasattr(text, "__fspath__")
        tokenizer = load_tokenizer(os.fspath(text), gguf_file) if by_name else copy.deepcopy(text)
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        kwargs.setdefault("audio_stages", config.audio_stages)
        kwargs.setdefault("connector_stages", config.connector_stages)
        kwargs.setdefault("pad_to_window", config.pad_to_window)
        kwargs.setdefault("audio_window", config.audio_window_inputs)
        kwargs.setdefault("trailing_silence", config.connector.get("trailing_silence", 0.0))
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        kwargs.setdefault("max_position_embeddings", positions)
        processor = cls(feature_extractor, tokenizer, **kwargs)
        if processor.audio_token_id != config.audio_token_id:
            raise ValueError(
                f"The tokenizer's id of {processor.audio_token} is {processor.audio_token_id}, the config's "
                f"audio_token_id is {config.audio_token_id}. Compose model and processor from the same LLM."
            )
        given, taken = processor._kind.size(feature_extractor), config.audio_feature_size
        if given != taken:
            given, taken = (f"{size} mel bins" if size else "raw samples" for size in (given, taken))
            raise ValueError(
                f"The feature extractor gives {given}, the encoder takes {taken}. Take both from the same checkpoint."
            )
        return processor

    @property
    def _kind(self) -> FeatureKind:
        return feature_kind(self.feature_extractor)

    @property
    def audio_room(self) -> int | None:
        """Positions of the LLM that audio may take, beside text; None where there is no fixed number of them."""
        positions = self.max_position_embeddings
        return None if positions is None else positions - min(TEXT_ROOM, positions // 4)

    @property
    def audio_limit(self) -> AudioLimit:
        """The longest audio: `max_audio_seconds`, or what the LLM's positions hold beside text, if that is less."""
        limit = AudioLimit(
            self.max_audio_seconds,
            "max_audio_seconds of the processor",
            "raise `max_audio_seconds` of the processor if the memory allows it",
        )
        room = self.audio_room
        if room is None:
            return limit
        rate = self.feature_extractor.sampling_rate
        if self.audio_token_count(math.ceil(limit.seconds * rate)) <= room:
            return limit
        samples = bisect_right(range(math.ceil(limit.seconds * rate)), room, key=self.audio_token_count) - 1
        reason = f"the LLM has {self.max_position_embeddings} positions, of which the audio may take {room}"
        remedy = "use an LLM with more positions or a connector that makes fewer tokens of a second"
        if self._silence:
            silence = f"{self.trailing_silence:g} s of silence behind it (`trailing_silence`)"
            reason += f", {self.audio_token_count(0)} of them for {silence}"
            remedy += ", or set a smaller `trailing_silence`"
        return AudioLimit(samples / rate if samples >= self.min_samples else 0.0, reason, remedy)

    def __call__(self, text: str | list[str] | None = None, audio: Any = None, **kwargs) -> BatchFeature:
        """
        Tokenize prompts, with every `audio_token` in them expanded to as many as its audio has tokens.

        Args:
            text: one prompt or several, with one `audio_token` per audio. Without text only the audio is processed.
            audio: one audio or a list, of any form that `load_audio` takes; all audios of the batch in reading order.
                `{"tokens": n}` stands for n placeholders of an audio whose features are given apart, such as encoder
                output from a cache, or one audio in several pieces.
            **kwargs: `sampling_rate` of bare arrays in Hz, and options of the tokenizer (`padding`, `padding_side`,
                `return_tensors`, ...), `return_mm_token_type_ids`, `return_text_replacement_offsets`.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` (prompts, tokens); with audio `input_features`
            (audios, features, positions) or (audios, samples) and `input_features_mask` (audios, positions or
            samples), of the audios that are not `{"tokens": n}`.

        Raises:
            AudioError: an audio that cannot be used.
            ValueError: placeholders and audios differ in number, or truncation is asked for together with audio.
        """
        truncation = kwargs.get("truncation", kwargs.get("text_kwargs", {}).get("truncation"))
        if audio is not None and truncation not in (None, False, "do_not_truncate"):
            raise ValueError(
                f"truncation={truncation!r} could cut the audio's placeholders, and each must meet its embedding. "
                "Shorten the text or the audio instead, or drop `truncation` (max_length alone only pads)."
            )
        grouped = {**kwargs.get("common_kwargs", {}), **kwargs.get("text_kwargs", {})}
        for name, value in self.text_kwargs.items():
            if name not in grouped:  # before 5.23 transformers does not read these defaults itself
                kwargs.setdefault(name, value)
        return super().__call__(text=text, audio=audio, **kwargs)

    def prepare_inputs_layout(self, text=None, audio=None, **kwargs):
        """Wrap a lone prompt or audio in a list, and decode every audio."""
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
        if audio is not None:
            rate = kwargs.get("sampling_rate", kwargs.get("audio_kwargs", {}).get("sampling_rate"))
            audio = [
                source if is_token_count(source) else self.load_audio(source, rate) for source in as_audio_list(audio)
            ]
        return None, text, None, audio

    def load_audio(self, source: Any, source_rate: float | None = None) -> np.ndarray:
        """One audio as the feature extractor wants it: float32 mono samples (samples,); see `audio.load_audio`."""
        return load_audio(
            source,
            sampling_rate=self.feature_extractor.sampling_rate,
            source_rate=source_rate,
            max_seconds=self.audio_limit,
            min_samples=self.min_samples,
            allow_local_files=self.allow_local_files,
        )

    def loaded(self, source: Any, source_rate: float | None = None) -> LoadedAudio | dict:
        """One audio decoded and checked ahead of `__call__`, which takes it as it is; `{"tokens": n}` stays."""
        if is_token_count(source):
            return source
        return LoadedAudio(self.load_audio(source, source_rate), self.feature_extractor.sampling_rate)

    def validate_inputs(self, audio=None, text=None, **kwargs):
        """Refuse a batch whose placeholders and audios differ in number."""
        if isinstance(text, list) and all(isinstance(prompt, str) for prompt in text):
            placeholders, audios = sum(prompt.count(self.audio_token) for prompt in text), len(audio or [])
            if placeholders != audios:
                raise ValueError(
                    f"The text has {placeholders} audio blocks ({self.audio_token}) but {audios} audios were given. "
                    "Give one audio per block, in reading order."
                )
        super().validate_inputs(audio=audio, text=text, **kwargs)

    def _process_audio(self, audio: list[np.ndarray | dict], **kwargs) -> tuple[dict, list[str]]:
        heard = [samples for samples in audio if not is_token_count(samples)]
        inputs = self.audio_inputs(heard) if heard else {"num_audio_tokens": []}
        rest = iter(inputs["num_audio_tokens"])
        tokens = [source["tokens"] if is_token_count(source) else next(rest) for source in audio]
        inputs["num_audio_tokens"] = tokens
        return inputs, [self.replace_audio_token(inputs, index) for index in range(len(audio))]

    def audio_inputs(self, audio: list[np.ndarray]) -> dict[str, Any]:
        """
        The model's inputs for loaded audios, each of samples (samples,) as `load_audio` gives them.

        Returns:
            `dict`: `input_features` (audios, features, positions) or (audios, samples), `input_features_mask`
            (audios, positions or samples), both as NumPy arrays, and `num_audio_tokens`, one count per audio.
        """
        features, lengths = zip(*(self._features(samples) for samples in audio), strict=True)
        longest = max(feature.shape[-1] for feature in features)
        padded = np.zeros((len(features), *features[0].shape[:-1], longest), dtype=np.float32)
        mask = np.zeros((len(features), longest), dtype=np.int64)
        for row, (feature, length) in enumerate(zip(features, lengths, strict=True)):
            padded[row, ..., : feature.shape[-1]] = feature
            mask[row, :length] = 1
        tokens = [self._get_audio_token_length(length) for length in lengths]
        return {"input_features": padded, "input_features_mask": mask, "num_audio_tokens": tokens}

    def _features(self, samples: np.ndarray) -> tuple[np.ndarray, int]:
        """Samples (samples,) -> features (features, positions) or (samples,), and how many positions are audio."""
        samples = np.pad(samples, (0, self._silence))
        length = positions = stage_length(len(samples), self.feature_stages)
        if self.pad_to_window:
            positions = math.ceil(length / self.audio_window) * self.audio_window
        if self._kind.fills_hops:
            samples = np.pad(samples, (0, fill(positions, self.feature_stages) - len(samples)))
        extractor = self.feature_extractor
        features = extractor(
            samples,
            sampling_rate=extractor.sampling_rate,
            padding=False,
            return_tensors="np",
            **self._kind.options,
        )[extractor.model_input_names[0]][0]
        features = features.T if self._kind.frames_first else features
        return features[..., :positions], length

    @property
    def _silence(self) -> int:
        """Samples of `trailing_silence`."""
        return round(self.trailing_silence * self.feature_extractor.sampling_rate)

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs) -> str:
        """The placeholders of one audio."""
        return self.audio_token * audio_inputs["num_audio_tokens"][audio_idx]

    def _get_audio_token_length(self, length: int) -> int:
        """Feature positions (or samples, for raw waveforms) to audio tokens."""
        return stage_length(stage_length(length, self.audio_stages), self.connector_stages)

    def audio_token_count(self, samples: int) -> int:
        """How many placeholders an audio of so many samples (at the extractor's rate) takes."""
        return self._get_audio_token_length(stage_length(samples + self._silence, self.feature_stages))

    def audio_token_counts(self, features_mask: Any) -> list[int]:
        """How many tokens each audio has, from its `input_features_mask` (audios, positions or samples)."""
        return [self._get_audio_token_length(int(row.sum())) for row in features_mask]

    def _get_num_multimodal_tokens(self, audio_lengths: list[int] | None = None, **kwargs) -> MultiModalData:
        """Audio tokens for audios of the given lengths in samples (serving engines ask for it)."""
        tokens = None if audio_lengths is None else [self.audio_token_count(length) for length in audio_lengths]
        return MultiModalData(num_audio_tokens=tokens)

    def _find_min_samples(self) -> int:
        """Samples of the shortest audio that fills one encoder frame and gives one token."""
        lengths = range(math.prod(stage["stride"] for stage in self.audio_stages), MAX_FRAME)
        first = bisect_left(lengths, 1, key=self._get_audio_token_length)
        if first == len(lengths):
            raise ValueError(
                f"No audio gives an audio token with audio_stages={self.audio_stages}, "
                f"connector_stages={self.connector_stages}. Copy them from the model's config."
            )
        return max(fill(lengths[first], self.feature_stages), self._kind.shortest(self.feature_extractor))

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "input_features", "input_features_mask"]

    @property
    def unused_input_names(self) -> list[str]:
        return ["num_audio_tokens", "token_type_ids"]

    instruction_chat = staticmethod(instruction_chat)

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        tools: list[dict] | None = None,
        documents: list[dict] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "auto",
        return_dict: bool = False,
        processor_kwargs: dict | None = None,
        sanitize_control_tokens: bool = True,
        audio: Any = None,
        sampling_rate: float | None = None,
        load_audio_from_video: bool = False,
        **kwargs,
    ):
        """
        Render one chat or several with the LLM's chat template, and with `tokenize=True` process their audios.

        A message's content is a string or a list of blocks, which are joined as they stand (no separator is added):
        `{"type": "text", "text": ...}` or `{"type": "audio", "audio" | "path" | "url" | "bytes" | "array": ...}`, with
        `"sampling_rate"` beside a bare array. A block `{"type": "audio"}` alone takes the next of `audio`; one with
        `"tokens": n` has n placeholders and no features, see `__call__`.

        Args:
            conversation: messages, or a list of such.
            return_assistant_tokens_mask (`bool`, *optional*, defaults to `False`): also return `assistant_masks`, 1
                on the tokens of assistant messages. Without `{% generation %}` in the template they are found by
                rendering each chat up to each turn.
            processor_kwargs (`dict`, *optional*): options of `__call__`, for example `{"padding_side": "right"}`.
            sanitize_control_tokens (`bool`, *optional*, defaults to `True`): special tokens spelled in messages, tools
                or documents are encoded as text. Applies when tokenizing; a rendered string holds them as written.
            audio (*optional*): audios of the blocks that have none of their own, over all chats in reading order.
            sampling_rate (`float`, *optional*): rate in Hz of bare arrays.
            load_audio_from_video: of no effect, as blocks of video are refused; `transformers serve` passes it.
            chat_template, tools, documents, add_generation_prompt, continue_final_message, tokenize, return_tensors,
                return_dict, **kwargs: as in `ProcessorMixin.apply_chat_template`.

        Returns:
            the rendered chat(s), or with `tokenize=True` the ids, or with `return_dict=True` the whole `BatchFeature`.
        """
        chats, is_batched = normalize_chats(conversation)
        template = choose_template(self.chat_template, chat_template)
        check_rendering(self.tokenizer, add_generation_prompt, continue_final_message, return_assistant_tokens_mask)
        options = dict(processor_kwargs or {}) | unknown_to(template, kwargs)
        chats, sources = collect_audio(chats, as_audio_list(audio), need_sources=tokenize)
        if tokenize and sanitize_control_tokens:
            chats, tools, documents, kwargs = mark_inputs(self.tokenizer, template, chats, tools, documents, kwargs)
        chats = lay_out_content(chats, template, self.audio_token, self.tokenizer.special_tokens_map)
        rendered, spans = render_with_spans(
            chats,
            template,
            want_spans=return_assistant_tokens_mask,
            control_tokens=[token.content for token in self.tokenizer.added_tokens_decoder.values()],
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **{**self.tokenizer.special_tokens_map, **kwargs},
        )
        if not tokenize:
            return rendered if is_batched else rendered[0]
        options.setdefault("add_special_tokens", False)  # the template writes them
        if return_tensors != "auto":
            options["return_tensors"] = return_tensors
        if sampling_rate is not None:
            options["sampling_rate"] = sampling_rate
        if any(map(has_marked_text, rendered)):
            options["sanitize_control_tokens"] = True
        if return_assistant_tokens_mask:
            broken = [
                break_at_spans(text, row) if has_marked_text(text) else (text, row)
                for text, row in zip(rendered, spans, strict=True)
            ]
            rendered, spans = map(list, zip(*broken, strict=True))
        options["return_text_replacement_offsets"] = True
        inputs = self(text=rendered, audio=sources or None, **options)
        offsets = inputs["text_replacement_offsets"]
        if not (processor_kwargs or {}).get("return_text_replacement_offsets"):
            del inputs["text_replacement_offsets"]
        if return_assistant_tokens_mask:
            rows = [expand(*row) for row in zip(rendered, offsets, spans, strict=True)]
            masks = [span_mask(self.tokenizer, *row, options["add_special_tokens"]) for row in rows]
            inputs["assistant_masks"] = place_masks(masks, inputs["attention_mask"])
        return inputs if return_dict else inputs["input_ids"]


def is_token_count(source: Any) -> bool:
    """Whether an audio is only `{"tokens": n}`, n >= 0."""
    if not isinstance(source, dict) or source.get("tokens") is None:
        return False
    if not isinstance(source["tokens"], numbers.Integral) or source["tokens"] < 0:
        raise ValueError(f"The tokens of an audio block must be a number from 0 up, not {source['tokens']!r}.")
    return True


__all__ = ["SpeechLLMProcessor", "stage_length"]
