"""Training from the cache is training on line."""

import pytest
from factories_training import tiny_parts
from test_trainers import TRAINERS, build, logged

from trainers.encode import encode_dataset
from trainers.encode_config import EncodeConfig


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
