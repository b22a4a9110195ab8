"""A linear with slots: every token adds its own adapters' low-rank products.

Shapes: T tokens, I in_features, O out_features, S slots, K ranks of one slot, C = S * K columns.
"""

import torch
from torch import nn
from torch.nn import functional

from worker_service.model.cpu import library
from worker_service.model.cuda.active_columns import ActiveColumns
from worker_service.model.int8_weights import Int8Weight
from worker_service.model.step_state import StepState


def dense(
    x_TI: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    kernel_tokens: int,
    weight_scale_O: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x @ weight.T + bias` in the form that is fastest for this number of tokens.

    Few tokens on CPU are bound by reading the weight, which our own kernel does faster than the library's matrix
    product, up to `kernel_tokens` (`library.linear_tokens`; 0 where there is no kernel). Without it one token is still
    better off with the compiler's fused multiply-and-sum. A weight in 8 bits, with a scale for each output, is only
    known to the kernels.
    """
    if weight_scale_O is not None:
        int8_TO: torch.Tensor = torch.ops.hotslot_cpu.linear_int8(x_TI, weight_OI, weight_scale_O, bias_O)
        return int8_TO
    if x_TI.shape[0] <= kernel_tokens:
        y_TO: torch.Tensor = torch.ops.hotslot_cpu.linear(x_TI, weight_OI, bias_O)
        return y_TO
    if x_TI.shape[0] == 1 and x_TI.device.type == "cpu" and torch.compiler.is_compiling():
        y_O = (weight_OI.float() * x_TI.float()).sum(-1, dtype=torch.float32).to(x_TI.dtype)
        return (y_O if bias_O is None else y_O + bias_O)[None]
    return functional.linear(x_TI, weight_OI, bias_O)


def select(h_TC: torch.Tensor, gates_TS: torch.Tensor, scale_S: torch.Tensor, one_SK: torch.Tensor) -> torch.Tensor:
    """Select the input of B_all: `gate · scale · (h + one)`, and 0 for every slot that is off for a token, `[T, C]`.

    It is `where`, not a product: whatever A_all made of a slot that is off, a NaN included, never reaches the token. A
    slot is off by its gate, or by a scaling of 0 where its adapter does not target the module.
    """
    factor_TS1 = (gates_TS * scale_S)[:, :, None]
    scaled_TSK = (h_TC.reshape(gates_TS.shape[0], *one_SK.shape).float() + one_SK) * factor_TS1
    chosen_TSK = torch.where(factor_TS1 != 0, scaled_TSK, 0.0)
    return chosen_TSK.to(h_TC.dtype).reshape(h_TC.shape)


class DenseLinear(nn.Module):
    """A plain linear in the form that is fastest for the number of tokens; shares the parameters of the original."""

    weight: torch.Tensor
    weight_scale_O: torch.Tensor | None

    def __init__(self, linear: nn.Linear, *, has_kernels: bool, int8: Int8Weight | None = None) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        _take_weight(self, linear, int8)
        self.bias = linear.bias
        self.kernel_tokens = library.linear_tokens(linear.weight.dtype) if has_kernels else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., T, I]` to `[..., T, O]`."""
        x_TI = x.reshape(-1, x.shape[-1])
        y_TO = dense(x_TI, self.weight, self.bias, self.kernel_tokens, self.weight_scale_O)
        return y_TO.reshape(*x.shape[:-1], -1)


def _take_weight(module: nn.Module, linear: nn.Linear, int8: Int8Weight | None) -> None:
    """Give a module the linear's weight: the parameter itself, or its 8 bits with their scales in place of it."""
    if int8 is None:
        module.weight = linear.weight
        module.register_buffer("weight_scale_O", None)
    else:
        module.register_buffer("weight", int8.q_OI, persistent=False)
        module.register_buffer("weight_scale_O", int8.scale_O, persistent=False)


class SlotLinear(nn.Module):
    """`y = W x + b + B_all · select(gate, gate · scale · (A_all x + one))`, all slots side by side in A_all and B_all.

    `one` is 1 for ranks whose input is 1 rather than x: a bias on an adapter's B is B's column of such a rank, so it
    costs no adapter anything but the one that has it, and that one rank. B_all must be finite (0 · inf is NaN), which
    loading checks. The kernels on CPU compute the same for the slots that are on, and read no others.

    B_all is kept transposed, so that a slot is one stretch of memory of each and is written by plain copies.
    """

    weight: torch.Tensor
    weight_scale_O: torch.Tensor | None
    a_CI: torch.Tensor
    b_CO: torch.Tensor
    scale_S: torch.Tensor
    one_SK: torch.Tensor

    def __init__(
        self,
        linear: nn.Linear,
        scale_S: torch.Tensor,
        one_SK: torch.Tensor,
        step: StepState,
        gates_TS: torch.Tensor,
        columns: ActiveColumns | None = None,
        int8: Int8Weight | None = None,
    ) -> None:
        """`scale_S` is the scaling of each slot and `one_SK` which ranks have the input 1, fp32; both may be views.

        `gates_TS` are those of `step` for the tokens that this module sees, all or the last of each row; `columns` are
        the lists of these where the kernels on CUDA compute what adapters add.
        """
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.num_slots, self.slot_rank = one_SK.shape
        _take_weight(self, linear, int8)
        self.bias = linear.bias
        num_columns = one_SK.numel()
        a_CI = linear.weight.new_zeros(num_columns, self.in_features, requires_grad=False)
        b_CO = linear.weight.new_zeros(num_columns, self.out_features, requires_grad=False)
        self.register_buffer("a_CI", a_CI, persistent=False)
        self.register_buffer("b_CO", b_CO, persistent=False)
        self.register_buffer("scale_S", scale_S, persistent=False)
        self.register_buffer("one_SK", one_SK, persistent=False)
        self.step = step
        self.gates_TS = gates_TS
        self.columns = columns
        self.group: nn.Module | None = None
        """Group that computes it together with others (linear_group.py), by its place among them and the input."""
        self.group_index = 0
        self.kernel_tokens = library.linear_tokens(linear.weight.dtype) if step.with_kernels else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., T, I]` to `[..., T, O]`, with T the number of tokens of the step."""
        if self.group is not None:
            own_TO: torch.Tensor = self.group(self.group_index, x)
            return own_TO.reshape(*x.shape[:-1], self.out_features)
        x_TI = x.reshape(-1, self.in_features)
        if not self.step.with_adapters:
            y_TO = self._base(x_TI)
        elif self.columns is not None:
            y_TO = self._add_listed(x_TI, self._base(x_TI), self.columns)
        elif not self.kernel_tokens:
            y_TO = self._base(x_TI) + self._adapters(x_TI)
        else:
            slots = (self.a_CI, self.b_CO, self.scale_S, self.one_SK, self.gates_TS[: x_TI.shape[0]])
            if self.weight_scale_O is not None:
                y_TO = torch.ops.hotslot_cpu.slot_linear_int8(x_TI, self.weight, self.weight_scale_O, self.bias, *slots)
            elif x_TI.shape[0] <= self.kernel_tokens:
                y_TO = torch.ops.hotslot_cpu.slot_linear(x_TI, self.weight, self.bias, *slots)
            else:
                y_TO = torch.ops.hotslot_cpu.add_slots(x_TI, self._base(x_TI), *slots)
        return y_TO.reshape(*x.shape[:-1], self.out_features)

    def _base(self, x_TI: torch.Tensor) -> torch.Tensor:
        return dense(x_TI, self.weight, self.bias, self.kernel_tokens, self.weight_scale_O)

    def _adapters(self, x_TI: torch.Tensor) -> torch.Tensor:
        h_TC = functional.linear(x_TI, self.a_CI)
        return select(h_TC, self.gates_TS[: x_TI.shape[0]], self.scale_S, self.one_SK) @ self.b_CO

    def _add_listed(self, x_TI: torch.Tensor, y_TO: torch.Tensor, columns: ActiveColumns) -> torch.Tensor:
        num_tokens = x_TI.shape[0]
        slots = (self.a_CI[None], self.b_CO, self.scale_S[None], self.one_SK[None], self.gates_TS[:num_tokens])
        torch.ops.hotslot_cuda.add_slots(x_TI, y_TO, *slots, *columns.of_step(num_tokens), [self.out_features])
        return y_TO

    def slot(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory of one slot: `[K, I]` of A_all and `[K, O]` of B_all, transposed."""
        columns = slice(slot * self.slot_rank, (slot + 1) * self.slot_rank)
        return self.a_CI[columns], self.b_CO[columns]
