"""A linear with slots: every token adds its own adapters' low-rank products.

Shapes: T tokens, I in_features, O out_features, S slots, K ranks of one slot, C = S * K columns.
"""

import torch
from torch import nn
from torch.nn import functional

from worker_service.model.step_state import StepState


def dense(x_TI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """`x @ weight.T` in the form that is fastest for this number of tokens.

    One token on CPU is bound by reading the weight. The compiler's fused multiply-and-sum reads it up to twice as
    fast as the library's matrix product, which wins from a few tokens on.
    """
    if x_TI.shape[0] == 1 and x_TI.device.type == "cpu" and torch.compiler.is_compiling():
        return (weight_OI.float() * x_TI.float()).sum(-1, dtype=torch.float32).to(x_TI.dtype)[None]
    return functional.linear(x_TI, weight_OI)


class DenseLinear(nn.Module):
    """A plain linear in the form that is fastest for the number of tokens; shares the parameters of the original."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., T, I]` to `[..., T, O]`."""
        y_TO = dense(x.reshape(-1, x.shape[-1]), self.weight)
        if self.bias is not None:
            y_TO = y_TO + self.bias
        return y_TO.reshape(*x.shape[:-1], -1)


class SlotLinear(nn.Module):
    """`y = W x + b + B_all · select(gate, gate · scale · A_all x)`, with all slots side by side in A_all and B_all.

    `select` is `where`, not a product: what A_all computes for a slot that is off for a token, a NaN included, never
    reaches that token. B_all must be finite (0 · inf is NaN), which loading checks.
    """

    a_CI: torch.Tensor
    b_OC: torch.Tensor
    scale_S: torch.Tensor

    def __init__(self, linear: nn.Linear, scale_S: torch.Tensor, slot_rank: int, step: StepState) -> None:
        """`scale_S` is this module's scaling of each slot, fp32; it may be a view."""
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.num_slots = scale_S.shape[0]
        self.slot_rank = slot_rank
        self.weight = linear.weight
        self.bias = linear.bias
        num_columns = self.num_slots * slot_rank
        a_CI = linear.weight.new_zeros(num_columns, self.in_features, requires_grad=False)
        b_OC = linear.weight.new_zeros(self.out_features, num_columns, requires_grad=False)
        self.register_buffer("a_CI", a_CI, persistent=False)
        self.register_buffer("b_OC", b_OC, persistent=False)
        self.register_buffer("scale_S", scale_S, persistent=False)
        self.step = step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., T, I]` to `[..., T, O]`, with T the number of tokens of the step."""
        x_TI = x.reshape(-1, self.in_features)
        y_TO = dense(x_TI, self.weight)
        if self.bias is not None:
            y_TO = y_TO + self.bias
        if self.step.with_adapters:
            y_TO = y_TO + self._adapters(x_TI)
        return y_TO.reshape(*x.shape[:-1], self.out_features)

    def _adapters(self, x_TI: torch.Tensor) -> torch.Tensor:
        num_tokens = x_TI.shape[0]
        gates_TS1 = self.step.gates_TS[:num_tokens, :, None]
        h_TSK = dense(x_TI, self.a_CI).view(num_tokens, self.num_slots, self.slot_rank)
        scaled_TSK = h_TSK.float() * (gates_TS1 * self.scale_S[:, None])
        chosen_TSK = torch.where(gates_TS1 != 0, scaled_TSK, 0.0)
        return dense(chosen_TSK.to(x_TI.dtype).view(num_tokens, -1), self.b_OC)

    def slot(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where one slot lies: `[K, I]` of A_all and `[O, K]` of B_all."""
        columns = slice(slot * self.slot_rank, (slot + 1) * self.slot_rank)
        return self.a_CI[columns], self.b_OC[:, columns]
