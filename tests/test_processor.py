"""The processor: counts, features, saving and loading, for both kinds of feature extractor."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from factories_processing import (
    CHATML,
    KINDS,
    RATE,
    SPELLED,
    STACK_STAGES,
    TEMPLATES,
    WAVEFORM_STAGES,
    WHISPER_STAGES,
    ask,
    clip,
    encoded,
    make_config,
    make_extractor,
    make_processor,
    make_tokenizer,
    sine,
    tokens,
)
from transformers import SeamlessM4TFeatureExtractor, WhisperFeatureExtractor

from modeling_speechllm import output_length
from processing_speechllm import AudioError, SpeechLLMProcessor, stage_length
from processing_speechllm.control_tokens import encode_marked

# --- Counting ---

CHAINS = {
    "Whisper": WHISPER_STAGES,
    "wav2vec2": WAVEFORM_STAGES,
    "stack 4": STACK_STAGES,
    "Whisper and stack": WHISPER_STAGES + STACK_STAGES,
    "overlapping windows": [{"kernel": 7, "stride": 3, "ceil": True}],
    "window Q-Former": [{"kernel": 15, "stride": 15, "ceil": True, "tokens": 3}],
    "padded, no ceil": [{"kernel": 9, "stride": 2, "padding": 2}, {"kernel": 2, "stride": 2, "tokens": 2}],
    "padded, ceil": [{"kernel": 5, "stride": 4, "padding": 1, "ceil": True}],
    "none": [],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_processor_and_model_count_alike_for_every_length(chain):
    lengths = list(range(1, 1300))
    assert stage_length(0, CHAINS[chain]) == 0
    counted = [stage_length(length, CHAINS[chain]) for length in lengths]
    assert counted == output_length(torch.tensor(lengths), CHAINS[chain]).tolist()
    assert counted == [output_length(length, CHAINS[chain]) for length in lengths]


def test_a_stage_counts_the_windows_it_slides_over():
    for length in range(40):
        starts = range(0, length + 2 - 5 + 1, 3)  # a window of 5 by 3 over `length` items and one of padding each side
        stage = {"kernel": 5, "stride": 3, "padding": 1, "tokens": 2}
        assert stage_length(length, [stage]) == (2 * len(starts) if length else 0)
        groups = -(-length // 4)
        assert stage_length(length, STACK_STAGES) == groups


@pytest.mark.parametrize("kind", KINDS)
def test_placeholders_are_as_many_as_counted_for_every_length(kind):
    processor = make_processor(kind)
    lengths = range(processor.min_samples, processor.min_samples + 3000, 97)
    for length in lengths:
        out = processor(text="<|audio|>", audio=(sine(1.0)[:length], RATE))
        placeholders = int((out["input_ids"] == processor.audio_token_id).sum())
        assert placeholders == processor.audio_token_count(length) >= 1
        units = int(out["input_features_mask"].sum())
        assert units == (-(-length // 160) if kind == "whisper" else length)
        assert placeholders == output_length(units, processor.audio_stages + processor.connector_stages)
    counts = processor._get_num_multimodal_tokens(audio_lengths=list(lengths)).num_audio_tokens
    assert counts == [processor.audio_token_count(length) for length in lengths]


# --- The longest audio ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("positions", "seconds", "binds"), [(None, 2, 0), (4096, 2, 0), (160, 3600, 1), (100, 9, 1)])
def test_one_limit_names_what_binds_and_audio_up_to_it_fits(kind, positions, seconds, binds):
    processor = make_processor(kind, config={"positions": positions}, max_audio_seconds=seconds)
    limit = processor.audio_limit
    room = None if positions is None else positions - min(128, positions // 4)
    longest = round(limit.seconds * RATE)
    assert (limit.seconds < seconds) == binds
    if binds:
        assert processor.audio_token_count(longest) == room < processor.audio_token_count(longest + 1)
    processor.load_audio((np.ones(longest, np.float32), RATE))
    remedy = "LLM with more positions" if binds else "raise `max_audio_seconds`"
    with pytest.raises(AudioError, match=f"over the limit of .*{'positions' if binds else 'max_audio'}.*{remedy}"):
        processor.load_audio((np.ones(longest + 1, np.float32), RATE))


def test_the_limit_names_the_silence_that_the_processor_adds_and_says_where_it_leaves_no_room():
    processor = make_processor(config={"positions": 160})
    room, plain = 160 - 40, processor.audio_limit
    processor.trailing_silence = 0.5
    silence = processor.audio_token_count(0)
    limit = processor.audio_limit
    assert 0 < silence < room and limit.seconds == pytest.approx(plain.seconds - 0.5)
    longer = (np.ones(round(limit.seconds * RATE) + 1, np.float32), RATE)
    told = f"may take {room}, {silence} of them for 0.5 s of silence behind it .*smaller `trailing_silence`"
    with pytest.raises(AudioError, match=told):
        processor.load_audio(longer)
    processor.trailing_silence = plain.seconds + 1
    assert processor.audio_limit.seconds == 0
    with pytest.raises(AudioError, match="no audio can be taken, however short .*Use an LLM .*smaller `trailing_sil"):
        processor.load_audio((sine(0.2), RATE))


@pytest.mark.parametrize("seconds", [None, float("inf"), float("nan"), 0, "60"])
def test_a_longest_audio_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match="max_audio_seconds=.* must be a number of seconds over 0"):
        make_processor("whisper", max_audio_seconds=seconds)


def test_the_limit_is_saved_and_the_permission_to_read_files_is_not(tmp_path):
    processor = make_processor(config={"positions": 160})
    processor.allow_local_files = False
    processor.save_pretrained(tmp_path)
    loaded = SpeechLLMProcessor.from_pretrained(tmp_path)
    assert loaded.audio_limit == processor.audio_limit and loaded.max_position_embeddings == 160
    assert loaded.allow_local_files and "allow_local_files" not in (tmp_path / "processor_config.json").read_text()


# --- Features ---


def test_a_column_of_a_dataset_alone_gives_its_features():
    audios = [{"bytes": encoded(sine(seconds), subtype="FLOAT"), "path": None} for seconds in (0.2, 0.3)]
    rows = datasets.Dataset.from_dict({"audio": audios}).cast_column("audio", datasets.Audio(decode=False))
    processor = make_processor()
    out = processor(audio=rows["audio"])
    expected = processor(text=["<|audio|>", "<|audio|>"], audio=[clip(0.2), clip(0.3)])
    assert set(out) == {"input_features", "input_features_mask"}
    for key in out:
        np.testing.assert_array_equal(out[key], expected[key])
    transcribed = processor(text=["<|audio|>", "<|audio|>"], audio=rows["audio"])
    assert transcribed["input_ids"].tolist() == expected["input_ids"].tolist()


@pytest.mark.parametrize("kind", [*KINDS, "w2v-bert"])
def test_a_pickled_processor_gives_the_same(kind):
    if kind == "w2v-bert":
        config = {"audio_feature_size": 160, "audio_stages": STACK_STAGES}
        processor = make_processor(extractor=SeamlessM4TFeatureExtractor(), config=config)
    else:
        processor = make_processor(kind)
    again = pickle.loads(pickle.dumps(processor))
    for key, value in tokens(processor, ask()).items():
        np.testing.assert_array_equal(tokens(again, ask())[key], value)
    assert again.to_dict() == processor.to_dict() and again.min_samples == processor.min_samples


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_batch_gives_what_its_members_give_alone(kind, padding_side):
    processor = make_processor(kind)
    processor.feature_extractor.padding_side = padding_side  # must not matter: features always pad right
    chats = [ask(seconds=seconds) for seconds in (0.31, 1.0, 0.5)] + [[{"role": "user", "content": "no audio"}]]
    options = {"processor_kwargs": {"padding_side": padding_side}}
    batch = tokens(processor, chats, **options)
    assert batch["input_features"].shape[0] == batch["input_features_mask"].shape[0] == 3
    for row, chat in enumerate(chats):
        alone = tokens(processor, chat)
        kept = batch["attention_mask"][row].bool()
        assert kept[-1 if padding_side == "left" else 0] and batch["input_ids"][row][kept].tolist() == (
            alone["input_ids"][0].tolist()
        )
        if row < 3:
            size = alone["input_features"].shape[-1]
            assert torch.equal(batch["input_features"][row, ..., :size], alone["input_features"][0])
            assert not batch["input_features"][row, ..., size:].any()
            assert batch["input_features_mask"][row].tolist() == [
                int(index < size) for index in range(batch["input_features_mask"].shape[1])
            ]
        else:
            assert "input_features" not in alone


def test_whisper_features_cost_what_the_audio_lasts():
    processor, extractor = make_processor(), WhisperFeatureExtractor()
    for samples in (8000, 8001):
        features = processor(text="<|audio|>", audio=(sine(1.0)[:samples], RATE))["input_features"]
        assert features.shape == (1, 80, -(-samples // 160))
    full = extractor(sine(0.5), sampling_rate=RATE, return_tensors="pt")["input_features"]
    # The last frame's window reaches into what follows: mirrored audio here, silence there.
    near = processor(text="<|audio|>", audio=clip(0.5))["input_features"]
    assert torch.allclose(near[..., :-2], full[..., :48], atol=1e-6)


@pytest.mark.parametrize("seconds", [0.5, 30.0, 31.0])
def test_pad_to_window_gives_the_pretrained_features(seconds):
    processor = make_processor(config={"pad_to_window": True})
    out = processor(text="<|audio|>", audio=clip(seconds))
    windows = int(-(-seconds // 30))
    expected = WhisperFeatureExtractor()(
        sine(seconds),
        sampling_rate=RATE,
        return_tensors="pt",
        truncation=False,
        padding="longest" if windows > 1 else "max_length",
        pad_to_multiple_of=480000,
    )["input_features"]
    assert out["input_features"].shape == (1, 80, 3000 * windows)
    assert torch.equal(out["input_features"], expected)
    assert int(out["input_features_mask"].sum()) == round(100 * seconds)


def test_waveforms_are_normalised_each_alone():
    processor = make_processor("waveform")
    loud, quiet = (sine(0.5, amplitude=0.9), RATE), (sine(0.5, amplitude=0.01), RATE)
    features = processor(text="<|audio|><|audio|>", audio=[loud, quiet])["input_features"]
    assert torch.allclose(features[0], features[1], atol=1e-2)
    assert torch.allclose(features.var(-1), torch.ones(2), atol=1e-2)


def test_audios_are_one_row_each_in_reading_order():
    processor = make_processor()
    block = {"type": "text", "text": "and"}
    two = [{"role": "user", "content": [{"type": "audio", "audio": clip(0.3)}, block]}]
    two[0]["content"] += [{"type": "audio", "audio": clip(0.6)}, block]
    turn = ask(seconds=0.4, answer="hello") + ask(seconds=0.7)
    out = tokens(processor, [two, turn])
    assert out["input_features_mask"].sum(-1).tolist() == [30, 60, 40, 70]
    counts = (out["input_ids"] == processor.audio_token_id).sum(-1).tolist()
    assert counts == [processor.audio_token_count(4800) + processor.audio_token_count(9600), 5 + 9]


# --- Conventions of transformers ---


def test_truncation_with_audio_is_refused():
    processor = make_processor()
    with pytest.raises(ValueError, match="truncation=True could cut the audio's placeholders.*Shorten"):
        processor(text="<|audio|> hello", audio=clip(), truncation=True, max_length=4)
    with pytest.raises(ValueError, match="truncation='longest_first' could cut"):
        tokens(processor, ask(), processor_kwargs={"text_kwargs": {"truncation": "longest_first", "max_length": 4}})
    assert processor(text="hello world", truncation=True, max_length=2)["input_ids"].shape[1] == 2
    padded = processor(text="<|audio|>", audio=clip(), padding="max_length", max_length=50)
    assert padded["input_ids"].shape[1] == 50 and (padded["input_ids"] == processor.audio_token_id).sum() == 7


def test_prompts_pad_left_unless_told_otherwise():
    processor = make_processor()
    texts = ["hello world hello world", "hello"]
    assert processor(text=texts)["attention_mask"][1].tolist()[0] == 0
    assert processor(text=texts, padding_side="right")["attention_mask"][1].tolist()[-1] == 0


def test_from_parts_pads_left_and_a_constructed_processor_as_its_tokenizer_says():
    tokenizer = make_tokenizer(CHATML, padding_side="right")
    assert make_processor(tokenizer=tokenizer).tokenizer.padding_side == "left"
    assert tokenizer.padding_side == "right"
    stages = {"audio_stages": WHISPER_STAGES, "connector_stages": STACK_STAGES}
    assert SpeechLLMProcessor(make_extractor(), tokenizer, **stages).tokenizer.padding_side == "right"
    assert SpeechLLMProcessor(make_extractor(), make_tokenizer(), **stages).tokenizer.padding_side == "left"


def test_token_types_which_causal_lms_do_not_take_are_left_out():
    names = ["input_ids", "token_type_ids", "attention_mask"]
    processor = make_processor(tokenizer=make_tokenizer(CHATML, model_input_names=names))
    assert "token_type_ids" in processor.tokenizer("hello")
    assert set(tokens(processor, ask())) == set(processor.model_input_names)


def test_offsets_and_modality_ids_are_given_on_request():
    processor = make_processor()
    out = processor(
        text=["x<|audio|>y"], audio=clip(), return_mm_token_type_ids=True, return_text_replacement_offsets=True
    )
    assert torch.equal(out["mm_token_type_ids"] == 3, out["input_ids"] == processor.audio_token_id)
    (item,) = out["text_replacement_offsets"][0]
    assert (item["type"], item["span"], item["replacement"]) == ("audio", (1, 10), "<|audio|>" * 7)
    chat = tokens(processor, ask(), processor_kwargs={"return_text_replacement_offsets": True})
    assert len(chat["text_replacement_offsets"][0]) == 1
    assert "text_replacement_offsets" not in tokens(processor, ask(answer="a"), return_assistant_tokens_mask=True)
    assert set(tokens(processor, ask())) == set(processor.model_input_names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_saving_and_loading_changes_nothing(kind, template, tmp_path):
    processor = make_processor(
        kind, TEMPLATES[template], max_audio_seconds=12.5, config={"connector_stages": CHAINS["window Q-Former"]}
    )
    processor.save_pretrained(tmp_path / "once")
    loaded = SpeechLLMProcessor.from_pretrained(tmp_path / "once")
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.chat_template == processor.chat_template == loaded.tokenizer.chat_template
    chats = [ask("hi" if encode_marked is None else SPELLED, answer="hello"), ask(seconds=0.8, answer="world")]
    before, after = (tokens(each, chats, return_assistant_tokens_mask=True) for each in (processor, loaded))
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    loaded.save_pretrained(tmp_path / "twice")
    files = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "twice").iterdir())
    for name in files:
        once, twice = ((tmp_path / folder / name).read_text() for folder in ("once", "twice"))
        if name == "tokenizer_config.json":  # transformers notes in it how the tokenizer was loaded
            once, twice = json.loads(once), json.loads(twice)
            del twice["is_local"], twice["local_files_only"]
        assert once == twice, name


def test_loading_with_right_padding_pads_text_right_and_features_right(tmp_path):
    make_processor().save_pretrained(tmp_path)
    loaded = SpeechLLMProcessor.from_pretrained(tmp_path, padding_side="right")
    out = tokens(loaded, [ask(), ask("longer hello world", seconds=0.9)])
    assert out["attention_mask"][0, -1] == 0 and out["input_features_mask"][0, 0] == 1


def test_parts_come_from_folders_too(tmp_path):
    tokenizer = make_tokenizer(CHATML)
    make_extractor().save_pretrained(tmp_path / "audio")
    tokenizer.save_pretrained(tmp_path / "text")
    config = make_config(tokenizer)
    by_path = SpeechLLMProcessor.from_parts(str(tmp_path / "audio"), tmp_path / "text", config)
    by_object = SpeechLLMProcessor.from_parts(make_extractor(), tokenizer, config)
    assert by_path.to_dict() == by_object.to_dict()
    assert torch.equal(tokens(by_path, ask())["input_ids"], tokens(by_object, ask())["input_ids"])
    assert "<|audio|>" not in tokenizer.get_vocab()  # the caller's tokenizer is left as it was


def test_a_missing_pad_token_is_the_end_token():
    processor = make_processor()
    assert make_tokenizer().pad_token is None and processor.tokenizer.pad_token == "</s>"
    assert make_processor(tokenizer=make_tokenizer(CHATML, pad_token="<pad>")).tokenizer.pad_token == "<pad>"


def test_the_tokenizers_own_placeholder_is_used():
    tokenizer = make_tokenizer(CHATML)
    tokenizer.add_tokens(["<|audio|>"], special_tokens=True)
    tokenizer.add_tokens(["<|later|>"], special_tokens=True)
    assert make_processor(tokenizer=tokenizer).audio_token_id == len(tokenizer) - 2


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"id of <\|audio\|> is \d+, the config's audio_token_id is 7. Compose"):
        make_processor(config={"audio_token_id": 7})
    with pytest.raises(ValueError, match="gives 128 mel bins, the encoder takes 80 mel bins. Take both"):
        tokenizer = make_tokenizer()
        SpeechLLMProcessor.from_parts(WhisperFeatureExtractor(feature_size=128), tokenizer, make_config(tokenizer))
    with pytest.raises(ValueError, match="pad_to_window is for Whisper's extractor.*Leave it False"):
        make_processor("waveform", config={"pad_to_window": True})
    with pytest.raises(ValueError, match="audio_stages must be a list of dicts.*from_parts"):
        SpeechLLMProcessor(make_extractor(), make_tokenizer())
    with pytest.raises(ValueError, match="connector_stages must be a list of dicts"):
        make_processor(config={"connector_stages": [{"kernel": 2, "step": 2}]})
    with pytest.raises(ValueError, match="No audio gives an audio token.*Copy them from the model's config"):
        make_processor(config={"connector_stages": [{"kernel": 2, "stride": 2, "tokens": 0}]})


REMOTE = """
import sys, numpy as np
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "processing_speechllm" not in sys.modules and "transformers_modules" in type(processor).__module__
chat = processor.instruction_chat([(np.zeros(8000, dtype=np.float32) + 0.1, 16000)], "hello")
print(processor.apply_chat_template(chat, tokenize=True)[0].tolist())
"""


@pytest.mark.slow
def test_the_copied_files_load_as_remote_code_without_the_package(tmp_path):
    processor = make_processor()
    folder = tmp_path / "model"
    processor.save_pretrained(folder)
    for path in Path(sys.modules["processing_speechllm"].__file__).parent.glob("*.py"):
        if path.name != "__init__.py":
            shutil.copy(path, folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["auto_map"] = {"AutoProcessor": "processing_speechllm.SpeechLLMProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", REMOTE, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    audio = (np.zeros(8000, dtype=np.float32) + 0.1, RATE)
    chat = processor.instruction_chat([audio], "hello")
    assert json.loads(done.stdout.splitlines()[-1]) == (processor.apply_chat_template(chat, tokenize=True)[0].tolist())


def test_saving_with_an_auto_class_copies_every_file_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(SpeechLLMProcessor, "_auto_class", "AutoProcessor")
    make_processor().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == {
        "audio.py",
        "audio_addresses.py",
        "audio_decoding.py",
        "chat_format.py",
        "chat_messages.py",
        "control_tokens.py",
        "feature_kinds.py",
        "gguf_tokenizer.py",
        "mp3_frames.py",
        "ogg_pages.py",
        "processing_speechllm.py",
        "stages.py",
    }
