"""Plain TRL and transformers train a SpeechLLM with the collator: the same labels, losses and gradients as ours."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Audio, Dataset
from factories_training import tiny_parts, tone_rows
from test_trainers import build, logged
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from trainers import SpeechChatCollator

QUICK = {
    **{"max_steps": 3, "logging_steps": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "use_cpu": True},
    **{"disable_tqdm": True, "save_strategy": "no", "lr_scheduler_type": "constant", "report_to": "none"},
    **{"remove_unused_columns": False, "bf16": False, "gradient_checkpointing": False},
}
TRAINERS = {
    "TRL": (SFTTrainer, SFTConfig, {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}),
    "transformers": (Trainer, TrainingArguments, {}),
}


def plain(kind, folder, rows, collator=None, **changes):
    """A plain trainer of a SpeechLLM's connector."""
    model, processor = tiny_parts()
    trainer_class, config_class, settings = TRAINERS[kind]
    args = config_class(str(folder), **QUICK | settings | changes)
    collator = SpeechChatCollator(processor) if collator is None else collator
    return trainer_class(model, args, data_collator=collator, train_dataset=rows, processing_class=processor)


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["chats", "cut", "transcripts"])
@pytest.mark.parametrize("kind", TRAINERS)
def test_losses_and_gradients_are_those_of_the_speech_trainer(kind, rows, tmp_path):
    columns = {"finish_reason": ["length", "stop"] * 4} if rows == "cut" else {}
    rows = tone_rows(answered=rows != "transcripts", **columns)
    ours = build("imitation", tmp_path / "ours", rows, max_steps=3, per_device_train_batch_size=8)
    ours.train()
    for split in ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}):
        trainer = plain(kind, tmp_path / "plain", rows, **split)
        trainer.train()
        for name in ("loss", "grad_norm"):
            assert logged(trainer, name) == pytest.approx(logged(ours, name), rel=2e-4), (name, split)


def test_labels_stand_on_the_answers_alone_and_audio_comes_in_any_form():
    _, processor = tiny_parts()
    collator = SpeechChatCollator(processor)
    encoded = tone_rows(2, answered=True)
    decoded = encoded.cast_column("audio", Audio(decode=False))
    batch = collator(list(decoded))
    for row, labels in zip(decoded, batch["labels"], strict=True):
        assert processor.tokenizer.decode(labels[labels != -100]) == f"{row['text']} {row['text']}<|im_end|>"
    ids = batch["input_ids"]
    assert torch.equal(batch["labels"][batch["labels"] != -100], ids[batch["labels"] != -100])
    row = decoded[0]
    array = {"array": processor.load_audio(row["audio"]), "sampling_rate": 16000}
    asked = [{"role": "system", "content": "hello"}, {"role": "user", "content": "<audio>what"}]
    chat = [*asked, {"role": "assistant", "content": "is said"}]
    for form in ({"audio": array, "messages": chat}, {"audios": [row["audio"]], "messages": chat}):
        found = collator([form])
        torch.testing.assert_close(found["input_features"], collator([row])["input_features"])
        assert processor.tokenizer.decode(found["labels"][0][found["labels"][0] != -100]) == "is said<|im_end|>"
    inline = [{"role": "user", "content": [{"type": "audio", "audio": array}]}, chat[-1]]
    assert len(collator([{"messages": inline}])["input_features"]) == 1


def test_batches_of_text_alone_are_trained_on_where_that_is_meant():
    model, processor = tiny_parts()
    model.unfreeze("llm")
    chat = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "is said"}]
    batch = SpeechChatCollator(processor)([{"messages": chat, "audio": None}])
    assert len(batch["input_features"]) == 0
    model.train()
    model(**batch).loss.backward()
    with pytest.raises(ValueError, match="got no audio: input_features is None.*SpeechChatCollator.*torch.zeros.0."):
        model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")})
    model.eval()
    assert model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss > 0


@pytest.mark.parametrize("form", ["text", "messages", "prompt"])
def test_an_audio_column_that_trl_would_ignore_raises(form, tmp_path):
    model, processor = tiny_parts()
    model.unfreeze("llm")
    row = dict(tone_rows(1)[0])
    question = [{"role": "user", "content": "what"}]
    answer = [{"role": "assistant", "content": "is said"}]
    columns = {
        "text": {"text": "what is said"},
        "messages": {"messages": question + answer},
        "prompt": {"prompt": question, "completion": answer},
    }[form]
    rows = Dataset.from_list([{"audio": row["audio"], **columns}] * 2).cast_column("audio", Audio(decode=False))
    args = SFTConfig(str(tmp_path), **QUICK | {"remove_unused_columns": True, "max_length": None})
    with pytest.raises(ValueError, match="got no audio: input_features is None"):
        SFTTrainer(model, args, train_dataset=rows, processing_class=processor).train()


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        (
            {"input_ids": [1]},
            "neither messages nor audio with its text; its columns are input_ids.*remove_unused_columns",
        ),
        ({"text": "hello"}, "neither messages nor audio"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "1 places for audio, its audios are 0.*Columns",
        ),
    ],
)
def test_rows_that_lost_their_audio_are_refused(row, finding):
    _, processor = tiny_parts()
    with pytest.raises(ValueError, match=finding):
        SpeechChatCollator(processor)([row])


def test_the_page_s_settings_are_those_tested():
    page = (Path(__file__).parent.parent / "docs" / "trl.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    compile(code, "trl.md", "exec")
    for words in ("SpeechChatCollator(processor)", "remove_unused_columns=False", '"skip_prepare_dataset": True'):
        assert words in code
