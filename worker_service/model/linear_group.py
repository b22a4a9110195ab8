"""Linears that read the same input, as one product and one call for what adapters add.

Shapes: T tokens, I in_features, G linears of the group, N outputs of all of them side by side, O those of one,
S slots, K ranks of one slot, C = S * K columns.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from worker_service.model.cuda.active_columns import ActiveColumns
from worker_service.model.cuda.add_slots import MAX_LINEARS
from worker_service.model.slot_linear import SlotLinear
from worker_service.model.step_state import StepState

PROBE_TOKENS = 2


class LinearGroup(nn.Module):
    """Queries, keys and values, or gate and up: `[T, N]` at once, from which each linear takes its own.

    The first that is called computes for all, and the others find its result by the input that they get; one that gets
    another input computes for itself, so that sharing is never assumed.

    Weights lie side by side, and A of all linears. Their B lie behind each other, so that a slot of one linear is one
    stretch of memory. The linears' own tensors are views of these.
    """

    weight_NI: torch.Tensor
    bias_N: torch.Tensor | None
    a_GCI: torch.Tensor
    b_CN: torch.Tensor

    def __init__(
        self, linears: Sequence[SlotLinear], scales_GS: torch.Tensor, ones_GSK: torch.Tensor, columns: ActiveColumns
    ) -> None:
        """`scales_GS` and `ones_GSK` are those of the linears, in their order, which are views of them."""
        super().__init__()
        self.step: StepState = linears[0].step
        self.columns = columns
        self.gates_TS = linears[0].gates_TS
        self.ends = list(itertools.accumulate(linear.out_features for linear in linears))
        biases: list[torch.Tensor | None] = [linear.bias for linear in linears]
        bias_N = None
        if any(bias is not None for bias in biases):
            zeros = [linear.weight.new_zeros(linear.out_features) for linear in linears]
            bias_N = torch.cat([zero if bias is None else bias for bias, zero in zip(biases, zeros, strict=True)])
        weight_NI = torch.cat([linear.weight for linear in linears])
        a_GCI = torch.stack([linear.a_CI for linear in linears])
        b_CN = torch.cat([linear.b_CO.flatten() for linear in linears])
        for name, tensor in (
            ("weight_NI", weight_NI), ("bias_N", bias_N), ("a_GCI", a_GCI), ("b_CN", b_CN),
            ("scales_GS", scales_GS), ("ones_GSK", ones_GSK),
        ):  # fmt: skip
            self.register_buffer(name, tensor, persistent=False)
        self._shared: tuple[torch.Tensor, torch.Tensor] | None = None
        """Input and outputs of the first linear's call, until the last one has taken its own."""
        num_columns = a_GCI.shape[1]
        for index, (linear, begin, end) in enumerate(zip(linears, [0, *self.ends], self.ends, strict=False)):
            linear.weight = nn.Parameter(weight_NI[begin:end], requires_grad=False)
            linear.a_CI = a_GCI[index]
            linear.b_CO = b_CN[num_columns * begin : num_columns * end].view(num_columns, end - begin)
            linear.group, linear.group_index = self, index

    def forward(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Output of one linear for `[..., T, I]`, `[T, O]`."""
        shared = self._shared
        if index == 0 or shared is None or shared[0] is not x:
            shared = (x, self._compute(x.reshape(-1, x.shape[-1])))
        self._shared = shared if index + 1 < len(self.ends) else None
        begin = self.ends[index - 1] if index else 0
        return shared[1][:, begin : self.ends[index]]

    def _compute(self, x_TI: torch.Tensor) -> torch.Tensor:
        y_TN = functional.linear(x_TI, self.weight_NI, self.bias_N)
        if self.step.with_adapters:
            num_tokens = x_TI.shape[0]
            slots = (self.a_GCI, self.b_CN, self.scales_GS, self.ones_GSK, self.gates_TS[:num_tokens])
            torch.ops.hotslot_cuda.add_slots(x_TI, y_TN, *slots, *self.columns.of_step(num_tokens), self.ends)
        return y_TN


@torch.no_grad()
def find_groups(model: PreTrainedModel, paths: Iterable[str]) -> list[tuple[str, ...]]:
    """Linears of one parent that are called one after the other with the same input, in the order of the calls.

    Finds them by a call of the unmodified model, so by what it does, not by names.
    """
    calls: list[tuple[str, torch.Tensor]] = []
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, arguments, path=path: calls.append((path, arguments[0]))
        )
        for path in paths
    ]
    try:
        device = next(model.parameters()).device
        model(input_ids=torch.zeros(1, PROBE_TOKENS, dtype=torch.int64, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    groups = []
    for _, run in itertools.groupby(calls, key=lambda call: (id(call[1]), call[0].rpartition(".")[0])):
        found = tuple(path for path, _ in run)
        if 1 < len(found) <= MAX_LINEARS and len(set(found)) == len(found):
            groups.append(found)
    called = [path for path, _ in calls]
    return [group for group in groups if all(called.count(path) == 1 for path in group)]


def in_groups(paths: Sequence[str], groups: Iterable[Sequence[str]]) -> list[str]:
    """The paths in their order, but each group's beside each other, where its first one stands."""
    by_path: Mapping[str, Sequence[str]] = {path: group for group in groups for path in group}
    ordered: dict[str, None] = {}
    for path in paths:
        ordered |= dict.fromkeys(by_path.get(path, (path,)))
    return list(ordered)
