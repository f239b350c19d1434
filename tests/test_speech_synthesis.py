"""Speech synthesis: who can speak, what is said, and what goes wrong. espeak-ng itself; stand-ins for the others."""

import json
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from factories_benchmarks import Tones
from factories_processing import encoded, sine

from speechllm.speech_synthesis import SAMPLING_RATE, SynthesisError, Voice, choose_voices, load_synthesizer
from speechllm.speech_synthesis.endpoint import EndpointSynthesizer
from speechllm.speech_synthesis.espeak import EspeakSynthesizer, speak
from speechllm.speech_synthesis.voices import parse_voice
from trainers.targets.endpoints import BackendError

QUESTION = "Where does the river rise?"


@pytest.fixture(scope="module")
def espeak():
    return EspeakSynthesizer(concurrency=2)


def pitch(samples: np.ndarray) -> float:
    """Median fundamental frequency of the voiced frames, in Hz, by autocorrelation."""
    found = []
    for start in range(0, len(samples) - 640, 320):
        frame = samples[start : start + 640] - samples[start : start + 640].mean()
        correlation = np.correlate(frame, frame, "full")[639:]
        lag = 40 + int(np.argmax(correlation[40:250]))
        if frame.std() > 0.02 and correlation[lag] > 0.5 * correlation[0]:
            found.append(SAMPLING_RATE / lag)
    return float(np.median(found))


def test_five_female_and_five_male_voices_are_chosen_in_every_language_of_lad(espeak):
    for language in ("en", "vi", "es", "de", "zh"):
        voices = choose_voices(espeak, language)
        assert [voice.gender for voice in voices] == ["female"] * 5 + ["male"] * 5
        assert len({voice.name for voice in voices}) == 10


def test_espeak_says_the_same_every_time_and_every_voice_says_it_otherwise(espeak):
    said = {voice.name: espeak.speak(QUESTION, voice.name) for voice in choose_voices(espeak, "en")}
    other = EspeakSynthesizer(concurrency=1)
    for name, samples in said.items():
        assert samples.dtype == np.float32 and samples.ndim == 1
        assert 1 < len(samples) / SAMPLING_RATE < 5 and 0.02 < samples.std() < 0.5
        np.testing.assert_array_equal(samples, other.speak(QUESTION, name))
    assert len({samples.tobytes() for samples in said.values()}) == len(said)


def test_female_voices_are_higher_than_male_ones(espeak):
    heights = {"female": [], "male": []}
    for voice in choose_voices(espeak, "en"):
        heights[voice.gender].append(pitch(espeak.speak(QUESTION, voice.name)))
    assert min(heights["female"]) > max(heights["male"])


def test_a_voice_that_fails_costs_one_text(espeak):
    for voice in ("quenya-us+f2", "en-us+f99"):  # the library itself takes an unknown variant for none
        with pytest.raises(SynthesisError, match="no such voice"):
            espeak.speak(QUESTION, voice)
    with pytest.raises(SynthesisError, match="nothing to say"):
        espeak.speak(" ", "en-us+f2")
    assert len(espeak.speak(QUESTION, "en-us+f2"))


def test_rate_makes_it_shorter():
    assert len(speak(QUESTION, "en-us+f2", rate=250)) < 0.8 * len(speak(QUESTION, "en-us+f2", rate=150))


def test_languages_by_the_codes_that_data_use(espeak):
    first = {code: espeak.voices(code)[0].name.partition("+")[0] for code in ("en", "en-GB", "zh-CN", "sv-SE", "no")}
    assert first == {"en": "en-us", "en-GB": "en-gb-x-rp", "zh-CN": "cmn", "sv-SE": "sv", "no": "nb"}
    with pytest.raises(ValueError, match="no voice for the language 'xx'"):
        espeak.voices("xx")


def test_too_few_voices_are_an_error_that_says_what_there_is():
    with pytest.raises(
        ValueError, match="tones 1 has 3 female and 3 male here for en: en-female0 .*voices_per_gender"
    ):
        choose_voices(Tones(), "en", per_gender=5)
    assert len(choose_voices(Tones(), "en", per_gender=3)) == 6
    with pytest.raises(ValueError, match="from 1"):
        choose_voices(Tones(), "en", per_gender=0)


def test_named_voices_keep_the_engines_word_on_their_gender():
    named = [parse_voice("en-male1"), parse_voice("en-female0:m")]
    assert choose_voices(Tones(), "en", named=named) == [Voice("en-male1", "male"), Voice("en-female0", "male")]
    with pytest.raises(ValueError, match="no voice 'nova' for en. It has en-female0"):
        choose_voices(Tones(), "en", named=[Voice("nova")])
    with pytest.raises(ValueError, match="name:f or name:m"):
        parse_voice("nova:x")


def test_an_unknown_engine_names_the_known_ones():
    with pytest.raises(ValueError, match="'festival'.*espeak, hibari, or the address"):
        load_synthesizer("festival")


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(ImportError, match="pip install hibari-tts"):
        load_synthesizer("hibari")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install espeakng-loader"):
        load_synthesizer("espeak")


def test_hibari_offers_the_voices_that_lie_here_and_fetches_none(monkeypatch):
    hibari, registry = types.ModuleType("hibari"), types.ModuleType("hibari.voices")
    registry.VOICES = {"heart": {"gender": "female"}, "fable": {"gender": "male"}}

    def voice_path(name, download_missing=True):
        assert not download_missing
        if name != "heart":
            raise FileNotFoundError(name)
        return name

    registry.voice_path = voice_path
    hibari.voices = registry
    hibari.Hibari = lambda voice: lambda text, seed: sine(0.5, rate=24_000) if text else np.zeros(0, np.float32)
    monkeypatch.setitem(sys.modules, "hibari", hibari)
    monkeypatch.setitem(sys.modules, "hibari.voices", registry)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9")
    synthesizer = load_synthesizer("hibari")
    assert synthesizer.voices("en-US") == [Voice("heart", "female")]
    assert len(synthesizer.speak("Hello.", "heart")) == pytest.approx(SAMPLING_RATE / 2, abs=2)
    with pytest.raises(ValueError, match="does not lie on this machine"):
        synthesizer.speak("Hello.", "fable")
    with pytest.raises(ValueError, match="speaks English, not de"):
        synthesizer.voices("de")
    with pytest.raises(SynthesisError, match="nothing to say"):
        synthesizer.speak("", "heart")


class Handler(BaseHTTPRequestHandler):
    """Answers with what stands first in the server's list: a status, or the bytes of a file."""

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body))
        answer = self.server.answers.pop(0)
        content = answer if isinstance(answer, bytes) else b"no"
        self.send_response(200 if isinstance(answer, bytes) else answer)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.answers = [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def endpoint(server, **changes):
    settings = {"retries": 2, "first_pause": 0.01, "timeout": 5.0} | changes
    return EndpointSynthesizer(server.url, "tts-1", [Voice("nova", "female")], **settings)


def test_an_endpoint_is_asked_as_openai_is_and_its_audio_resampled(server):
    server.answers = [503, encoded(sine(0.5, rate=24_000), rate=24_000)]
    samples = endpoint(server).speak("Hello.", "nova")
    assert len(samples) == pytest.approx(SAMPLING_RATE / 2, abs=2) and samples.dtype == np.float32
    body = {"model": "tts-1", "input": "Hello.", "voice": "nova", "response_format": "wav"}
    assert server.requests == [("/v1/audio/speech", body)] * 2  # once more after 503


def test_an_endpoint_that_takes_no_such_text_costs_one_text(server):
    server.answers = [400]
    with pytest.raises(SynthesisError, match="does not say 'Hello.'.*HTTP 400"):
        endpoint(server).speak("Hello.", "nova")


def test_an_endpoint_that_stays_away_or_talks_nonsense_ends_the_run(server):
    server.answers = [b"this is no audio"] * 3
    with pytest.raises(BackendError, match="failed 3 times, at last with AudioError"):
        endpoint(server).speak("Hello.", "nova")
    server.answers = [401]
    with pytest.raises(BackendError, match="HTTP 401.*Check base_url, model and the key"):
        endpoint(server).speak("Hello.", "nova")


def test_an_endpoint_needs_model_voices_and_key(monkeypatch):
    monkeypatch.delenv("KEY", raising=False)
    with pytest.raises(ValueError, match="speech_model.*voices"):
        load_synthesizer("http://localhost:1/v1", "tts-1")
    with pytest.raises(ValueError, match="KEY is not set"):
        load_synthesizer("http://localhost:1/v1", "tts-1", "KEY", [Voice("nova")])
