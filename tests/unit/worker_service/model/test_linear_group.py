"""Linears that read the same input are found by calls, computed at once, and right when they get other inputs."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.model.tiny_worker import apart
from worker_service.model.cuda.active_columns import ActiveColumns
from worker_service.model.linear_group import LinearGroup, find_groups, in_groups
from worker_service.model.slot_linear import SlotLinear
from worker_service.model.step_state import StepState

OUTS = (6, 4, 4)
IN_FEATURES, NUM_SLOTS, SLOT_RANK, NUM_TOKENS = 8, 2, 2, 3


class Layer(nn.Module):
    """Three linears in a group, as attention calls them."""

    def __init__(self, step: StepState, *, has_bias: bool) -> None:
        super().__init__()
        scales, ones = torch.rand(3, NUM_SLOTS), torch.zeros(3, NUM_SLOTS, SLOT_RANK)
        plain = [nn.Linear(IN_FEATURES, out, bias=has_bias and out == OUTS[0]) for out in OUTS]
        self.plain = [(linear.weight.detach().clone(), linear.bias) for linear in plain]
        assert step.columns is not None
        self.linears = nn.ModuleList(
            SlotLinear(linear, scales[index], ones[index], step, step.gates_TS, step.columns)
            for index, linear in enumerate(plain)
        )
        LinearGroup(list(self.linears), scales, ones, step.columns)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (linear(x) for linear in self.linears)
        return torch.cat([q, k * v], dim=-1)

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (nn.functional.linear(x, weight, bias) for weight, bias in self.plain)
        return torch.cat([q, k * v], dim=-1)


@pytest.fixture
def step() -> StepState:
    cpu = torch.device("cpu")
    state = StepState.allocate(
        max_tokens=NUM_TOKENS,
        num_slots=NUM_SLOTS,
        max_segments=1,
        max_blocks=1,
        device=cpu,
        slot_rank_of_lists=SLOT_RANK,
    )
    assert isinstance(state.columns, ActiveColumns)
    return state


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_group_answers_as_its_linears_alone(step: StepState, has_bias: bool) -> None:
    layer, x = Layer(step, has_bias=has_bias), torch.randn(1, NUM_TOKENS, IN_FEATURES)
    for _ in range(2):
        assert torch.allclose(layer(x), layer.expected(x), atol=1e-6)


def test_linears_that_get_other_inputs_or_another_order_are_right(step: StepState) -> None:
    layer = Layer(step, has_bias=True)
    q, k, v = layer.linears
    first, second = torch.randn(2, 1, NUM_TOKENS, IN_FEATURES)
    calls = [
        (q, first),
        (k, second),
        (v, first),
        (v, second),
        (k, second),
        (q, first),
        (v, first),
        (q, second),
        (k, first),
    ]
    for linear, x in calls:
        weight, bias = layer.plain[list(layer.linears).index(linear)]
        assert torch.allclose(linear(x), nn.functional.linear(x, weight, bias), atol=1e-6)


def test_a_slot_of_one_linear_is_one_stretch_of_the_groups_memory(step: StepState) -> None:
    layer = Layer(step, has_bias=False)
    group = layer.linears[0].group
    assert isinstance(group, LinearGroup)
    for index, linear in enumerate(layer.linears):
        assert isinstance(linear, SlotLinear)
        for slot in range(NUM_SLOTS):
            a_KI, b_KO = linear.slot(slot)
            assert a_KI.is_contiguous()
            assert b_KO.is_contiguous()
            a_KI.fill_(index + 1)
            b_KO.fill_(index + 1)
    assert group.a_GCI.mean(dim=(1, 2)).tolist() == [1, 2, 3]
    num_columns = NUM_SLOTS * SLOT_RANK
    sizes = [num_columns * out for out in OUTS]
    assert [float(block.mean()) for block in torch.split(group.b_CN, sizes)] == [1, 2, 3]


@pytest.mark.parametrize("with_adapters", [False, True])
def test_a_compiled_layer_has_one_product_and_one_call_for_three_linears(step: StepState, with_adapters: bool) -> None:
    """Two layers share a graph, and computing again compiles nothing."""
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph if not with_adapters else lambda *_: (torch.zeros(1, NUM_TOKENS, OUTS[0] + OUTS[1]),)

    step.with_adapters = with_adapters
    with apart():
        for layer in (Layer(step, has_bias=False), Layer(step, has_bias=False)):
            x = torch.randn(1, NUM_TOKENS, IN_FEATURES)
            layer.compile(fullgraph=True, dynamic=False, backend=count)
            layer(x)
            found = layer(x)
            if not with_adapters:
                assert torch.allclose(found, layer.expected(x), atol=1e-6)
            group = layer.linears[0].group
            assert isinstance(group, LinearGroup)
            assert group._shared is None, "nothing of a step outlives it"
        assert len(graphs) == 1
        assert not counters["graph_break"]
    called = [str(node.target) for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum("linear" in name for name in called) == 1
    assert sum("add_slots" in name for name in called) == with_adapters


class Attention(nn.Module):
    """Calls its linears as attention does, gate last with another input."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.k, self.o, self.gate = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        found: torch.Tensor = self.gate(self.o(q + k + v) + x) + self.o(x)
        return found


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 4)
        self.layers = nn.ModuleList([Attention(), Attention()])

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        x: torch.Tensor = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


def test_groups_are_what_is_called_with_one_input_in_one_go() -> None:
    paths = [f"layers.{index}.{name}" for index in range(2) for name in ("v", "k", "q", "o", "gate")]
    groups = find_groups(Model(), paths)
    assert groups == [tuple(f"layers.{index}.{name}" for name in ("q", "k", "v")) for index in range(2)]
    assert in_groups(paths[:5], groups) == ["layers.0.q", "layers.0.k", "layers.0.v", "layers.0.o", "layers.0.gate"]
    assert sorted(in_groups(paths, groups)) == sorted(paths)
