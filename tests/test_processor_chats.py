"""The processor: chats, their audio blocks, templates and masks."""

import base64
import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from factories_processing import (
    BLOCKS,
    CHATML,
    FORGETFUL,
    RATE,
    SPELLED,
    TEMPLATES,
    ask,
    clip,
    encoded,
    make_processor,
    make_tokenizer,
    refused_before_5_23,
    sine,
    tokens,
)

from processing_speechllm import AudioError

# --- Audio blocks ---


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(sine(), subtype="FLOAT"))
    return path


@pytest.mark.parametrize(
    "block",
    [
        lambda path: {"path": str(path)},
        lambda path: {"url": str(path)},
        lambda path: {"audio": str(path)},
        lambda path: {"audio": path.read_bytes()},
        lambda path: {"bytes": path.read_bytes()},
        lambda path: {"bytes": None, "path": str(path), "sampling_rate": None},
        lambda path: {"audio": clip()},
        lambda path: {"audio": sine(), "sampling_rate": RATE},
        lambda path: {"array": sine(), "sampling_rate": RATE},
        lambda path: {"audio": torch.from_numpy(sine()), "sampling_rate": RATE},
        lambda path: {"audio": {"array": sine(), "sampling_rate": RATE}},
        lambda path: {"audio": {"bytes": path.read_bytes(), "path": None}},
        lambda path: {"audio": datasets.Dataset.from_dict({"audio": [str(path)]}).cast_column(
            "audio", datasets.Audio(decode=False))[0]["audio"]},
    ],
)  # fmt: skip
def test_every_form_of_an_audio_block_gives_the_same_inputs(block, wav):
    processor = make_processor()
    expected, out = tokens(processor, ask()), tokens(processor, ask(**block(wav)))
    assert torch.equal(out["input_ids"], expected["input_ids"])
    assert torch.equal(out["input_features"], expected["input_features"])


def test_bare_blocks_take_the_given_audios_and_the_rate_of_the_call():
    processor = make_processor()
    expected = tokens(processor, ask())
    bare = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "hello world"}]}]
    out = tokens(processor, bare, audio=[sine()], sampling_rate=RATE)
    assert torch.equal(out["input_features"], expected["input_features"])
    halved = tokens(processor, bare, audio=sine(1.0, rate=8000), sampling_rate=8000)
    assert halved["input_features"].shape[-1] == 100


def test_the_callers_chat_is_left_as_it_was():
    chat = ask(SPELLED, path="gone.wav")
    before = json.dumps(chat)
    make_processor().apply_chat_template(chat)
    assert json.dumps(chat) == before


# --- Chat format ---


def test_the_llms_own_template_is_used_with_blocks_joined_as_they_stand():
    chat = [{"role": "system", "content": "Be brief."}, *ask("\nhello")]
    text = make_processor().apply_chat_template(chat, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|audio|>\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_template_that_lays_out_blocks_gets_them():
    string = make_processor(chat_template=CHATML).apply_chat_template(ask())
    assert make_processor(chat_template=BLOCKS).apply_chat_template(ask()) == string


def test_a_template_for_lists_of_text_gets_text_blocks():
    template = BLOCKS.replace("{% if block['type'] == 'audio' %}<|audio|>{% else %}", "").replace("{% endif %}", "", 1)
    processor = make_processor(chat_template=template)
    assert processor.apply_chat_template(ask()) == make_processor(chat_template=CHATML).apply_chat_template(ask())


@pytest.mark.parametrize("adds_bos", [False, True])
def test_llms_without_a_template_get_the_plain_one(adds_bos):
    processor = make_processor(tokenizer=make_tokenizer(adds_bos=adds_bos))
    chat = [*ask("\nwhat is said?", answer="hello"), {"role": "user", "content": "and then?"}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "<s>" * adds_bos + "<|audio|>\nwhat is said?\nhello</s>and then?\n"
    ids = tokens(processor, chat)["input_ids"][0]
    assert processor.tokenizer.decode(ids).count("<s>") == adds_bos  # not put there a second time


def test_instruction_chat_puts_each_part_on_its_own_line():
    processor = make_processor()
    chat = processor.instruction_chat([clip(), None], "Compare.")
    assert "<|im_start|>user\n<|audio|>\n<|audio|>\nCompare.<|im_end|>" in processor.apply_chat_template(chat)
    no_audio = processor.apply_chat_template(processor.instruction_chat([], "Hello."))
    assert no_audio == "<|im_start|>user\nHello.<|im_end|>\n"


def test_an_instruction_may_say_where_the_speech_stands():
    """BLOOMZMMS: prefix, speech, postfix, target, with nothing between them."""
    processor = make_processor(chat_template=None)
    chat = processor.instruction_chat([clip()], "Repeat the sentence: {audio}. ")
    chat += [{"role": "assistant", "content": "hello world"}]
    assert processor.apply_chat_template(chat).endswith("Repeat the sentence: <|audio|>. hello world</s>")
    two = processor.instruction_chat([clip(), None], "One {audio} two")[0]["content"]
    assert [block.get("text", block["type"]) for block in two] == ["One ", "audio", "\n", "audio", " two"]
    assert processor.instruction_chat([], "What is {audio}?")[0]["content"][0]["text"] == "What is {audio}?"


@refused_before_5_23
@pytest.mark.parametrize("template", TEMPLATES)
def test_special_tokens_spelled_by_the_user_stay_text(template):
    processor = make_processor(chat_template=TEMPLATES[template])
    tokenizer = processor.tokenizer
    plain, spelled = tokens(processor, ask("hello")), tokens(processor, ask(SPELLED))
    for token in ("<|audio|>", "</s>", "<|im_start|>", "<|im_end|>"):
        number = tokenizer.convert_tokens_to_ids(token)
        assert (spelled["input_ids"] == number).sum() == (plain["input_ids"] == number).sum(), token
    assert SPELLED in tokenizer.decode(spelled["input_ids"][0])


def test_a_message_with_no_control_tokens_is_encoded_as_the_tokenizer_would():
    processor = make_processor()
    chat = [{"role": "user", "content": "hello world"}, {"role": "assistant", "content": "what is said"}]
    ids = processor.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert tokens(processor, chat)["input_ids"][0].tolist() == ids


def test_sanitising_can_be_switched_off():
    processor = make_processor()
    ids = tokens(processor, [{"role": "user", "content": "</s>"}], sanitize_control_tokens=False)["input_ids"]
    assert (ids == processor.tokenizer.eos_token_id).sum() == 1


# --- Masks ---


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("spelled", ["", pytest.param(SPELLED, marks=refused_before_5_23)])
def test_the_mask_covers_what_the_assistant_says(template, padding_side, spelled):
    processor = make_processor(chat_template=TEMPLATES[template])
    end = "</s>" if template == "plain" else "<|im_end|>"
    end = "" if template == "blocks" and False else end
    chats = [
        ask("what is said?" + spelled, answer="hello") + ask("again", seconds=0.7, answer="world" + spelled),
        ask("hello world", answer="the audio"),
    ]
    options = {"processor_kwargs": {"padding_side": padding_side}}
    out = tokens(processor, chats, return_assistant_tokens_mask=True, **options)
    assert out["assistant_masks"].shape == out["input_ids"].shape
    masked = [
        processor.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(out["input_ids"], out["assistant_masks"], strict=True)
    ]
    assert masked == [f"hello{end}world{spelled}{end}", f"the audio{end}"]
    if not spelled:
        assert torch.equal(out["input_ids"], tokens(processor, chats, **options)["input_ids"])
    else:  # a message that spells control tokens does not change how its batch mates are encoded
        alone = tokens(processor, chats[1], return_assistant_tokens_mask=True)
        kept = out["attention_mask"][1].bool()
        assert out["input_ids"][1][kept].tolist() == alone["input_ids"][0].tolist()
        assert out["assistant_masks"][1][kept].tolist() == alone["assistant_masks"][0].tolist()


@refused_before_5_23
def test_a_prompt_is_the_beginning_of_the_chat_it_is_trained_on():
    processor = make_processor()
    prompt = tokens(processor, ask(SPELLED), add_generation_prompt=True)["input_ids"][0].tolist()
    chat = tokens(processor, ask(SPELLED, answer="hello"), return_assistant_tokens_mask=True)
    assert chat["input_ids"][0].tolist()[: len(prompt)] == prompt
    assert chat["assistant_masks"][0].tolist().index(1) == len(prompt)


def test_a_template_that_rewrites_earlier_turns_is_refused_for_masks():
    processor = make_processor(chat_template=FORGETFUL)
    one_turn = tokens(processor, ask(answer="hello"), return_assistant_tokens_mask=True)
    assert one_turn["assistant_masks"].any()
    with pytest.raises(ValueError, match="cannot be told. Put {% generation %}"):
        tokens(processor, ask(answer="hello") + ask(answer="world"), return_assistant_tokens_mask=True)


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_the_mask_comes_in_the_form_of_the_ids(return_tensors):
    out = tokens(
        make_processor(), ask(answer="hello"), return_assistant_tokens_mask=True, return_tensors=return_tensors
    )
    assert type(out["assistant_masks"]) is type(out["input_ids"])
    assert np.shape(out["assistant_masks"]) == np.shape(out["input_ids"])


# --- Blocks of other makers ---

WAV = encoded(sine(0.5), subtype="FLOAT")
TEXT = base64.b64encode(WAV).decode()
BLOCKS_OF_OTHERS = {
    "input_audio": {"type": "input_audio", "input_audio": {"data": TEXT, "format": "wav"}},
    "input_audio with a data address": {"type": "input_audio", "input_audio": {"data": f"data:;base64,{TEXT}"}},
    "audio_url": {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{TEXT}"}},
    "audio_url as a string": {"type": "audio_url", "audio_url": f"data:audio/wav;base64,{TEXT}"},
    "audio_url in an audio block": {"type": "audio", "audio_url": {"url": f"data:audio/wav;base64,{TEXT}"}},
    "url": {"type": "audio", "url": f"data:audio/wav;base64,{TEXT}"},
    "Base64": {"type": "audio", "audio": TEXT},
    "base64": {"type": "audio", "base64": TEXT},
    "audio that is a dict": {"type": "audio", "audio": {"data": TEXT, "format": "wav"}},
    "keys that are None": {"type": "input_audio", "input_audio": {"data": TEXT}, "audio": None, "text": None},
}


@pytest.mark.parametrize("form", BLOCKS_OF_OTHERS)
def test_audio_blocks_of_openai_and_transformers_are_heard(form):
    processor = make_processor()
    processor.allow_local_files = False  # no disk is needed for them
    chat = [{"role": "user", "content": [BLOCKS_OF_OTHERS[form], {"type": "text", "text": "hello world"}]}]
    expected = tokens(make_processor(), ask())
    for key, value in tokens(processor, chat).items():
        np.testing.assert_array_equal(value, expected[key])


def test_a_block_with_its_own_audio_stands_beside_given_ones():
    processor = make_processor()
    url = BLOCKS_OF_OTHERS["audio_url"]
    chat = [{"role": "user", "content": [{"type": "audio"}, url, {"type": "audio"}]}]
    out = tokens(processor, chat, audio=[clip(0.2), clip(0.9)])
    assert out["input_features_mask"].sum(dim=1).tolist() == [20, 50, 90]
    with pytest.raises(ValueError, match="0 audio blocks without an audio of their own but 1 audios were given"):
        tokens(processor, [{"role": "user", "content": [url]}], audio=[clip()])


@pytest.mark.parametrize("form", ["url", "audio_url", "path", "audio"])
def test_a_server_can_refuse_paths_in_chats(form, tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(WAV)
    block = {"type": "audio", form: {"url": str(path)} if form == "audio_url" else str(path)}
    chat = [{"role": "user", "content": [block]}]
    processor = make_processor()
    assert len(tokens(processor, chat)["input_features"]) == 1
    processor.allow_local_files = False
    with pytest.raises(AudioError, match="local files are refused here"):
        tokens(processor, chat)


def test_messages_may_be_objects():
    @dataclasses.dataclass
    class Message:
        role: str
        content: list
        name: str | None = None

    chat = ask()
    objects = [Message(**message) for message in chat]
    assert (
        tokens(make_processor(), objects)["input_ids"].tolist() == tokens(make_processor(), chat)["input_ids"].tolist()
    )


# --- Options of rendering ---


def test_options_of_rendering_that_exclude_each_other_are_refused():
    processor = make_processor()
    for options, message in [
        ({"continue_final_message": True, "add_generation_prompt": True}, "not compatible: the one goes on"),
        ({"continue_final_message": True, "return_assistant_tokens_mask": True}, "not compatible with return_ass"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokens(processor, ask(answer="yes"), **options)


def test_named_templates_are_chosen_by_name():
    processor = make_processor()
    processor.chat_template = {"default": "plain", "other": "{{ messages[0]['role'] }}"}
    chat = [{"role": "user", "content": "hi"}]
    assert processor.apply_chat_template(chat) == "plain"
    assert processor.apply_chat_template(chat, chat_template="other") == "user"
    assert processor.apply_chat_template(chat, chat_template="given") == "given"
    processor.chat_template = {"other": "x"}
    with pytest.raises(ValueError, match="several chat templates: other. Name one"):
        processor.apply_chat_template(chat)
    processor.chat_template = None
    with pytest.raises(ValueError, match="no chat template. Pass chat_template="):
        processor.apply_chat_template(chat)


def test_an_option_that_the_template_does_not_read_goes_to_the_processor():
    left = tokens(make_processor(), [ask(text="hi " * 9), ask(text="hi")], padding_side="left")
    right = tokens(make_processor(), [ask(text="hi " * 9), ask(text="hi")], padding_side="right")
    assert left["attention_mask"][1, 0] == 0 == right["attention_mask"][1, -1]


def test_a_transformers_that_cannot_encode_special_tokens_as_text_refuses_them(monkeypatch):
    monkeypatch.setattr("processing_speechllm.control_tokens.encode_marked", None)
    processor = make_processor()
    expected = tokens(make_processor(), ask())["input_ids"].tolist()
    assert tokens(processor, ask())["input_ids"].tolist() == expected
    with pytest.raises(ValueError, match="spells the special token '<.audio.>'.*cannot keep as text.*Install"):
        tokens(processor, ask(text="hello <|audio|>"))
    with pytest.raises(ValueError, match="spells the special token '</s>'"):
        tokens(processor, ask(), tools=[{"name": "</s>"}])
    kept = tokens(processor, ask(text="hello </s>"), sanitize_control_tokens=False)["input_ids"]
    assert processor.tokenizer.eos_token_id in kept
