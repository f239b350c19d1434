"""What stands in a pipeline's answers: the space at a seam, all that was asked for, whatever holds the weights."""

import functools

import pytest
from factories_processing import sine
from test_pipeline_language import LAD, make_pipe

import speechllm
from modeling_speechllm import SpeechLLMForConditionalGeneration
from processing_speechllm import SpeechInstructPipeline, SpeechLLMProcessor

CLIP = (sine(0.3), 16000)
EXAMPLE = str(speechllm.NANO) + "/examples/en.wav"
TRANSCRIBE = [{"type": "audio", "path": EXAMPLE}, {"type": "text", "text": "\nTranscribe the speech."}]
SETTINGS = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def nano():
    processor = SpeechLLMProcessor.from_pretrained(speechllm.NANO)
    model = SpeechLLMForConditionalGeneration.from_pretrained(speechllm.NANO).eval()
    return SpeechInstructPipeline(model, processor=processor)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_continued_answer_keeps_the_space_at_its_seam(nano, batch_size):
    whole = nano(EXAMPLE, instruction="Transcribe the speech.")[0]["generated_text"]
    first, rest = whole.split(" ", 1)
    begun = [
        [{"role": "user", "content": TRANSCRIBE}, {"role": "assistant", "content": part}] for part in (first, whole)
    ]
    answers = nano(begun, batch_size=batch_size)
    assert answers[0][0]["generated_text"][-1]["content"] == whole
    assert answers[1][0]["generated_text"][-1]["content"].startswith(whole)
    assert nano(begun[0], return_full_text=False)[0]["generated_text"] == f" {rest}"


def test_tokens_come_with_all_that_is_asked_for_beside_them():
    pipe = make_pipe(LAD)
    asked = {"return_confidence": True, "return_language": True, "return_finish_reason": True} | SETTINGS
    text, tokens = (pipe(CLIP, **asked, return_tensors=tensors)[0] for tensors in (None, True))
    assert "generated_text" in text and "generated_token_ids" in tokens
    beside = {"confidence", "language", "finish_reason"}
    assert {name: tokens[name] for name in beside} == {name: text[name] for name in beside}


def test_the_confidence_of_an_offloaded_model_is_its_own(nano, tmp_path):
    places = {"model.audio_tower": "cpu", "model.multi_modal_projector": "cpu"}
    places |= {"model.language_model": "disk", "lm_head": "disk"}
    model = SpeechLLMForConditionalGeneration.from_pretrained(
        speechllm.NANO, device_map=places, offload_folder=tmp_path
    ).eval()
    offloaded = SpeechInstructPipeline(model, processor=nano.processor)
    wanted, found = (pipe(EXAMPLE, return_confidence=True, **SETTINGS)[0] for pipe in (nano, offloaded))
    assert found["confidence"][0]["score"] == pytest.approx(wanted["confidence"][0]["score"], abs=1e-5)
    assert found["generated_text"] == wanted["generated_text"]


def test_a_hint_reaches_the_bank_whole_in_half_precision(monkeypatch):
    languages = [f"l{number}" for number in range(300)]
    pipe = make_pipe(LAD | {"languages": languages})
    pipe.model.bfloat16()
    bank, heard = pipe.model.model.multi_modal_projector.bank, []
    forward = bank.forward
    monkeypatch.setattr(bank, "forward", lambda *args: heard.append(args[2].tolist()) or forward(*args))
    pipe(CLIP, language="l257", **SETTINGS)
    assert heard == [[257]]


def test_an_assistant_may_be_a_folder(nano, monkeypatch):
    pipe = SpeechInstructPipeline(nano.model, processor=nano.processor, assistant_model=str(speechllm.NANO))
    heard = []
    forward = SpeechLLMForConditionalGeneration.forward

    @functools.wraps(forward)
    def counted(self, *args, **kwargs):
        heard.append(self)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SpeechLLMForConditionalGeneration, "forward", counted)
    assert pipe(EXAMPLE, **SETTINGS) == nano(EXAMPLE, **SETTINGS)
    assert len({id(model) for model in heard}) == 2
