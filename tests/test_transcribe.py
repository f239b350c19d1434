"""`speechllm transcribe`: missing transcripts are written and marked, given ones are compared, runs go on."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import transformers
from conftest import whisper_config
from datasets import Value
from factories_processing import RATE
from factories_training import TEXTS, tone, tone_rows
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.utils import logging

from speechllm.evaluation.recognisers import WHISPER_BATCH_ON_CPU, PipelineRecogniser
from speechllm.evaluation.transcripts import TranscribeConfig, hear, transcribe_dataset
from speechllm_cli.main import main
from trainers.data.filters import FilterSettings, filter_rows
from trainers.data.loading import load_rows


class Ears:
    """Hears the transcript of the tone, one word too many for even rows; recordings of row 3 and on are German."""

    sampling_rate, tell_language = RATE, True

    def __init__(self):
        self.told, self.sizes = [], []

    def knows(self, language):
        return language in ("en", "de")

    def number(self, samples):
        spectrum = np.abs(np.fft.rfft(samples[:4000]))
        return round((np.argmax(spectrum) * RATE / 4000 - 200) / 90)

    def detect_languages(self, audio):
        return ["de" if self.number(samples) >= 3 else "en" for samples in audio]

    def transcribe(self, audio, languages):
        self.told += languages
        self.sizes.append(len(audio))
        numbers = [self.number(samples) for samples in audio]
        return [TEXTS[number] + " too" * (number % 2 == 0) for number in numbers]


@pytest.fixture
def asr(tmp_path):
    """A folder that stands for a recogniser, whose files tell it from others."""
    folder = tmp_path / "ears"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def rows(missing=(), languages=True):
    data = tone_rows(6)
    texts = [None if place in missing else text for place, text in enumerate(data["text"])]
    data = data.remove_columns("text").add_column("text", texts, feature=Value("string"))
    return data if languages else data.remove_columns("language")


def config(tmp_path, asr, **changes):
    return TranscribeConfig(**{"asr": asr, "output_dir": str(tmp_path / "out"), "rows_per_shard": 4} | changes)


def test_missing_transcripts_are_written_and_marked_and_given_ones_are_compared(tmp_path, asr):
    report = transcribe_dataset(config(tmp_path, asr), rows(missing=(0, 5)), Ears())
    assert (report["rows"], report["pseudo"], report["compared"], report["complete"]) == (6, 2, 4, True)
    written = load_rows(str(tmp_path / "out"))
    assert written["id"][:] == [f"row-{number}" for number in range(6)]
    assert written["pseudo"][:] == [True, False, False, False, False, True]
    assert written["text"][:] == [TEXTS[0] + " too", *TEXTS[1:5], TEXTS[5]]
    assert written["recognised"][2] == TEXTS[2] + " too"
    assert written["wer"][:] == [None, 0.0, 1 / 2, 0.0, 1.0, None]  # "the audio", "world": one word too many
    kept, _ = filter_rows(written, FilterSettings(max_wer=0.1))
    assert kept["id"][:] == ["row-1", "row-3"]


def test_a_given_language_is_told_and_a_missing_one_is_detected_and_kept(tmp_path, asr):
    ears = Ears()
    transcribe_dataset(config(tmp_path, asr), rows(languages=False), ears)
    written = load_rows(str(tmp_path / "out"))
    assert written["language"][:] == ["en"] * 3 + ["de"] * 3 and written["language_detected"][:] == [True] * 6
    transcribe_dataset(config(tmp_path, asr, output_dir=str(tmp_path / "given")), rows(), ears)
    assert load_rows(str(tmp_path / "given"))["language_detected"][:] == [False] * 6


def test_a_stopped_run_goes_on_and_another_run_is_refused(tmp_path, asr):
    class Stops(Ears):
        def transcribe(self, audio, languages):
            if self.sizes:
                raise KeyboardInterrupt
            return super().transcribe(audio, languages)

    with pytest.raises(KeyboardInterrupt):
        transcribe_dataset(config(tmp_path, asr), rows(), Stops())
    with pytest.raises(ValueError, match="an unfinished run: 1 of 2 shards"):
        load_rows(str(tmp_path / "out"))
    ears = Ears()
    transcribe_dataset(config(tmp_path, asr, batch_size=1), rows(), ears)
    assert ears.sizes == [1, 1]  # the second shard alone
    with pytest.raises(ValueError, match="tell_language was True and is False"):
        transcribe_dataset(config(tmp_path, asr, tell_language=False), rows(), ears)
    with pytest.raises(ValueError, match="columns of names that this command writes"):
        transcribe_dataset(config(tmp_path, asr), load_rows(str(tmp_path / "out")), ears)


def test_unreadable_audio_is_left_out_with_its_finding(tmp_path, asr):
    data = rows()
    audio = data["audio"][:]
    audio[2] = {"bytes": audio[2]["bytes"][:60], "path": None}
    data = data.remove_columns("audio").add_column("audio", audio)
    report = transcribe_dataset(config(tmp_path, asr), data, Ears())
    assert (report["rows"], report["dropped"]) == (5, 1)
    (entry,) = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert entry["id"] == "row-2" and entry["finding"]


@pytest.mark.parametrize(("at_a_time", "steps"), [(2, [2, 2, 2]), (None, [4, 2]), (9, [4, 2])])
def test_progress_moves_with_every_few_recordings_that_are_heard_together(tmp_path, asr, at_a_time, steps):
    ears, seen = Ears(), []
    ears.at_a_time = at_a_time
    table = rows().with_format("arrow")[:]
    heard = hear(table, ears, config(tmp_path, asr, batch_size=4), seen.append)
    assert seen == ears.sizes == steps
    assert [row.text for row in heard] == [TEXTS[n] + " too" * (n % 2 == 0) for n in range(6)]


@pytest.fixture
def ctc(tmp_path):
    """A random CTC recogniser, in a folder."""
    vocabulary = {symbol: place for place, symbol in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            **sizes,
            conv_dim=(8,) * 7,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            vocab_size=len(vocabulary),
            pad_token_id=0,
        )
    )
    folder = tmp_path / "ctc"
    model.save_pretrained(folder)
    Wav2Vec2Processor(feature_extractor=Wav2Vec2FeatureExtractor(), tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


def test_the_command_takes_a_ctc_model_and_any_layout(tmp_path, ctc, capsys):

    folder = tmp_path / "recordings"
    folder.mkdir()
    for number in range(3):
        soundfile.write(folder / f"{number}.wav", tone(number, 0.6), RATE)
    arguments = ["transcribe", "--dataset", str(folder), "--asr", ctc, "--out", str(tmp_path / "out")]
    logging.set_verbosity_warning()
    status = main([*arguments, "--dataset_language", "nn"])
    output = capsys.readouterr()
    assert logging.get_verbosity() == logging.ERROR  # no warnings about transformers' own ways
    logging.set_verbosity_warning()
    assert status == 0, output.err
    assert "3 rows of 3 utterances" in output.out and "languages: nn 3" in output.out
    written = load_rows(str(tmp_path / "out"))
    assert written["pseudo"][:] == [True] * 3 and written["text"][:] == written["recognised"][:]
    assert re.fullmatch("sha256:.*", written["recogniser_revision"][0])


def test_whisper_hears_languages_by_its_own_head_in_its_own_window(monkeypatch):
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(whisper_config(num_mel_bins=80, max_source_positions=1500)).eval()
    model.generation_config.is_multilingual = True
    model.generation_config.lang_to_id = {"<|de|>": 10, "<|sw|>": 11, "<|yue|>": 12}
    pipe = SimpleNamespace(model=model, feature_extractor=WhisperFeatureExtractor())
    monkeypatch.setattr(transformers, "pipeline", lambda *names, **options: pipe)
    ears = PipelineRecogniser("x", torch.device("cpu"), tell_language=True)
    audio = [tone(1, 0.4), tone(2, 31.0)]
    inputs = pipe.feature_extractor([audio[0], audio[1][: 30 * RATE]], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, decoder_input_ids=torch.ones(2, 1, dtype=torch.long)).logits[:, 0, 10:13]
    assert ears.detect_languages(audio) == [["de", "sw", "yue"][best] for best in logits.argmax(-1)]
    assert ears.knows("de-CH") and not ears.knows("gn") and not ears.knows(None)


@pytest.mark.parametrize(("device", "most"), [("cpu", WHISPER_BATCH_ON_CPU), ("cuda", 20)])
def test_whisper_keeps_its_beams_of_few_audios_at_a_time_on_a_cpu(monkeypatch, device, most):
    batches, beams = [], []

    def pipe(inputs, batch_size, generate_kwargs):
        batches.append(batch_size)
        beams.append(generate_kwargs.get("num_beams"))
        return [{"text": f" {len(row['raw'])} "} for row in inputs]

    model = {"config": SimpleNamespace(model_type="whisper"), "generation_config": None, "can_generate": lambda: True}
    pipe.model = SimpleNamespace(**model)
    pipe.feature_extractor, pipe.device = SimpleNamespace(sampling_rate=RATE), torch.device(device)
    monkeypatch.setattr(transformers, "pipeline", lambda *names, **options: pipe)
    ears = PipelineRecogniser("x", torch.device("cpu"))
    texts = ears.transcribe([np.zeros(100 + n, dtype=np.float32) for n in range(20)], [None] * 20)
    assert texts == [str(100 + n) for n in range(20)] and batches == [most]
    assert ears.at_a_time == (most if device == "cpu" else None)
    PipelineRecogniser("x", torch.device("cpu"), num_beams=1).transcribe([np.zeros(100, dtype=np.float32)], [None])
    assert beams == [None, 1]


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert main(["transcribe", "--dataset", str(tmp_path), "--out", "x"]) == 2
    assert "There is no asr" in capsys.readouterr().err
