"""The page's logic, without a browser and without a model: recordings, client, conversation, server, handlers."""

import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from factories_processing import encoded, sine
from openai_server import openai_server

import speechllm
from processing_speechllm.audio import load_audio
from speechllm.page import packages
from speechllm.page import run as page_run
from speechllm.page.client import Client
from speechllm.page.conversation import Conversation
from speechllm.page.handlers import Handlers
from speechllm.page.hearing import Heard, language_name
from speechllm.page.layout import START, build, head
from speechllm.page.microphones import Microphones
from speechllm.page.recordings import PageError, check_recording, read_recording
from speechllm.page.samples import load_samples
from speechllm.page.server import serve_command, serving
from speechllm_cli.main import main

EXAMPLES = Path(speechllm.NANO) / "examples"


@pytest.fixture
def server():
    with openai_server() as server:
        yield server


@pytest.fixture
def client(server):
    return Client(server.base_url)


def write(folder, samples, rate=16000, name="a.wav", **kwargs):
    path = folder / name
    path.write_bytes(encoded(samples, rate, **kwargs))
    return str(path)


# recordings


def test_a_recording_of_any_rate_and_channels_is_sent_as_mono_at_16_khz(tmp_path, client, server):
    stereo = np.stack([sine(0.5, 44100), np.zeros(22050, dtype=np.float32)], axis=1)
    recording = read_recording(write(tmp_path, stereo, 44100))
    list(client.answer([{"role": "user", "content": [recording.as_block()]}]))
    block = server.requests[0]["messages"][0]["content"][0]
    sent = load_audio(block["input_audio"])
    assert block["type"] == "input_audio" and block["input_audio"]["format"] == "wav"
    assert len(sent) == 8000 and np.allclose(sent, recording.samples, atol=1 / 2**15)
    assert np.abs(sent).max() == pytest.approx(0.15, abs=0.01)  # the mean of a channel with 0.3 and a silent one
    assert soundfile.info(recording.path).samplerate == 16000


@pytest.mark.parametrize("format", ["FLAC", "OGG", "MP3"])
def test_formats_other_than_wav_are_taken(tmp_path, format):
    assert read_recording(write(tmp_path, sine(0.5), format=format)).seconds == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "samples, finding",
    [
        (np.zeros(16000), "digital silence.* microphone is on"),
        (sine(1.0, amplitude=0.0005), "nothing louder than -66 dB"),
        (sine(0.05), "too short: a.wav lasts 0.05 seconds"),
    ],
)
def test_what_cannot_be_heard_is_refused_with_what_to_do(tmp_path, samples, finding):
    with pytest.raises(PageError, match=finding):
        read_recording(write(tmp_path, samples))


def test_a_quiet_recording_is_taken(tmp_path):
    assert read_recording(write(tmp_path, sine(0.5, amplitude=0.004))).seconds == 0.5


def test_a_file_that_is_no_audio_is_named_without_its_folder(tmp_path):
    path = tmp_path / "letter.docx"
    path.write_text("Dear Sir or Madam")
    with pytest.raises(PageError, match="cannot be used. letter.docx: .*not audio") as error:
        read_recording(path)
    assert str(tmp_path) not in str(error.value)


# client


def test_an_answer_grows_and_ends_with_its_time_and_tokens(client):
    answers = list(client.answer([{"role": "user", "content": [{"type": "text", "text": "What is said?"}]}]))
    assert [answer.text for answer in answers[:3]] == ["1", "1 messages;", "1 messages; What"]
    *growing, last = answers
    assert all(answer.seconds is None for answer in growing)
    assert last.text == "1 messages; What is said?" and last.tokens == 5 and not last.cut
    assert 0 < last.first_word <= last.seconds


def test_white_space_before_an_answer_is_neither_shown_nor_sent_back(client, server):
    server.lead = ["", " ", "\n"]
    conversation = Conversation()
    (first, *_) = [turn.answer.text for turn in conversation.ask(client, "What is said?") if turn.answer.text]
    list(conversation.ask(client, "And now?"))
    assert first == "1" and server.requests[1]["messages"][1]["content"] == "1 messages; What is said?"


def test_a_server_that_refuses_to_count_tokens_is_asked_without_from_then_on(client, server):
    server.usage = "refused"
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]
    for _ in range(2):
        assert list(client.answer(chat))[-1].tokens is None
    assert len(server.requests) == 2 and not any("stream_options" in request for request in server.requests)


def test_requests_are_greedy_and_limited_and_go_to_the_model_that_is_served(client, server):
    list(client.answer([{"role": "user", "content": []}]))
    request = server.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("stub", 0, 256)


def test_an_answer_cut_at_the_limit_says_so(client, server):
    server.cut = True
    conversation = Conversation()
    list(conversation.ask(client, "Talk."))
    assert "cut off at the limit of tokens" in conversation.messages()[-1]["content"]


@pytest.mark.parametrize(
    "refusal, words",
    [
        ((400, {"error": {"message": "The audio is longer than 60 s."}}), "(400). The audio is longer than 60 s."),
        ((422, {"detail": "Unexpected fields"}), "(422). Unexpected fields"),
        ((500, {"error": "out of memory"}), "(500). out of memory"),
    ],
)
def test_what_a_server_says_of_its_refusal_is_shown(client, server, refusal, words):
    server.refusal = refusal
    with pytest.raises(PageError) as error:
        list(client.answer([{"role": "user", "content": []}]))
    assert words in str(error.value)


def test_a_server_that_stops_in_the_middle_is_told(client, server):
    server.breaks = True
    with pytest.raises(PageError, match="stopped in the middle of the answer. .*out of memory"):
        list(client.answer([{"role": "user", "content": []}]))


def test_an_address_where_nobody_answers_is_told():
    with pytest.raises(PageError, match="127.0.0.1:1/v1 cannot be reached"):
        Client("http://127.0.0.1:1/v1")
    with pytest.raises(PageError, match="must begin with http"):
        Client("localhost:8000")


@pytest.mark.parametrize("models, finding", [(["a", "b"], "lists 2 models: a, b.* --model"), ([], "lists no model")])
def test_a_server_of_several_models_wants_one_named(server, models, finding):
    server.models = models
    with pytest.raises(PageError, match=finding):
        Client(server.base_url)
    assert Client(server.base_url, "b").model == "b"


# conversation


def test_turns_with_and_without_a_recording_are_sent_in_order(client, server):
    conversation = Conversation()
    first, second = check_recording(sine(0.5)), check_recording(sine(1.0))
    for instruction, recording in [("Transcribe.", first), ("And in English?", None), ("", second)]:
        list(conversation.ask(client, instruction, recording))
    kinds = [[block["type"] for block in m["content"]] for m in server.requests[-1]["messages"] if m["role"] == "user"]
    assert kinds == [["input_audio", "text"], ["text"], ["input_audio"]]
    assert [message["role"] for message in server.requests[-1]["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert server.requests[-1]["messages"][1]["content"] == "1 messages; 0.5 s at 16000 Hz; Transcribe."


def test_without_memory_a_turn_goes_alone(client, server):
    conversation = Conversation()
    list(conversation.ask(client, "One."))
    list(conversation.ask(client, "Two.", remember=False))
    assert len(server.requests[-1]["messages"]) == 1 and len(conversation.turns) == 2


def test_a_turn_that_fails_or_is_given_up_leaves_nothing(client, server):
    conversation = Conversation()
    server.refusal = (500, {"error": "no"})
    with pytest.raises(PageError):
        list(conversation.ask(client, "One."))
    server.refusal = None
    asking = conversation.ask(client, "Two.")
    next(asking)
    assert conversation.busy
    with pytest.raises(PageError, match="still being made"):
        list(conversation.ask(client, "Three."))
    asking.close()
    assert conversation.turns == [] and not conversation.busy


def test_a_recording_that_fails_behind_another_one_leaves_that_alone(client, server):
    conversation = Conversation()
    list(conversation.ask(client, "Transcribe.", check_recording(sine(0.5))))
    server.refusal = (400, {"error": "too long"})
    with pytest.raises(PageError, match="too long"):
        list(conversation.ask(client, "Transcribe.", check_recording(sine(1.0))))
    assert len(conversation.turns) == 1 and conversation.turns[0].recording.seconds == 0.5 and not conversation.busy


def test_nothing_to_ask_is_told(client):
    with pytest.raises(PageError, match="nothing to ask yet"):
        list(Conversation().ask(client, "  "))


def test_the_chat_shows_recording_question_answer_and_what_it_took(client):
    conversation = Conversation()
    recording = check_recording(sine(0.5))
    asking = conversation.ask(client, "Transcribe.", recording)
    next(asking)
    assert conversation.messages()[-1] == {"role": "assistant", "content": "…"}
    list(asking)
    player, question, answer, took = conversation.messages()
    assert player == {"role": "user", "content": {"path": recording.path}}
    assert question["content"] == "Transcribe." and answer["content"].endswith("Transcribe.")
    assert took["content"].startswith("<small>0.5 s of speech · first word after 0.") and "8 tokens" in took["content"]


# handlers


class Hears:
    """In place of `Hearing`."""

    tells_anything = tells_transcript = True
    tells_language = False

    def hear(self, samples):
        return Heard(f"{len(samples)} samples", None, False)


@pytest.fixture
def handlers(client):
    return Handlers(client, Hears(), load_samples(EXAMPLES), Microphones())


def test_asking_empties_the_recorder_and_streams(handlers, tmp_path):
    conversation = Conversation()
    rows = list(handlers.ask(write(tmp_path, sine(0.5)), "Transcribe.", True, conversation))
    assert {len(row) for row in rows} == {3} and all(row[0] is None for row in rows)
    assert len(rows) > 4 and rows[-1][1] == conversation.messages()


def test_what_was_heard_is_told_once_and_of_turns_with_a_recording(handlers):
    conversation = Conversation()
    nothing = handlers.tell(conversation)
    list(conversation.ask(handlers.client, "Transcribe.", check_recording(sine(0.5))))
    transcript, languages, remark = handlers.tell(conversation)
    assert transcript.value == "8000 samples" and transcript.visible and not languages.visible
    assert "could not make this out" in remark.value and remark.visible
    assert handlers.tell(conversation) == nothing
    list(conversation.ask(handlers.client, "And now?"))
    assert handlers.tell(conversation) == nothing
    handlers.hearing = None
    list(conversation.ask(handlers.client, "Transcribe.", check_recording(sine(0.5))))
    assert handlers.tell(conversation) == nothing


def test_a_bad_recording_stays_and_the_problem_is_shown_as_text(handlers, tmp_path):
    path = tmp_path / "<b>.wav"
    path.write_text("no audio")
    (row,) = handlers.ask(str(path), "Transcribe.", True, Conversation())
    assert row[0] is not None and row[2].visible  # a skip: the recorder keeps what it has
    assert "&lt;b&gt;.wav" in row[2].value and "<b>" not in row[2].value


def test_a_recording_that_the_server_does_not_take_comes_back(handlers, server, tmp_path):
    server.refusal = (500, {"error": "out of memory"})
    path = write(tmp_path, sine(0.5))
    begun, ended = handlers.ask(path, "Transcribe.", True, Conversation())
    assert begun[0] is None and ended[0] == path and "out of memory" in ended[2].value


def test_a_problem_goes_with_the_next_question(handlers):
    rows = list(handlers.ask(None, "Hello?", True, Conversation()))
    assert not rows[-1][2].visible


def test_a_packaged_recording_brings_its_instructions(handlers):
    path, instruction, ideas = handlers.pick(0)
    assert path == str(EXAMPLES / "en.wav") and instruction == "Repeat the request word for word."
    assert len(ideas.samples) == 4
    assert handlers.samples[0].label == "English: “turn off the radio in the kitchen”"


def test_a_new_conversation_forgets_the_last(handlers):
    recording, conversation, chat, problem, transcript, *_ = handlers.new()
    assert (recording, conversation.turns, chat, problem.visible) == (None, [], [], False) and not transcript.value


@pytest.mark.parametrize("hearing", [None, Hears()])
def test_the_page_builds_with_and_without_what_was_heard(client, hearing):
    page = build(Handlers(client, hearing, load_samples(EXAMPLES), Microphones()), "stub")
    parts = {part["props"].get("elem_id"): part["props"] for part in page.get_config_file()["components"]}
    assert parts["transcript"]["visible"] == (hearing is not None) and not parts["languages"]["visible"]
    assert len(parts["examples"]["samples"]) == 6 and parts["listen"]["value"] == START
    assert START in head() and "MILLISECONDS" not in head()


@pytest.mark.parametrize("code, name", [("en", "English"), ("pt-BR", "Portuguese"), ("xx", "xx"), ("noise", "noise")])
def test_languages_are_called_by_their_names(code, name):
    assert language_name(code) == name


# the server that the page starts

HOLDS_A_PORT = """
import http.server, sys
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.mark.slow
def test_the_server_ends_with_the_block(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text("{}")
    script = f"import os; os.chdir({str(tmp_path)!r})" + HOLDS_A_PORT
    with serving("model", lambda model, port: [sys.executable, "-c", script, str(port)]) as (base_url, process):
        assert base_url.startswith("http://127.0.0.1:") and process.poll() is None
    assert process.poll() is not None


@pytest.mark.slow
def test_a_server_that_ends_before_it_answers_is_told():
    with pytest.raises(PageError, match="ended with status 3 before it answered"):
        with serving("model", lambda model, port: [sys.executable, "-c", "raise SystemExit(3)"]):
            pass


def test_the_server_is_the_one_that_people_can_start_themselves():
    assert serve_command("folder", 8001)[1:] == ["-m", "speechllm_cli", "serve", "folder", "--port", "8001"]
    assert serve_command(None, 8001)[1:] == ["-m", "speechllm_cli", "serve", "--port", "8001"]


# the command


@pytest.mark.parametrize(
    "options, finding",
    [
        (["--port", "7861"], "--port is for the page. Add --web."),
        (["--web", "--key-variable", "KEY"], "Add --base-url"),
        (["--web", "--base-url", "http://127.0.0.1:1/v1", "--key-variable", "NO_SUCH"], "NO_SUCH is empty"),
        (["--web", "--base-url", "http://127.0.0.1:1/v1"], "cannot be reached"),
    ],
)
def test_demo_says_what_is_wrong_with_its_options(options, finding, capsys):
    assert main(["demo", *options]) == 2
    assert finding in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r'the page needs gradio.*pip install "speechllm\[demo\]"'):
        packages.need_packages()


def test_a_place_where_the_page_cannot_be_is_told_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(page_run, "serving", None)  # must not be called
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PageError, match=f"port {port} is taken"):
            page_run.run_page(page_run.PageSettings(port=port))
        monkeypatch.setattr(page_run, "free_port", lambda: port)
        with pytest.raises(PageError, match=f"port {port} is taken"):
            page_run.run_page(page_run.PageSettings(port=0))
    with pytest.raises(
        PageError, match="cannot listen at 192.0.2.7, port 18755: .* address of this machine as --host"
    ):
        page_run.run_page(page_run.PageSettings(host="192.0.2.7", port=18755))
