"""Audio in which a reading connector read nothing: the pipeline says so, in the checkpoint's words, and marks it."""

import base64
import json
from types import SimpleNamespace

import pytest
import torch
from factories_processing import CHATML, encoded, make_extractor, make_tokenizer, sine
from fastapi.testclient import TestClient
from transformers import AutoProcessor, GenerationConfig, LlamaConfig, TextStreamer, WhisperConfig

import speechllm_cli.ask
from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechInstructPipeline, SpeechLLMProcessor
from speechllm.evaluation.answering import Answerer
from speechllm.evaluation.recognisers import ConnectorRecogniser
from speechllm.evaluation.systems import transcribe
from speechllm.serving.server import build_app
from speechllm_cli.main import main

NOTHING = "hello there is nothing"
SILENT, SPOKEN = (sine(0.5), 16000), (sine(1.2), 16000)  # told apart by their length


def make_pipe(connector="ctc_compress") -> SpeechInstructPipeline:
    """A pipeline whose connector reads something everywhere in audio of more than 0.7 s, and nothing in shorter."""
    tokenizer = make_tokenizer(CHATML)
    audio = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=80, decoder_layers=1
    )
    llm = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    settings = {"type": connector}
    if connector == "ctc_compress":
        settings |= {"vocabulary": 9, "hidden_size": 16, "heads": 2, "blocks": 1, "ffn_size": 24}
    config = SpeechLLMConfig.from_parts(audio, llm, settings, audio_token_id=len(tokenizer))
    torch.manual_seed(0)
    model = SpeechLLMForConditionalGeneration(config).eval()
    if connector == "ctc_compress":
        reader = model.model.multi_modal_projector
        reader.load_vocabulary(torch.arange(20, 29), model.get_input_embeddings().weight)
        read = reader.read

        def read_long_ones(frames, lengths):
            logits, places = read(frames, lengths)
            logits[..., -1] = torch.where(places < 9, 1e4, -1e4)[:, None]
            return logits, places

        reader.read = read_long_ones
    processor = SpeechLLMProcessor.from_parts(make_extractor(), tokenizer, config)
    return SpeechInstructPipeline(
        model=model, processor=processor, task="speech-instruct", device="cpu", max_new_tokens=6
    )


@pytest.fixture
def pipe():
    pipe = make_pipe()
    pipe.processor.no_speech_answer = NOTHING
    return pipe


def test_without_an_answer_the_llm_is_asked_and_nothing_is_told():
    (answer,) = make_pipe()(SILENT)
    assert set(answer) == {"generated_text"}


def test_silence_has_the_checkpoints_answer_and_speech_the_llms(pipe, monkeypatch):
    (spoken,) = pipe(SPOKEN)
    plain = make_pipe()(SPOKEN)[0]["generated_text"]
    assert spoken == {"generated_text": plain, "no_speech": False} and plain != NOTHING
    monkeypatch.setattr(pipe.model, "generate", None)  # is not asked
    assert pipe(SILENT) == [{"generated_text": NOTHING, "no_speech": True}]
    assert pipe(SILENT, num_return_sequences=2, do_sample=True) == 2 * [{"generated_text": NOTHING, "no_speech": True}]
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "hello"}]}]
    (chat,) = pipe({"messages": messages, "audio": SILENT})
    assert chat["generated_text"][-1] == {"role": "assistant", "content": NOTHING} and chat["no_speech"]


def test_in_a_batch_each_has_its_own(pipe):
    alone = [pipe(each) for each in (SPOKEN, SILENT, SPOKEN)]
    assert pipe([SPOKEN, SILENT, SPOKEN], batch_size=3) == alone
    tokens = pipe([SPOKEN, SILENT], batch_size=2, return_tensors=True)[1][0]["generated_token_ids"]
    assert pipe.tokenizer.decode(tokens, skip_special_tokens=True) == NOTHING


def test_a_call_has_its_own_answer_or_none(pipe):
    assert pipe(SILENT, no_speech_answer="hello") == [{"generated_text": "hello", "no_speech": True}]
    asked = make_pipe()(SILENT)
    assert pipe(SILENT, no_speech_answer=False) == asked
    scores = pipe(SILENT, return_dict_in_generate=True, output_scores=True)[0]
    assert scores["no_speech"] and scores["generated_text"] == asked[0]["generated_text"] and len(scores["scores"]) > 0
    for wrong in (True, "", 3):
        with pytest.raises(ValueError, match="no_speech_answer=.* must be what to answer, in words, or False"):
            pipe(SILENT, no_speech_answer=wrong)


def test_only_a_turn_with_audio_alone_in_silence_is_answered_so(pipe):
    assert not pipe({"audio": [SILENT, SPOKEN], "instruction": "hello"})[0]["no_speech"]
    assert pipe({"audio": [SILENT, SILENT], "instruction": "hello"})[0]["no_speech"]
    assert not pipe({"instruction": "hello"})[0]["no_speech"]
    later = [
        {"role": "user", "content": [{"type": "audio"}]},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "hello world"},
    ]
    assert not pipe({"messages": later, "audio": SILENT})[0]["no_speech"]
    begun = [{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant", "content": "hello"}]
    assert not pipe({"messages": begun, "audio": SILENT})[0]["no_speech"]


def test_audio_is_heard_once_for_whether_there_is_speech_and_for_the_answer(pipe, monkeypatch):
    heard, connector = [], pipe.model.model.multi_modal_projector
    project = connector.project
    monkeypatch.setattr(connector, "project", lambda *inputs: heard.append(len(inputs[0])) or project(*inputs))
    spoken, silent = pipe([SPOKEN, SILENT], batch_size=2, return_confidence=True)
    assert heard == [2] and (spoken[0]["no_speech"], silent[0]["no_speech"]) == (False, True)
    pipe(SPOKEN, num_beams=2)
    assert heard == [2, 1]


def test_it_is_whole_however_few_tokens_the_call_allows(pipe):
    asked = {"max_new_tokens": 1, "return_finish_reason": True, "eos_token_id": 5}
    assert pipe(SILENT, **asked)[0]["finish_reason"] == "stop"
    spoken, silent = pipe([SPOKEN, SILENT], batch_size=2, **asked)
    assert silent[0]["generated_text"] == NOTHING and silent[0]["finish_reason"] == "stop"
    assert len(pipe(SILENT, generation_config=GenerationConfig(num_beams=2, num_return_sequences=2))) == 2


def test_confidence_comes_beside_it(pipe):
    (answer,) = pipe(SILENT, return_confidence=True)
    assert answer["confidence"] == [{"score": 0.0, "understood": None}] and answer["no_speech"]


def test_it_is_streamed_as_any_answer(pipe, capsys):
    streamer = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    pipe(SILENT, streamer=streamer)
    assert capsys.readouterr().out.strip() == NOTHING


def test_other_connectors_always_hear_something():
    pipe = make_pipe("stack_mlp")
    pipe.processor.no_speech_answer = NOTHING
    assert not pipe(SILENT)[0]["no_speech"]


def test_the_answer_is_saved_with_the_processor(pipe, tmp_path):
    pipe.processor.save_pretrained(tmp_path)
    assert SpeechLLMProcessor.from_pretrained(tmp_path).no_speech_answer == NOTHING
    AutoProcessor.register(SpeechLLMConfig, SpeechLLMProcessor, exist_ok=True)


def test_an_evaluation_scores_what_the_pipeline_says(pipe):
    answerer = Answerer(pipe.model, pipe.processor, 6)
    chats = [pipe.processor.instruction_chat([None], "hello")] * 2
    encoded = answerer.encode(chats, [SPOKEN, SILENT])
    spoken, silent = answerer.answer(encoded)
    assert silent.text == NOTHING and silent.finish_reason == "stop" and spoken.text != NOTHING
    labels = answerer.answer(encoded, [["yes", "no"]] * 2)
    assert {reply.text for reply in labels} <= {"yes", "no"}
    text = answerer.encode([[{"role": "user", "content": "hello"}]])
    assert answerer.answer(text)[0].text != NOTHING


def test_the_server_says_what_the_pipeline_says(pipe, monkeypatch):
    server = TestClient(build_app(pipe, "it"))

    def answers(audio):
        data = {"data": base64.b64encode(encoded(audio[0], format="WAV")).decode(), "format": "wav"}
        question = [{"type": "input_audio", "input_audio": data}, {"type": "text", "text": "hello"}]
        chat = {"messages": [{"role": "user", "content": question}], "max_tokens": 6}
        turn = {"input": [{"role": "user", "content": question}], "max_output_tokens": 6}
        (whole,) = server.post("/v1/chat/completions", json=chat).json()["choices"]
        pieces = streamed(server.post("/v1/chat/completions", json={**chat, "stream": True}).text)
        response = server.post("/v1/responses", json=turn).json()
        events = streamed(server.post("/v1/responses", json={**turn, "stream": True}).text)
        ends = {whole["finish_reason"], pieces[-1]["choices"][0]["finish_reason"]}
        return ends, [
            whole["message"]["content"],
            "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces),
            response["output"][0]["content"][0]["text"],
            "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta"),
        ]

    spoken = pipe({"audio": SPOKEN, "instruction": "hello"})[0]["generated_text"]
    assert answers(SPOKEN)[1] == [spoken] * 4 and spoken != NOTHING
    monkeypatch.setattr(pipe.model, "generate", None)  # is not asked
    assert answers(SILENT) == ({"stop"}, [NOTHING] * 4)
    file = {"file": encoded(SILENT[0], format="WAV")}
    assert server.post("/v1/audio/transcriptions", files=file).json() == {"text": NOTHING}


def streamed(text: str) -> list[dict]:
    """What the lines of a stream say."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_an_answer_for_silence_is_whole_however_few_tokens_are_asked_for(pipe):
    assert pipe(SILENT, max_new_tokens=1)[0]["generated_text"] == NOTHING
    server = TestClient(build_app(pipe, "it"))
    data = {"data": base64.b64encode(encoded(SILENT[0], format="WAV")).decode(), "format": "wav"}
    chat = {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": data}]}], "max_tokens": 1}
    (choice,) = server.post("/v1/chat/completions", json=chat).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (NOTHING, "stop")
    last = streamed(server.post("/v1/chat/completions", json={**chat, "stream": True}).text)[-1]
    assert last["choices"][0]["finish_reason"] == "stop" and last["usage"]["completion_tokens"] > 1


def test_ask_says_it(pipe, monkeypatch, capsys, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "a.wav", *SILENT)
    monkeypatch.setattr(speechllm_cli.ask, "load_pipeline", lambda model: pipe)
    assert main(["ask", str(tmp_path / "a.wav"), "hello", "--model", "it"]) == 0
    assert capsys.readouterr().out.strip() == NOTHING
    assert main(["ask", str(tmp_path / "a.wav"), "hello", "--model", "it", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["no_speech"] is True


def test_a_connector_that_reads_is_a_recogniser(pipe):
    recogniser = ConnectorRecogniser(pipe.model, pipe.processor)
    spoken, silent = recogniser.transcribe([SPOKEN[0], SILENT[0]], [None, None])
    inputs = pipe.processor.audio_inputs([SPOKEN[0]])
    features, mask = (torch.from_numpy(inputs[name]) for name in ("input_features", "input_features_mask"))
    best = pipe.model.get_audio_features(features, mask).connector.ctc_logits[0].argmax(-1)
    tokens = [20 + index for index in torch.unique_consecutive(best).tolist()]
    assert spoken == pipe.tokenizer.decode(tokens).strip() != "" and silent == ""
    with pytest.raises(ValueError, match="stack_mlp reads no words of its own in the LLM's tokens"):
        ConnectorRecogniser(make_pipe("stack_mlp").model, pipe.processor)


def test_a_recording_that_several_ask_about_is_recognised_once():
    class Counting:
        sampling_rate = 16000

        def transcribe(self, audio, languages):
            return [f"{len(part)} {language}" for part, language in zip(audio, languages, strict=True)]

    recogniser, items = Counting(), [SimpleNamespace(id=name, language="en") for name in "abc"]
    audio = {"a": [SPOKEN[0]], "b": [SILENT[0], SPOKEN[0].copy()], "c": [SILENT[0]]}
    heard = []
    recogniser.transcribe, once = lambda *of: heard.extend(of[0]) or once(*of), recogniser.transcribe
    assert transcribe(recogniser, items, audio) == {"a": ["19200 en"], "b": ["8000 en", "19200 en"], "c": ["8000 en"]}
    assert len(heard) == 2
