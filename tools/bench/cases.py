"""The cases in which peers are measured side by side: data alone."""

from dataclasses import dataclass
from enum import StrEnum

from tools.bench.peers.roster import (
    ENGINE,
    GRPC,
    GRPC_INT8,
    LLAMA,
    LLAMA_Q8,
    PEFT,
    TRANSFORMERS,
    VLLM,
    VLLM_LORA,
    PeerSpec,
)


class RunLevel(StrEnum):
    """Length of a run."""

    QUICK = "quick"
    """At most 5 minutes."""
    MAIN = "main"
    """At most 15 minutes: every target that needs no GPU."""
    FULL = "full"
    """The whole grid, for hours of one's own."""


class CaseKind(StrEnum):
    """Figure that a case is about."""

    DECODE = "decode"
    PROMPT = "prompt"


@dataclass(frozen=True)
class Case:
    """Rows that every peer answers alike."""

    rows: int
    adapters: int
    """Different adapters among the rows; 0 is the base, 1 one for all."""
    context: int
    """Tokens of each prompt: in a decode case before the steps that are timed."""
    peers: tuple[PeerSpec, ...]
    kind: CaseKind = CaseKind.DECODE
    rank: int = 16
    all_cores: bool = True
    """False is one thread."""

    @property
    def name(self) -> str:
        """Name in results and reports; unlike that of any other case."""
        what = {0: "base", 1: "one adapter"}.get(self.adapters, f"{self.adapters} adapters")
        rank = f" of rank {self.rank}" if self.adapters and self.rank != 16 else ""
        rows = f"{self.rows} {'row' if self.rows == 1 else 'rows'}"
        size = f"prompts of {self.context}" if self.kind is CaseKind.PROMPT else f"context {self.context}"
        return f"{rows}, {what}{rank}, {size}, {'all cores' if self.all_cores else '1 thread'}"

    @property
    def group(self) -> tuple[bool, int]:
        """Cases of one group are asked of the same processes."""
        return self.all_cores, self.rank


OURS = (GRPC, ENGINE)


def _decode(rows: int, adapters: int, context: int, *peers: PeerSpec, rank: int = 16, all_cores: bool = True) -> Case:
    return Case(rows, adapters, context, peers, rank=rank, all_cores=all_cores)


def _prompt(rows: int, adapters: int, context: int, *peers: PeerSpec) -> Case:
    return Case(rows, adapters, context, peers, CaseKind.PROMPT)


QUICK = (
    _decode(1, 0, 64, *OURS, GRPC_INT8, LLAMA, LLAMA_Q8, VLLM),
    _decode(1, 1, 64, *OURS, LLAMA),
    _decode(8, 0, 64, *OURS, GRPC_INT8, LLAMA, LLAMA_Q8, VLLM),
    _decode(8, 1, 64, *OURS, LLAMA),
    _decode(8, 8, 64, *OURS, LLAMA),
    _decode(8, 0, 512, ENGINE, LLAMA),
    _prompt(2, 0, 512, ENGINE, LLAMA),
    _prompt(2, 2, 512, ENGINE),
)

MAIN = (
    _decode(1, 0, 64, *OURS, GRPC_INT8, LLAMA, LLAMA_Q8, VLLM, TRANSFORMERS),
    _decode(1, 1, 64, *OURS, LLAMA, VLLM_LORA, PEFT),
    _decode(8, 0, 64, *OURS, GRPC_INT8, LLAMA, LLAMA_Q8, VLLM),
    _decode(8, 1, 64, *OURS, LLAMA, VLLM_LORA),
    _decode(8, 8, 64, *OURS, LLAMA, VLLM_LORA, PEFT),
    _decode(8, 0, 512, *OURS, LLAMA),
    _decode(8, 8, 512, ENGINE),
    _decode(8, 0, 1900, ENGINE, LLAMA),
    _prompt(4, 0, 512, ENGINE),
    _prompt(4, 4, 512, ENGINE, LLAMA),
    _prompt(1, 0, 1900, ENGINE),
    _prompt(1, 1, 1900, ENGINE, LLAMA),
    _decode(1, 0, 64, ENGINE, LLAMA, all_cores=False),
    _decode(8, 0, 64, ENGINE, LLAMA, all_cores=False),
    _decode(8, 8, 64, ENGINE, LLAMA, all_cores=False),
)

GRID = (
    *(
        _decode(rows, adapters, context, *OURS, LLAMA, all_cores=all_cores)
        for all_cores in (True, False)
        for context in (64, 512, 2048)
        for rows in (1, 4, 8, 16, 32)
        for adapters in (0, 1, 8, 32)
        if adapters <= rows
    ),
    *(_decode(rows, rows, 64, *OURS, LLAMA, VLLM_LORA, rank=rank) for rank in (8, 64) for rows in (1, 8)),
    *(
        _prompt(rows, adapters, context, *OURS, LLAMA)
        for context in (512, 2048)
        for rows in (1, 8)
        for adapters in (0, rows)
    ),
)
FULL = tuple({case.name: case for case in (*GRID, *MAIN)}.values())
"""The grid, where the cases of the targets have their own peers."""
CASES = {RunLevel.QUICK: QUICK, RunLevel.MAIN: MAIN, RunLevel.FULL: FULL}
