"""pipeline("speech-instruct"): every way to ask, answered as the model alone would answer."""

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset
from factories_processing import CHATML, RATE, encoded, make_extractor, make_tokenizer, sine
from torch.utils.data import Dataset as TorchDataset
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    BloomConfig,
    LlamaConfig,
    TextStreamer,
    WhisperConfig,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration
from processing_speechllm import AudioError, SpeechInstructPipeline, SpeechLLMProcessor, register_pipeline
from processing_speechllm.pipeline_speech_instruct import DEFAULT_INSTRUCTION

ASK = "what is said?"
POSITIONS = 160


def make_pipe(text: str = "llama", max_new_tokens: int | None = 6, **kwargs) -> SpeechInstructPipeline:
    """A pipeline around a random model whose weights are large enough for its answers to depend on the audio."""
    tokenizer = make_tokenizer(CHATML)
    audio = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=80, decoder_layers=1
    )
    common = {"vocab_size": len(tokenizer), "hidden_size": 16, "eos_token_id": tokenizer.eos_token_id}
    if text == "bloom":
        llm = BloomConfig(**common, n_layer=1, n_head=2)
    else:
        llm = LlamaConfig(
            **common,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=POSITIONS,
        )
    config = SpeechLLMConfig.from_parts(
        audio=audio, text=llm, connector={"type": "stack_mlp", "stride": 4}, audio_token_id=len(tokenizer)
    )
    torch.manual_seed(0)
    model = SpeechLLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_positions" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    processor = SpeechLLMProcessor.from_parts(make_extractor(), tokenizer, config)
    if max_new_tokens is not None:
        kwargs["max_new_tokens"] = max_new_tokens
    return SpeechInstructPipeline(model=model, processor=processor, task="speech-instruct", device="cpu", **kwargs)


@pytest.fixture(scope="module")
def pipe() -> SpeechInstructPipeline:
    return make_pipe()


@pytest.fixture(scope="module", autouse=True)
def task():
    """The task as `import speechllm` registers it, and afterwards as it was."""
    before = PIPELINE_REGISTRY.supported_tasks.get("speech-instruct")
    AutoProcessor.register(SpeechLLMConfig, SpeechLLMProcessor, exist_ok=True)
    register_pipeline()
    yield
    if before is not None:
        PIPELINE_REGISTRY.supported_tasks["speech-instruct"] = before


def clip(seconds: float = 0.5, frequency: float = 440.0) -> tuple[np.ndarray, int]:
    return sine(seconds, frequency=frequency), RATE


def text_of(answers: list[dict]) -> str:
    assert len(answers) == 1 and set(answers[0]) == {"generated_text"}
    return answers[0]["generated_text"]


def by_hand(pipe: SpeechInstructPipeline, *clips, instruction: str = ASK) -> str:
    """The model's answer without the pipeline."""
    chat = pipe.processor.instruction_chat(list(clips), instruction)
    inputs = pipe.processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    ids = pipe.model.generate(**inputs, max_new_tokens=6, pad_token_id=pipe.tokenizer.pad_token_id)
    return pipe.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# --- One audio, many audios ---


def test_the_answer_is_the_models(pipe):
    answers = [text_of(pipe(each, instruction=ASK)) for each in (clip(), clip(0.9, 1000.0))]
    assert answers == [by_hand(pipe, clip()), by_hand(pipe, clip(0.9, 1000.0))]
    assert answers[0] != answers[1]  # the model listens
    assert answers[0] != text_of(pipe(clip(), instruction="hello"))  # and reads


def test_every_form_of_audio_is_one_input(pipe, tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(sine(), subtype="FLOAT"))
    expected = pipe(clip(), instruction=ASK)
    forms = [str(path), path, path.read_bytes(), {"path": str(path)}, {"bytes": path.read_bytes(), "path": None}]
    forms += [{"array": sine(), "sampling_rate": RATE}, path.open("rb"), (sine().tolist(), RATE)]
    for form in forms:
        assert pipe(form, instruction=ASK) == expected, type(form)
    for bare in (sine(), sine().tolist(), torch.from_numpy(sine())):
        assert pipe(bare, instruction=ASK, sampling_rate=RATE) == expected, type(bare)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_list_gives_a_list_and_a_batch_gives_what_its_members_give(pipe, batch_size):
    clips = [clip(0.3), clip(1.1, 900.0), clip(0.5), clip(0.7, 300.0)]
    answers = pipe(clips, instruction=ASK, batch_size=batch_size)
    assert answers == [pipe(each, instruction=ASK) for each in clips]
    assert pipe([clip()], instruction=ASK) == [pipe(clip(), instruction=ASK)]


def test_several_audios_go_into_one_prompt(pipe):
    row = {"audio": [clip(), clip(0.9, 1000.0)], "instruction": ASK}
    assert text_of(pipe(row)) == by_hand(pipe, *row["audio"])
    assert pipe([row, {"audio": clip(), "instruction": "hello"}, {"instruction": "hello"}], batch_size=3) == [
        pipe(row),
        pipe(clip(), instruction="hello"),
        pipe({"instruction": "hello"}),
    ]


def test_without_an_instruction_the_audio_is_transcribed(pipe):
    assert pipe(clip()) == pipe(clip(), instruction=DEFAULT_INSTRUCTION) == pipe({"audio": clip()})
    fixed = make_pipe(instruction=ASK)
    assert fixed(clip()) == pipe(clip(), instruction=ASK)
    assert fixed({"audio": clip(), "instruction": "hello"}) == pipe(clip(), instruction="hello")


# --- Chats ---


def chat(*sources, text: str = ASK) -> list[dict]:
    blocks = [{"type": "audio", "audio": source} if source else {"type": "audio"} for source in sources]
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": "\n" + text}]}]


def test_a_chat_is_returned_with_the_answer_as_its_last_message(pipe):
    messages = chat(clip())
    (answer,) = pipe(messages)
    assert answer["generated_text"][:-1] == messages
    assert answer["generated_text"][-1] == {"role": "assistant", "content": by_hand(pipe, clip())}
    assert text_of(pipe(messages, return_full_text=False)) == by_hand(pipe, clip())
    one = clip()
    full = text_of(pipe(one, instruction=ASK, return_full_text=True))
    assert full == [*pipe.processor.instruction_chat([one], ASK), answer["generated_text"][-1]]


def test_chats_go_on_over_several_turns(pipe):
    first = text_of(pipe(chat(clip())))
    second = text_of(pipe(first + chat(clip(0.9, 1000.0), text="and now?")))
    assert [message["role"] for message in second] == ["user", "assistant", "user", "assistant"]
    shorter = text_of(pipe(chat(clip(0.9, 1000.0), text="and now?")))
    assert second[-1] != shorter[-1]  # the first turn was heard


def test_lists_of_chats_and_text_only_turns_are_batched(pipe):
    chats = [chat(clip()), [{"role": "user", "content": "hello"}], chat(clip(0.3), clip(0.9, 1000.0))]
    assert pipe(chats, batch_size=3) == [pipe(each) for each in chats]


def test_bare_blocks_take_the_audios_given(pipe):
    expected = pipe(chat(clip(), clip(0.9)), return_full_text=False)
    given = {"audio": [clip(), clip(0.9)]}
    assert pipe(chat(None, None), **given, return_full_text=False) == expected
    assert pipe({"messages": chat(None, None), **given}, return_full_text=False) == expected


def test_a_chat_that_ends_with_the_assistant_is_continued(pipe):
    begun = [*chat(clip()), {"role": "assistant", "content": "the audio"}]
    done = text_of(pipe(begun))
    assert done[:-1] == begun[:-1] and done[-1]["content"].startswith("the audio")
    blocks = [*chat(clip()), {"role": "assistant", "content": [{"type": "text", "text": "the audio"}]}]
    assert text_of(pipe(blocks))[-1]["content"][1]["text"] == done[-1]["content"].removeprefix("the audio")
    with pytest.raises(ValueError, match="end with the assistant.*batch_size=1"):
        pipe([begun, chat(clip())], batch_size=2)


# --- Streams ---


@pytest.fixture
def rows() -> Dataset:
    audios = [{"bytes": encoded(sine(seconds), subtype="FLOAT"), "path": None} for seconds in (0.3, 0.5, 0.8)]
    return Dataset.from_dict({"audio": audios, "text": ["a", "b", "c"]}).cast_column("audio", Audio(decode=False))


def test_datasets_and_generators_are_answered_lazily(pipe, rows):
    expected = pipe([clip(0.3), clip(0.5), clip(0.8)], instruction=ASK)
    assert list(pipe(rows, instruction=ASK, batch_size=2)) == expected
    assert list(pipe(rows.to_iterable_dataset(), instruction=ASK)) == expected
    assert list(pipe(KeyDataset(rows, "audio"), instruction=ASK, batch_size=2)) == expected

    seen = []

    def generator():
        for row in rows:
            seen.append(row["text"])
            yield row

    answers = pipe(generator(), instruction=ASK)
    assert not isinstance(answers, list) and len(seen) <= 1  # one is looked at to tell chats from rows
    assert next(iter(answers)) == expected[0] and len(seen) <= 2
    asked = chat(clip())
    assert list(pipe({"messages": asked} for _ in range(2))) == [pipe(asked)] * 2


def test_a_torch_dataset_of_rows_is_answered(pipe):
    class Rows(TorchDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"audio": clip(0.3 + index), "instruction": ASK}

    assert list(pipe(Rows())) == pipe([clip(0.3), clip(1.3)], instruction=ASK)


# --- Generation ---


def test_tokens_are_streamed(pipe):
    pieces = []

    class Streamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append(text)

    streamer = Streamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    answer = text_of(pipe(clip(), instruction=ASK, streamer=streamer))
    assert "".join(pieces) == answer and answer


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_sequences_are_returned_per_input(pipe, batch_size):
    clips = [clip(), clip(0.9, 1000.0)]
    options = {"instruction": ASK, "num_beams": 3, "num_return_sequences": 2}
    answers = pipe(clips, batch_size=batch_size, **options)
    assert [len(each) for each in answers] == [2, 2]
    assert answers == [pipe(each, **options) for each in clips]
    assert answers[0][0] != answers[0][1]


def test_generation_options_come_in_either_place_but_once(pipe):
    short = pipe(clip(), instruction=ASK, max_new_tokens=2, return_tensors=True)[0]["generated_token_ids"]
    assert short.shape == (2,)
    nested = pipe(clip(), instruction=ASK, generate_kwargs={"max_new_tokens": 2}, return_tensors=True)
    assert torch.equal(nested[0]["generated_token_ids"], short)
    with pytest.raises(ValueError, match="max_new_tokens given twice"):
        pipe(clip(), max_new_tokens=2, generate_kwargs={"max_new_tokens": 3})
    with pytest.raises(ValueError, match="exclude each other"):
        pipe(clip(), return_full_text=True, return_tensors=True)


def test_special_tokens_are_left_out_unless_wanted(pipe):
    forced = {"instruction": ASK, "forced_eos_token_id": pipe.tokenizer.eos_token_id, "max_new_tokens": 2}
    assert "</s>" not in text_of(pipe(clip(), **forced))
    assert text_of(pipe(clip(), **forced, skip_special_tokens=False)).endswith("</s>")


def test_requests_over_the_llms_positions_are_refused(pipe):
    row = {"audio": clip(), "instruction": ASK}
    length = pipe.processor.apply_chat_template(
        pipe.processor.instruction_chat([clip()], ASK), tokenize=True, add_generation_prompt=True
    ).shape[1]
    total = length + POSITIONS
    with pytest.raises(
        ValueError, match=f"{length} tokens and {POSITIONS} more.*{total} in all.*{POSITIONS} positions"
    ):
        pipe(row, max_new_tokens=POSITIONS)
    fitting = POSITIONS - length
    ids = pipe(row, max_new_tokens=fitting, min_new_tokens=fitting, return_tensors=True)[0]["generated_token_ids"]
    assert len(ids) == fitting
    default = make_pipe(max_new_tokens=None)
    with pytest.raises(ValueError, match="Lower max_new_tokens, or use a shorter audio"):
        default(row, max_length=POSITIONS + 1)
    with pytest.raises(ValueError, match=f"and 1 more are to be generated.*{POSITIONS} positions"):
        default({"audio": clip(30.0), "instruction": ASK})


def test_the_default_number_of_new_tokens_is_what_fits():
    default = make_pipe(max_new_tokens=None)
    ids = default({"instruction": "hello"}, eos_token_id=-1, return_tensors=True)[0]["generated_token_ids"]
    prompt = default.processor.instruction_chat([], "hello")
    length = default.processor.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True).shape[1]
    assert len(ids) == POSITIONS - length
    endless = make_pipe("bloom", max_new_tokens=None)  # no fixed number of positions
    assert endless._fitted({}, length=10_000)["max_new_tokens"] == 256


# --- Saving, loading, registration ---


def test_a_saved_pipeline_reloads_with_its_processor(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = pipeline("speech-instruct", model=str(tmp_path), device="cpu", max_new_tokens=6)
    assert isinstance(loaded, SpeechInstructPipeline) and isinstance(loaded.processor, SpeechLLMProcessor)
    assert loaded.processor.to_dict() == pipe.processor.to_dict()
    assert loaded(clip(), instruction=ASK) == pipe(clip(), instruction=ASK)
    assert not list(tmp_path.glob("*.py"))  # no remote code, so no trust_remote_code


def test_without_a_model_the_default_folder_is_used(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    register_pipeline(str(tmp_path))
    try:
        task = PIPELINE_REGISTRY.supported_tasks["speech-instruct"]
        assert task["pt"] == (AutoModelForMultimodalLM,) and task["impl"] is SpeechInstructPipeline
        default = pipeline("speech-instruct", device="cpu", max_new_tokens=6)
        assert default(clip(), instruction=ASK) == pipe(clip(), instruction=ASK)
    finally:
        register_pipeline()


def test_registering_again_warns_of_nothing(caplog):
    register_pipeline()
    register_pipeline()
    assert "already registered" not in caplog.text


def test_a_pipeline_without_a_processor_is_refused(pipe):
    with pytest.raises(ValueError, match="has no processor. Pass processor="):
        SpeechInstructPipeline(model=pipe.model, device="cpu")


# --- Bad input ---

BAD_CALLS = {
    "missing file": (AudioError, "gone.wav", {}, "gone.wav: no such file.*Check the path"),
    "missing rate": (AudioError, sine(), {}, "the sampling rate is missing.*sampling_rate=..."),
    "negative rate": (AudioError, sine(), {"sampling_rate": -1}, "rate -1 is not positive.*16000"),
    "short": (AudioError, (sine()[:200], RATE), {}, "200 samples.*Give at least 320 samples"),
    "empty instruction": (ValueError, clip(), {"instruction": " "}, "instruction is empty. Say what to do"),
    "number as instruction": (ValueError, clip(), {"instruction": 3}, "must be a string, not int.*rows"),
    "list as instruction": (ValueError, [clip()], {"instruction": [ASK]}, "must be a string, not list.*rows"),
    "empty instruction in a row": (ValueError, {"audio": clip(), "instruction": ""}, {}, "is empty. Say what to do"),
    "number in a row": (ValueError, {"audio": clip(), "instruction": 3}, {}, "must be a string, not int"),
    "instruction beside a chat": (ValueError, chat(clip()), {"instruction": ASK}, "holds its instruction. Put it"),
    "empty row": (ValueError, {"audio": None, "instruction": None}, {}, "neither audio nor instruction. Give"),
    "empty list": (ValueError, [], {}, "list of inputs is empty. Pass at least one"),
    "blocks without audios": (ValueError, chat(None, None), {"audio": [clip()]}, "2 audio blocks.*1 audios.*Give one"),
    "audios without blocks": (ValueError, chat(None), {"audio": [clip()] * 3}, "1 audio blocks.*3 audios.*Give one"),
    "list of lists of paths": (AudioError, [["a.wav", "b.wav"]], {"sampling_rate": RATE}, "dtype str.*Pass one audio"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_refused_with_finding_and_remedy(pipe, case):
    error, inputs, options, message = BAD_CALLS[case]
    with pytest.raises(error, match=f"(?s){message}"):
        pipe(inputs, **options)
