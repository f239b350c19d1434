"""The pipeline returns the language posterior of a connector with a gate, and takes a language as a hint."""

import pytest
import torch
from conftest import text_config, tiny_speechllm
from factories_processing import make_tokenizer, sine
from transformers import WhisperFeatureExtractor

from processing_speechllm import SpeechInstructPipeline, SpeechLLMProcessor

LANGUAGES = ["en", "zh", "vi"]
LAD = {
    "type": "whisper_qformer",
    "queries": 4,
    "decoder_layers": 1,
    "heads": 2,
    "ffn_size": 16,
    "languages": LANGUAGES,
    "gate": "conv",
    "gate_size": 8,
}
CLIPS = [(sine(0.3, frequency=frequency), 16000) for frequency in (200, 500, 900)]
SETTINGS = {"max_new_tokens": 4, "do_sample": False}


def make_pipe(connector):
    tokenizer = make_tokenizer()
    model = tiny_speechllm(
        text=text_config(vocab_size=len(tokenizer)), audio_token_id=len(tokenizer), connector=connector
    )
    processor = SpeechLLMProcessor.from_parts(WhisperFeatureExtractor(feature_size=8), tokenizer, model.config)
    return SpeechInstructPipeline(model, processor=processor)


@pytest.fixture(scope="module")
def pipe():
    pipe = make_pipe(LAD)
    torch.manual_seed(0)
    torch.nn.init.normal_(pipe.model.model.multi_modal_projector.bank.queries)
    return pipe


def test_the_posterior_comes_with_the_answer(pipe):
    plain = pipe(CLIPS[0], instruction="Repeat.", **SETTINGS)[0]
    answer = pipe(CLIPS[0], instruction="Repeat.", return_language=True, **SETTINGS)[0]
    assert answer["generated_text"] == plain["generated_text"] and "language" not in plain
    (heard,) = answer["language"]
    assert heard["label"] == max(heard["scores"], key=heard["scores"].get)
    assert list(heard["scores"]) == LANGUAGES and sum(heard["scores"].values()) == pytest.approx(1, abs=1e-5)
    inputs = pipe.processor(text=pipe.processor.audio_token, audio=[CLIPS[0]])
    logits = pipe.model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).connector
    assert heard["score"] == pytest.approx(float(logits.language_logits.softmax(-1).max()), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_prompt_gets_the_languages_of_its_own_audios(pipe, batch_size):
    rows = [{"audio": CLIPS[:2], "instruction": "Same?"}, {"instruction": "Hello."}, {"audio": CLIPS[2]}]
    answers = pipe(rows, return_language=True, batch_size=batch_size, **SETTINGS)
    assert [len(answer[0]["language"]) for answer in answers] == [2, 0, 1]
    alone = [pipe(clip, instruction="x", return_language=True, **SETTINGS)[0]["language"][0] for clip in CLIPS]
    together = answers[0][0]["language"] + answers[2][0]["language"]
    for one, other in zip(alone, together, strict=True):
        assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)


def test_a_hint_selects_the_bank_entry(pipe):
    answers = {
        language: pipe(CLIPS[0], instruction="Repeat.", language=language, **SETTINGS)[0]["generated_text"]
        for language in LANGUAGES
    }
    free = pipe(CLIPS[0], instruction="Repeat.", return_language=True, **SETTINGS)[0]
    assert answers[free["language"][0]["label"]] == free["generated_text"]
    assert len(set(answers.values())) > 1


def test_hints_that_mean_nothing_are_refused(pipe):
    with pytest.raises(ValueError, match="no entry 'de'. It has: en, zh, vi"):
        pipe(CLIPS[0], instruction="Repeat.", language="de")
    without = make_pipe({"type": "stack_mlp"})
    for options in ({"language": "en"}, {"return_language": True}):
        with pytest.raises(ValueError, match="stack_mlp connector of this model has no language bank.*Leave out"):
            without(CLIPS[0], instruction="Repeat.", **options)
