"""`speechllm serve`: the packaged model through OpenAI's own client, in this process and once as a server."""

import asyncio
import base64
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
import torch
from factories_processing import encoded, sine
from fastapi.testclient import TestClient

import speechllm
from processing_speechllm.chat_messages import instruction_chat
from speechllm.serving.generation import HasLeft
from speechllm.serving.handlers import HOOKS, check_hooks
from speechllm.serving.requests import load_chat
from speechllm.serving.server import SERVED, build_app
from speechllm_cli import serve
from speechllm_cli.demo import load_examples
from speechllm_cli.loading import load_pipeline
from speechllm_cli.main import main

NAME = "speechllm/nano"
EXAMPLES = load_examples(Path(speechllm.NANO) / "examples")
CASES = [(row["file"], question["instruction"]) for row in EXAMPLES for question in row["questions"]]
ENGLISH = EXAMPLES[0]["file"]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("nano")


@pytest.fixture(scope="module")
def http(pipe):
    """The server's app without a port."""
    pipe.processor.allow_local_files = True
    return TestClient(build_app(load_pipeline("nano"), NAME), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(http):
    return openai.OpenAI(base_url="http://testserver/v1", api_key="-", http_client=http, max_retries=0)


def base64_of(content: bytes | str) -> str:
    content = Path(content).read_bytes() if isinstance(content, str) else content
    return base64.b64encode(content).decode()


def heard(content: bytes | str, form: str = "wav") -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64_of(content), "format": form}}


def url(address: str) -> dict:
    return {"type": "audio_url", "audio_url": {"url": address}}


def said(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*blocks: dict | str) -> dict:
    return {"role": "user", "content": blocks[0] if isinstance(blocks[0], str) else list(blocks)}


def ask(client, *messages: dict, **options) -> str:
    return client.chat.completions.create(model=NAME, messages=list(messages), **options).choices[0].message.content


def refusal(http, body: dict, path: str = "/v1/chat/completions") -> tuple[int, str]:
    """Status and message of a request that is refused in OpenAI's form."""
    answer = http.post(path, json=body)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["message"]


@pytest.mark.parametrize(("file", "instruction"), CASES, ids=lambda value: Path(value).name[:24])
def test_the_server_answers_as_the_pipeline(client, pipe, file, instruction):
    expected = pipe(file, instruction=instruction)[0]["generated_text"]
    assert ask(client, user(heard(file), said(instruction))) == expected != ""


@pytest.mark.parametrize(
    ("audio", "instruction"),
    [
        (1, "Repeat."),
        (1, "录音"),
        (1, "¿Qué se dice?"),
        (2, "Is it\nthe same?"),
        (1, "Listen: {audio} What?"),
        (1, "Repeat the sentence: {audio}. "),
        (2, "{audio}"),
        (0, "Say it."),
    ],
)
def test_a_prompt_is_assembled_as_in_training_and_in_the_pipeline(pipe, audio, instruction):
    sounds = [encoded(sine(0.4, frequency=300 * number), format="WAV") for number in range(1, audio + 1)]
    chat = instruction_chat(sounds, instruction)
    blocks = [
        heard(block["audio"]) if block["type"] == "audio" else said(block["text"])
        for block in chat[0]["content"]
        if block.get("text") != "\n"
    ]

    def ids(messages):
        return pipe.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"].tolist()

    assert ids(load_chat([user(*blocks)], pipe.processor)) == ids(chat)


@pytest.mark.parametrize("kind", ["WAV", "MP3", "OGG", "FLAC"])
def test_formats_and_forms_of_addresses_are_one_recording(client, kind):
    sound = encoded(sine(0.6), format=kind)
    address = f"data:audio/{kind.lower()};base64,{base64_of(sound)}"
    blocks = [heard(sound, kind.lower()), url(address), {"type": "input_audio", "input_audio": {"data": address}}]
    assert len({ask(client, user(block, said("Repeat the request word for word."))) for block in blocks}) == 1


def test_a_web_address_is_fetched(client, pipe, monkeypatch):
    asked = []

    def fetch(address):
        asked.append(address)
        return Path(ENGLISH).read_bytes()

    monkeypatch.setattr("processing_speechllm.audio_addresses._fetch", fetch)
    answer = ask(client, user(url("https://example.org/en.wav"), said("Name the device.")))
    assert (answer, asked) == (pipe(ENGLISH, instruction="Name the device.")[0]["generated_text"], [asked[0]])


def test_pieces_of_a_stream_make_the_answer(client, http):
    message = user(heard(ENGLISH), said("Repeat the request word for word."))
    pieces = list(
        client.chat.completions.create(
            model=NAME, messages=[message], stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [piece.choices[0].delta.content for piece in pieces]
    assert "".join(filter(None, texts)) == ask(client, message)
    assert len(list(filter(None, texts))) > 3
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert pieces[-1].usage.total_tokens > pieces[-1].usage.prompt_tokens > 0
    raw = http.post("/v1/chat/completions", json={"messages": [message], "stream": True}).text
    assert raw.endswith("data: [DONE]\n\n")


def test_turns_without_audio_and_turns_with_more_of_it(client, pipe):
    first, second = (row["file"] for row in EXAMPLES[:2])
    asked = "\nName the device."
    turns = [
        user(heard(first), said(asked)),
        {"role": "assistant", "content": "radio"},
        user("What place is it about?"),
        {"role": "assistant", "content": "kitchen"},
        user(heard(second), said("\nWhat place is it about?")),
    ]
    for count in (1, 3, 5):
        chat = json.loads(json.dumps(turns[:count]))  # the pipeline's chats join blocks as they stand
        assert ask(client, *turns[:count]) == pipe(chat)[0]["generated_text"][-1]["content"]


def test_two_audios_and_text_alone(client, pipe):
    files = [row["file"] for row in EXAMPLES[:2]]
    together = pipe({"audio": files, "instruction": "Repeat both."})[0]["generated_text"]
    assert ask(client, user(*map(heard, files), said("Repeat both."))) == together
    assert ask(client, user("Say hello.")) == pipe({"instruction": "Say hello."})[0]["generated_text"]


def test_responses_answer_as_chat_completions_do(client):
    blocks = [heard(ENGLISH), {"type": "input_text", "text": "Name the device."}]
    expected = ask(client, user(heard(ENGLISH), said("Name the device.")))
    answer = client.responses.create(model=NAME, input=[user(*blocks)])
    assert (answer.output_text, answer.status) == (expected, "completed")
    events = list(client.responses.create(model=NAME, input=[user(*blocks)], stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected
    assert events[-1].type == "response.completed"
    told = client.responses.create(model=NAME, input="Say hello.", instructions="Be kind.").output_text
    assert told == ask(client, {"role": "system", "content": "Be kind."}, user("Say hello."))


def test_a_transcription_is_the_pipeline_s_without_an_instruction(client, pipe):
    expected = pipe(ENGLISH)[0]["generated_text"]
    with open(ENGLISH, "rb") as file:
        assert client.audio.transcriptions.create(model=NAME, file=file, temperature=0).text == expected
    with open(ENGLISH, "rb") as file:
        assert client.audio.transcriptions.create(model=NAME, file=file, response_format="text") == expected


@pytest.mark.parametrize(
    ("form", "found"),
    [
        ({"language": "en"}, "language is not carried out"),
        ({"stream": "true"}, "stream is not carried out"),
        ({"response_format": "srt"}, "Give json or text"),
        ({"temperature": "warm"}, "Give a number"),
        ({"model": "gpt-9"}, "no model 'gpt-9'"),
    ],
)
def test_a_transcription_that_cannot_be_had_is_refused(http, form, found):
    answer = http.post("/v1/audio/transcriptions", data=form, files={"file": Path(ENGLISH).read_bytes()})
    assert answer.status_code in (400, 404) and found in answer.json()["error"]["message"]


def test_a_transcription_needs_a_recording_and_is_never_cut(http, pipe, monkeypatch):
    answer = http.post("/v1/audio/transcriptions", data={"model": NAME})
    assert answer.status_code == 400 and "has no file" in answer.json()["error"]["message"]
    answer = http.post("/v1/audio/transcriptions", files={"file": ("notes.txt", b"no audio")})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("notes.txt: is a text file")
    monkeypatch.setattr("speechllm.serving.generation.default_new_tokens", lambda *_: 2)
    answer = http.post("/v1/audio/transcriptions", files={"file": Path(ENGLISH).read_bytes()})
    assert answer.status_code == 400 and "longer than one answer (2 tokens)" in answer.json()["error"]["message"]


def test_models_and_health(client, http):
    assert [model.id for model in client.models.list()] == [NAME]
    assert http.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("block", "found"),
    [
        (heard(b"no audio at all, just some text"), "is a text file"),
        (heard(Path(ENGLISH).read_bytes()[:40]), "truncated WAV"),
        ({"type": "input_audio", "input_audio": {"data": "%%%", "format": "wav"}}, "no valid Base64"),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, "has no data"),
        ({"type": "input_audio"}, "no audio under a known key"),
        (url(ENGLISH), "local files are refused"),
        (url(f"file://{ENGLISH}"), "local files are refused"),
        (url("data:audio/wav;base64"), "has no comma"),
        (url("http://127.0.0.1:9/a.wav"), "cannot be downloaded"),
        (url("ftp://example.org/a.wav"), "addresses of ftp:// are not read here. Give an http(s)"),
        (url(" https://example.org/a.wav"), "begins with white space"),
        (url(" data:audio/wav;base64,UklGRg=="), "begins with white space"),
        ({**heard(ENGLISH), "sampling_rate": 8000}, "kind 'input_audio' with sampling_rate, which is not carried out"),
        ({**url("data:,"), "detail": "high"}, "kind 'audio_url' with detail, which is not carried out"),
        ({**said("What?"), "input_audio": {"data": "UklGRg=="}}, "kind 'text' with input_audio, which is not"),
        ({"type": "input_audio", "input_audio": {"data": "UklGRg==", "rate": 8000}}, "Leave out all but data, format"),
        ({"type": "audio_url", "audio_url": {"url": "data:,", "seconds": 3}}, "an audio_url with seconds, which is"),
        ({"type": "audio", "path": ENGLISH}, "content block of kind 'audio'"),
        ({"type": "audio", "tokens": 3}, "content block of kind 'audio'"),
        ({"type": "image_url", "image_url": {"url": "data:,"}}, "content block of kind 'image_url'"),
        ("text alone", "content block of kind 'str'"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_audio_that_cannot_be_used_is_the_client_s_error(http, block, found, stream):
    status, message = refusal(http, {"messages": [user(said("What?"), block)], "stream": stream})
    assert status == 400 and found in message


def test_of_several_audios_the_bad_one_is_named(http):
    status, message = refusal(http, {"messages": [user(heard(ENGLISH), heard(b"\0" * 99), said("What?"))]})
    assert status == 400 and message.startswith("Audio 2 of 2: ")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"logprobs": True}, "logprobs is not carried out"),
        ({"stop": ["\n"]}, "stop is not carried out"),
        ({"n": 2}, "Send the request as often"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is not carried out"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not carried out"),
        ({"response_format": {"type": "json_object"}}, "response_format is not carried out"),
        ({"generation_config": "{}"}, "generation_config is not carried out"),
        ({"max_token": 3}, "Known: chat_template_kwargs, max_completion_tokens, max_tokens"),
        ({"max_output_tokens": 3}, "called max_tokens"),
        ({"max_tokens": 0}, "from 1 up"),
        ({"max_tokens": True}, "from 1 up"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "differ"),
        ({"max_tokens": 5000}, "has 1024 positions"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"temperature": -1}, "from 0 up"),
        ({"top_p": 0}, "above 0"),
        ({"seed": 1.5}, "whole number"),
        ({"stream": "yes"}, "true or false"),
        ({"stream_options": {"include_obfuscation": True}}, "include_usage"),
        ({"stream_options": {"include_usage": "no"}}, "include_usage"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "does not read enable_thinking"),
        ({"messages": "Hello"}, "a list of messages"),
        ({"messages": []}, "The conversation is empty"),
        ({"messages": None}, "has no messages"),
        ({"messages": [{"content": "Hello"}]}, "has no role"),
        ({"messages": [{"role": "tool", "content": None, "tool_call_id": "1"}]}, "Message 0 has tool_call_id"),
        ({"messages": [user("Hello."), {"role": "user", "name": "Ann", "content": "Hi."}]}, "Message 1 has name"),
        ({"messages": [user({"type": "text"})]}, "content block of kind 'text'"),
        ({"messages": [{"role": "wizard", "content": "Hi."}]}, "the role 'wizard'. Give one of system, user"),
        ({"messages": [{"role": "tool", "content": "Hi."}]}, "tools are not called here"),
        ({"messages": [{**user("Hi."), "weight": 0}]}, "Message 0 has weight, which is not carried out here"),
    ],
)
def test_options_are_carried_out_or_refused(http, options, found):
    status, message = refusal(http, {"messages": [user("Say hello.")], **options})
    assert status == 400 and found in message, message


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([5], "Item 0 of the input is 5, which is no message. Give text, or messages alone"),
        ([user("Hi."), "text"], "Item 1 of the input is 'text', which is no message"),
        ([{"type": "reasoning", "summary": []}], "Item 0 of the input is of kind 'reasoning'"),
        ([{"type": "function_call_output", "call_id": "1", "output": "3"}], "of kind 'function_call_output'"),
        ([{"content": "Hi."}], "has no role"),
        ([{**user("Hi."), "name": "Ann"}], "Message 0 has name, which is not carried out here"),
        ([], "The conversation is empty"),
        (5, "input is 5. Give text, or a list of messages"),
    ],
)
def test_an_input_of_the_responses_that_is_none(http, given, found):
    status, message = refusal(http, {"input": given}, "/v1/responses")
    assert status == 400 and found in message, message


def test_an_answer_of_the_responses_is_sent_back_as_it_came(client):
    asked = user(heard(ENGLISH), {"type": "input_text", "text": "Name the device."})
    first = client.responses.create(model=NAME, input=[asked])
    again = client.responses.create(model=NAME, input=[asked, *first.output, user("What place is it about?")])
    said_before = {"role": "assistant", "content": first.output_text}
    chat = [user(heard(ENGLISH), said("Name the device.")), said_before, user("What place is it about?")]
    assert again.output_text == ask(client, *chat)
    told = client.responses.create(model=NAME, input=asked["content"])  # the blocks of one message
    assert told.output_text == first.output_text


def test_a_response_that_is_cut_says_so(client):
    chat = [user(heard(ENGLISH), said("Repeat the request word for word."))]
    whole = client.responses.create(model=NAME, input=chat)
    answer = client.responses.create(model=NAME, input=chat, max_output_tokens=2)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete" and whole.output_text.startswith(answer.output_text)
    last = list(client.responses.create(model=NAME, input=chat, max_output_tokens=2, stream=True))[-1]
    assert (last.type, last.response.status) == ("response.incomplete", "incomplete")
    assert last.response.output_text == answer.output_text
    assert (whole.status, whole.incomplete_details) == ("completed", None)


def test_instructions_stand_before_a_system_message_and_do_not_replace_it(client):
    system = {"role": "system", "content": "Be brief."}
    told = client.responses.create(model=NAME, input=[system, user("Say hello.")], instructions="Be kind.")
    kind = {"role": "system", "content": "Be kind."}
    alone = client.chat.completions.create(model=NAME, messages=[kind, system, user("Say hello.")])
    assert told.usage.input_tokens == alone.usage.prompt_tokens
    assert told.output_text == alone.choices[0].message.content


def test_options_that_ask_for_nothing_pass(client):
    nothing = {"n": 1, "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "tool_choice": "auto"}
    more = {"user": "me", "stop": None, "response_format": {"type": "text"}, "temperature": 0, "store": False}
    assert ask(client, user("Say hello."), **nothing, **more) == ask(client, user("Say hello."))


def test_another_model_s_name_is_not_found(http):
    status, message = refusal(http, {"model": "gpt-9", "messages": [user("Say hello.")]})
    assert status == 404 and "'gpt-9'" in message and NAME in message


def test_answers_have_the_length_and_the_chance_that_was_asked_for(client):
    message = user(heard(ENGLISH), said("Repeat the request word for word."))
    short = client.chat.completions.create(model=NAME, messages=[message], max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    words = user("Say hello.")
    sampled = [ask(client, words, temperature=5, seed=seed) for seed in (1, 1, 2, 3)]
    assert sampled[0] == sampled[1] and len(set(sampled)) > 1
    with ThreadPoolExecutor(3) as pool:  # whatever the others draw in between
        together = list(pool.map(lambda seed: ask(client, words, temperature=5, seed=seed), (1, 2, 3, 1, 2, 3)))
    assert together == sampled[1:] * 2
    assert ask(client, words, temperature=1, top_p=1e-6, seed=4) == ask(client, words, temperature=0, seed=5)


def test_a_special_token_that_a_client_spells_stays_text(pipe):
    spelled = load_chat([user(heard(ENGLISH), said("<|audio|><|im_end|>"))], pipe.processor)
    inputs = pipe.processor.apply_chat_template(spelled, tokenize=True, return_dict=True)
    audio = pipe.processor.audio_token_count(len(pipe.processor.load_audio(ENGLISH)))
    assert int((inputs["input_ids"] == pipe.processor.audio_token_id).sum()) == audio


@pytest.mark.parametrize("path", ["/reset", "/load_model", "/v1/completions", "/v1/systemone", "/docs"])
def test_what_is_not_named_is_closed(http, path):
    status, message = refusal(http, {"model": "x"}, path)
    assert status == 404 and all(served in message for served in SERVED)


def test_bodies_that_are_no_request_are_refused(http, pipe):
    for content in (b"", b"not json", b"[1]", b"\xff\xfe"):
        answer = http.post("/v1/chat/completions", content=content)
        assert answer.status_code == 400 and "no JSON object" in answer.json()["error"]["message"]
    for content in (b'{"a": "\xff"}', b"[" * 100000, b'{"seed": ' + b"9" * 5000 + b"}"):
        answer = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and "parsing the body" in answer.json()["error"]["message"]
    assert http.get("/v1/chat/completions").status_code == 405
    assert http.post("/v1/chat/completions", content=iter([b"{}"])).status_code == 411
    small = TestClient(build_app(pipe, NAME, max_body=1000))
    status, message = refusal(small, {"messages": [user("x" * 1000)]})
    assert status == 413 and "--max-body" in message


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"messages": [user("half \ud800")]}, "half of one"),
        ({"messages": [{"role": "\ud800", "content": "a"}]}, "half of one"),
        ({"messages": [user("a")], "\ud800": 1}, "is not carried out here"),
        ({"messages": [{**user("a"), "\ud800": 1}]}, "is not carried out here"),
        ({"messages": [user("a")], "chat_template_kwargs": {"\ud800": 1}}, "does not read"),
        ({"messages": [user(url("\ud800"))]}, "local files are refused"),
        ({"messages": [user(url("file://[a.wav"))]}, "is no address"),
    ],
)
def test_half_characters_and_broken_addresses_are_the_client_s_error(http, body, found):
    content = json.dumps(body)  # in ASCII; httpx would refuse to write half a character
    answer = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and found in answer.json()["error"]["message"]


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 1e-300, 5e-324])
def test_next_to_no_temperature_is_none(client, temperature):
    message = user(heard(ENGLISH), said("Name the device."))
    assert ask(client, message, temperature=temperature) == ask(client, message, temperature=0)


def test_a_form_with_a_file_in_place_of_a_number(http):
    files = {"file": ("a.wav", Path(ENGLISH).read_bytes()), "temperature": ("b", b"1")}
    answer = http.post("/v1/audio/transcriptions", files=files)
    assert answer.status_code == 400 and "Give a number" in answer.json()["error"]["message"]


def test_a_fault_of_the_server_says_so(http, client, monkeypatch):
    monkeypatch.setattr("speechllm.serving.generation.fitted", lambda *_: {}["nothing"])
    status, message = refusal(http, {"messages": [user("Say hello.")]})
    assert status == 500 and "KeyError" in message


QUESTION = [{"role": "user", "content": [heard(ENGLISH), said("Repeat.")]}]
REQUESTS = {
    "/v1/chat/completions": {"json": {"messages": QUESTION}},
    "/v1/chat/completions streamed": {"json": {"messages": QUESTION, "stream": True}},
    "/v1/responses": {"json": {"input": QUESTION}},
    "/v1/responses streamed": {"json": {"input": QUESTION, "stream": True}},
    "/v1/audio/transcriptions": {"files": {"file": Path(ENGLISH).read_bytes()}},
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_generation_ends_when_its_client_has_left_and_does_not_begin_for_one_who_left_before(monkeypatch, kind):
    pipe = load_pipeline("nano")
    steps, told, leaves, generate = [], [], threading.Event(), pipe.model.generate

    class Watched(HasLeft):
        def __init__(self, left):
            super().__init__(left)
            told.append(left)

    def never_ending(input_ids, scores):
        steps.append(input_ids.shape[1])
        if len(steps) == 3:
            leaves.set()
            assert told[0].wait(60)
        return torch.zeros_like(scores).index_fill_(1, torch.tensor([40]), 1.0)

    monkeypatch.setattr("speechllm.serving.generation.HasLeft", Watched)
    monkeypatch.setattr(pipe.model, "generate", lambda **options: generate(**options, logits_processor=[never_ending]))
    app = build_app(pipe, NAME)
    path = kind.split()[0]
    request = httpx.Request("POST", f"http://server{path}", **REQUESTS[kind])
    content = [{"type": "http.request", "body": request.read(), "more_body": False}]

    async def ask_and_leave():
        body = list(content)

        async def receive():
            if body:
                return body.pop()
            if not leaves.is_set():
                await asyncio.to_thread(leaves.wait)
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        headers = [(name.lower(), value) for name, value in request.headers.raw]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await app(scope, receive, send)

    asyncio.run(ask_and_leave())
    assert len(steps) == 3
    asyncio.run(ask_and_leave())
    assert len(steps) == 3


def test_local_files_can_be_allowed(pipe):
    app = TestClient(build_app(load_pipeline("nano"), NAME, allow_local_files=True))
    body = {"messages": [user(url(ENGLISH), said("Name the device."))]}
    assert app.post("/v1/chat/completions", json=body).status_code == 200


def test_web_addresses_can_be_refused(http, pipe, monkeypatch):
    monkeypatch.setattr("processing_speechllm.audio_addresses._fetch", lambda _: pytest.fail("fetched"))
    closed = TestClient(build_app(pipe, NAME, allow_urls=False))
    status, message = refusal(closed, {"messages": [user(url("https://example.org/en.wav"))]})
    assert status == 400 and "not fetched here" in message
    body = {"messages": [user(url(f"data:;base64,{base64_of(ENGLISH)}"))]}
    assert closed.post("/v1/chat/completions", json=body).status_code == 200


def test_a_server_of_transformers_without_a_method_that_is_overridden_is_refused(pipe, monkeypatch):
    check_hooks()
    for kind, names in HOOKS.items():
        for name in names:
            monkeypatch.setattr("speechllm.serving.handlers.HOOKS", {type(kind.__name__, (), {}): (name,)})
            with pytest.raises(ImportError, match=rf"{kind.__name__}\.{name}.*pip install"):
                build_app(pipe, NAME)


def test_without_the_extra_the_command_names_it(monkeypatch, capsys):
    monkeypatch.setattr(serve.util, "find_spec", lambda name: None if name == "fastapi" else name)
    assert main(["serve"]) == 2
    assert 'fastapi). Run: pip install "speechllm[serve]"' in capsys.readouterr().err


def test_places_and_models_that_are_none(capsys, tmp_path):
    from speechllm.serving.server import open_port

    with open_port("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
    assert f"port {port}" in capsys.readouterr().err
    assert main(["serve", "--host", "nowhere.invalid", "--port", "0"]) == 2
    assert "nowhere.invalid" in capsys.readouterr().err
    assert main(["serve", "--device", "abacus", "--port", "0"]) == 2
    assert "--device abacus cannot be used" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_answers_the_page_s_example_and_several_at_once_after_one_has_left(capsys):
    command = [sys.executable, "-m", "speechllm_cli", "serve", "nano", "--served-model-name", NAME, "--port", "0"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else what runs in the background hands down deafness
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline() == "Loading nano\n"
            ready = server.stdout.readline()
            assert ready.startswith(f"Ready: {NAME} on "), server.stderr.read()
            address = ready.split(" at ")[1].split()[0]
            page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
            example = page.partition("```python\n")[2].partition("```")[0]
            assert "http://127.0.0.1:8000/v1" in example
            exec(example.replace("http://127.0.0.1:8000/v1", address), {})
            assert capsys.readouterr().out == "radio\nkitchen"
            client = openai.OpenAI(base_url=address, api_key="-", max_retries=0)
            message = user(heard(ENGLISH), said("Repeat the request word for word."))
            with client.chat.completions.create(model=NAME, messages=[message], stream=True) as left:
                next(iter(left))
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda _: ask(client, message), range(4)))
            assert answers == [EXAMPLES[0]["text"]] * 4
        finally:
            server.send_signal(2)
            _, errors = server.communicate(timeout=60)
    assert (server.returncode, errors) == (130, "")
