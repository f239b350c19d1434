"""Who answers: a local causal LM (or the LLM of a SpeechLLM), or an OpenAI-compatible endpoint.

Both take questions, chats of text alone, and give one answer each, in order. An answer depends on its question (and
seed) only, not on what is asked beside it, up to the rounding of padded batches.
"""

import hashlib
import json
import math
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from modeling_speechllm import SpeechLLMForConditionalGeneration
from modeling_speechllm.attention_backends import attention_for_any_length
from modeling_speechllm.parents import load_causal_lm, parent_of
from modeling_speechllm.quantization import quantization_config
from processing_speechllm import SpeechLLMProcessor
from processing_speechllm.chat_format import lay_out_content, plain_chat_template
from processing_speechllm.gguf_tokenizer import load_tokenizer

from .endpoints import BackendError, Endpoint, Refusal

FEWEST = 16  # new tokens that must fit behind a prompt
ENDS = 1 << 20  # bytes hashed at both ends of a weight file


@dataclass(frozen=True)
class Question:
    """A chat of text alone (`[{"role", "content": str or text blocks}]`), the seed of its answer, and the limit of new
    tokens where it has one of its own."""

    chat: list[dict]
    seed: int
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Answer:
    """
    The LLM's text and how it ended: `"stop"` by itself, `"length"` at the limit of new tokens; `"too_long"` (the
    prompt does not fit the LLM) and `"refused"` have no text but a `detail`.
    """

    text: str
    finish_reason: str
    detail: str = ""


class SeededSampling(LogitsProcessor):
    """
    Turns greedy search into sampling with a sequence of uniform numbers per row: the token is where the number falls
    in the cumulated probabilities, so that neither batch nor order plays a part.
    """

    def __init__(self, seeds: list[int], max_new_tokens: int, temperature: float, top_p: float):
        streams = [random.Random(seed) for seed in seeds]
        numbers = [[stream.random() for _ in range(max_new_tokens)] for stream in streams]
        self.uniforms = torch.tensor(numbers, dtype=torch.float64)
        self.temperature, self.top_p, self.step = temperature, top_p, 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores (rows, vocabulary) -> 0 for each row's chosen token, minus infinity for all others."""
        values = scores.cpu() if scores.device.type == "mps" else scores  # MPS has no float64
        probabilities = (values.double() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ranked, order = probabilities.sort(dim=-1, descending=True)
            ranked = ranked.where(ranked.cumsum(-1) - ranked < self.top_p, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
        # In the order of the vocabulary, not of rank, which rounding could change from batch to batch.
        cumulated = probabilities.cumsum(-1)
        point = self.uniforms[:, self.step, None].to(values.device) * cumulated[:, -1:]
        chosen = (cumulated <= point).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        self.step += 1
        return torch.full_like(scores, -math.inf).scatter(-1, chosen.to(scores.device), 0.0)


class LocalBackend:
    """
    Batched `generate` of a model in memory.

    Args:
        model: a causal LM, or a SpeechLLM, which is asked in text alone. Its generation config is replaced: nothing
            but the arguments here and its end tokens shape the answers.
        tokenizer: of the causal LM, or the processor of the SpeechLLM. A tokenizer without a chat template gets the
            one that the processor of a SpeechLLM would give it.
        batch_size: prompts per batch; they are sorted by length first.
        max_new_tokens, temperature, top_p, chat_template_kwargs: as in `TargetsConfig`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        batch_size: int = 16,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        chat_template_kwargs: dict | None = None,
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer.tokenizer if isinstance(tokenizer, SpeechLLMProcessor) else tokenizer
        self.template = self.tokenizer.chat_template or plain_chat_template(self.tokenizer)
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.temperature, self.top_p = temperature, top_p
        self.chat_template_kwargs = chat_template_kwargs or {}
        ends = model.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        pad = self.tokenizer.pad_token_id
        self.pad = pad if pad is not None else self.ends[0] if self.ends else 0
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.ends or None, pad_token_id=self.pad, max_new_tokens=max_new_tokens
        )
        self.positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def encode(self, chat: list[dict]) -> list[int]:
        """Token ids of the prompt, in the form in which the processor of a SpeechLLM lays out its chats."""
        (chat,) = lay_out_content([chat], self.template, "<|audio|>", self.tokenizer.special_tokens_map)
        return self.tokenizer.apply_chat_template(
            chat,
            chat_template=self.template,
            add_generation_prompt=True,
            return_dict=False,
            sanitize_control_tokens=True,
            **self.chat_template_kwargs,
        )

    @attention_for_any_length()
    def answer(self, questions: list[Question], progress: Callable[[int], None]) -> list[Answer]:
        """One answer per question; `progress` is told how many more are done."""
        prompts = [self.encode(question.chat) for question in questions]
        limits = [self._limit(question, len(prompt)) for question, prompt in zip(questions, prompts, strict=True)]
        answers: list[Answer | None] = [None] * len(questions)
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            if self.positions is not None and len(prompt) + limit > self.positions:
                detail = f"{len(prompt)} + {limit} tokens, but the LLM has {self.positions} positions"
                answers[index] = Answer("", "too_long", detail)
        open_ones = (index for index in range(len(prompts)) if answers[index] is None)
        order = sorted(open_ones, key=lambda index: (limits[index], len(prompts[index]), index))
        progress(len(prompts) - len(order))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            chosen = [prompts[i] for i in batch], [questions[i].seed for i in batch], [limits[i] for i in batch]
            results = self._generate(*chosen)
            for index, answer in zip(batch, results, strict=True):
                answers[index] = answer
            progress(len(batch))
        return answers

    def _limit(self, question: Question, prompt: int) -> int:
        """New tokens for a question; a limit of its own gives way to an LLM of few positions, down to `FEWEST`."""
        limit = self.max_new_tokens if question.max_new_tokens is None else question.max_new_tokens
        if question.max_new_tokens is None or self.positions is None:
            return limit
        return min(limit, max(self.positions - prompt, FEWEST))

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], seeds: list[int], limits: list[int]) -> list[Answer]:
        longest = max(map(len, prompts))
        input_ids = torch.tensor([[self.pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        processors = LogitsProcessorList()
        if self.temperature > 0:
            processors.append(SeededSampling(seeds, max(limits), self.temperature, self.top_p))
        sequences = self.model.generate(
            input_ids=input_ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            logits_processor=processors,
            max_new_tokens=max(limits),
        )
        rows = sequences[:, longest:].tolist()
        return [self._read(row[:limit]) for row, limit in zip(rows, limits, strict=True)]

    def _read(self, tokens: list[int]) -> Answer:
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
        return Answer(text, "length" if end is None else "stop")


class EndpointBackend:
    """
    Chat completions of an OpenAI-compatible endpoint (vLLM, TGI, SGLang, llama.cpp, hosted ones), several at a time.

    The endpoint's own chat template makes the prompt: serve the LLM that is trained with, with the same template.

    Args:
        base_url: as `http://localhost:8000/v1`; nothing else is contacted.
        model: the endpoint's name of the LLM.
        api_key: sent as bearer token if given.
        retries: tries more after 429, 5xx, a time-out or a broken connection, with pauses that double from
            `first_pause` seconds up to a minute, or as the endpoint says (`Retry-After`).
        concurrency, timeout, max_new_tokens, temperature, top_p, chat_template_kwargs: as in `TargetsConfig`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        concurrency: int = 16,
        retries: int = 8,
        timeout: float = 300.0,
        first_pause: float = 1.0,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        chat_template_kwargs: dict | None = None,
    ):
        self.endpoint = Endpoint(base_url, "/chat/completions", api_key, retries, timeout, first_pause)
        self.concurrency = concurrency
        self.body = {"model": model, "max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        if chat_template_kwargs:
            self.body["chat_template_kwargs"] = chat_template_kwargs

    def answer(self, questions: list[Question], progress: Callable[[int], None]) -> list[Answer]:
        """One answer per question; `progress` is told how many more are done.

        Raises:
            BackendError: an endpoint that stays unreachable, rejects the key or the model, or every question.
        """
        self.endpoint.stopped.clear()
        executor = ThreadPoolExecutor(self.concurrency)
        try:
            answers = []
            for answer in executor.map(self._ask, questions):
                answers.append(answer)
                progress(1)
        finally:
            self.endpoint.stopped.set()  # one that waits for its next try need not
            executor.shutdown(cancel_futures=True)
        if answers and all(answer.finish_reason == "refused" for answer in answers):
            raise BackendError(
                f"{self.endpoint.url} refused all of {len(answers)} questions, the first with: {answers[0].detail}. "
                "Check model and generation settings."
            )
        return answers

    def _ask(self, question: Question) -> Answer:
        chat = [{"role": message["role"], "content": joined(message["content"])} for message in question.chat]
        limit = {} if question.max_new_tokens is None else {"max_tokens": question.max_new_tokens}
        try:
            return self.endpoint.post({**self.body, **limit, "messages": chat, "seed": question.seed}, self._read)
        except Refusal as refusal:
            return Answer("", "refused", str(refusal))

    def _read(self, reply: bytes) -> Answer:
        choice = json.loads(reply)["choices"][0]
        reason = choice.get("finish_reason") or "stop"
        if reason not in ("stop", "length"):
            return Answer("", "refused", f"finish_reason {reason}")
        return Answer((choice["message"]["content"] or "").strip(), reason)


def joined(content: str | list[dict]) -> str:
    """Text blocks as one string."""
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def load_backend(config: Any, device: torch.device) -> LocalBackend | EndpointBackend:
    """The backend that a `TargetsConfig` asks for."""
    settings = {name: getattr(config, name) for name in ("temperature", "top_p", "chat_template_kwargs")}
    if config.max_new_tokens is not None:
        settings["max_new_tokens"] = config.max_new_tokens
    if config.base_url is not None:
        variable = config.api_key_variable
        if variable is not None and not os.environ.get(variable):
            raise ValueError(f"The environment variable {variable} is not set. Put the endpoint's key there.")
        return EndpointBackend(
            config.base_url,
            config.model,
            api_key=None if variable is None else os.environ[variable],
            concurrency=config.concurrency,
            retries=config.retries,
            timeout=config.timeout,
            **settings,
        )
    model, tokenizer = load_llm(config.model, config.revision, config.dtype, config.gguf_file, config.quantization)
    if config.quantization is None:  # else it is where it was quantised
        model = model.to(device)
    return LocalBackend(model, tokenizer, batch_size=config.batch_size, **settings)


def load_llm(
    name: str,
    revision: str | None = None,
    dtype: str = "auto",
    gguf_file: str | None = None,
    quantization: str | None = None,
) -> tuple[PreTrainedModel, Any]:
    """A causal LM (of a GGUF file if named) and its tokenizer, or a SpeechLLM and its processor, from a Hub id or a
    folder; `quantization` is `8bit` or `4bit`."""
    hub = {"revision": revision} if revision is not None else {}
    if gguf_file is not None:
        return load_causal_lm(name, gguf_file=gguf_file, dtype=dtype, **hub), load_tokenizer(name, gguf_file, **hub)
    options = {"dtype": dtype}
    settings = AutoConfig.from_pretrained(name, **hub)
    speech = settings.model_type == "speechllm"
    if quantization is not None:
        whole = speech and not getattr(settings, "trained_groups", None)
        options["quantization_config"] = quantization_config(quantization, whole)
    if speech:
        model = SpeechLLMForConditionalGeneration.from_pretrained(name, **options, **hub)
        return model, SpeechLLMProcessor.from_pretrained(name, **hub)
    return load_causal_lm(name, **options, **hub), AutoTokenizer.from_pretrained(name, **hub)


def identify(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """
    What the rows say of their LLM: the Hub id and its commit, or of a folder its own name (not its place) and a digest
    of its files: the small ones whole, of the weights both ends.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name, parent_of(name, revision)["revision"]
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.suffix not in (".json", ".jinja", ".model", ".safetensors", ".bin", ".gguf"):
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(ENDS if size > 2 * ENDS else -1))
            if size > 2 * ENDS:
                stream.seek(-ENDS, os.SEEK_END)
                digest.update(stream.read())
    return folder.resolve().name, f"sha256:{digest.hexdigest()[:16]}"
