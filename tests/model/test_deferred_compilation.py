"""A module is compiled by its first call, once, and not at all where nothing may be compiled any more."""

import pytest
import torch
from torch import nn

from tests.model.tiny_worker import apart
from worker_service.model.deferred_compilation import compile_when_called


class Backend:
    """Compiler that counts the graphs that it gets."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> object:
        self.num_graphs += 1
        return graph.forward


class Doubling(nn.Module):
    """A module of our own: the compiler passes over torch's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 + 1


def test_the_first_call_compiles_and_later_ones_do_not() -> None:
    backend, module, x = Backend(), Doubling(), torch.ones(2, 4)
    expected = module(x)
    with apart():
        compile_when_called(module, backend=backend, fullgraph=True, dynamic=False)
        assert backend.num_graphs == 0
        assert torch.equal(module(x), expected)
        assert torch.equal(module(x), expected)
    assert backend.num_graphs == 1


def test_a_first_call_after_the_warm_up_is_an_error_and_no_pause() -> None:
    backend, module = Backend(), Doubling()
    compile_when_called(module, backend=backend, fullgraph=True, dynamic=False)
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
        module(torch.ones(2, 4))
    assert backend.num_graphs == 0
