"""benchmarks/serving: its requests are the pipeline's prompts, its comparison finds what differs; without servers."""

import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

import speechllm
from benchmarks.serving.__main__ import compare, measure, write
from benchmarks.serving.cases import Case, comparison_cases, load_cases, load_examples
from benchmarks.serving.engines import Answer, PipelineEngine, ServerEngine, serving
from benchmarks.serving.progress import Overtime, Phase
from benchmarks.serving.tables import replicas

EXAMPLES = load_examples(Path(speechllm.NANO))[:2]


@pytest.fixture(scope="module")
def engine():
    return PipelineEngine(speechllm.NANO)


def test_a_request_is_the_pipeline_s_prompt(engine):
    """Where the client ends the lines, the blocks joined as they stand are the prompt of the pipeline."""
    processor = engine.pipe.processor
    clip = np.full(16000, 0.1, dtype="float32")
    for audio in ((), (clip,), (clip, clip)):
        case = Case("Name the device.", audio)
        own = processor.apply_chat_template(processor.instruction_chat(list(audio), case.instruction))
        assert processor.apply_chat_template(case.messages(lines=True)) == own
        assert len(case.messages(lines=False)[0]["content"]) == len(audio) + 1


def test_the_long_audio_is_as_long_as_asked_and_no_two_requests_of_a_load_are_alike():
    cases = comparison_cases(EXAMPLES, longest=30.0)
    assert len(cases["long audio"][0].audio[0]) == 30 * 16000
    assert len(comparison_cases(EXAMPLES, longest=100.0)["long audio"][0].audio[0]) == 38 * 16000
    peaks = {case.audio[0].max() for case in load_cases(EXAMPLES, 30, seed=0)}
    assert len(peaks) == 30


def test_the_pipeline_tells_its_answers_and_their_tokens_alone_as_in_a_batch(engine):
    cases = comparison_cases(EXAMPLES, longest=2.0)["single"]
    phase = Phase("single", len(cases), 600)
    alone, batch = (engine.answers(cases, n, phase, logprobs=True) for n in (1, len(cases)))
    expected = [question["expected"] for row in EXAMPLES for question in row["questions"]]
    assert [answer.text for answer in alone] == [answer.text for answer in batch] == expected
    for one, other in zip(alone, batch, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4) and 0 < len(one.logprobs) < 20
    assert [answer.text for answer in engine.answers(cases, 4, phase)] == expected


class Served(BaseHTTPRequestHandler):
    """A server of OpenAI's API that always says the same, and refuses text alone."""

    def do_GET(self):
        self.reply(200, {"data": [{"id": "tiny"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if len(body["messages"][0]["content"]) == 1:
            return self.reply(400, {"error": {"message": "no audio"}})
        told = {"content": [{"logprob": -0.5}, {"logprob": -0.25}, {"logprob": 0.0}]} if body.get("logprobs") else None
        self.reply(200, {"choices": [{"message": {"content": " yes"}, "finish_reason": "stop", "logprobs": told}]})

    def reply(self, status, content):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def address():
    server = HTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_comparison_counts_what_is_the_same_and_keeps_what_is_not(address, tmp_path):
    clip = np.full(1600, 0.1, dtype="float32")
    cases = {"single": [Case("Is it?", (clip,))], "text only": [Case("Is it?")]}
    expected = {"single": [Answer("yes", (-0.5, -0.3))], "text only": [Answer("no", (-1.0,))]}
    server = ServerEngine(address, lines=False, tells_logprobs=True)
    found = compare(server, expected, cases)
    assert (found["single"]["same"], found["single"]["logprobs_apart"]) == (1, pytest.approx(0.05))
    assert found["text only"]["same"] == 0 and "no audio" in found["text only"]["others"][0]["got"]
    speed = measure(server, EXAMPLES, requests=3, at_once=2)
    assert speed["requests"] == 3 and speed["per_second"] > 0
    results = {
        "machine": {"processor": "x", "cores": 2, "threads": 1, "load_before": 0.5},
        "model": "tiny",
        "versions": {"server": {"torch": "1"}},
        "long_audio_seconds": 3.0,
        "requests": 3,
        "at_once": [2, 4],
        "compared": {"server": found},
        "speed": {"server": {"2": speed}},
        "failed": {"other": "It did not start\nand so on"},
    }
    write(tmp_path, results)
    assert json.loads((tmp_path / "results.json").read_text())["compared"] == {"server": found}
    text = (tmp_path / "results.md").read_text()
    assert "| server | 1/1, 5e-02 | 0/1 |" in text and f"| server | {speed['per_second']:.1f} | - |" in text
    assert "other failed: It did not start\n" in text and "| server | one gives | 20 a second | 100 a second |" in text
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.md", "results.png"}
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_replicas_carry_the_peak_and_one_less_would_not():
    for peak, one in ((20, 32.0), (100, 32.0), (20, 105.5), (100, 105.5), (7, 10.0), (3, 5.8)):
        count = replicas(peak, one)
        assert count * 0.7 * one >= peak > (count - 1) * 0.7 * one
    assert [replicas(peak, one) for one in (32.0, 105.5) for peak in (20, 100)] == [1, 5, 1, 2]  # as docs/serving.md


def test_a_phase_says_how_far_it_is_and_ends_when_its_time_is_over(address, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("benchmarks.serving.progress.time.monotonic", lambda: now[0])
    server = ServerEngine(address, lines=False, tells_logprobs=True)
    cases = [Case("Is it?", (np.full(1600, 0.1, dtype="float32"),))] * 3
    phase = Phase("asking", 3, limit=5)
    now[0] = 11.0
    with pytest.raises(Overtime, match="asking: 0 of 3 requests were answered within 5 s. Give a larger --phase-sec"):
        server.answers(cases, 1, phase)
    phase = Phase("asking", 3, limit=50)
    now[0] = 22.0
    assert len(server.answers(cases, 1, phase)) == 3
    assert "asking: 1 of 3 after 11 s" in capsys.readouterr().out


def test_a_server_that_is_gone_is_an_error_of_each_request_and_of_a_measurement():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = ServerEngine(f"http://127.0.0.1:{closed.getsockname()[1]}", lines=False, tells_logprobs=False)
        assert "refused" in server._ask({}).error
        with pytest.raises(OSError, match="refused"):
            measure(server, EXAMPLES, requests=1, at_once=1)


def test_a_server_that_ends_is_reported_with_the_end_of_its_log(tmp_path):
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with pytest.raises(RuntimeError, match="did not start(?s:.*)no such model(?s:.*)log.txt"):
        with serving(command, 1, tmp_path / "log.txt", {}):
            raise AssertionError
