"""Lists of the columns that are on in a step, tile by tile of its tokens, for the kernels on CUDA.

A captured step cannot launch more or less work than it was captured with, so how many columns each tile reads is data.
Shapes: T tokens, S slots, K ranks of one slot, C = S * K columns, U tiles of tokens, P places of all tiles' lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

FEW_TOKENS = 64
"""Steps of so many tokens are bound by reading slots: rows of small tiles read few slots beside their own."""
FEW_TILE = 16
"""The fewest rows that matrix units multiply."""
MANY_TILE = 64
"""Tokens of a prompt beside each other share their adapters, so that larger tiles read these less often."""
PIECE = 16
"""Places that one product of matrix units sums over. A slot's columns begin at a multiple of it, so that the order in
which a token's are summed does not depend on the slots beside them."""
NO_COLUMN = -1
"""Place without a column, behind a slot's last."""

Ints = NDArray[np.int32]


def tile_tokens(num_tokens: int) -> int:
    """Tokens of one tile in a step of so many tokens: a constant of its bucket, so of its captured graph too."""
    return FEW_TILE if num_tokens <= FEW_TOKENS else MANY_TILE


def num_tiles(num_tokens: int) -> int:
    """Tiles of a step of so many tokens."""
    return -(-num_tokens // tile_tokens(num_tokens))


def _padded(num_ranks: int) -> int:
    return -(-num_ranks // PIECE) * PIECE


def _most_tiles(max_tokens: int) -> int:
    return max(num_tiles(min(max_tokens, FEW_TOKENS)), num_tiles(max_tokens))


@dataclass(frozen=True)
class GatedTokens:
    """Tokens side by side that have the same slots on."""

    first: int
    count: int
    slots: Sequence[int]


def list_columns(
    spans: Sequence[GatedTokens], num_tokens: int, slot_rank: int, slot_ranks: Sequence[int]
) -> tuple[Ints, Ints]:
    """Begins of each tile's list `[U + 1]`, and the lists behind each other: ascending columns, each once.

    `slot_ranks` says how many ranks of each slot its adapter fills: the columns beyond them are read by no tile.
    """
    tile = tile_tokens(num_tokens)
    slots_U: list[set[int]] = [set() for _ in range(num_tiles(num_tokens))]
    for span in spans:
        if span.slots and span.count:
            for number in range(span.first // tile, (span.first + span.count - 1) // tile + 1):
                slots_U[number].update(span.slots)
    begins, columns = [0], []
    for slots in slots_U:
        for slot in sorted(slots):
            first, num_ranks = slot * slot_rank, slot_ranks[slot]
            columns += [*range(first, first + num_ranks), *[NO_COLUMN] * (_padded(num_ranks) - num_ranks)]
        begins.append(len(columns))
    return np.array(begins, np.int32), np.array(columns, np.int32)


@dataclass(eq=False)
class ActiveColumns:
    """The lists on the device. **Invariant**: no tensor in here is ever replaced, only written to."""

    begins_U1: torch.Tensor
    columns_P: torch.Tensor

    @classmethod
    def allocate(cls, max_tokens: int, num_slots: int, slot_rank: int, device: torch.device) -> "ActiveColumns":
        """Both tensors, int32, once, for lists of all columns in every tile."""
        num_tiles = _most_tiles(max_tokens)
        return cls(
            torch.zeros(num_tiles + 1, dtype=torch.int32, device=device),
            torch.zeros(num_tiles * num_slots * _padded(slot_rank), dtype=torch.int32, device=device),
        )

    def fill(self, spans: Sequence[GatedTokens], num_tokens: int, slot_rank: int, slot_ranks: Sequence[int]) -> None:
        """Take in the lists of a step (`list_columns`)."""
        begins, columns = list_columns(spans, num_tokens, slot_rank, slot_ranks)
        self.begins_U1[: len(begins)] = torch.from_numpy(begins)
        self.columns_P[: len(columns)] = torch.from_numpy(columns)

    def of_step(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Begins and lists as far as a step of so many tokens can fill them, so a constant of its bucket."""
        num_tiles = -(-num_tokens // tile_tokens(num_tokens))
        most = self.columns_P.shape[0] // (self.begins_U1.shape[0] - 1)
        return self.begins_U1[: num_tiles + 1], self.columns_P[: num_tiles * most]
