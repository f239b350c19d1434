"""pipeline("speech-instruct"): every way to ask, answered as the model alone would answer."""

import io
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from datasets import Audio, Dataset
from factories_processing import CHATML, RATE, encoded, make_extractor, make_tokenizer, sine
from torch.utils.data import Dataset as TorchDataset
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    BloomConfig,
    GenerationConfig,
    LlamaConfig,
    TextStreamer,
    WhisperConfig,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from modeling_speechllm import SpeechLLMConfig, SpeechLLMForConditionalGeneration
from processing_speechllm import AudioError, SpeechInstructPipeline, SpeechLLMProcessor, register_pipeline
from processing_speechllm.pipeline_prompts import DEFAULT_INSTRUCTION

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
        ValueError, match=f"{length} tokens .* and {POSITIONS} more.*{total} in all.*{POSITIONS} positions"
    ):
        pipe(row, max_new_tokens=POSITIONS)
    fitting = POSITIONS - length
    ids = pipe(row, max_new_tokens=fitting, min_new_tokens=fitting, return_tensors=True)[0]["generated_token_ids"]
    assert len(ids) == fitting
    default = make_pipe(max_new_tokens=None)
    with pytest.raises(ValueError, match=f"Ask for at most {fitting} new tokens, or use a shorter audio, chat"):
        default(row, max_length=POSITIONS + 1)
    assert len(default(row, max_new_tokens=fitting, return_tensors=True)[0]["generated_token_ids"]) <= fitting
    with pytest.raises(ValueError, match=r"\(0 of them audio\) and 1 more.*positions\. Use a shorter chat or instr"):
        default({"instruction": "hello " * 200})
    with pytest.raises(AudioError, match=f"30.0 s of audio are over the limit of 9.6 s .*LLM has {POSITIONS} posit"):
        default({"audio": clip(30.0), "instruction": ASK})


def test_the_default_number_of_new_tokens_is_what_fits():
    default = make_pipe(max_new_tokens=None)
    ids = default({"instruction": "hello"}, eos_token_id=-1, return_tensors=True)[0]["generated_token_ids"]
    prompt = default.processor.instruction_chat([], "hello")
    length = default.processor.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True).shape[1]
    assert len(ids) == POSITIONS - length
    endless = make_pipe("bloom", max_new_tokens=None)  # no fixed number of positions
    assert endless._fitted({}, torch.zeros(1, 10_000, dtype=torch.long))["max_new_tokens"] == 256


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "6"])
def test_a_number_of_new_tokens_that_is_none_is_refused(pipe, number):
    with pytest.raises(ValueError, match="max_new_tokens is .*Give 1 or more, or None for the default"):
        pipe(clip(), max_new_tokens=number)
    with pytest.raises(ValueError, match="max_length is 5, but the prompt alone takes.*use max_new_tokens"):
        make_pipe(max_new_tokens=None)(clip(), max_length=5)


@pytest.mark.parametrize("options", [{"max_length": "9"}, {"num_beams": 0}, {"num_beams": 2.5}, {"num_beams": -1}])
def test_other_numbers_that_are_none_are_refused(pipe, options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"{name} is .*Give a whole number of 1 or more, or leave it out"):
        pipe(clip(), **options)


def test_no_number_of_new_tokens_is_the_default_number():
    default = make_pipe(max_new_tokens=None)
    expected = default(clip(), instruction=ASK)
    assert default(clip(), instruction=ASK, max_new_tokens=None) == expected
    assert default(clip(), instruction=ASK, generate_kwargs={"max_new_tokens": None, "max_length": None}) == expected


def test_a_generation_config_of_the_call_replaces_the_pipelines(pipe):
    config = GenerationConfig(max_new_tokens=3)
    ids = pipe(clip(), instruction=ASK, generation_config=config, return_tensors=True)[0]["generated_token_ids"]
    assert (
        ids.tolist()
        == pipe(clip(), instruction=ASK, max_new_tokens=3, return_tensors=True)[0]["generated_token_ids"].tolist()
    )
    assert config.pad_token_id is None  # the caller's object stays as it was


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("sequences", [1, 2])
def test_what_generate_tells_beside_the_text_is_in_each_answer(pipe, batch_size, sequences):
    clips = [clip(), clip(0.9, 1000.0)]
    options = {"instruction": ASK, "return_dict_in_generate": True, "output_logits": True}
    options |= {"do_sample": True, "num_return_sequences": 2} if sequences == 2 else {"output_scores": True}
    answers = pipe(clips, batch_size=batch_size, return_tensors=True, **options)
    names = {"generated_token_ids", "logits"} | ({"scores"} if sequences == 1 else set())
    for answer in (each for row in answers for each in row):
        assert set(answer) == names
        ids, logits = answer["generated_token_ids"], answer["logits"]
        assert logits.shape == (len(ids), pipe.model.config.text_config.vocab_size)
        if sequences == 1:
            end = (ids == pipe.tokenizer.eos_token_id).nonzero().flatten().tolist()
            kept = end[0] + 1 if end else len(ids)
            assert ids[:kept].tolist() == logits.argmax(-1)[:kept].tolist()
    assert [len(row) for row in answers] == [sequences] * 2
    if sequences == 1:
        texts = pipe(clips, batch_size=batch_size, **options)
        assert [row[0]["generated_text"] for row in texts] == [text_of(pipe(one, instruction=ASK)) for one in clips]


def test_beams_give_a_dict_too(pipe):
    options = {"num_beams": 3, "num_return_sequences": 2, "return_dict_in_generate": True}
    first, second = pipe(clip(), instruction=ASK, **options)
    assert {first["generated_text"], second["generated_text"]} == {
        each["generated_text"] for each in pipe(clip(), instruction=ASK, num_beams=3, num_return_sequences=2)
    }
    with pytest.raises(ValueError, match="scores of `generate` cannot.*Drop output_scores .and beams, if"):
        pipe(clip(), instruction=ASK, output_scores=True, **options)


def test_what_cannot_be_told_apart_by_answer_is_refused(pipe):
    with pytest.raises(ValueError, match="hidden_states of `generate` cannot.*Drop output_hidden_states.*model.gener"):
        pipe(clip(), return_dict_in_generate=True, output_hidden_states=True)


# --- The chat template's variables ---

THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if documents %}{{ documents[0]['text'] }}{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}hello{% endif %}{% endif %}"
)
TEMPLATE_OPTIONS = {
    "tools": {"tools": [{"type": "function", "function": {"name": "light", "parameters": {}}}]},
    "documents": {"documents": [{"text": "a document"}]},
    "enable_thinking": {"enable_thinking": False},
    "chat_template": {"chat_template": THINKING.replace("assistant", "answer")},
}


@pytest.mark.parametrize("option", TEMPLATE_OPTIONS)
def test_the_chat_templates_variables_reach_it(option):
    thinking = make_pipe()
    thinking.processor.chat_template = thinking.tokenizer.chat_template = THINKING
    variables = TEMPLATE_OPTIONS[option]
    seen = []
    generate = thinking.model.generate
    thinking.model.generate = lambda **inputs: seen.append(inputs["input_ids"].tolist()) or generate(**inputs)
    plain = thinking(clip(), instruction=ASK)
    given = thinking(clip(), instruction=ASK, **variables)
    messages = thinking.processor.instruction_chat([clip()], ASK)
    expected = thinking.processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, **variables)
    assert seen == [seen[0], expected.tolist()] and seen[0] != seen[1]
    if option == "enable_thinking":
        nested = {"chat_template_kwargs": variables}
        assert thinking(clip(), instruction=ASK, **nested) == given
        with pytest.raises(ValueError, match="enable_thinking given twice.*chat_template_kwargs"):
            thinking(clip(), **variables, **nested)
        fixed = make_pipe(chat_template=THINKING, enable_thinking=False)
        assert fixed(clip(), instruction=ASK) == given != plain


def test_a_name_that_neither_template_nor_generate_knows_is_refused(pipe):
    with pytest.raises(ValueError, match="enable_thinking"):
        pipe(clip(), enable_thinking=False)


# --- Workers ---


@pytest.fixture
def decoded_rows() -> Dataset:
    """Rows with torchcodec's decoders, or where FFmpeg is missing with what stands for them."""
    audios = [{"bytes": encoded(sine(seconds), subtype="FLOAT"), "path": None} for seconds in (0.3, 0.5, 0.8)]
    rows = Dataset.from_dict({"audio": audios, "text": ["a", "b", "c"]}).cast_column("audio", Audio(decode=False))
    return rows.with_transform(with_decoders)


class Decoder:
    """Stands in for torchcodec's AudioDecoder, which needs FFmpeg: it decodes, and cannot leave its process."""

    def __init__(self, content: bytes):
        self.content = content

    def get_all_samples(self):
        samples, rate = soundfile.read(io.BytesIO(self.content), dtype="float32")
        return SimpleNamespace(data=torch.from_numpy(samples)[None], sample_rate=rate)

    def __reduce__(self):
        raise TypeError("cannot pickle a decoder")


def with_decoders(batch: dict) -> dict:
    return {**batch, "audio": [Decoder(audio["bytes"]) for audio in batch["audio"]]}


class Chats(TorchDataset):
    """A chat for each audio of the rows."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return {"messages": chat(self.rows[index]["audio"])}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "workers", "batch_size"), [("fork", 2, 1), ("fork", 2, 2), ("spawn", 1, 2)])
def test_workers_decode_a_dataset_with_decoders(pipe, decoded_rows, method, workers, batch_size):
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(method, force=True)
    try:
        answers = list(pipe(decoded_rows, instruction=ASK, num_workers=workers, batch_size=batch_size))
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    assert answers == pipe([clip(0.3), clip(0.5), clip(0.8)], instruction=ASK)


def test_chats_come_back_from_workers_with_what_their_decoders_gave(pipe, decoded_rows):
    here, there = (list(pipe(Chats(decoded_rows), num_workers=workers)) for workers in (0, 2))
    for one, other in zip(here, there, strict=True):
        source = one[0]["generated_text"][0]["content"][0]["audio"]
        sent = other[0]["generated_text"][0]["content"][0]["audio"]
        np.testing.assert_array_equal(sent["array"], source.get_all_samples().data[0].numpy())
        assert one[0]["generated_text"][1:] == other[0]["generated_text"][1:]


def test_a_bad_audio_in_a_worker_is_still_an_audio_error(pipe):
    with pytest.raises(AudioError, match="gone.wav: no such file"):
        pipe(["gone.wav"], num_workers=1)


@pytest.mark.slow
def test_a_stream_is_read_without_workers(pipe, decoded_rows, caplog):
    answers = pipe((row for row in decoded_rows), instruction=ASK, num_workers=2)
    assert list(answers) == pipe([clip(0.3), clip(0.5), clip(0.8)], instruction=ASK)


@pytest.mark.slow
def test_a_pickled_pipeline_answers_alike():
    one = make_pipe()
    expected = one(clip(), instruction=ASK)
    again = pickle.loads(pickle.dumps(one))
    assert again(clip(), instruction=ASK) == expected
    assert again.processor.to_dict() == one.processor.to_dict()


# --- Saving, loading, registration ---


@pytest.mark.slow
def test_a_saved_pipeline_reloads_with_its_processor(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = pipeline("speech-instruct", model=str(tmp_path), device="cpu", max_new_tokens=6)
    assert isinstance(loaded, SpeechInstructPipeline) and isinstance(loaded.processor, SpeechLLMProcessor)
    assert loaded.processor.to_dict() == pipe.processor.to_dict()
    assert loaded(clip(), instruction=ASK) == pipe(clip(), instruction=ASK)
    assert not list(tmp_path.glob("*.py"))  # no remote code, so no trust_remote_code


@pytest.mark.slow
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
    "no input": (ValueError, None, {}, "input is None. Pass an audio"),
    "no input in a list": (ValueError, [None], {}, "input is None. Pass an audio"),
    "half a character": (ValueError, clip(), {"instruction": "say \udcff"}, "character 4 is half of one.*repair"),
    "half a character in a chat": (
        ValueError,
        [{"role": "user", "content": [{"type": "audio", "audio": clip()}, {"type": "text", "text": "\ud800"}]}],
        {},
        "character 0 is half of one",
    ),
    "list of lists of paths": (AudioError, [["a.wav", "b.wav"]], {"sampling_rate": RATE}, "dtype str.*Pass one audio"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_refused_with_finding_and_remedy(pipe, case):
    error, inputs, options, message = BAD_CALLS[case]
    with pytest.raises(error, match=f"(?s){message}"):
        pipe(inputs, **options)
