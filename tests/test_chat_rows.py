"""Chats in the forms of other tools come as one: bare audio blocks, and the audios in reading order."""

import base64
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset
from factories_training import tiny_parts

from trainers import SpeechChatCollator, SpeechImitationConfig, SpeechImitationTrainer
from trainers.alignment_trainer import AlignmentCollator
from trainers.data.bad_rows import BadRows
from trainers.data.chat_rows import chat_row
from trainers.data.loading import load_rows, with_durations
from trainers.imitation_trainer import ImitationCollator

AUDIO = {"type": "audio", "text": None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*content) -> list[dict]:
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": [text("yes")]}]


def answered(content) -> list[dict]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]


BASE64 = base64.b64encode(b"RIFF").decode()
FORMS = {
    "ms-swift": ({"messages": answered("<audio>what?"), "audios": ["a.wav"]}, user(AUDIO, text("what?")), ["a.wav"]),
    "ms-swift, one path": ({"messages": answered("<audio>"), "audios": "a.wav"}, user(AUDIO), ["a.wav"]),
    "ms-swift, two": (
        {"messages": answered("one <audio> two <audio>"), "audios": ["a.wav", "b.wav"]},
        user(text("one "), AUDIO, text(" two "), AUDIO),
        ["a.wav", "b.wav"],
    ),
    "no mark": (
        {"messages": answered("what?"), "audios": ["a.wav"]},
        user(AUDIO, text("\n"), text("what?")),
        ["a.wav"],
    ),
    "text that says <audio>": ({"messages": answered("what is <audio>?")}, user(text("what is <audio>?")), []),
    "Qwen": (
        {"messages": answered([{"type": "audio", "audio_url": "a.wav"}, {"type": "text", "text": "what?"}])},
        user(AUDIO, text("what?")),
        ["a.wav"],
    ),
    "Qwen without types": (
        {"messages": answered([{"audio": "a.wav"}, {"text": "what?"}])},
        user(AUDIO, text("what?")),
        ["a.wav"],
    ),
    "Qwen-Audio": (
        {"messages": answered("Audio 1: <audio>a.wav</audio>\nwhat?")},
        user(text("Audio 1: "), AUDIO, text("\nwhat?")),
        ["a.wav"],
    ),
    "OpenAI": (
        {"messages": answered([{"type": "input_audio", "input_audio": {"data": BASE64, "format": "mp3"}}, "what?"])},
        user(AUDIO, text("what?")),
        [b"RIFF"],
    ),
    "OpenAI, address": (
        {"messages": answered([{"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{BASE64}"}}])},
        user(AUDIO),
        [b"RIFF"],
    ),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "<audio>?"}, {"from": "gpt", "value": "yes"}],
            "audios": ["a.wav"],
        },
        user(AUDIO, text("?")),
        ["a.wav"],
    ),
    "system": (
        {"messages": [{"role": "system", "content": "be brief"}, *answered([{"type": "audio"}])], "audios": ["a.wav"]},
        [{"role": "system", "content": [text("be brief")]}, *user(AUDIO)],
        ["a.wav"],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read(form):
    row, messages, sources = FORMS[form]
    found = chat_row(row, True, "row")
    assert found["messages"] == messages
    assert [audio["bytes"] or audio["path"] for audio in found["audio"]] == sources
    assert found["text"] == [None] * len(sources)


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        ({"messages": answered("<audio><audio>"), "audios": ["a.wav"]}, "2 places for audio, its audios are 1"),
        ({"messages": answered([{"type": "image"}])}, "kind 'image'"),
        ({"messages": answered("x"), "images": ["a.png"]}, "has images"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"a": 1}]}]}, "has tool_calls beside"),
        ({"messages": [{"content": "x"}]}, "has no role"),
        ({"messages": "what"}, "`messages` is text that is no JSON"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "gpt", "content": None}]}, "no content to learn"),
        (
            {"messages": answered([{"type": "audio", "audio": "a.wav"}]), "audio": "a.wav"},
            "audio both in its messages",
        ),
        ({"messages": answered([{"type": "input_audio", "input_audio": {"data": "???"}}])}, "no base64"),
        ({"messages": answered("<audio>"), "audios": [3]}, "an audio is int"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_row(row, finding):
    with pytest.raises(ValueError, match=f"^row: .*{finding}"):
        chat_row(row, True, "row")


def write_clip(path: Path, seconds: float) -> bytes:
    soundfile.write(path, 0.1 * np.sin(np.arange(int(16000 * seconds)) / 9), 16000)
    return path.read_bytes()


@pytest.fixture
def manifest(tmp_path) -> Path:
    """A file whose rows mix strings and blocks, one audio and two, with and without a system message."""
    content = write_clip(tmp_path / "a.wav", 0.5)
    write_clip(tmp_path / "b.wav", 0.75)
    inline = {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav"}}
    rows = [
        {"messages": answered("<audio>what is said"), "audios": ["a.wav"]},
        {"messages": answered([{"type": "audio", "audio": "b.wav"}, {"type": "text", "text": "hello"}])},
        {"messages": [{"role": "system", "content": "hello"}, *answered([inline, "said"])], "text": "hello world"},
        {"messages": answered("<audio> <audio>"), "audios": ["a.wav", "b.wav"]},
        {"messages": answered("no audio")},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_a_manifest_may_mix_forms(manifest, streaming):
    said = []
    rows = list(with_durations(load_rows(manifest, streaming=streaming, say=said.append)))
    assert said == [f"{manifest}: manifest, split train, {'streamed' if streaming else '5 rows'}"]
    assert [row["duration"] for row in rows] == [0.5, 0.75, 0.5, 1.25, 0.0]
    assert [row["text"] for row in rows] == [[None], [None], ["hello world"], [None, None], []]
    assert rows[2]["messages"][0] == {"role": "system", "content": [text("hello")]}
    assert len({row["id"] for row in rows}) == 5


@pytest.mark.slow
def test_chats_are_trained_on_as_they_stand(manifest, tmp_path):
    model, processor = tiny_parts()
    rows = with_durations(load_rows(manifest))
    args = SpeechImitationConfig(
        str(tmp_path / "out"), use_cpu=True, max_steps=2, per_device_train_batch_size=5, disable_tqdm=True
    )
    trainer = SpeechImitationTrainer(model, args, train_dataset=rows, processing_class=processor)
    batch = trainer.data_collator([row | {"draw": (0, index)} for index, row in enumerate(rows)])
    for labels in batch["labels"]:
        assert processor.tokenizer.decode(labels[labels != -100]) == "yes<|im_end|>"
    assert len(batch["input_features"]) == 5
    assert trainer.train().training_loss > 0
    with pytest.raises(ValueError, match="has no transcript in its column 'text', which this training needs"):
        args = SpeechImitationConfig(str(tmp_path / "kl"), use_cpu=True, max_steps=1, divergence_weight=1.0)
        SpeechImitationTrainer(model, args, train_dataset=rows, processing_class=processor).train()


def test_a_chat_without_an_answer_is_refused_where_answers_are_learned(tmp_path):
    _, processor = tiny_parts()
    row = {"id": "7", "audio": None, "messages": [{"role": "user", "content": "hello"}], "draw": (0, 0)}
    collator = ImitationCollator(processor, SpeechImitationConfig(str(tmp_path), use_cpu=True))
    for collate in (collator, SpeechChatCollator(processor)):
        with pytest.raises(ValueError, match="Row 7: its messages have no assistant turn"):
            collate([row])


@pytest.mark.parametrize("collator_class", [ImitationCollator, AlignmentCollator])
def test_audios_that_are_over_the_positions_together_set_the_row_aside(collator_class, manifest, tmp_path):
    _, processor = tiny_parts()
    one, two, _, both, _ = (row | {"draw": (0, index)} for index, row in enumerate(load_rows(manifest)))
    rows = [row | {"text": ["hello"] * len(row["audio"])} for row in (one, two, both)]
    counts = [processor.audio_token_count(length) for length in (8000, 12000)]
    room = max(counts)
    processor.max_position_embeddings = room * 4 // 3 + 1  # of which a quarter is for text
    assert room <= processor.audio_room < sum(counts)
    bad_rows = BadRows(None, 1.0, 1)
    args = SpeechImitationConfig(str(tmp_path), use_cpu=True)
    batch = collator_class(processor, args, bad_rows=bad_rows)(rows)
    runs = collator_class is ImitationCollator  # alignment connects each audio alone
    assert (batch["counts"]["rows"], batch["counts"]["bad_rows"]) == ((2, 1) if runs else (3, 0))
    if runs:
        assert f"its 2 audios are {sum(counts)} tokens together" in bad_rows.read()[0]["finding"]


@pytest.mark.parametrize("streaming", [False, True], ids=["map-style", "streaming"])
def test_a_loaded_dataset_s_audio_column_comes_first_in_the_user_turn(tmp_path, streaming):
    write_clip(tmp_path / "a.wav", 0.5)
    given = {"audio": [str(tmp_path / "a.wav")] * 2, "messages": [answered("what?")] * 2, "text": ["one", "two"]}
    rows = Dataset.from_dict(given).cast_column("audio", Audio())
    rows = list(load_rows(rows.to_iterable_dataset() if streaming else rows))
    assert rows[0]["messages"] == user(AUDIO, text("\n"), text("what?"))
    assert (rows[1]["text"], rows[1]["audio"]["path"]) == ("two", str(tmp_path / "a.wav"))
    listed = Dataset.from_dict({"audios": [["a.wav"]], "messages": [answered("<audio>what?")]})
    (row,) = load_rows(listed)
    assert row["messages"] == user(AUDIO, text("what?")) and row["audio"] == [{"bytes": None, "path": "a.wav"}]
