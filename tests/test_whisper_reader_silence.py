"""What the connector that reads with Whisper's decoder leaves out: windows without speech, what decoding repeats."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import random_audio
from test_whisper_reader import (
    END,
    NO_TIMES,
    PROMPT,
    TIMES,
    clips,
    joined,
    loss_of,
    parents,  # noqa: F401  a fixture
    reader,
    tiny_whisper,
    with_processor,
)

from benchmarks.small import silence
from benchmarks.small.reader import put_reader, shared_tokens
from modeling_speechllm import SpeechLLMForConditionalGeneration, whisper_reader
from modeling_speechllm.configuration_connectors import connector_config
from modeling_speechllm.whisper_reader import said

NO_SPEECH, NOTES = NO_TIMES - 1, [3, 8]
LENGTHS = [40, 3, 17, 31, 24, 9, 38, 40, 12, 29]
CLOSE = {"rtol": 0, "atol": 2e-5}


@torch.no_grad()
def listening(threshold, **changes):
    """A reader whose signs of no speech differ from audio to audio, and the Whisper that its decoder is of."""
    connector, whisper = reader(
        2, no_speech=NO_SPEECH, suppress_tokens=NOTES, no_speech_threshold=threshold, **changes
    )
    for token in (NO_SPEECH, *NOTES):
        whisper.model.decoder.embed_tokens.weight[token] *= 3
    whisper.tie_weights()
    connector.load_decoder(whisper.model.decoder)
    return connector, whisper


@torch.no_grad()
def probability(whisper, frames):
    """Of no speech in one window (1, frames, size), by transformers' decoder."""
    hidden = whisper.model.decoder(input_ids=torch.tensor([PROMPT]), encoder_hidden_states=frames).last_hidden_state
    start, _, _, first = whisper.proj_out(hidden[0]).softmax(-1)
    nothing, note = float(start[NO_SPEECH]), float(sum(first[token] for token in NOTES))
    return nothing * note / (nothing * note + (1 - nothing) * (1 - note))


@torch.no_grad()
def test_nothing_is_read_where_whisper_hears_no_speech():
    _, whisper = listening(None)
    frames, lengths = clips(LENGTHS)
    found = [probability(whisper, frames[row : row + 1, :length]) for row, length in enumerate(LENGTHS)]
    middle = sum(sorted(found)[4:6]) / 2
    silent = [one > middle for one in found]
    assert min(abs(one / middle - 1) for one in found) > 0.01 and sum(silent) == 5
    everything, chosen = listening(None)[0](frames, lengths), listening(middle)[0](frames, lengths)
    assert chosen.lengths.tolist() == everything.lengths.tolist()  # of the placeholders
    assert everything.used[torch.tensor(silent)].any()
    for row, nothing in enumerate(silent):
        alone = listening(middle)[0](frames[row : row + 1, : LENGTHS[row]], lengths[row : row + 1])
        expected = torch.zeros_like(everything.used[row]) if nothing else everything.used[row]
        assert torch.equal(chosen.used[row], expected) and torch.equal(alone.used[0], expected[: alone.used.shape[1]])
        used = alone.used[0]
        torch.testing.assert_close(alone.embeddings[0][used], chosen.embeddings[row][: len(used)][used], **CLOSE)


@torch.no_grad()
def test_each_window_is_judged_for_itself():
    _, whisper = listening(None)
    frames, lengths = clips([120])
    found = [probability(whisper, frames[:, first : first + 40]) for first in (0, 40, 80)]
    order = sorted(range(3), key=found.__getitem__)
    middle = (found[order[1]] + found[order[2]]) / 2
    everything, chosen = listening(None)[0](frames, lengths), listening(middle)[0](frames, lengths)
    for window in range(3):
        places = slice(window * 10, window * 10 + 10)
        assert everything.used[0, places].any()
        expected = torch.zeros(10, dtype=torch.bool) if window == order[2] else everything.used[0, places]
        assert torch.equal(chosen.used[0, places], expected)


@torch.no_grad()
@pytest.mark.parametrize(
    "off", [{"no_speech_threshold": None}, {"no_speech_threshold": 0}, {"no_speech": None}, {"suppress_tokens": []}]
)
def test_it_can_be_off(off):
    frames, lengths = clips(LENGTHS)
    settings = {"no_speech": NO_SPEECH, "suppress_tokens": NOTES, "no_speech_threshold": 1e-15}
    assert not reader(2, **settings)[0](frames, lengths).used.any()
    output = reader(2, **settings | off)[0](frames, lengths)
    assert torch.equal(output.used, reader(2, no_speech_threshold=None)[0](frames, lengths).used)
    assert output.used.any()


def test_a_batch_with_and_without_speech_can_be_learned_from():
    frames, lengths = clips([40, 1, 24])
    for threshold in (0.5, 1e-15):
        connector, _ = listening(threshold)
        loss_of(connector, frames, lengths).backward()
        assert all(torch.isfinite(parameter.grad).all() for parameter in connector.parameters())
    assert not any(parameter.grad.any() for parameter in connector.parameters())


# --- Tokens ---


@pytest.fixture
def noted(parents):  # noqa: F811
    """The parents, of which Whisper has tokens that it does not write."""
    whisper = tiny_whisper()
    whisper.generation_config.suppress_tokens = [*NOTES, END + 1, TIMES]
    whisper.save_pretrained(parents[0])
    return parents


@torch.no_grad()
def test_whispers_own_tokens_are_taken_and_what_it_never_writes_is_not_read(noted, tmp_path):
    model = joined(noted)
    config, connector = model.config.connector, model.model.multi_modal_projector
    assert (config["no_speech"], config["suppress_tokens"]) == (NO_SPEECH, NOTES)
    assert connector.table.token_ids.tolist() == [token for token in range(END) if token not in NOTES]
    features, mask = random_audio(model, [80, 34])
    expected = model.get_audio_features(features, mask).connector
    model.save_pretrained(tmp_path / "saved")
    again = SpeechLLMForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.get_audio_features(features, mask).connector.used, expected.used)


def test_connectors_from_before_the_threshold_read_as_they_did(noted):
    settings = joined(noted).config.connector
    for name in ("no_speech", "suppress_tokens", "no_speech_threshold"):
        del settings[name]
    config = connector_config(settings)
    assert config.no_speech is None and config.suppress_tokens == []


@torch.no_grad()
def test_a_reader_of_fewer_tokens_hears_no_speech_too(noted):
    whisper, llm = noted
    larger = tiny_whisper(windows=42)  # its windows can be divided by the default's places
    larger.generation_config.suppress_tokens = NOTES
    larger.save_pretrained(whisper)
    model = SpeechLLMForConditionalGeneration.from_parts(*noted)
    shared = shared_tokens(whisper, llm, END, 50)
    put_reader(model, whisper, llm, 50)
    reads, original = model.model.multi_modal_projector, larger.model.decoder.embed_tokens.weight
    config = reads.config
    kept = [token for token in shared if token not in NOTES]
    assert len(shared) == 50 > len(kept) and config.vocabulary == len(kept)
    for ids, own in (
        (range(config.vocabulary), kept),
        (config.suppress_tokens, NOTES),
        ([config.no_speech, config.end, config.times], [NO_SPEECH, END, TIMES]),
        (config.prompt, PROMPT),
    ):
        assert torch.equal(reads.embed_tokens.weight[list(ids)], original[own])
    assert len(reads.embed_tokens.weight) == config.tokens == config.times + 43
    probability = reads.no_speech_probability(torch.randn(2, len(PROMPT), 16))
    assert ((0 < probability) & (probability < 1)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_speech": 51865}, "no_speech=51865, .* below 51865"),
        ({"suppress_tokens": [1, -1]}, r"suppress_tokens=\[1, -1\] must be tokens"),
        ({"no_speech_threshold": 1.5}, "no_speech_threshold=1.5 must be a probability"),
        ({"no_speech_threshold": "0.6"}, "no_speech_threshold='0.6' must be a probability"),
        ({"no_speech_threshold": float("nan")}, "no_speech_threshold=nan must be a probability"),
    ],
)
def test_settings_that_cannot_work_say_so(settings, message):
    with pytest.raises(ValueError, match=message):
        connector_config({"type": "whisper_reader"} | settings)


# --- Repetitions ---

A, B, C, D = range(4)


def at(frame):
    return TIMES + frame


@pytest.mark.parametrize(
    ("written", "full", "count"),
    [
        ([A, B, C], False, 3),
        ([], True, 0),
        ([A, B, at(60), at(60), A, B, at(90)], False, 4),  # two words took 60 frames, 40 were left
        ([A, B, at(60), at(60), A, B], False, 4),
        ([A, B, at(60), at(60), A, B, END, END], False, 4),
        ([C, at(10), at(10), A, B, at(60), at(70), A, B, at(90)], False, 7),
        ([A, B, at(40), at(50), A, B, at(90)], False, 7),  # there was time to say it again
        ([A, B, at(60), at(60), A, C, at(90)], False, 7),
        ([A, B, at(60), at(60), C, at(70), at(70), A, B], False, 7),
        ([D, A, B, C, A, B, C, A, B, C, A, B], True, 4),
        ([D, A, B, C, A, B, C, A, B, C, A, B], False, 12),
        ([D, A, A, A], True, 2),
        ([A, B, A, B], True, 4),  # twice
        ([A, B, at(30), at(30), A, B, at(50), at(50), A, B], True, 4),  # the loop has times in it
        ([A, A, A, A, B], True, 5),  # it went on
    ],
)
def test_what_is_repeated_is_read_once(written, full, count):
    assert said(written, END, TIMES, 100, full) == count


@torch.no_grad()
def test_what_was_not_said_is_not_read(monkeypatch):
    connector, _ = reader(7)
    frames, lengths = clips(LENGTHS)
    everything, _ = connector.read(frames, lengths, lengths)
    asked = []

    def one(*facts):
        asked.append(facts)
        return 1

    monkeypatch.setattr(whisper_reader, "said", one)
    tokens, _ = connector.read(frames, lengths, torch.tensor([40, 1, *LENGTHS[2:]]))
    assert torch.equal(tokens[:, :1], everything[:, :1]) and (tokens[:, 1:] == END).all()
    assert (everything[:, 1:] < END).any()
    assert [facts[3] for facts in asked] == LENGTHS and [facts[4] for facts in asked[:2]] == [False, True]


# --- Measuring ---


def test_sounds_and_pauses_are_measured(noted, tmp_path):
    model, processor = with_processor(noted)
    made = silence.EASY_SOUNDS | silence.OTHER_SOUNDS
    clips = [wave for _, wave in silence.sounds(made, 0, 1, (0.1, 0.3))]
    assert len(clips) == len(made) and all(np.isfinite(wave).all() for wave in clips)
    assert all(np.abs(wave).max() <= 0.51 for wave in clips)
    together = silence.probabilities(model, processor, clips)
    assert len(set(together)) > 1
    for wave, expected in zip(clips, together, strict=True):
        assert silence.probabilities(model, processor, [wave])[0] == pytest.approx(expected, rel=1e-3)

    rng = np.random.default_rng(0)
    loud, pause = rng.normal(size=16000) / 10, rng.normal(size=24000) / 1e4
    folder = tmp_path / "picovoice_slu"
    folder.mkdir()
    for name, parts in (("paused", (loud, pause, loud)), ("through", (loud, loud))):
        soundfile.write(folder / f"{name}.wav", np.concatenate(parts), 16000)
    (folder / "manifest.jsonl").write_text('{"audio": "through.wav"}\n{"audio": "paused.wav"}\n')
    ((kind, found),) = silence.quiet(tmp_path, "picovoice", 5)
    assert kind == "pauses of picovoice" and 20000 < len(found) < 24000 and np.abs(found).max() < 0.01


@torch.no_grad()
def test_the_rest_of_a_window_is_judged_as_a_window_of_its_own():
    _, whisper = listening(None)
    frames, lengths = clips(LENGTHS)
    begins = torch.tensor([7, 1, 3, 30, 11, 4, 0, 20, 5, 13])
    found = [
        probability(whisper, frames[row : row + 1, begin:length])
        for row, (begin, length) in enumerate(zip(begins.tolist(), LENGTHS, strict=True))
    ]
    middle = sum(sorted(found)[4:6]) / 2
    connector, _ = listening(middle)
    assert connector.speaks_on(frames, lengths, begins).tolist() == [one <= middle for one in found]
    assert not listening(None)[0].speaks_on(frames, lengths, begins).any()  # not known: Whisper's end is the end


@torch.no_grad()
def test_behind_a_segment_it_reads_on_where_there_is_speech(monkeypatch):
    monkeypatch.setattr(whisper_reader, "END", 2)
    monkeypatch.setattr(whisper_reader, "said", lambda written, *of: len(written))
    stopped = 0
    for seed in (0, 7, 14, 18, 22):
        connector, _ = reader(seed)
        connector.embed_tokens.weight[END] *= 2  # so that some end early
        frames, lengths = clips(LENGTHS, seed)
        before, _ = connector.read(frames, lengths, lengths)
        monkeypatch.setattr(connector, "speaks_on", lambda windows, *of: torch.ones(len(windows), dtype=torch.bool))
        after, _ = connector.read(frames, lengths, lengths)
        for written, more, frames_here in zip(before.tolist(), after.tolist(), LENGTHS, strict=True):
            size = written.index(END) if END in written else len(written)
            assert more[:size] == written[:size]
            pair = written[size - 2 : size]
            early = size < len(written) and len(pair) == 2 and min(pair) >= TIMES
            if early and frames_here - (pair[1] - TIMES) > 2:
                stopped += 1
                assert more[size] < END
            elif size < len(written):
                assert set(more[size:]) <= {END}
    assert stopped
