"""Live turns, and what the page tells of them: voice activity, microphones' streams, the ears of a checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
from conftest import text_config, tiny_speechllm
from factories_processing import make_tokenizer, sine
from fastapi import FastAPI
from fastapi.testclient import TestClient
from openai_server import openai_server
from transformers import WhisperFeatureExtractor

import speechllm
from benchmarks.live_latency import end_of_speech
from processing_speechllm import SpeechLLMProcessor
from processing_speechllm.audio import load_audio
from speechllm.page.client import Client
from speechllm.page.conversation import Conversation
from speechllm.page.handlers import Handlers, heard_updates
from speechllm.page.hearing import Hearing
from speechllm.page.live import FRAME, LEAST_SPEECH, LONGEST, PAD, Listener
from speechllm.page.microphones import Microphones, add_route

EXAMPLES = Path(speechllm.NANO) / "examples"
RATE = 16000


class LoudIsSpeech:
    """In place of Silero's VAD: a frame with sound is speech."""

    def __init__(self):
        self.frames = 0

    def reset_states(self):
        self.frames = 0

    def __call__(self, frame, rate):
        assert len(frame) == FRAME and rate == RATE
        self.frames += 1
        return torch.tensor(float(frame.abs().max() > 0.01))


def silence(seconds):
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def listener(pause=0.5):
    return Listener(pause, LoudIsSpeech())


def hear_all(listener, samples, rate=RATE, piece=0.1):
    """The turns of a stream that comes in pieces of so many seconds."""
    size = round(piece * rate)
    return [turn for i in range(0, len(samples), size) for turn in listener.hear(rate, samples[i : i + size])]


# turns


@pytest.mark.parametrize("piece", [0.01, 0.1, 0.37, 10.0])
def test_a_turn_is_the_speech_with_its_margins_whatever_the_pieces(piece):
    speech = sine(1.0)
    turns = hear_all(listener(), np.concatenate([silence(1.0), speech, silence(1.0)]), piece=piece)
    (turn,) = turns
    assert len(turn) == pytest.approx((1.0 + 2 * PAD) * RATE, abs=2 * FRAME)
    start = int(np.argmax(np.abs(turn) > 0.01))
    kept = turn[start - 1 : start - 1 + len(speech)]
    assert np.allclose(kept, speech[: len(kept)], atol=1e-6) and len(kept) >= len(speech) - 1


def test_a_shorter_pause_does_not_end_a_turn():
    stream = np.concatenate([silence(0.5), sine(0.5), silence(0.4), sine(0.5), silence(1.0)])
    assert len(hear_all(listener(0.6), stream)) == 1
    assert len(hear_all(listener(0.3), stream)) == 2


def test_a_turn_is_over_as_soon_as_the_pause_is():
    ears = listener(0.5)
    assert hear_all(ears, np.concatenate([silence(0.5), sine(1.0), silence(0.4)])) == [] and ears.speaking
    assert len(hear_all(ears, silence(0.2))) == 1 and not ears.speaking


def test_speech_from_the_first_sample_is_whole():
    (turn,) = hear_all(listener(), np.concatenate([sine(1.0), silence(1.0)]))
    assert np.abs(turn[: RATE // 10]).max() > 0.2


@pytest.mark.parametrize("before", [0.0, 0.5])
def test_a_knock_is_no_turn_and_is_counted_but_a_short_word_is_one(before):
    ears = listener()
    assert hear_all(ears, np.concatenate([silence(before), sine(LEAST_SPEECH / 4), silence(1.0)])) == []
    assert ears.too_short == 1
    assert len(hear_all(listener(), np.concatenate([silence(before), sine(LEAST_SPEECH + 0.1), silence(1.0)]))) == 1


@pytest.mark.parametrize("more", [0.1, 5])
def test_a_speech_without_pauses_is_cut_into_turns_that_hold_all_of_it(more):
    stream = np.concatenate([sine(LONGEST + more), silence(1.0)])
    first, second = hear_all(listener(), stream)
    assert len(first) == pytest.approx(LONGEST * RATE, abs=2 * FRAME)
    together = np.concatenate([first, second])
    assert np.array_equal(together, stream[: len(together)]) and len(together) >= (LONGEST + more) * RATE


@pytest.mark.parametrize(("speech", "pause"), [(28.5, 2.0), (29.0, 2.0), (29.3, 1.0), (29.6, 0.5)])
def test_a_pause_that_begins_before_the_cut_is_no_turn(speech, pause):
    ears = listener(pause)
    (turn,) = hear_all(ears, np.concatenate([sine(speech), silence(4.0)]))
    assert len(turn) == pytest.approx(LONGEST * RATE, abs=2 * FRAME) and ears.too_short == 0
    assert len(hear_all(ears, np.concatenate([sine(1.0), silence(3.0)]))) == 1  # the next one is heard


def test_switching_off_ends_the_turn_that_is_going_on():
    ears = listener()
    assert hear_all(ears, np.concatenate([silence(0.3), sine(1.0)])) == []
    (turn,) = ears.finish()
    assert len(turn) >= 0.9 * RATE and not ears.speaking and ears.finish() == []


def test_a_stream_at_another_rate_gives_turns_at_16_khz():
    stream = np.concatenate([np.zeros(24000), sine(1.0, 48000), np.zeros(48000)]).astype(np.float32)
    (turn,) = hear_all(listener(), stream, 48000)
    assert len(turn) == pytest.approx((1.0 + 2 * PAD) * RATE, abs=3 * FRAME)
    spectrum = np.abs(np.fft.rfft(turn))
    assert np.argmax(spectrum) * RATE / len(turn) == pytest.approx(440, abs=2)


def test_silero_finds_the_packaged_recordings_in_a_stream():
    recordings = [load_audio(str(EXAMPLES / name)) for name in ("en.wav", "de.wav")]
    stream = np.concatenate([part for recording in recordings for part in (silence(0.5), recording, silence(0.8))])
    turns = hear_all(Listener(0.5), soxr.resample(stream, RATE, 48000), 48000)
    assert len(turns) == 2
    for turn, recording in zip(turns, recordings, strict=True):
        assert len(turn) == pytest.approx(len(recording), abs=0.5 * RATE)


def test_the_benchmark_of_live_turns_knows_where_speech_ends():
    recording = np.concatenate([np.zeros(24000), sine(1.0, 48000), 0.001 * sine(0.5, 48000)])
    assert end_of_speech(recording) == pytest.approx(1.5, abs=0.021)


# microphones


def post(client, samples, end=False, stream="one", rate=RATE, pause=0.5):
    options = {"rate": rate, "pause": pause, "end": end}
    return client.post(f"/live/{stream}", params=options, content=samples.astype("<f4").tobytes())


@pytest.fixture
def microphones():
    return Microphones(lambda pause: listener(pause))


@pytest.fixture
def web(microphones):
    app = FastAPI()
    add_route(app, microphones)
    return TestClient(app)


def test_pieces_come_in_and_a_turn_is_handed_out_once(web, microphones):
    assert post(web, silence(0.5)).json() == {"speaking": False, "turns": [], "short": False, "ended": False}
    assert post(web, sine(1.0)).json()["speaking"]
    (name,) = post(web, silence(1.0)).json()["turns"]
    (recording,) = microphones.take(f"gone {name}")
    assert recording.seconds == pytest.approx(1.0 + 2 * PAD, abs=0.1)
    assert microphones.take(name) == []


def test_the_last_piece_ends_the_turn_and_the_stream(web, microphones):
    post(web, sine(1.0))
    reply = post(web, silence(0), end=True).json()
    assert len(reply["turns"]) == 1 and reply["ended"] and not reply["speaking"]
    assert len(microphones.take(" ".join(reply["turns"]))) == 1
    assert microphones._open == {}


def test_streams_of_several_people_do_not_mix(web):
    post(web, sine(1.0), stream="one")
    assert not post(web, silence(1.0), stream="two").json()["turns"]
    assert post(web, silence(1.0), stream="one").json()["turns"]


def test_a_sound_too_short_for_a_turn_is_told_once(web):
    post(web, sine(0.05))
    assert [post(web, silence(0.5)).json()["short"] for _ in range(3)].count(True) == 1


@pytest.mark.parametrize(
    "options, finding",
    [
        ({"rate": 1}, "the rate is 1 Hz"),
        ({"pause": 0}, "the pause is 0 s"),
        ({"samples": np.array([np.nan])}, "no numbers"),
    ],
)
def test_pieces_that_cannot_be_are_refused(web, options, finding):
    reply = post(web, options.pop("samples", silence(0.1)), **options)
    assert reply.status_code == 400 and finding in reply.json()["detail"]


def test_microphones_that_went_away_are_forgotten(web, microphones, monkeypatch):
    post(web, silence(0.1), stream="gone")
    monkeypatch.setattr("speechllm.page.microphones.IDLE", -1.0)
    post(web, silence(0.1), stream="here")
    assert list(microphones._open) == ["here"]


def test_what_is_closed_hears_nothing_more(web, microphones):
    microphones.close()
    assert post(web, sine(0.5)).status_code == 400
    hearing = Hearing(speechllm.NANO)
    hearing.close()
    assert hearing.hear(sine(0.5)).transcript is None and hearing._loaded is None


def test_live_turns_are_asked_about_in_order(web, microphones):
    with openai_server() as server:
        handlers = Handlers(Client(server.base_url), None, [], microphones)
        names = [*post(web, np.concatenate([sine(1.0), silence(0.7), sine(2.0), silence(0.7)])).json()["turns"]]
        conversation = Conversation()
        rows = list(handlers.ask_spoken(" ".join(names), "Transcribe.", True, conversation))
        seconds = [turn.recording.seconds for turn in conversation.turns]
        assert len(names) == 2 and seconds[0] < seconds[1] and {len(row) for row in rows} == {3}
        assert len(server.requests) == 2
        assert list(handlers.ask_spoken(" ".join(names), "Transcribe.", True, conversation)) == []


def test_a_live_turn_that_the_server_does_not_take_is_kept_as_a_recording(web, microphones):
    with openai_server() as server:
        handlers = Handlers(Client(server.base_url), None, [], microphones)
        (name,) = post(web, np.concatenate([sine(1.0), silence(0.7)])).json()["turns"]
        server.refusal = (500, {"error": "out of memory"})
        path, chat, problem = list(handlers.ask_spoken(name, "Transcribe.", True, Conversation()))[-1]
        assert len(load_audio(path)) > RATE and chat == []
        assert "out of memory" in problem.value and "is kept under" in problem.value


# what was heard


def save_tiny(folder, connector):
    tokenizer = make_tokenizer()
    text = text_config(vocab_size=len(tokenizer))
    model = tiny_speechllm(text=text, audio_token_id=len(tokenizer), connector=connector)
    processor = SpeechLLMProcessor.from_parts(WhisperFeatureExtractor(feature_size=8), tokenizer, model.config)
    if connector["type"] == "ctc_compress":
        embeddings = model.get_input_embeddings().weight
        model.model.multi_modal_projector.load_vocabulary(torch.arange(40, 45), embeddings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def test_the_embedded_encoder_tells_its_transcript_and_whether_it_understood():
    hearing = Hearing(speechllm.NANO)
    heard = hearing.hear(load_audio(str(EXAMPLES / "en.wav")))
    assert heard.transcript == "turn off the radio in the kitchen" and heard.understood and heard.languages is None
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.1
    assert hearing.hear(noise).understood is False
    model = hearing._load()[0]
    assert not any("language_model.layers" in name for name, _ in model.named_parameters())


def test_the_language_posterior_is_the_pipelines(tmp_path):
    connector = {"type": "whisper_qformer", "queries": 4, "decoder_layers": 1, "heads": 2, "ffn_size": 16}
    model, processor = save_tiny(tmp_path, {**connector, "languages": ["en", "zh"], "gate": "conv", "gate_size": 8})
    hearing = Hearing(str(tmp_path))
    heard = hearing.hear(sine(0.5))
    pipe = speechllm.SpeechInstructPipeline(model, processor=processor)
    (there,) = pipe((sine(0.5), RATE), return_language=True, max_new_tokens=1)[0]["language"]
    assert heard.languages == pytest.approx({"English": there["scores"]["en"], "Chinese": there["scores"]["zh"]})
    assert heard.transcript is None and heard.understood is None
    transcript, languages, remark = heard_updates(heard, hearing)
    assert not transcript.visible and languages.visible and not remark.visible


def test_a_reading_connector_tells_what_it_read(tmp_path):
    connector = {"type": "ctc_compress", "vocabulary": 5, "hidden_size": 16, "heads": 2, "blocks": 1, "ffn_size": 24}
    model, processor = save_tiny(tmp_path, connector)
    inputs = processor.audio_inputs([sine(0.5)])
    features, mask = (torch.from_numpy(inputs[name]) for name in ("input_features", "input_features_mask"))
    with torch.inference_mode():
        output = model.model.get_ctc_logits(features, mask)
    best = output.logits[0, : int(output.lengths[0])].argmax(-1)
    tokens = [token for token in torch.unique_consecutive(best).tolist() if token != model.model.ctc_blank]
    heard = Hearing(str(tmp_path)).hear(sine(0.5))
    assert tokens and heard.transcript == processor.tokenizer.decode(tokens).strip()


def test_a_checkpoint_that_tells_nothing_is_not_loaded(tmp_path):
    save_tiny(tmp_path, {"type": "stack_mlp", "stride": 4})
    (tmp_path / "model.safetensors").unlink()
    hearing = Hearing(str(tmp_path))
    assert not hearing.tells_anything and hearing.hear(sine(0.5)).transcript is None
