"""Text in place of speech for the small model's LLM: what it would hear, what is asked about it, adapters' ranks."""

import random

import pytest
import torch

from benchmarks.small import text_turns
from benchmarks.small.acceptance_rows import commands, label_of
from benchmarks.small.adapting import brought_to
from benchmarks.small.speaking import sentences
from benchmarks.small.text_turns import Choices, Hearing, cut


class Pieces:
    """A tokenizer whose pieces are words with the space before them."""

    vocabulary = {"Ġone": 0, "Ġtwo": 1, "Ġt": 2, "o": 3, "w": 4, "Ġthree": 5}

    def tokenize(self, text):
        return ["Ġ" + word for word in text.split()]

    def get_vocab(self):
        return self.vocabulary


@pytest.fixture
def hearing(monkeypatch):
    monkeypatch.setattr(text_turns.AutoTokenizer, "from_pretrained", lambda folder: Pieces())
    monkeypatch.setattr(text_turns, "shared_tokens", lambda *of: {0: 10, 2: 12, 3: 13, 4: 14})
    return Hearing("whisper", "llm", torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), 4)


def test_what_whisper_may_not_write_is_spelled_by_the_longest_that_it_may(hearing):
    assert hearing.ids("one two") == [10, 12, 14, 13]
    assert torch.equal(hearing("one two"), hearing.table[[10, 12, 14, 13]])
    assert hearing("").shape == (0, 8)


def test_of_doubtful_tokens_the_larger_part_is_what_was_read(hearing):
    text = "one " * 200
    mixed, plain = hearing(text, random.Random(0)), hearing(text)
    assert torch.equal(mixed, hearing(text, random.Random(0)))
    changed = (mixed != plain).any(1)
    assert 0.05 < changed.float().mean() < 0.25
    assert ((mixed - plain).norm(dim=1) <= 0.5 * (plain[0] - hearing.table).norm(dim=1).max() + 1e-5).all()


def test_a_few_words_are_cut_out_in_order():
    text, rng = "a b c d e f", random.Random(0)
    pieces = [cut(text, rng) for _ in range(50)]
    assert {len(piece.split()) for piece in pieces} == {1, 2, 3, 4} and all(piece in text for piece in pieces)
    assert cut("alone", rng) == "alone"


@pytest.fixture
def data(tmp_path):
    """SLURP and CLINC of many sentences, so that both splits have some."""
    for name in ("slurp", "clinc", "ntrex"):
        (tmp_path / "text" / name).mkdir(parents=True)
    kinds = ["alarm set", "music likeness", "email query", "lists add", "news query", "weather query"]
    numbers = "zero one two three four five six seven eight nine".split()

    def lines(kind):
        return [f"{kind} number {numbers[n // 10]} {numbers[n % 10]}" for n in range(60)]

    slurp = ["split\tscenario\taction\ttext"]
    slurp += [f"train\t{kind.split()[0]}\t{kind.split()[1]}\t{text}" for kind in kinds for text in lines(kind)]
    clinc = ["split\tintent\ttext"]
    clinc += [f"train\t{kind.replace(' ', '_')}\tsay {text}" for kind in kinds for text in lines(kind)]
    (tmp_path / "text/slurp/slurp.tsv").write_text("\n".join(slurp))
    (tmp_path / "text/clinc/clinc150.tsv").write_text("\n".join(clinc))
    (tmp_path / "text/ntrex/en.txt").write_text("a line of news")
    return tmp_path


def test_choices_are_of_training_sentences_in_wordings_that_the_acceptance_has_not(data, tmp_path, monkeypatch):
    train = {row["text"]: label_of(row) for row in sentences(data) if row["split"] == "train" and row["label"]}
    choose, rng = Choices(data), random.Random(0)
    questions = set()
    for _ in range(300):
        text, instruction, answer = choose(rng)
        question, labels = instruction.removesuffix(".").split(" Choose one: ")
        labels = labels.split(", ")
        questions.add(question)
        assert text in train and labels.count(answer) == 1 and labels == sorted(set(labels)) and len(labels) > 1
        if question in text_turns.NAMED:
            assert [label for label in labels if label in text] == [answer]
        else:
            assert answer == train[text]
    monkeypatch.setattr("benchmarks.small.acceptance_rows.spoken", lambda *of: torch.zeros(1600).numpy())
    rows = commands(data, tmp_path / "audio", 20)
    assert rows and not {row["text"] for row in rows} & set(train)
    assert not {row["instruction"].split(" Choose one: ")[0] for row in rows} & questions


def test_an_adapter_of_another_rank_is_the_nearest_one():
    torch.manual_seed(0)
    first, second = torch.randn(6, 20), torch.randn(10, 6)
    name = "q_proj.lora_{}.weight"
    weights = {name.format("A"): first, name.format("B"): second}
    for rank in (6, 3):
        found = brought_to(rank, weights)
        assert found[name.format("A")].shape == (rank, 20) and found[name.format("B")].shape == (10, rank)
        left = (found[name.format("B")] @ found[name.format("A")] - second @ first).norm()
        sizes = torch.linalg.svdvals(second @ first)
        torch.testing.assert_close(left, sizes[rank:6].norm(), atol=1e-4, rtol=1e-4)
