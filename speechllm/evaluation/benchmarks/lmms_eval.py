"""A SpeechLLM as a model of lmms-eval, so that VoiceBench, AIR-Bench, MMAU and its other audio tasks can be run.

    pip install lmms-eval
    python -m lmms_eval --model speechllm --model_args pretrained=FOLDER --tasks voicebench --batch_size 8

lmms-eval finds it by the entry point `lmms_eval.models`, as it asks of models outside its own tree. This module needs
lmms-eval and is imported by it alone.

What is unusual here:
- The chat is the pipeline's: audios, then the instruction. Where a task gives no text (VoiceBench: the request itself
  is spoken), the turn holds the audio alone.
- Stop strings of a task cut the answer, as lmms-eval defines; generation itself is not stopped by them.
- A row whose audio cannot be used is answered with nothing, named in the log and counted at the end.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from lmms_eval.api.model import lmms
from tqdm import tqdm

from processing_speechllm import AudioError, SpeechInstructPipeline
from processing_speechllm.chat_messages import instruction_chat

logger = logging.getLogger(__name__)
EMBEDDED = Path(__file__).parents[2]  # of the embedded checkpoints
GENERATION = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams", "do_sample", "repetition_penalty")


def manifest() -> Any:
    """What the entry point gives to lmms-eval: the model's name there and its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="speechllm", simple_class_path=f"{__name__}.SpeechLLM")


class SpeechLLM(lmms):
    """
    The model that lmms-eval drives; arguments are what follows `--model_args`.

    Args:
        pretrained: folder or Hub id of a SpeechLLM checkpoint; `"nano"` is the embedded one.
        batch_size: prompts per batch.
        device: as `"cuda:0"`; None is this process's own.
        dtype: of the weights.
        max_new_tokens: where a task sets none.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "nano",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "auto",
        max_new_tokens: int = 256,
        **kwargs: Any,
    ):
        super().__init__()
        if unknown := sorted(name for name, value in kwargs.items() if value is not None):
            raise ValueError(
                f"The model speechllm does not know {', '.join(unknown)}. It takes pretrained, batch_size, device, "
                "dtype and max_new_tokens."
            )
        from transformers import pipeline

        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(
                f"--batch_size {batch_size}: give a number of prompts, as 8; speechllm does not look for one."
            )
        state = PartialState()
        self._rank, self._world_size = state.process_index, state.num_processes
        self.batch_size, self.max_new_tokens = int(batch_size), int(max_new_tokens)
        self.unheard = 0  # rows whose audio could not be used
        self.told_of_none = False
        self.pipe = pipeline(
            "speech-instruct",
            model=str(EMBEDDED / pretrained) if (EMBEDDED / pretrained / "config.json").is_file() else pretrained,
            pipeline_class=SpeechInstructPipeline,
            device=device if device is not None and state.num_processes == 1 else state.device,
            dtype=dtype,
        )

    @property
    def device(self) -> Any:
        """Of the model; lmms-eval gathers answers of several processes there."""
        return self.pipe.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """
        One answer per request, in order; requests with the same generation settings share batches.

        Raises:
            ValueError: what a task asks for cannot be had, such as more new tokens than the LLM has positions.
        """
        answers: list[str | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(place)
        with tqdm(total=len(requests), desc="Model Responding", disable=self.rank != 0) as bar:
            for places in groups.values():
                settings, stops = generation_settings(requests[places[0]].args[1], self.max_new_tokens)
                for start in range(0, len(places), self.batch_size):
                    batch = places[start : start + self.batch_size]
                    given = [requests[place] for place in batch]
                    for place, text in zip(batch, self._texts(given, settings), strict=True):
                        answers[place] = cut(text, stops)
                        self.cache_hook.add_partial("generate_until", requests[place].args[:2], answers[place])
                    bar.update(len(batch))
        if self.unheard:
            logger.warning(
                "%d rows were answered with nothing, as their audio cannot be used; see above.", self.unheard
            )
        return answers

    def _texts(self, requests: Sequence[Any], settings: dict[str, Any]) -> list[str]:
        """What is generated for each request; a batch with an audio that cannot be used is asked one by one."""
        rows = [{"messages": self._chat(request.args)} for request in requests]
        try:
            results = self.pipe(rows, batch_size=self.batch_size, return_full_text=False, **settings)
        except AudioError as error:
            if len(requests) > 1:
                return [text for request in requests for text in self._texts([request], settings)]
            *_, number, task, split = requests[0].args
            self.unheard += 1
            logger.warning("%s, split %s, row %s: %s It is answered with nothing.", task, split, number, error)
            return [""]
        except ValueError as error:
            raise ValueError(
                f"{requests[0].args[4]}: {error} --gen_kwargs replaces a task's settings, as max_new_tokens=256."
            ) from error
        return [result[0]["generated_text"] for result in results]

    def _chat(self, arguments: tuple) -> list[dict]:
        context, _, doc_to_visual, number, task, split = arguments
        given = doc_to_visual(self.task_dict[task][split][number])
        given = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        audios = [as_audio(part) for part in given]
        if not audios and not self.told_of_none:
            self.told_of_none = True
            logger.warning(
                "%s, split %s, row %s has no audio; such rows are asked by their text alone.", task, split, number
            )
        if context.strip():
            return instruction_chat(audios, context)
        return [{"role": "user", "content": [{"type": "audio", "audio": audio} for audio in audios]}]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not there: lmms-eval's audio tasks generate."""
        raise NotImplementedError("speechllm answers tasks that generate (generate_until), not log-likelihoods.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not there: no audio task of lmms-eval has rounds."""
        raise NotImplementedError("speechllm answers tasks of one round (generate_until).")


def as_audio(part: Any) -> Any:
    """A task's audio as the pipeline takes it: array and rate, a path, bytes, or a decoder of `datasets`.

    Raises:
        ValueError: an image or anything else; the task is none for a model that hears.
    """
    if isinstance(part, dict) and "sampling_rate" in part:
        return {"array": part["array"], "sampling_rate": part["sampling_rate"]}
    if isinstance(part, (str, bytes, dict)) or hasattr(part, "get_all_samples"):
        return part
    raise ValueError(f"The task gives a {type(part).__name__}, which is no audio. Choose an audio task of lmms-eval.")


def generation_settings(given: dict[str, Any], max_new_tokens: int) -> tuple[dict[str, Any], list[str]]:
    """
    A task's generation settings as `generate` takes them, and its stop strings.

    Raises:
        ValueError: a setting that is not known, as leaving it out would change the result.
    """
    stops = given.get("until") or []
    settings = {name: value for name, value in given.items() if name != "until" and value is not None}
    if unknown := sorted(set(settings) - set(GENERATION)):
        raise ValueError(
            f"The task sets {', '.join(unknown)}, which speechllm does not know. Known: {', '.join(GENERATION)}. "
            "Override with --gen_kwargs."
        )
    sampling = settings.get("do_sample", settings.get("temperature", 0) > 0) and settings.get("temperature", 1) > 0
    if not sampling:
        settings = {name: settings[name] for name in settings if name not in ("temperature", "top_p", "top_k")}
    stops = [stops] if isinstance(stops, str) else list(stops)
    return {"max_new_tokens": max_new_tokens, **settings, "do_sample": bool(sampling)}, stops


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text.strip()
