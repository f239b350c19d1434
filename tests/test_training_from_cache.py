"""Training from the cache is training on line."""

import pytest
from datasets import Dataset
from distributed_worker import mixed_rows
from factories_training import tiny_parts, tone_rows
from test_trainers import TRAINERS, build, logged

from trainers.cache.config import EncodeConfig
from trainers.cache.encode import encode_dataset
from trainers.commands.teacher_prompts import make_teacher_inputs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", TRAINERS)
def test_every_trainer_has_the_same_losses_from_the_cache(kind, tmp_path):
    on_line = build(kind, tmp_path / "a", max_steps=3)
    on_line.train()
    model, processor = tiny_parts(TRAINERS[kind][2])
    model.freeze("encoder")
    cache, rows = str(tmp_path / "cache"), on_line.train_dataset
    encode_dataset(model, processor, rows, EncodeConfig(output_dir=cache, storage_dtype="float32"))
    cached = build(kind, tmp_path / "b", rows, model, processor, max_steps=3, frames_cache=cache)
    model.model.audio_tower.forward = None  # must not run
    cached.train()
    speeds = {"tokens_per_second", "audio_seconds_per_second"}
    names = on_line.state.log_history[0].keys() - speeds
    assert {"loss", "grad_norm"} < names
    for name in names:
        # The encoder ran in batches of another width.
        assert logged(cached, name) == pytest.approx(logged(on_line, name), rel=1e-5), name


CACHED_TEACHERS = {
    "hidden": ("distillation", {"teacher": "hidden"}, {}),
    "hidden-instruction": ("distillation", {"teacher": "hidden", "instruction": "said"}, {"instruction": "said"}),
    "top_k": (
        "imitation-divergence",
        {"teacher": "top_k", "top_k": 296, "temperature": 2.0},  # the whole vocabulary: then nothing is lost
        {"top_k": 296, "temperature": 2.0},
    ),
}


@pytest.mark.parametrize("case", CACHED_TEACHERS)
def test_a_cached_teacher_teaches_what_one_on_line_teaches(case, tmp_path):
    kind, encoding, training = CACHED_TEACHERS[case]
    model, processor = tiny_parts(TRAINERS[kind][2])
    if kind != "distillation":
        encoding = encoding | {"instruction": build(kind, tmp_path).args.transcription_instruction}
        assert model.lm_head.out_features == encoding["top_k"]
    rows = build(kind, tmp_path).train_dataset
    config = EncodeConfig(output_dir=str(tmp_path / "cache"), storage_dtype="float32", **encoding)
    model.freeze("encoder")
    encode_dataset(model, processor, rows, config, make_teacher_inputs(processor, config))
    on_line = build(kind, tmp_path / "a", rows, max_steps=3, **training)
    on_line.train()
    settings = {"frames_cache": str(tmp_path / "cache"), "cached_teacher": True}
    cached = build(kind, tmp_path / "b", rows, model, processor, max_steps=3, **training, **settings)
    cached.teacher_hidden = None  # must not run
    cached.train()
    for name in ("loss", "grad_norm"):
        assert logged(cached, name) == pytest.approx(logged(on_line, name), rel=1e-4), name


def test_a_cached_teacher_of_another_prompt_is_refused(tmp_path):
    model, processor = tiny_parts(TRAINERS["distillation"][2])
    model.freeze("encoder")
    rows = build("distillation", tmp_path).train_dataset
    config = EncodeConfig(output_dir=str(tmp_path / "cache"), storage_dtype="float32", teacher="hidden")
    encode_dataset(model, processor, rows, config, make_teacher_inputs(processor, config))
    settings = {"frames_cache": str(tmp_path / "cache"), "cached_teacher": True, "instruction": "other"}
    with pytest.raises(ValueError, match="instruction"):
        build("distillation", tmp_path / "b", rows, model, processor, **settings)


@pytest.mark.parametrize("kind", TRAINERS)
def test_batches_of_text_alone_do_not_run_the_encoder_either(kind, tmp_path):
    """In a sharded run each module is a collective call: either all processes run the encoder or none."""
    rows, settings = mixed_rows(kind), {"max_steps": 4, "per_device_train_batch_size": 1}
    on_line = build(kind, tmp_path / "a", rows, **settings)
    on_line.train()
    model, processor = tiny_parts(TRAINERS[kind][2])
    model.freeze("encoder")
    config = EncodeConfig(output_dir=str(tmp_path / "cache"), storage_dtype="float32")
    encode_dataset(model, processor, rows.select(range(0, len(rows), 2)), config)
    cached = build(kind, tmp_path / "b", rows, model, processor, **settings, frames_cache=config.output_dir)
    model.model.audio_tower.forward = None  # must not run
    cached.train()
    for name in ("loss", "grad_norm"):
        assert logged(cached, name) == pytest.approx(logged(on_line, name), rel=1e-4, abs=1e-6), name


def test_a_row_that_encode_set_aside_is_set_aside_in_training_too(tmp_path):
    rows = [dict(row) for row in tone_rows(6)]
    rows[2]["audio"] = {"bytes": b"no audio", "path": None}
    rows = Dataset.from_list(rows)
    model, processor = tiny_parts()
    config = EncodeConfig(output_dir=str(tmp_path / "cache"), max_bad_share=0.5)
    assert encode_dataset(model, processor, rows, config).bad == 1
    settings = {"frames_cache": str(tmp_path / "cache"), "max_bad_share": 0.5, "max_steps": 2}
    trainer = build("alignment", tmp_path / "out", rows, model, processor, per_device_train_batch_size=6, **settings)
    trainer.train()
    assert [row["id"] for row in trainer.bad_rows.read()] == ["row-2"]
