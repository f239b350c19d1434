"""Data workers: batches made in processes of their own, forked or spawned, are those made here."""

import pytest
import torch
from factories_training import tiny_parts, tone_rows

from trainers import SpeechAlignmentConfig, SpeechDistillationConfig, SpeechImitationConfig
from trainers.alignment_trainer import AlignmentCollator
from trainers.cache.config import EncodeConfig
from trainers.cache.encode import encode_dataset
from trainers.cache.frame_cache import FrameCache
from trainers.data.bad_rows import BadRows
from trainers.data.loaders import build_loader
from trainers.distillation_trainer import DistillationCollator
from trainers.imitation_trainer import ImitationCollator

KINDS = {
    "alignment": (SpeechAlignmentConfig, AlignmentCollator),
    "distillation": (SpeechDistillationConfig, DistillationCollator),
    "imitation": (SpeechImitationConfig, ImitationCollator),
}


def same(one, other):
    """Whether two batches are equal, tensor by tensor."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def batches(kind, folder, workers, method=None, rows=None, cache=None, **settings):
    """All batches of an epoch, augmented, so that what a worker draws at random counts."""
    config_class, collator_class = KINDS[kind]
    augmentation = None if cache else {"speed_factors": [0.9, 1.1], "time_masks": 1}
    args = config_class(
        str(folder),
        per_device_train_batch_size=3,
        dataloader_num_workers=workers,
        dataloader_multiprocessing_context=method,
        augmentation=augmentation,
        frames_cache=cache,
        **settings,
    )
    _, processor = tiny_parts()
    cache = None if cache is None else FrameCache(cache)
    collate = collator_class(processor, args, None, cache, BadRows(folder / "bad", 0.5, 100))
    return list(build_loader(rows or tone_rows(7, answered=True), collate, args, 0, 1, training=True))


def broken_rows():
    """Rows of which one cannot be read."""
    rows = tone_rows(7, answered=True)
    return rows.map(lambda row: row | {"audio": {"bytes": b"no audio", "path": None}} if row["id"] == "row-2" else row)


@pytest.mark.parametrize(
    ("kind", "method"),
    [*((kind, "fork") for kind in KINDS), pytest.param("imitation", "spawn", marks=pytest.mark.slow)],
)
def test_workers_make_the_batches_that_this_process_makes_and_record_bad_rows(kind, method, tmp_path):
    here = batches(kind, tmp_path / "here", 0, rows=broken_rows())
    there = batches(kind, tmp_path / "there", 1, method, rows=broken_rows())
    assert len(here) == 3 and sum(batch["counts"]["bad_rows"] for batch in there) == 1
    for one, other in zip(here, there, strict=True):
        same(one, other)
    for place in ("here", "there"):
        assert [row["id"] for row in BadRows(tmp_path / place / "bad", 1.0, 1).read()] == ["row-2"]


@pytest.mark.slow
def test_spawned_workers_read_the_cache(tmp_path):
    model, processor = tiny_parts()
    rows = tone_rows(7, answered=True)
    encode_dataset(model, processor, rows, EncodeConfig(output_dir=str(tmp_path / "cache")))
    settings = {"rows": rows, "cache": str(tmp_path / "cache")}
    here, there = (batches("imitation", tmp_path, n, how, **settings) for n, how in ((0, None), (1, "spawn")))
    assert len(here) == 3
    for one, other in zip(here, there, strict=True):
        same(one, other)
