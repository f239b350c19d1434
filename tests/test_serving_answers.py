"""`speechllm serve`: how answers end, what a transcript without an end is told, the names that a model goes by."""

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import speechllm
from hub_cards.facts import write_facts
from speechllm.serving import server
from speechllm.serving.server import build_app
from speechllm_cli import serve
from speechllm_cli.loading import load_pipeline
from speechllm_cli.main import main

ENGLISH = Path(speechllm.NANO) / "examples" / "en.wav"
QUESTION = "Name the device."


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("nano")


@pytest.fixture(scope="module")
def http(pipe):
    return TestClient(build_app(pipe, "it"), raise_server_exceptions=False)


def chat(**options) -> dict:
    data = {"data": base64.b64encode(ENGLISH.read_bytes()).decode(), "format": "wav"}
    blocks = [{"type": "input_audio", "input_audio": data}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": blocks}], **options}


def streamed(text: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize(("less", "reason", "event"), [(0, "stop", "completed"), (1, "length", "incomplete")])
def test_an_answer_that_ends_with_its_last_token_is_whole_as_in_the_pipeline(http, pipe, less, reason, event):
    tokens = http.post("/v1/chat/completions", json=chat()).json()["usage"]["completion_tokens"]
    most = tokens - less
    given = {"audio": ENGLISH.read_bytes(), "instruction": QUESTION}
    (row,) = pipe(given, max_new_tokens=most, return_finish_reason=True)
    assert row["finish_reason"] == reason
    answer = http.post("/v1/chat/completions", json=chat(max_tokens=most)).json()
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == (reason, most)
    last = streamed(http.post("/v1/chat/completions", json=chat(max_tokens=most, stream=True)).text)[-1]
    assert (last["choices"][0]["finish_reason"], last["usage"]["completion_tokens"]) == (reason, most)
    turn = {"input": chat()["messages"], "max_output_tokens": most}
    assert http.post("/v1/responses", json=turn).json()["status"] == event
    assert streamed(http.post("/v1/responses", json=turn | {"stream": True}).text)[-1]["type"] == f"response.{event}"


def test_a_transcript_that_does_not_end_is_shown_and_may_repeat_itself(http, monkeypatch):
    monkeypatch.setattr("speechllm.serving.generation.default_new_tokens", lambda *_: 3)
    answer = http.post("/v1/audio/transcriptions", files={"file": ENGLISH.read_bytes()})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400
    assert "longer than one answer (3 tokens); it goes on after '" in message and "repeats itself" in message


def test_a_folder_goes_by_the_repository_that_it_was_exported_for(pipe, tmp_path, monkeypatch, capsys):
    write_facts(tmp_path, {"model": {"repository": "my-name/my-model"}})
    apps = []
    monkeypatch.setattr("speechllm_cli.serve.load_pipeline", lambda model, **options: pipe)
    monkeypatch.setattr(server, "run_app", lambda app, bound, ready: apps.append(TestClient(app)))
    assert main(["serve", str(tmp_path), "--port", "0"]) == 0
    assert main(["serve", str(tmp_path), "--port", "0", "--served-model-name", "speech"]) == 0
    found = {
        name: [app.post("/v1/chat/completions", json=chat(model=name)).status_code for app in apps]
        for name in (str(tmp_path), "my-name/my-model", "speech", "other")
    }
    assert found == {
        str(tmp_path): [200, 404],
        "my-name/my-model": [200, 404],
        "speech": [404, 200],
        "other": [404] * 2,
    }
    assert [app.get("/v1/models").json()["data"][0]["id"] for app in apps] == [str(tmp_path), "speech"]


def test_a_model_without_readable_facts_has_no_other_name(tmp_path):
    assert serve._repository(None) == serve._repository("nano") == serve._repository("owner/name") == []
    (tmp_path / "facts.json").write_text("{")
    assert serve._repository(str(tmp_path)) == []


def test_slow_addresses_hold_up_no_request_without_one(http, monkeypatch):
    """The address's thread is busy for as long as the test runs."""
    busy, free = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(1)
    monkeypatch.setattr("speechllm.serving.handlers.FETCHING", pool)
    pool.submit(lambda: busy.set() or free.wait(60))
    assert busy.wait(10)
    address = {"type": "audio_url", "audio_url": {"url": "http://127.0.0.1:1/a.wav"}}
    body = {"messages": [{"role": "user", "content": [address]}]}
    with ThreadPoolExecutor(1) as client:
        slow = client.submit(http.post, "/v1/chat/completions", json=body)
        try:
            text = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
            assert http.post("/v1/chat/completions", json=text).status_code == 200
            assert http.post("/v1/chat/completions", json=chat(max_tokens=1)).status_code == 200
            assert not slow.done()
        finally:
            free.set()
        assert slow.result().status_code == 400
    pool.shutdown()


@pytest.mark.parametrize("kind", [["text"], None, 5])
def test_a_block_of_no_kind_is_the_client_s_error(http, kind):
    answer = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [{"type": kind}]}]})
    assert answer.status_code == 400 and "content block of kind" in answer.json()["error"]["message"]
