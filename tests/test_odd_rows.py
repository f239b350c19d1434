"""Rows as people have them: a batch of bad ones alone, answers in the middle or cut, words that spell a token."""

import pytest
import torch
from conftest import text_config
from datasets import Dataset
from factories_processing import encoded
from factories_training import LANGUAGES, tiny_parts, tone, tone_rows
from test_trainers import BANK, SETTINGS, TRAINERS, build, logged

from modeling_speechllm.connector_base import ConnectorOutput
from trainers.cache.config import EncodeConfig
from trainers.cache.encode import encode_dataset
from trainers.checkpoints.lora import lora_config
from trainers.commands.teacher_prompts import make_teacher_inputs
from trainers.data.chats import IGNORED, up_to_answer
from trainers.distillation_trainer import said
from trainers.objectives.distances import input_distance

pytestmark = pytest.mark.slow

USER = {"role": "user", "content": [{"type": "text", "text": "hello"}]}
ASSISTANT = {"role": "assistant", "content": [{"type": "text", "text": "world"}]}


def broken(rows, count):
    """The rows, the first of them with audio that is none."""
    rows = [dict(row) for row in rows]
    for row in rows[:count]:
        row["audio"] = {"bytes": b"no audio", "path": None}
    return Dataset.from_list(rows)


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_batch_of_bad_rows_alone_trains_nothing_and_is_counted(kind, tmp_path):
    rows = broken(tone_rows(answered=kind.startswith(("imitation", "distillation-response"))), 4)
    settings = {"max_bad_share": 1.0, "train_sampling_strategy": "sequential", "max_steps": 2}
    model, processor = tiny_parts(TRAINERS[kind][2])
    adapted = lora_config(model, ["llm"], 4, 8) if kind == "distillation" else None
    trainer = build(kind, tmp_path, rows, model, processor, adapted, rows.select(range(4)), **settings)
    trainer.train()
    assert logged(trainer)[0] == 0 and logged(trainer, "grad_norm")[0] == 0
    assert logged(trainer, "bad_rows")[0] == 4 and logged(trainer, "tokens_per_second")[0] == 0
    assert logged(trainer)[1] > 0
    if not kind.startswith("alignment"):  # which refuses an evaluation of nothing
        assert trainer.evaluate()["eval_loss"] == 0


@pytest.mark.parametrize("kind", ["imitation-divergence", "distillation"])
def test_so_is_one_with_a_cached_teacher(kind, tmp_path):
    rows = tone_rows(answered=kind.startswith("imitation"))
    model, processor = tiny_parts(TRAINERS[kind][2])
    model.freeze("encoder")
    teacher = {"teacher": "hidden"} if kind == "distillation" else {"teacher": "top_k", "top_k": 16}
    if kind != "distillation":
        teacher |= {"instruction": build(kind, tmp_path).args.transcription_instruction, "temperature": 2.0}
    config = EncodeConfig(output_dir=str(tmp_path / "cache"), storage_dtype="float32", max_bad_share=1.0, **teacher)
    encode_dataset(model, processor, broken(rows, 4), config, make_teacher_inputs(processor, config))
    settings = {"frames_cache": str(tmp_path / "cache"), "cached_teacher": True, "max_bad_share": 1.0}
    settings |= {"train_sampling_strategy": "sequential", "max_steps": 2}
    settings |= {"top_k": 16} if kind != "distillation" else {}
    trainer = build(kind, tmp_path / "run", rows, model, processor, **settings)
    trainer.train()
    assert logged(trainer)[0] == 0 and logged(trainer, "bad_rows")[0] == 4 and logged(trainer)[1] > 0


def test_a_chat_teaches_up_to_its_last_answer(tmp_path):
    rows = tone_rows(answered=True)
    longer = Dataset.from_list([{**row, "messages": [*row["messages"], USER]} for row in rows])
    trainers = [build("imitation", tmp_path / str(n), some, max_steps=1) for n, some in enumerate((rows, longer))]
    for trainer in trainers:
        trainer.train()
    assert logged(trainers[1]) == logged(trainers[0]) and logged(trainers[0])[0] > 0


def test_what_teaches_nothing_is_named():
    assert up_to_answer([USER, ASSISTANT, USER], "a") == [USER, ASSISTANT]
    with pytest.raises(ValueError, match="Row a: .* no assistant turn"):
        up_to_answer([USER], "a")
    with pytest.raises(ValueError, match="Row a: behind the last assistant turn .* audio without an answer"):
        up_to_answer([USER, ASSISTANT, {"role": "user", "content": [{"type": "audio"}]}], "a")


CUT = ["length", "stop"] * 4


def test_distillation_takes_rows_whose_answers_were_cut(tmp_path):
    rows = tone_rows(answered=True, finish_reason=CUT)
    trainer = build("distillation", tmp_path / "cut", rows, max_steps=1)
    trainer.train()
    whole = build("distillation", tmp_path / "whole", rows.remove_columns("finish_reason"), max_steps=1)
    whole.train()
    assert logged(trainer) == logged(whole)


def test_a_cached_teacher_does_not_teach_the_ends_of_cut_answers_either(tmp_path):
    rows = tone_rows(answered=True, finish_reason=CUT)
    model, processor = tiny_parts()
    settings = SETTINGS["imitation-divergence"] | {"top_k": model.lm_head.out_features}
    on_line = build("imitation", tmp_path / "a", rows, max_steps=1, **settings)
    on_line.train()
    instruction = on_line.args.transcription_instruction
    encoding = {"teacher": "top_k", "top_k": settings["top_k"], "temperature": 2.0, "instruction": instruction}
    config = EncodeConfig(output_dir=str(tmp_path / "cache"), storage_dtype="float32", **encoding)
    encode_dataset(model, processor, rows, config, make_teacher_inputs(processor, config))
    settings |= {"frames_cache": str(tmp_path / "cache"), "cached_teacher": True}
    cached = build("imitation", tmp_path / "b", rows, model, processor, max_steps=1, **settings)
    cached.train()
    assert logged(cached) == pytest.approx(logged(on_line), rel=1e-4)


def test_several_utterances_a_row_have_a_language_each(tmp_path, caplog):
    rows = list(tone_rows(8))
    pairs = Dataset.from_list(
        [
            {
                "id": str(number),
                **{name: [one[name], other[name]] for name in ("audio", "text", "language")},
                "duration": one["duration"] + other["duration"],
            }
            for number, (one, other) in enumerate(zip(rows[::2], rows[1::2], strict=True))
        ]
    )
    trainer = build("distillation", tmp_path, pairs, max_steps=1)
    trainer.train()
    assert "language" in trainer.state.log_history[0] and "no language that the connector lists" not in caplog.text
    model, processor = tiny_parts({**BANK, "languages": [LANGUAGES[0], "xx"]})
    build("distillation", tmp_path / "other", pairs, model, processor)
    assert "4 of 8 training utterances have no language" in caplog.text


@pytest.mark.parametrize("kind", ["alignment", "distillation"])
def test_a_transcript_that_spells_a_special_token_is_text(kind, tmp_path):
    model, processor = tiny_parts(TRAINERS[kind][2])
    spelled = processor.tokenizer.pad_token
    trainer = build(kind, tmp_path, tone_rows(text=[f"hello {spelled} world"] * 8), model, processor, max_steps=1)
    row = {**trainer.train_dataset[0], "draw": (0, 0)}
    ids = trainer.data_collator([row])["transcript_ids"][0].tolist()
    assert processor.tokenizer.pad_token_id not in ids and processor.tokenizer.decode(ids) == f"hello {spelled} world"
    trainer.train()


def test_a_slower_speed_does_not_take_an_audio_over_the_limit(tmp_path):
    model, processor = tiny_parts(text=text_config(vocab_size=tiny_parts()[0].lm_head.out_features))
    seconds = processor.audio_limit.seconds
    trainer = build("imitation", tmp_path, None, model, processor, augmentation={"speed_factors": [0.5]})
    tokens = {}
    for share in (0.4, 0.9):
        audio = {"bytes": encoded(tone(0, share * seconds)), "path": None}
        batch = trainer.data_collator([{**trainer.train_dataset[0], "audio": audio, "draw": (0, 0)}])
        tokens[share] = batch["counts"]["audio_seconds"] / seconds
        assert (batch["labels"] != IGNORED).any()
    assert tokens == pytest.approx({0.4: 0.8, 0.9: 0.9}, rel=0.01)


def test_rows_that_cannot_be_interleaved_are_counted_before_the_first_step(tmp_path):
    rows = [{**row, "words": None} for row in tone_rows(answered=True)]
    rows[0]["words"] = [{"word": rows[0]["text"], "start": 0.0, "end": 0.2}]
    with pytest.raises(ValueError, match="7 of 8 rows have none .*'words'.*filter.*is not None"):
        build("imitation", tmp_path, Dataset.from_list(rows), span_probability=1.0)
    with pytest.raises(ValueError, match="8 of 8 rows have none"):
        build("imitation", tmp_path, span_probability=1.0)
    with pytest.raises(ValueError, match="text_probability=0.3 .* these rows have one each.*utterances_per_row 2"):
        build("imitation", tmp_path, text_probability=0.3)
    stream = Dataset.from_list(rows[1:]).to_iterable_dataset()
    trainer = build("imitation", tmp_path, stream, span_probability=1.0)
    with pytest.raises(ValueError, match="could not be aligned.*row.*words.*is not None"):
        trainer.train()


def test_best_and_mean_of_the_best_are_not_both_taken(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(ValueError, match="Set one of them"):
        build("imitation", tmp_path, **settings, average_best=2, load_best_model_at_end=True)


def test_a_tied_head_is_not_told_to_be_missing_on_resuming(tmp_path, caplog):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "per_device_train_batch_size": 2}

    def run(**settings):
        size = tiny_parts()[0].lm_head.out_features
        model, processor = tiny_parts(text=text_config(vocab_size=size, tie_word_embeddings=True))
        return build("imitation", tmp_path, None, model, processor, **saving | settings)

    run().train()
    run(max_steps=2).train(resume_from_checkpoint=True)
    assert "missing keys" not in caplog.text


def test_a_run_is_not_resumed_under_another_optimizer_or_adapter(tmp_path):
    def run(alpha=8, **settings):
        model, processor = tiny_parts()
        adapter = lora_config(model, ["llm"], 4, alpha)
        saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "per_device_train_batch_size": 2}
        return build("imitation", tmp_path, None, model, processor, adapter, **saving | settings)

    run().train()
    for changes, finding in [
        ({"adam_beta2": 0.5}, "adam_beta2 was 0.999, is 0.5"),
        ({"alpha": 16}, r"adapters was {'default': \[4, 8\]}, is {'default': \[4, 16\]}"),
    ]:
        with pytest.raises(ValueError, match=finding):
            run(**changes, max_steps=2).train(resume_from_checkpoint=True)
    resumed = run(max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2


def test_a_stream_is_not_resumed_with_another_buffer(tmp_path):
    stream = tone_rows(answered=True).to_iterable_dataset()
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "per_device_train_batch_size": 2}
    build("imitation", tmp_path, stream, buffer_size=8, **saving).train()
    with pytest.raises(ValueError, match="buffer_size was 8, is 4"):
        build("imitation", tmp_path, stream, buffer_size=4, **saving).train(resume_from_checkpoint=True)


def test_the_padding_of_no_rows_weighs_nothing():
    from trainers.data.chats import pad_chats

    batch = pad_chats([], [], 7)
    assert batch["input_ids"].tolist() == [[7]] and batch["labels"].tolist() == [[IGNORED]]
    assert batch["prompt_end"].dtype == torch.long


def test_distances_are_those_of_what_a_reading_connector_gives_the_llm():
    """Places without a token stand for nothing, and the LLM gets none of them."""
    used = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    text, lengths = torch.randn(2, 3, 4), torch.tensor([2, 3])
    embeddings = torch.zeros(2, 6, 4)
    embeddings[0, [1, 3]] = text[0, :2]
    embeddings.requires_grad_()
    connected = ConnectorOutput(embeddings=embeddings, lengths=torch.tensor([6, 5]), used=used)
    total, cut = input_distance(*said(connected), text, lengths)
    assert total.item() == 0 and cut.item() == 3
    total, _ = input_distance(*said(connected), text + 1, lengths)
    total.backward()
    assert embeddings.grad[0, [1, 3]].abs().sum() > 0 and embeddings.grad[~used].abs().sum() == 0


def test_a_mean_over_tokens_needs_a_connector_that_knows_how_many(tmp_path):
    reads = {"type": "ctc_compress", "vocabulary": 5, "hidden_size": 16, "heads": 2, "blocks": 1, "ffn_size": 24}
    model, processor = tiny_parts(reads)
    with pytest.raises(ValueError, match="input_mean='tokens' .* ctc_compress, reads is not known"):
        build("distillation", tmp_path, None, model, processor, input_mean="tokens")
