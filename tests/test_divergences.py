"""Losses on the response against naive twins: one position and one token at a time, in float64."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from trainers.objectives.divergences import (
    TopTokens,
    response_divergence,
    response_loss,
    top_k_divergence,
    top_k_of,
    vocabulary_slices,
)

POSITIONS, WIDTH, VOCABULARY = 7, 4, 11
KINDS = [("forward", 0.5), ("reverse", 0.5), ("jsd", 0.5), ("jsd", 0.1)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def soft_cap(logits):
    """A scale and a soft cap, as some LLMs have."""
    return torch.tanh(0.5 * logits / 3) * 3


class Case:
    """Hidden states and a head, all with gradients."""

    def __init__(self, dtype=torch.float64, positions=POSITIONS):
        self.student = random(positions, WIDTH).to(dtype).requires_grad_()
        self.teacher = random(positions, WIDTH, seed=1).to(dtype).requires_grad_()
        self.weight = random(VOCABULARY, WIDTH, seed=2).to(dtype).requires_grad_()
        self.bias = random(VOCABULARY, seed=3).to(dtype).requires_grad_()
        self.labels = torch.arange(positions) % VOCABULARY

    def head(self, hidden):
        return soft_cap(F.linear(hidden, self.weight, self.bias))

    def slices(self, size):
        return vocabulary_slices(self.weight, self.bias, size, finish=soft_cap)

    def gradients(self, total):
        """Of the student and the head; the teacher must have none."""
        total.backward()
        assert self.teacher.grad is None
        return self.student.grad, self.weight.grad, self.bias.grad


def assert_same(function, twin, dtype=torch.float64):
    """Equal values and gradients, each of a case of its own."""
    case, other = Case(dtype), Case(dtype)
    total, expected = function(case), twin(other)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(case.gradients(total), other.gradients(expected))


def naive_loss(case):
    total = 0.0
    for hidden, label in zip(case.student, case.labels, strict=True):
        logits = case.head(hidden)
        total = total - torch.log(logits[label].exp() / logits.exp().sum())
    return total


def kl(p, q):
    return sum(p[token] * torch.log(p[token] / q[token]) for token in range(len(p)))


def naive_divergence(case, kind="forward", beta=0.5, temperature=1.0):
    total = 0.0
    for student, teacher in zip(case.student, case.teacher, strict=True):
        s = (case.head(student) / temperature).softmax(-1)
        t = (case.head(teacher) / temperature).softmax(-1).detach()
        m = beta * t + (1 - beta) * s
        of_kind = {"forward": kl(t, s), "reverse": kl(s, t), "jsd": beta * kl(t, m) + (1 - beta) * kl(s, m)}
        total = total + of_kind[kind] * temperature**2
    return total


def naive_top_k(case, k, temperature=1.0):
    total = 0.0
    for student, teacher in zip(case.student, case.teacher, strict=True):
        s = (case.head(student) / temperature).softmax(-1)
        t = (case.head(teacher) / temperature).softmax(-1).detach()
        likely = sorted(range(VOCABULARY), key=lambda token: -t[token].item())[:k]
        others = [token for token in range(VOCABULARY) if token not in likely]
        events = [torch.stack([p[token] for token in likely] + [sum(p[token] for token in others)]) for p in (t, s)]
        total = total + kl(*events) * temperature**2
    return total


# Cross-entropy


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_response_loss(chunk):
    assert_same(lambda case: response_loss(case.student, case.labels, case.head, chunk)[0], naive_loss)


def test_response_loss_counts_the_likeliest_labels():
    case = Case()
    likeliest = case.head(case.student).argmax(-1)
    case.labels = torch.where(torch.arange(POSITIONS) < 4, likeliest, (likeliest + 1) % VOCABULARY)
    for chunk in (3, 100):
        assert response_loss(case.student, case.labels, case.head, chunk)[1] == 4


def test_response_loss_leaves_out_ignored_labels():
    case = Case()
    masked = case.labels.masked_fill(torch.arange(POSITIONS) % 2 == 0, -100)
    total, correct = response_loss(case.student, masked, case.head, 2)
    expected, expected_correct = response_loss(case.student[1::2], case.labels[1::2], case.head)
    torch.testing.assert_close(total, expected)
    assert correct == expected_correct


# Divergence


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_divergence_in_chunks_of_positions_and_slices_of_the_vocabulary(kind, beta, temperature):
    def twin(case):
        return naive_divergence(case, kind, beta, temperature)

    for chunk in (3, 100):
        assert_same(
            lambda case: response_divergence(
                case.student,
                case.teacher,
                case.head,
                kind,
                beta,
                temperature,
                chunk,  # noqa: B023
            ),
            twin,
        )
        assert_same(
            lambda case: response_divergence(
                case.student,
                case.teacher,
                case.slices(4),
                kind,
                beta,
                temperature,
                chunk,  # noqa: B023
            ),
            twin,
        )


def test_forward_divergence_is_cross_entropy_minus_the_entropy_of_the_teacher():
    case = Case()
    t, s = case.head(case.teacher).softmax(-1), case.head(case.student).softmax(-1)
    expected = F.cross_entropy(case.head(case.student), t, reduction="sum") + (t * t.log()).sum()
    torch.testing.assert_close(response_divergence(case.student, case.teacher, case.head), expected)
    assert not torch.allclose(response_divergence(case.student, case.teacher, case.head, "reverse"), expected)
    torch.testing.assert_close(
        response_divergence(case.teacher, case.student, case.head, "reverse"), (t * (t / s).log()).sum()
    )


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_divergence_of_the_same_states_is_zero(kind, beta):
    case = Case()
    for head in (case.head, case.slices(4)):
        total = response_divergence(case.student, case.student.detach().clone(), head, kind, beta)
        assert abs(total) < 1e-12
        assert torch.autograd.grad(total, case.student)[0].abs().max() < 1e-12


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_lies_between_zero_and_the_entropy_of_the_mixture_weights(beta):
    """Also where one distribution is nowhere near the other; there it is at the bound."""
    case = Case()
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    near = response_divergence(case.student, case.teacher, case.head, "jsd", beta) / POSITIONS
    assert 0 < near < bound
    far = response_divergence(torch.eye(2), torch.eye(2).flip(0), lambda hidden: 60 * hidden, "jsd", beta) / 2
    torch.testing.assert_close(far.item(), bound)


def test_jsd_near_its_ends_is_forward_and_reverse():
    """beta near 0 mixes in little of the teacher: JSD / beta is the forward KL; near 1 the reverse."""
    case, small = Case(), 1e-6
    for kind, beta in (("forward", small), ("reverse", 1 - small)):
        expected = response_divergence(case.student, case.teacher, case.head, kind)
        jsd = response_divergence(case.student, case.teacher, case.head, "jsd", beta)
        torch.testing.assert_close(jsd / small, expected, rtol=1e-4, atol=0)  # of order beta


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "backward"}, "choose one of forward, reverse, jsd"),
        ({"kind": "jsd", "beta": 0.0}, "between 0 and 1, not 0.0.*'forward'"),
        ({"kind": "jsd", "beta": 1.0}, "between 0 and 1, not 1.0.*'reverse'"),
        ({"temperature": 0.0}, "above 0, not 0.0"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    case = Case()
    with pytest.raises(ValueError, match=message):
        response_divergence(case.student, case.teacher, case.head, **settings)


def test_positions_of_student_and_teacher_must_be_as_many():
    case = Case()
    with pytest.raises(ValueError, match="7 response positions, the teacher 6"):
        response_divergence(case.student, case.teacher[1:], case.head)
    with pytest.raises(ValueError, match="7 response positions, the teacher's top tokens 6"):
        top_k_divergence(case.student, top_k_of(case.teacher[1:], case.head, 2), case.head)


# Top k


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 4, VOCABULARY - 1])
def test_top_k_divergence(k, temperature):
    for chunk in (3, 100):
        assert_same(
            lambda case: top_k_divergence(
                case.student,
                top_k_of(case.teacher, case.head, k, temperature, chunk),  # noqa: B023
                case.head,
                temperature,
                chunk,  # noqa: B023
            ),
            lambda case: naive_top_k(case, k, temperature),
        )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_of_all_tokens_is_the_forward_divergence(temperature):
    def function(case):
        teacher = top_k_of(case.teacher, case.head, VOCABULARY, temperature)
        return top_k_divergence(case.student, teacher, case.head, temperature, chunk=3)

    assert_same(function, lambda case: naive_divergence(case, temperature=temperature))


def test_top_k_divergence_grows_with_k_to_the_full_one():
    case = Case()
    parts = [
        top_k_divergence(case.student, top_k_of(case.teacher, case.head, k), case.head).item()
        for k in range(1, VOCABULARY + 1)
    ]
    assert parts == sorted(parts) and parts[0] > 0


def test_top_k_divergence_of_a_student_that_is_sure_of_the_likely_tokens():
    """The other tokens have e^-300 together, no number in float32; the teacher has a third of its mass on them."""
    logits = torch.tensor([[0.0, 1.0, -300.0, -301.0]]).requires_grad_()
    teacher = TopTokens(torch.tensor([[1 / 3, 1 / 3]]).log(), torch.tensor([[0, 1]]), 1.0)
    total = top_k_divergence(logits, teacher, lambda hidden: hidden)
    (gradient,) = torch.autograd.grad(total, logits)
    student = logits.detach().double().log_softmax(-1)[0]
    events = torch.stack([student[0], student[1], student[2:].logsumexp(-1)])
    torch.testing.assert_close(total.double(), (math.log(1 / 3) - events).mean(), rtol=1e-6, atol=0.0)
    q = student[2:].softmax(-1) / 3
    torch.testing.assert_close(gradient[0].double(), torch.cat([student[:2].exp() - 1 / 3, -q]), rtol=1e-5, atol=1e-6)


def test_top_k_are_the_likeliest_tokens_with_their_log_probabilities():
    case = Case()
    top = top_k_of(case.teacher, case.head, 3, 2.0, chunk=2)
    values, indices = (case.head(case.teacher) / 2).log_softmax(-1).sort(descending=True)
    assert torch.equal(top.indices, indices[:, :3]) and not top.log_probabilities.requires_grad
    torch.testing.assert_close(top.log_probabilities, values[:, :3].detach())
    for k in (0, VOCABULARY + 1):
        with pytest.raises(ValueError, match=f"from 1 to the {VOCABULARY} tokens of the vocabulary, not {k}"):
            top_k_of(case.teacher, case.head, k)


def test_top_k_of_another_temperature_is_refused():
    case = Case()
    top = top_k_of(case.teacher, case.head, 3)
    with pytest.raises(ValueError, match="computed at temperature 1.0, the loss is at 2.0"):
        top_k_divergence(case.student, top, case.head, temperature=2.0)


def test_top_k_from_a_cache_in_half_precision():
    """As a cache keeps it: float16 and int32."""
    case = Case(torch.float32)
    top = top_k_of(case.teacher, case.head, 4)
    stored = TopTokens(top.log_probabilities.half(), top.indices.int(), top.temperature)
    total = top_k_divergence(case.student, stored, case.head)
    assert total.dtype == torch.float32
    expected = top_k_divergence(case.student, top, case.head)
    torch.testing.assert_close(total, expected, rtol=0, atol=POSITIONS * 1e-2)  # 11 bits of up to 5 nats


@pytest.mark.parametrize("k", [3, VOCABULARY])
def test_the_gradient_of_a_rounded_teacher_is_that_of_the_value(k):
    """Probabilities of a bfloat16 cache add up to 1.01 or 0.99."""
    top = top_k_of(random(POSITIONS, VOCABULARY, seed=1), lambda hidden: hidden, k)
    stored = TopTokens(top.log_probabilities.bfloat16().double(), top.indices, top.temperature)
    logits = random(POSITIONS, VOCABULARY).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: top_k_divergence(logits, stored, lambda hidden: hidden), logits)


def test_top_k_whose_mass_was_rounded_above_one_has_no_rest():
    student = torch.zeros(1, 3)
    top = TopTokens(torch.tensor([[0.7, 0.301]]).log(), torch.tensor([[2, 0]]), 1.0)
    total = top_k_divergence(student, top, lambda hidden: hidden)
    expected = 0.7 * math.log(0.7 * 3) + 0.301 * math.log(0.301 * 3)
    torch.testing.assert_close(total.item(), expected, rtol=1e-5, atol=0)


# All


def every_loss(case, chunk=3):
    yield response_loss(case.student, case.labels, case.head, chunk)[0]
    for kind, _ in KINDS[:3]:
        for head in (case.head, case.slices(6)):
            yield response_divergence(case.student, case.teacher, head, kind, chunk=chunk)
    yield top_k_divergence(case.student, top_k_of(case.teacher, case.head, 4), case.head, chunk=chunk)


def test_without_a_position_the_losses_are_zeros_with_a_graph():
    for total in every_loss(Case(positions=0)):
        assert total == 0
        total.backward()


def test_half_precision_is_summed_in_float32():
    """Logits are rounded to bfloat16, as the LLM's own; from there on it is float32."""
    half, full = Case(torch.bfloat16), Case(torch.bfloat16)
    head = full.head
    full.head = lambda hidden: head(hidden).float()
    full.slices = lambda size: full.head
    for total, expected in zip(every_loss(half), every_loss(full), strict=True):
        assert total.dtype == torch.float32
        torch.testing.assert_close(total, expected)
        total.backward()
    assert half.student.grad.dtype == torch.bfloat16 and half.student.grad.isfinite().all()


def test_without_gradients_the_losses_are_the_same():
    with torch.no_grad():
        evaluated = list(every_loss(Case()))
    torch.testing.assert_close(evaluated, [total.detach() for total in every_loss(Case())])


class LargestTensor(TorchDispatchMode):
    """Remembers the most numbers that a tensor had."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        tensors = output if isinstance(output, (tuple, list)) else [output]
        self.size = max([self.size] + [tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor)])
        return output


@pytest.mark.parametrize(("slices", "bound"), [(False, 3 * VOCABULARY), (True, 3 * 4)])
def test_logits_are_no_larger_than_chunk_by_vocabulary_or_by_slice(slices, bound):
    """Forward and backward, frozen head; hidden states and weight are there before."""
    case = Case(positions=6)
    weight, hidden = torch.ones(VOCABULARY, 1), torch.ones(6, 1, requires_grad=True)
    head = vocabulary_slices(weight, size=4) if slices else lambda hidden: hidden @ weight.T
    with LargestTensor() as largest:
        for kind, _ in KINDS:
            response_divergence(hidden, torch.ones(6, 1), head, kind, chunk=3).backward()
        if not slices:
            response_loss(hidden, case.labels, head, 3)[0].backward()
            top_k_divergence(hidden, top_k_of(torch.ones(6, 1), head, 2, chunk=3), head, chunk=3).backward()
    assert largest.size == bound


def test_no_logits_are_kept_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value.shape[-1:]) or value, lambda x: x):
        totals = list(every_loss(Case()))
    assert len(totals) == 8 and (WIDTH,) in kept
    assert not {(VOCABULARY,), (6,), (5,)} & set(kept)  # of all tokens, of either slice
