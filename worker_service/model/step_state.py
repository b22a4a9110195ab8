"""Inputs of a step for the compiled model: tensors at fixed addresses, overwritten before every step.

Shapes: T tokens of the step's bucket, S slots, R segments or rows of logits, B KV blocks of one sequence.
"""

from dataclasses import dataclass

import torch

from worker_service.model.cuda.active_columns import ActiveColumns
from worker_service.model.varlen_attention import VarlenRows

SEGMENT_COLUMNS = 4
"""First token, number of tokens, number of keys, first cache position or -1 when its blocks are scattered."""


@dataclass(eq=False)
class StepState:
    """One object, shared by every slot linear and every attention module.

    **Invariant**: no tensor in here is ever replaced, only written to; a compiled graph holds their addresses.
    """

    gates_TS: torch.Tensor
    """Weight of each slot for each token, fp32; 0 is off."""
    cache_positions_T: torch.Tensor
    """Position of each token's key and value in the flattened cache, int64; padding goes to the spare block."""
    segments_R4: torch.Tensor
    """One row for each segment (SEGMENT_COLUMNS), int64, in host memory; the first row without tokens ends the list."""
    block_tables_RB: torch.Tensor
    """KV blocks of each segment's sequence, int32."""
    row_gates_RS: torch.Tensor
    """The gates of the tokens whose logits are wanted, for a head with slots; written only in steps with adapters."""
    varlen: VarlenRows | None = None
    """The segments once more, for attention that reads them on the device; None where it does not."""
    with_flash: bool = False
    """True if attention on the device has kernels of torch's; never changes."""
    is_decode: bool = False
    """Each row has one token, and attention may take the form for that. Guarded by the compiler."""
    columns: ActiveColumns | None = None
    """Columns that are on, tile by tile, for the kernels on CUDA; None where all slots are computed."""
    row_columns: ActiveColumns | None = None
    """The same for `row_gates_RS`."""
    with_kernels: bool = False
    """True if few tokens are computed by the CPU kernels; never changes."""
    with_adapters: bool = False
    """Variant of a bucket that runs; the base-only one computes no adapters. Guarded by the compiler."""

    @classmethod
    def allocate(
        cls,
        *,
        max_tokens: int,
        num_slots: int,
        max_segments: int,
        max_blocks: int,
        device: torch.device,
        with_kernels: bool = False,
        with_varlen: bool = False,
        with_flash: bool = False,
        slot_rank_of_lists: int = 0,
    ) -> "StepState":
        """All tensors, once; `with_varlen` is for attention that reads rows on the device.

        Lists of columns are for slots of `slot_rank_of_lists` ranks; 0 stands for none.
        """

        def columns() -> ActiveColumns | None:
            if not slot_rank_of_lists:
                return None
            return ActiveColumns.allocate(max_tokens, num_slots, slot_rank_of_lists, device)

        return cls(
            gates_TS=torch.zeros(max_tokens, num_slots, dtype=torch.float32, device=device),
            cache_positions_T=torch.zeros(max_tokens, dtype=torch.int64, device=device),
            segments_R4=torch.zeros(max_segments, SEGMENT_COLUMNS, dtype=torch.int64),
            block_tables_RB=torch.zeros(max_segments, max_blocks, dtype=torch.int32, device=device),
            row_gates_RS=torch.zeros(max_tokens, num_slots, dtype=torch.float32, device=device),
            varlen=VarlenRows.allocate(max_segments, device) if with_varlen else None,
            columns=columns(),
            row_columns=columns(),
            with_flash=with_flash,
            with_kernels=with_kernels,
        )

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Tensors that every step has."""
        return self.gates_TS, self.row_gates_RS, self.cache_positions_T, self.segments_R4, self.block_tables_RB

    def describe(self, rows: list[tuple[int, int, int, int]], num_tokens: int) -> None:
        """Take in a step's segments, in SEGMENT_COLUMNS; their tokens stand side by side, and padding behind them."""
        self.segments_R4.numpy()[: len(rows) + 1] = (*rows, (0, 0, 0, 0))
        if self.varlen is not None:
            self.varlen.describe(rows, num_tokens)
            fits = num_tokens < self.varlen.counted_R1.shape[0]
            self.is_decode = self.with_flash and fits and all(count == 1 for _, count, _, _ in rows)
