"""Work that runs inside a module's forward: its hooks see it, and the forward is its own again afterwards."""

import copy

import pytest
import torch
from torch import nn

from trainers.objectives.forward_redirection import through_forward


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


def test_the_function_runs_between_the_hooks_and_may_call_the_module_itself():
    inner, order = nn.Linear(2, 3), []
    inner.register_forward_pre_hook(lambda *_: order.append("before"))
    inner.register_forward_hook(lambda *_: order.append("after"))
    x = torch.ones(1, 2)

    def work(value):
        order.append("work")
        return {"result": inner(value) * 2}

    found = through_forward(Wrapper(inner), inner, work, x)
    assert order == ["before", "work", "before", "after", "after"]
    torch.testing.assert_close(found["result"], inner(x) * 2)


@pytest.mark.parametrize("patched", [False, True])
def test_the_forward_is_its_own_again_even_after_an_error(patched):
    inner = nn.Linear(2, 3)
    if patched:
        inner.forward = lambda value: value + 1
    before = dict(vars(inner))

    def broken():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        through_forward(Wrapper(inner), inner, broken)
    assert dict(vars(inner)) == before
    assert torch.equal(copy.deepcopy(inner)(torch.ones(2)), inner(torch.ones(2)))
