"""A token embedding with slots: every token adds its own adapters' low-rank products.

Shapes: T tokens, I embeddings, O embedding size, S slots, K ranks of one slot, C = S * K columns.
"""

import torch
from torch import nn

from worker_service.model.slot_linear import select
from worker_service.model.step_state import StepState


class SlotEmbedding(nn.Module):
    """`y = base(id) + embed_scale · B_all · select(gate, gate · scale · A_all[:, id])`.

    The same as a linear with slots for one-hot inputs, so its slots look the same; see there for `select`. As PEFT
    0.21 (tuners/lora/layer.py, `Embedding.forward`): the product is multiplied by `embed_scale` where the embedding
    multiplies its own output by it. It runs uncompiled, in front of the compiled layers.
    """

    a_CI: torch.Tensor
    b_CO: torch.Tensor
    scale_S: torch.Tensor
    one_SK: torch.Tensor
    embed_scale: torch.Tensor | None

    def __init__(self, embedding: nn.Embedding, scale_S: torch.Tensor, one_SK: torch.Tensor, step: StepState) -> None:
        """`scale_S` is the scaling of each slot and `one_SK` which ranks have the input 1, fp32; both may be views."""
        super().__init__()
        self.in_features = embedding.num_embeddings
        self.out_features = embedding.embedding_dim
        self.num_slots, self.slot_rank = one_SK.shape
        self.base: nn.Module = embedding
        num_columns = one_SK.numel()
        a_CI = embedding.weight.new_zeros(num_columns, self.in_features, requires_grad=False)
        b_CO = embedding.weight.new_zeros(num_columns, self.out_features, requires_grad=False)
        self.register_buffer("a_CI", a_CI, persistent=False)
        self.register_buffer("b_CO", b_CO, persistent=False)
        self.register_buffer("scale_S", scale_S, persistent=False)
        self.register_buffer("one_SK", one_SK, persistent=False)
        embed_scale = getattr(embedding, "embed_scale", None)
        if embed_scale is not None:
            embed_scale = torch.as_tensor(embed_scale, dtype=embedding.weight.dtype, device=embedding.weight.device)
        self.register_buffer("embed_scale", embed_scale, persistent=False)
        self.step = step

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`[..., T]` to `[..., T, O]`, with T the number of tokens of the step."""
        y: torch.Tensor = self.base(input_ids)
        if not self.step.with_adapters:
            return y
        ids_T = input_ids.reshape(-1)
        h_TC = self.a_CI[:, ids_T].T
        chosen_TC = select(h_TC, self.step.gates_TS[: ids_T.shape[0]], self.scale_S, self.one_SK)
        added_TO = chosen_TC @ self.b_CO
        if self.embed_scale is not None:
            added_TO = added_TO * self.embed_scale
        return y + added_TO.reshape(y.shape)

    def slot(self, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Memory of one slot: `[K, I]` of A_all and `[K, O]` of B_all, transposed."""
        columns = slice(slot * self.slot_rank, (slot + 1) * self.slot_rank)
        return self.a_CI[columns], self.b_CO[columns]
