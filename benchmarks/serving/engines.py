"""The engines: servers behind OpenAI's API, each in a process of its own, and the pipeline in this one."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Case
from .environment import ROOT
from .progress import Phase

START_SECONDS = 600  # until a server is ready
REQUEST_SECONDS = 180  # until it has answered
MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Answer:
    """What was said: text, the log-probabilities of its tokens where the engine tells them, or the error."""

    text: str = ""
    logprobs: tuple[float, ...] | None = None
    error: str | None = None


class PipelineEngine:
    """`pipeline("speech-instruct")`; so many requests at once are a batch of that size."""

    def __init__(self, model: str):
        from transformers import pipeline
        from transformers.utils import logging

        import speechllm  # noqa: F401  (registers the task)

        logging.set_verbosity_error()
        self.pipe = pipeline("speech-instruct", model=model)

    def longest_audio(self) -> float:
        """Seconds that the model takes."""
        return self.pipe.processor.audio_limit.seconds

    def answers(self, cases: list[Case], at_once: int, phase: Phase, logprobs: bool = False) -> list[Answer]:
        """Greedy answers, in order."""
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS}
        if logprobs:
            options |= {"return_dict_in_generate": True, "output_scores": True, "return_tensors": True}
        answers = []
        for (output,) in self.pipe((case.row() for case in cases), batch_size=at_once, **options):
            answers.append(self._with_logprobs(output) if logprobs else Answer(output["generated_text"]))
            phase.step()
            phase.check()
        return answers

    def _with_logprobs(self, output: dict) -> Answer:
        ids = output["generated_token_ids"].cpu()
        told = output["scores"].float().cpu().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        end = self.pipe.model.generation_config.eos_token_id
        ended = [
            place for place, token in enumerate(ids.tolist()) if token in ([end] if isinstance(end, int) else end)
        ]
        text = self.pipe.tokenizer.decode(ids, skip_special_tokens=True)
        return Answer(text, tuple(told[: ended[0] if ended else None].tolist()))


@dataclass(frozen=True)
class ServerEngine:
    """A server that answers at `address`.

    Args:
        lines: whether the client ends the line after each audio, as the server does not.
        tells_logprobs: whether it has log-probabilities.
    """

    address: str
    lines: bool
    tells_logprobs: bool

    def answers(self, cases: list[Case], at_once: int, phase: Phase, logprobs: bool = False) -> list[Answer]:
        """Greedy answers, in order, `at_once` requests under way."""
        name = self._get("/v1/models")["data"][0]["id"]
        options = {"logprobs": True} if logprobs and self.tells_logprobs else {}
        bodies = [
            {"model": name, "messages": case.messages(self.lines), "temperature": 0, "max_tokens": MAX_NEW_TOKENS}
            | options
            for case in cases
        ]
        answers = []

        def ask(body: dict) -> Answer:
            phase.check()
            return self._ask(body)

        with ThreadPoolExecutor(at_once) as pool:
            for answer in pool.map(ask, bodies):
                answers.append(answer)
                phase.step()
        return answers

    def _ask(self, body: dict) -> Answer:
        request = urllib.request.Request(
            f"{self.address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as response:
                choice = json.load(response)["choices"][0]
        except urllib.error.HTTPError as error:
            return Answer(error=f"{error.code}: {error.read().decode()[:300]}")
        except (OSError, http.client.HTTPException) as error:  # no answer in time, or the server has ended
            return Answer(error=f"{type(error).__name__}: {error}")
        told = (choice.get("logprobs") or {}).get("content")
        if told and choice["finish_reason"] == "stop":  # the last is the end itself
            told = told[:-1]
        return Answer(choice["message"]["content"], None if told is None else tuple(part["logprob"] for part in told))

    def _get(self, path: str) -> dict:
        with urllib.request.urlopen(self.address + path, timeout=30) as response:
            return json.load(response)


@contextmanager
def serving(command: list[str], port: int, log: Path, variables: dict[str, str]) -> Iterator[str]:
    """
    A server while it is needed; its process and the processes that it starts end with it.

    Args:
        command, variables: how it is started, and its environment beside this one's.
        port: where it listens on this machine.
        log: file for what it prints.

    Raises:
        RuntimeError: it ends, or is not ready in `START_SECONDS`, with the end of its log.
    """
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | variables, start_new_session=True
        )
    try:
        print(f"  starting, for at most {START_SECONDS} s; its log is {log}", flush=True)
        started = time.monotonic()
        while not _is_ready(address):
            if process.poll() is not None or time.monotonic() - started > START_SECONDS:
                end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"The server did not start: {' '.join(command)}\n{end}\nSee {log}.")
            time.sleep(1)
        print(f"  ready after {time.monotonic() - started:.0f} s", flush=True)
        yield address
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, number)
                process.wait(timeout=20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def vllm_server(python: str, model: str, log: Path, remote_code: bool = False) -> Iterator[ServerEngine]:
    """vLLM with this package's plugin, or of an exported folder by its own code, without the package."""
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--chat-template-content-format"]
    command += ["openai" if remote_code else "string"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if not remote_code:  # this checkout's plugin, whichever the environment was made with
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    else:
        command += ["--trust-remote-code", "--mm-processor-kwargs", '{"sampling_rate": 16000}']
        variables["VLLM_PLUGINS"] = "none"
    with serving(command, port, log, variables) as address:
        yield ServerEngine(address, lines=remote_code, tells_logprobs=True)


@contextmanager
def transformers_server(model: str, log: Path) -> Iterator[ServerEngine]:
    """`speechllm serve`."""
    port = free_port()
    command = [sys.executable, "-m", "speechllm_cli", "serve", model, "--port", str(port)]
    with serving(command, port, log, {"HF_HUB_OFFLINE": "1"}) as address:
        yield ServerEngine(address, lines=False, tells_logprobs=False)


__all__ = ["Answer", "PipelineEngine", "ServerEngine", "transformers_server", "vllm_server"]
