"""The small model's build: what is kept of a killed run, what is learned from, how words are spelled."""

import random

import pytest
import torch

from benchmarks.small.corpora import normalized, split_of
from benchmarks.small.frame_store import FrameStore
from benchmarks.small.hearing import trustworthy
from benchmarks.small.reading import Example, ReadingSettings, batch_at, mask
from benchmarks.small.vocabulary import Vocabulary
from benchmarks.small.whole import pack, unpack

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


@pytest.mark.parametrize("size", [512, 80])
def test_masks_are_a_function_of_their_generator_and_leave_the_rest(size):
    values = torch.ones(200, size)
    settings = ReadingSettings()
    masked = mask(values, random.Random(1), settings)
    assert torch.equal(masked, mask(values, random.Random(1), settings))
    assert values.all()
    assert 0.3 < masked.mean() < 1


def test_pieces_give_what_was_packed(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(bytes(range(256)) * 100)
    number = pack(tmp_path / "pieces", [f"data/here={source}"], piece=10_000)
    assert number > 2
    assert max(path.stat().st_size for path in (tmp_path / "pieces").iterdir()) <= 10_000
    unpack(tmp_path / "pieces", tmp_path / "work")
    assert (tmp_path / "work/data/here/file").read_bytes() == (source / "file").read_bytes()
