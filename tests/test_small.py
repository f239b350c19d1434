"""The small model's build: what is kept of a killed run, what is learned from, how words are spelled."""

import random

import pytest
import torch

from benchmarks.small.answering import prompts
from benchmarks.small.augmentation import SPAN, Augmentation, inside
from benchmarks.small.corpora import normalized, split_of
from benchmarks.small.frame_store import FrameStore
from benchmarks.small.hearing import trustworthy
from benchmarks.small.reading import Example, ReadingSettings, batch_at
from benchmarks.small.vocabulary import Vocabulary
from benchmarks.small.whole import arrived, last_error_rate, pack, unpack

PIECES = ["a", "b", "c", " a", " b", " ab", "bc"]


class Letters:
    """A tokenizer with a token per letter, the space before a word within its first."""

    def __call__(self, texts, add_special_tokens=False):
        if isinstance(texts, str):
            return type("Encoding", (), {"input_ids": self.split(texts)})
        return type("Encoding", (), {"input_ids": [self.split(text) for text in texts]})

    def split(self, text):
        pieces = text.replace(" ", "_").replace("_", " _")
        return [
            ord(letter) + 1000 * (before == "_")
            for before, letter in zip(" " + pieces[:-1], pieces, strict=True)
            if letter not in " _"
        ]

    def decode(self, ids):
        return "".join((" " if token > 1000 else "") + chr(token % 1000) for token in ids)


def test_a_killed_writer_loses_what_it_did_not_finish_and_nothing_else(tmp_path):
    store = FrameStore(tmp_path, 3, write=True)
    store.append([{"id": "one"}, {"id": "two"}], [torch.full((4, 3), 1.0), torch.full((2, 3), 2.0)])
    with (tmp_path / "frames.bin").open("ab") as stream:
        stream.write(b"\0" * 7)
    with (tmp_path / "index.jsonl").open("a") as stream:
        stream.write('{"id": "thr')
    assert list(FrameStore(tmp_path, 3).rows) == ["one", "two"]  # a reader beside the writer changes nothing
    assert (tmp_path / "frames.bin").stat().st_size == 6 * 3 * 2 + 7
    again = FrameStore(tmp_path, 3, write=True)
    again.append([{"id": "three"}], [torch.full((1, 3), 3.0)])
    for id, value, length in (("one", 1, 4), ("two", 2, 2), ("three", 3, 1)):
        assert torch.equal(again.frames(id).float(), torch.full((length, 3), float(value)))


def test_words_are_spelled_by_the_llms_tokens_or_the_longest_known_ones():
    vocabulary = Vocabulary(list(range(len(PIECES))), PIECES)
    letters = Letters()
    assert vocabulary.spell("a b", letters) == [3, 4]
    assert vocabulary.text(vocabulary.spell("abc a", letters)) == "abc a"
    assert vocabulary.longest_match(" abbc") == [5, 6]
    assert vocabulary.spell("axe", letters) is None


def test_the_vocabulary_is_what_occurs_often_enough():
    letters = Letters()
    vocabulary = Vocabulary.of_texts(["xy xy", "xy q"], letters, least=3)
    pieces = set(vocabulary.pieces)
    assert {" x", "y", " a", "a", "'"} <= pieces
    assert vocabulary.token_ids == sorted(vocabulary.token_ids)
    assert vocabulary.text(vocabulary.spell("xyq", letters)) == "xyq"


@pytest.mark.parametrize(
    ("change", "kept"),
    [({}, True), ({"logprob": -1.0}, False), ({"compression": 2.5}, False), ({"end": None}, False)]
    + [({"end": 2.0}, False), ({"text": "the 3rd"}, False), ({"tokens": 1}, False)],
)
def test_readings_are_learned_from_when_likely_whole_and_in_words(change, kept):
    read = {"text": "the third", "logprob": -0.2, "compression": 0.9, "end": 4.0, "tokens": 3}
    assert trustworthy({"read": read | change}, seconds=4.3) == kept


def test_texts_are_normalized_and_speakers_stay_in_one_split():
    assert normalized("He’s 'well-known' -- R&D, naïve!") == "he's 'well known' r and d naïve"
    splits = {split_of("cv_en", {"speaker": str(number)}) for number in range(50)}
    assert splits == {"train", "test"}
    assert split_of("cv_en", {"speaker": "7"}) == split_of("cv_en", {"speaker": "7", "audio": "x"})


def test_an_epoch_holds_every_recording_once(tmp_path):
    store = FrameStore(tmp_path, 512, write=True)
    generator = random.Random(0)
    rows = [{"id": str(number)} for number in range(64)]
    store.append(rows, [torch.zeros(generator.randint(1, 9), 512) for _ in rows])
    examples = [Example(store, row["id"], "a", [0]) for row in rows]
    settings = ReadingSettings(batch=2)
    batches = [batch_at(step, examples, settings) for step in range(32)]
    assert sorted(int(e.id) for batch in batches for e in batch) == list(range(64))
    assert all(abs(batch[0].length - batch[1].length) <= 3 for batch in batches)


def batch_of_mels(bins=80):
    lengths = torch.tensor([200, 150, 60])
    mels = torch.rand(3, 200, bins, generator=torch.Generator().manual_seed(0)) * 2 - 0.5
    return mels.masked_fill(~inside(lengths, 200)[..., None], 0.0), lengths


def test_without_changes_the_features_stay_what_they_are():
    mels, lengths = batch_of_mels()
    still = Augmentation(speed=0, voice=0, noise=0, telephone=0, masks=0, bands=0)
    found, new = still(mels, lengths, torch.Generator().manual_seed(0))
    assert torch.equal(new, lengths)
    loudest = mels.amax((1, 2), keepdim=True)
    wanted = torch.maximum(mels, loudest - SPAN).masked_fill(~inside(lengths, 200)[..., None], 0.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_augmentation_is_a_function_of_its_generator_and_zero_past_the_lengths():
    mels, lengths = batch_of_mels()
    found, new = Augmentation()(mels, lengths, torch.Generator().manual_seed(1))
    again, _ = Augmentation()(mels, lengths, torch.Generator().manual_seed(1))
    other, _ = Augmentation()(mels, lengths, torch.Generator().manual_seed(2))
    assert torch.equal(found, again)
    assert other.shape != found.shape or not torch.equal(found, other)
    assert (new % 2 == 0).all() and ((new - lengths).abs() <= 0.15 * lengths + 2).all()
    assert not found[~inside(new, found.shape[1])].any()


def test_noise_only_adds_and_a_telephone_has_no_high_bins():
    mels, lengths = batch_of_mels()
    valid = inside(lengths, 200)[..., None]
    noisy = Augmentation(noise=1, telephone=0).spoil(mels, lengths, torch.Generator().manual_seed(0))
    assert ((noisy >= mels - 1e-4) | ~valid).all() and (noisy > mels + 0.01).any()
    narrow = Augmentation(noise=0, telephone=1).spoil(mels, lengths, torch.Generator().manual_seed(0))
    floor = mels.amax((1, 2), keepdim=True) - SPAN
    assert torch.equal(narrow[..., 60:], floor.expand_as(mels)[..., 60:].masked_fill(~valid, 0.0))
    torch.testing.assert_close(narrow[..., :50], mels[..., :50].clamp(min=floor).masked_fill(~valid, 0.0))


def test_prompts_of_trainings_and_those_kept_from_them_are_apart():
    seen, unseen = prompts(), prompts(held_out=True)
    assert "repeat" in seen and "title" in unseen and "title" not in seen
    assert not {text for texts in seen.values() for text in texts} & {t for texts in unseen.values() for t in texts}


def test_pieces_give_what_was_packed(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(bytes(range(256)) * 100)
    number = pack(tmp_path / "pieces", [f"data/here={source}"], piece=10_000)
    assert number > 2 and arrived(tmp_path / "pieces")
    assert max(path.stat().st_size for path in (tmp_path / "pieces").iterdir()) <= 10_000
    unpack(tmp_path / "pieces", tmp_path / "work")
    assert (tmp_path / "work/data/here/file").read_bytes() == (source / "file").read_bytes()


def test_an_archive_on_its_way_has_not_arrived(tmp_path):
    (tmp_path / "file").write_bytes(bytes(30_000))
    pieces = tmp_path / "pieces"
    assert not arrived(pieces)
    pack(pieces, [f"file={tmp_path / 'file'}"], piece=10_000)
    (pieces / "001").unlink()
    assert not arrived(pieces)


def test_runs_are_chosen_by_their_last_error_rates(tmp_path):
    lines = ["1 unseen speakers, cv_en step=500 wer=0.9", "1 unseen speakers, cv_other step=500 wer=0.8"]
    lines += ["2 unseen speakers, cv_en step=900 wer=0.5", "2 unseen speakers, cv_other step=900 wer=0.3"]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    assert last_error_rate(tmp_path) == pytest.approx(0.4)
