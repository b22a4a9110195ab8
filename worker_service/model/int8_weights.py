"""Weights in 8 bits, for CPU: linears of the layers, head and embedding, each output's row with a scale of its own.

The model is rounded once, before anything is measured of it: its parameters become the values that 8 bits stand for, so
that the start-up self-test, and whatever else asks the unmodified model, compares with the same weights.

Shapes: T tokens, I in_features, O out_features or embeddings.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from worker_service.model.targets import find_layers

LARGEST = 127
"""Symmetric: -128 is not used, so that a weight and its opposite round alike."""
PIECE_ELEMENTS = 2**24
"""Elements of a matrix that are rounded at a time: 64 MiB in fp32."""


@dataclass(frozen=True)
class Int8Weight:
    """One matrix: `q_OI * scale_O` is what it stands for."""

    q_OI: torch.Tensor
    """int8."""
    scale_O: torch.Tensor
    """fp32; the largest magnitude of a row, by 127."""

    @classmethod
    def of(cls, weight_OI: torch.Tensor) -> "Int8Weight":
        """Round to nearest; a row of zeros stays one."""
        pieces = [_rounded(weight_OI[rows]) for rows in _pieces(weight_OI)]
        return cls(torch.cat([q_OI for q_OI, _ in pieces]), torch.cat([scale_O for _, scale_O in pieces]))

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """The matrix in full, `[O, I]`, rounded to `dtype`."""
        return torch.cat(
            [(self.q_OI[rows].float() * self.scale_O[rows, None]).to(dtype) for rows in _pieces(self.q_OI)]
        )


Int8Weights = Mapping[torch.Tensor, Int8Weight]
"""By the parameter that each stands for."""


def round_weights(model: PreTrainedModel) -> Int8Weights:
    """Round what decoding reads, in place; returns the 8 bits of each parameter.

    Matrices that are not of a linear, such as experts that are one parameter, stay as they are.
    """
    found: dict[torch.Tensor, Int8Weight] = {}
    for module in _rounded_modules(model):
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        if weight in found:
            continue  # A head that is tied to the embedding.
        is_transposed = isinstance(module, Conv1D)
        found[weight] = Int8Weight.of(weight.detach().T if is_transposed else weight.detach())
        values_OI = found[weight].values(weight.dtype)
        weight.data.copy_(values_OI.T if is_transposed else values_OI)
    return found


def _rounded_modules(model: PreTrainedModel) -> Iterator[nn.Module]:
    for layer in find_layers(model):
        yield from (module for module in layer.modules() if isinstance(module, nn.Linear | Conv1D))
    yield from (end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None)


def _rounded(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    wide_OI = weight_OI.float()
    largest_O = wide_OI.abs().amax(1)
    scale_O = torch.where(largest_O > 0, largest_O / LARGEST, 1.0)
    return (wide_OI / scale_O[:, None]).round().to(torch.int8), scale_O


def _pieces(matrix_OI: torch.Tensor) -> Iterator[slice]:
    height = max(1, PIECE_ELEMENTS // matrix_OI.shape[1])
    return (slice(first, first + height) for first in range(0, matrix_OI.shape[0], height))


class Int8Embedding(nn.Module):
    """An embedding whose rows are widened as they are read; whatever else the original does, it goes on doing."""

    weight: torch.Tensor
    scale_O: torch.Tensor

    def __init__(self, embedding: nn.Embedding, int8: Int8Weight) -> None:
        super().__init__()
        self.register_buffer("weight", int8.q_OI, persistent=False)
        self.register_buffer("scale_O", int8.scale_O, persistent=False)
        self._dtype = embedding.weight.dtype
        # Some models multiply what they looked up. It gets the rows of each step in place of its own matrix.
        self.base = embedding
        empty = torch.empty(0, embedding.embedding_dim, dtype=self._dtype)
        self.base.weight = nn.Parameter(empty, requires_grad=False)
        self._is_plain = type(embedding) is nn.Embedding

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`[..., T]` to `[..., T, I]`."""
        rows = (self.weight[input_ids].float() * self.scale_O[input_ids][..., None]).to(self._dtype)
        if self._is_plain:
            return rows
        places = torch.arange(input_ids.numel(), device=input_ids.device).view(input_ids.shape)
        looked_up: torch.Tensor = functional_call(self.base, {"weight": rows.reshape(-1, rows.shape[-1])}, (places,))
        return looked_up
