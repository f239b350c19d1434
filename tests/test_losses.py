"""Distances, language and CTC losses against naive twins: one row, one step, one path at a time, in float64."""

import itertools
import math

import pytest
import torch

from trainers.objectives.ctc import ctc_loss, language_ctc_loss, language_loss
from trainers.objectives.distances import input_distance, output_distance

BLANK = 3


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(function, *inputs):
    """Value of the (first) output, and its gradient by the first input."""
    first = inputs[0].detach().clone().requires_grad_()
    output = function(first, *inputs[1:])
    total = output[0] if isinstance(output, tuple) else output
    total.backward()
    return total.detach(), first.grad


def assert_same(function, twin, *inputs):
    torch.testing.assert_close(gradient(function, *inputs), gradient(twin, *inputs))


def assert_float32_from_half(function, *inputs):
    """From bfloat16 the same as from its float32 copy, and a bfloat16 gradient."""
    half = [value.bfloat16() if value.is_floating_point() else value for value in inputs]
    wide = [value.float() if value.is_floating_point() else value for value in half]
    total, grad = gradient(function, *half)
    expected, expected_grad = gradient(function, *wide)
    assert total.dtype == torch.float32 and grad.dtype == torch.bfloat16
    assert torch.equal(total, expected)
    torch.testing.assert_close(grad, expected_grad.bfloat16())


# L_IN


def naive_input_distance(audio, audio_lengths, text, text_lengths):
    total = 0.0
    for row in range(len(audio)):
        heard = [audio[row, step] for step in range(audio_lengths[row])]
        read = [text[row, step] for step in range(min(text_lengths[row], len(heard)))]
        distance = 0.0
        for z, y in zip(heard[len(heard) - len(read) :], read, strict=True):
            distance = distance + (z - y).square().sum().sqrt()
        total = total + distance / max(1, len(read))
    return total


def distance_rows():
    """Fewer tokens than audio vectors, as many, more, one, none."""
    return random(5, 6, 3), torch.tensor([6, 4, 2, 5, 3]), random(5, 7, 3, seed=1), torch.tensor([3, 4, 7, 1, 0])


def test_input_distance():
    assert_same(input_distance, naive_input_distance, *distance_rows())
    assert input_distance(*distance_rows())[1] == 5  # the third row has 2 audio vectors for 7 tokens


def test_input_distance_sees_neither_padding_nor_frames_before_the_tail():
    audio, audio_lengths, text, text_lengths = distance_rows()
    expected = input_distance(audio, audio_lengths, text, text_lengths)
    for row in range(5):
        audio[row, audio_lengths[row] :] = math.nan
        audio[row, : max(0, audio_lengths[row] - text_lengths[row])] = math.nan
        text[row, text_lengths[row] :] = math.nan
    assert input_distance(audio, audio_lengths, text, text_lengths) == expected


def test_input_distance_is_a_sum_over_rows():
    rows = distance_rows()
    alone = [input_distance(*(part[row : row + 1] for part in rows)) for row in range(5)]
    total, truncated = input_distance(*rows)
    torch.testing.assert_close(total, sum(row[0] for row in alone))
    assert truncated == sum(row[1] for row in alone)


def test_zero_distances_have_zero_gradient():
    same = random(1, 4, 3)
    total, grad = gradient(lambda audio: input_distance(audio, torch.tensor([4]), same, torch.tensor([4])), same)
    assert total == 0 and (grad == 0).all()
    total, grad = gradient(output_distance, same[0], same[0])
    assert total == 0 and (grad == 0).all()


def test_targets_of_distances_get_no_gradient():
    audio, audio_lengths, text, text_lengths = distance_rows()
    audio.requires_grad_(), text.requires_grad_()
    input_distance(audio, audio_lengths, text, text_lengths)[0].backward()
    output_distance(audio[:, 0], text[:, 0]).backward()
    assert text.grad is None


# L_OUT, L_LID


def test_output_distance():
    def naive(student, teacher):
        return sum((s - t).square().sum().sqrt() for s, t in zip(student, teacher, strict=True))

    assert_same(output_distance, naive, random(4, 3), random(4, 3, seed=1))
    assert output_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])) == 5.0


def test_language_loss():
    def naive(logits, labels):
        total = 0.0
        for row, label in zip(logits, labels.tolist(), strict=True):
            if label >= 0:
                total = total - torch.log(row.exp()[label] / row.exp().sum())
        return total

    logits, labels = random(6, 3), torch.tensor([0, -1, 2, 1, -1, 0])
    assert_same(language_loss, naive, logits, labels)
    known = [row for row in range(6) if labels[row] >= 0]
    assert language_loss(logits, labels)[1] == sum(logits[row].argmax() == labels[row] for row in known)
    assert language_loss(torch.eye(3), torch.tensor([0, 1, -1]))[1] == 2


def test_without_languages_the_loss_is_a_zero_with_a_graph():
    unknown = torch.tensor([-1, -1])
    for total, grad in (
        gradient(language_loss, random(2, 3), unknown),
        gradient(language_ctc_loss, random(2, 5, 3), torch.tensor([5, 4]), unknown, torch.tensor([2, 9])),
    ):
        assert total == 0 and (grad == 0).all()


@pytest.mark.parametrize("label", [3, -2])
def test_an_unknown_label_is_refused(label):
    labels, two = torch.tensor([0, label]), torch.tensor([2, 2])
    with pytest.raises(ValueError, match="from 0 to 2, or -1 for unknown"):
        language_loss(random(2, 3), labels)
    with pytest.raises(ValueError, match="from 0 to 2, or -1 for unknown"):
        language_ctc_loss(random(2, 5, 4), two, labels, two)


# CTC


def naive_ctc(logits, length, target, blank):
    """-log of the summed probability of all paths that collapse to the target, None where there is none."""
    total = None
    for path in itertools.product(range(logits.shape[-1]), repeat=length):
        if [token for token, _ in itertools.groupby(path) if token != blank] == target:
            probability = torch.ones((), dtype=logits.dtype)
            for step, token in enumerate(path):
                probability = probability * logits[step].softmax(-1)[token]
            total = probability if total is None else total + probability
    return None if total is None else -total.log()


def naive_ctc_loss(logits, lengths, targets, target_lengths, blank):
    total = 0.0
    for row, length in enumerate(lengths.tolist()):
        loss = naive_ctc(logits[row], length, targets[row, : target_lengths[row]].tolist(), blank)
        total = total if loss is None else total + loss
    return total


def ctc_batch():
    """Distinct tokens, a repeat that just fits, one that does not, too few frames, no token, no frame."""
    targets = torch.tensor([[0, 1, 2], [1, 1, -1], [1, 1, -1], [0, 1, 2], [-1, -1, -1], [2, -1, -1], [-1, -1, -1]])
    return random(7, 4, 4), torch.tensor([4, 3, 2, 2, 2, 0, 0]), targets, torch.tensor([3, 2, 2, 3, 0, 1, 0]), BLANK


def test_ctc():
    assert_same(ctc_loss, naive_ctc_loss, *ctc_batch())
    assert ctc_loss(*ctc_batch())[1] == 3


@pytest.mark.parametrize("blank", [0, 1])
def test_ctc_with_any_blank(blank):
    targets = torch.tensor([[2, 3], [3, 3]])
    two = torch.tensor([2, 2])
    assert_same(ctc_loss, naive_ctc_loss, random(2, 3, 4), torch.tensor([3, 3]), targets, two, blank)


def test_ctc_counts_the_adjacent_repeats_of_valid_tokens_only():
    """The last token before the padding equals the padding."""
    targets, lengths = torch.tensor([[2, 0, 0, 0]]), torch.tensor([2])
    total, infeasible = ctc_loss(random(1, 2, 4), lengths, targets, torch.tensor([2]), BLANK)
    assert infeasible == 0 and total > 0


def test_infeasible_ctc_rows_add_nothing():
    logits, lengths, targets, target_lengths, blank = ctc_batch()
    total, grad = gradient(ctc_loss, *ctc_batch())
    fits = torch.tensor([True, True, False, False, True, False, True])
    assert total == ctc_loss(logits[fits], lengths[fits], targets[fits], target_lengths[fits], blank)[0]
    assert (grad[~fits] == 0).all() and (grad[0] != 0).any()
    total, grad = gradient(ctc_loss, logits[2:4], lengths[2:4], targets[2:4], target_lengths[2:4], blank)
    assert total == 0 and (grad == 0).all()


@pytest.mark.parametrize("token", [BLANK, 4, -1])
def test_ctc_refuses_targets_that_are_no_transcript_token(token):
    logits, lengths, targets, target_lengths, blank = ctc_batch()
    targets[0, 1] = token
    with pytest.raises(ValueError, match=rf"contain \[{token}\].*from 0 to 3 and not the blank, 3"):
        ctc_loss(logits, lengths, targets, target_lengths, blank)


def naive_language_ctc_loss(logits, lengths, languages, token_counts):
    total = 0.0
    for row, language in enumerate(languages.tolist()):
        if language >= 0:
            length, repetitions = lengths[row].item(), token_counts[row].item()
            while repetitions + max(0, repetitions - 1) > length:
                repetitions -= 1
            total = total + naive_ctc(logits[row], length, [language] * repetitions, logits.shape[-1] - 1)
    return total


def test_language_ctc():
    """What fits just, what does not (odd and even frames, none), unknown, without a token."""
    lengths = torch.tensor([5, 5, 4, 0, 2, 3])
    languages, token_counts = torch.tensor([1, 0, 1, 0, -1, 0]), torch.tensor([3, 4, 9, 1, 9, 0])
    batch = random(6, 5, 3), lengths, languages, token_counts
    assert_same(language_ctc_loss, naive_language_ctc_loss, *batch)
    assert language_ctc_loss(*batch)[1] == 3


def test_language_ctc_is_ctc_of_the_repeated_label():
    logits, lengths = random(1, 9, 4), torch.tensor([9])
    expected, _ = ctc_loss(logits, lengths, torch.tensor([[2, 2, 2, 2]]), torch.tensor([4]), 3)
    assert language_ctc_loss(logits, lengths, torch.tensor([2]), torch.tensor([4]))[0] == expected


# All


def test_half_precision_is_summed_in_float32():
    assert_float32_from_half(input_distance, *distance_rows())
    assert_float32_from_half(output_distance, random(4, 3), random(4, 3, seed=1))
    assert_float32_from_half(language_loss, random(3, 5), torch.tensor([4, -1, 0]))
    logits, *others = ctc_batch()
    assert_float32_from_half(lambda logits: ctc_loss(logits, *others), logits)
    two = torch.tensor([2, 3])
    assert_float32_from_half(language_ctc_loss, random(2, 5, 3), two, torch.tensor([1, -1]), two)


def test_an_empty_batch_is_a_zero_with_a_graph():
    none, empty = torch.zeros(0, dtype=torch.long), random(0, 4, 3)
    for total, grad in (
        gradient(input_distance, empty, none, empty, none),
        gradient(output_distance, empty[:, 0], empty[:, 0]),
        gradient(language_loss, empty[:, 0], none),
    ):
        assert total == 0 and grad is not None


def test_gradients_are_those_of_finite_differences():
    audio, *others = distance_rows()
    assert torch.autograd.gradcheck(lambda audio: input_distance(audio, *others)[0], audio.requires_grad_())
    logits, *others = ctc_batch()
    assert torch.autograd.gradcheck(lambda logits: ctc_loss(logits, *others)[0], logits.requires_grad_())
