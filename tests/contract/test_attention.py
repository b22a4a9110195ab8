"""What every implementation of paged attention does, against dense attention in fp64.

On a machine without CUDA, what we hand to torch's paged kernels is computed by an emulation of their documentation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from tests.support import emulated_varlen
from worker_service.model.attention import KvCache, PagedAttention
from worker_service.model.cpu import library
from worker_service.model.step_state import StepState

MAX_SEQUENCE_TOKENS = 1024
MAX_ROWS = 6
PADDING = 3
CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Implementation:
    """One way to attend, and where."""

    device: str
    dtype: torch.dtype
    block_tokens: int
    with_kernels: bool = False
    with_varlen: bool = False
    with_flash: bool = False


IMPLEMENTATIONS = [
    pytest.param(Implementation("cpu", torch.float32, 16), id="portable-fp32"),
    pytest.param(Implementation("cpu", torch.bfloat16, 16), id="portable-bf16"),
    pytest.param(Implementation("cpu", torch.float32, 16, with_kernels=True), id="cpu-kernels-fp32"),
    pytest.param(Implementation("cpu", torch.bfloat16, 16, with_kernels=True), id="cpu-kernels-bf16"),
    pytest.param(Implementation("cpu", torch.float32, 16, with_varlen=True), id="masked-fp32"),
    pytest.param(
        Implementation("cpu", torch.bfloat16, 256, with_varlen=True, with_flash=True), id="emulated-varlen-bf16"
    ),
    pytest.param(Implementation("cuda", torch.float32, 16, with_varlen=True), id="masked-cuda-fp32", marks=CUDA),
    pytest.param(
        Implementation("cuda", torch.bfloat16, 256, with_varlen=True, with_flash=True),
        id="varlen-cuda-bf16",
        marks=CUDA,
    ),
    pytest.param(
        Implementation("cuda", torch.float16, 256, with_varlen=True, with_flash=True), id="varlen-cuda-fp16", marks=CUDA
    ),
    pytest.param(
        Implementation("cuda", torch.float16, 512, with_varlen=True, with_flash=True), id="varlen-cuda-512", marks=CUDA
    ),
]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Implementation:
    found: Implementation = request.param
    if found.with_kernels:
        from worker_service.demo_model import default_cache_dir

        assert library.load_kernels(default_cache_dir()), "this machine has a C++ compiler"
    if found.with_flash and found.device == "cpu":
        monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", emulated_varlen.flash_attention_forward)
    return found


@pytest.fixture(autouse=True)
def in_fp32() -> Iterator[None]:
    """TF32 would not be exact enough to compare."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@dataclass
class Sequence:
    """Its blocks, and every key and value that it has, `[L, G, D]`."""

    table: list[int]
    k_LGD: torch.Tensor
    v_LGD: torch.Tensor


class Rig:
    """One layer's attention, and what dense attention would say."""

    def __init__(
        self, implementation: Implementation, heads: tuple[int, int, int], window: int, softcap: float = 0
    ) -> None:
        self.implementation, self.window, self.softcap = implementation, window, softcap
        self.num_heads, self.num_kv_heads, self.head_size = heads
        self.block_tokens = implementation.block_tokens
        self.blocks_each = MAX_SEQUENCE_TOKENS // self.block_tokens
        self.num_blocks = MAX_ROWS * self.blocks_each
        self.device = torch.device(implementation.device)
        self.generator = torch.Generator().manual_seed(7)
        self.step_state = StepState.allocate(
            max_tokens=2048,
            num_slots=1,
            max_segments=MAX_ROWS + 1,
            max_blocks=self.blocks_each,
            device=self.device,
            with_kernels=implementation.with_kernels,
            with_varlen=implementation.with_varlen,
            with_flash=implementation.with_flash,
        )
        num_positions = (self.num_blocks + 1) * self.block_tokens
        cache = KvCache(num_positions, self.num_kv_heads, self.head_size, implementation.dtype, self.device)
        # What nobody wrote must not show, whatever it is.
        cache.k_NGD.fill_(100.0)
        cache.v_NGD.fill_(100.0)
        self.cache = cache
        self.attention = PagedAttention(cache, self.step_state, self.block_tokens)
        self.blocks = torch.randperm(self.num_blocks, generator=self.generator).tolist()

    def sequence(self, *, is_scattered: bool, index: int = 0) -> Sequence:
        begin, end = index * self.blocks_each, (index + 1) * self.blocks_each
        nothing = torch.empty(0, self.num_kv_heads, self.head_size, dtype=self.implementation.dtype)
        return Sequence(self.blocks[begin:end] if is_scattered else list(range(begin, end)), nothing, nothing)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.implementation.dtype)

    def positions(self, sequence: Sequence) -> torch.Tensor:
        """Where its keys are in the cache."""
        index_L = torch.arange(len(sequence.k_LGD))
        blocks_L = torch.tensor(sequence.table)[index_L // self.block_tokens]
        return blocks_L * self.block_tokens + index_L % self.block_tokens

    def run(self, work: list[tuple[Sequence, int]]) -> None:
        """One step: so many new tokens of each sequence, and padding; checks all that comes of it."""
        total = sum(count for _, count in work)
        num_tokens = total + PADDING
        q = self.random(num_tokens, self.num_heads, self.head_size)
        k, v = (self.random(num_tokens, self.num_kv_heads, self.head_size) for _ in range(2))
        positions = torch.full((num_tokens,), self.num_blocks * self.block_tokens)
        rows, expected, first = [], torch.zeros(q.shape, dtype=torch.float64), 0
        for row, (sequence, count) in enumerate(work):
            here = slice(first, first + count)
            sequence.k_LGD = torch.cat([sequence.k_LGD, k[here]])
            sequence.v_LGD = torch.cat([sequence.v_LGD, v[here]])
            positions[here] = self.positions(sequence)[-count:]
            expected[here] = self.dense(q[here], sequence)
            used = sequence.table[: -(-len(sequence.k_LGD) // self.block_tokens)]
            is_contiguous = used == list(range(used[0], used[0] + len(used)))
            start = used[0] * self.block_tokens if is_contiguous else -1
            rows.append((first, count, len(sequence.k_LGD), start))
            self.step_state.block_tables_RB[row, : len(used)] = torch.tensor(used, dtype=torch.int32)
            first += count
        self.step_state.cache_positions_T[:num_tokens] = positions
        self.step_state.describe(rows, num_tokens)
        scale = self.head_size**-0.5
        found = self.attention(
            q.to(self.device), k.to(self.device), v.to(self.device), scale, self.window, self.softcap
        ).cpu()
        error = (found[:total].double() - expected[:total]).abs().max() / expected.abs().max()
        assert error <= TOLERANCES[self.implementation.dtype]
        assert not found[total:].any(), "padding gets zeros"
        for sequence, _ in work:
            at_L = self.positions(sequence)
            assert torch.equal(self.cache.k_NGD.cpu()[at_L], sequence.k_LGD)
            assert torch.equal(self.cache.v_NGD.cpu()[at_L], sequence.v_LGD)

    def dense(self, q_THD: torch.Tensor, sequence: Sequence) -> torch.Tensor:
        """The last tokens over all keys that they see, in fp64."""
        num_keys, num_groups = len(sequence.k_LGD), self.num_heads // self.num_kv_heads
        k_LHD, v_LHD = (x.double().repeat_interleave(num_groups, 1) for x in (sequence.k_LGD, sequence.v_LGD))
        distance_TL = torch.arange(num_keys - len(q_THD), num_keys)[:, None] - torch.arange(num_keys)
        visible_TL = (distance_TL >= 0) & (distance_TL < (self.window or num_keys))
        scores_HTL = torch.einsum("thd,lhd->htl", q_THD.double(), k_LHD) * self.head_size**-0.5
        if self.softcap:
            scores_HTL = torch.tanh(scores_HTL / self.softcap) * self.softcap
        shares_HTL = scores_HTL.masked_fill(~visible_TL, -torch.inf).softmax(-1)
        return torch.einsum("htl,lhd->thd", shares_HTL, v_LHD)


HEADS = pytest.mark.parametrize("heads", [(9, 3, 64), (4, 4, 16), (8, 1, 80)], ids=["grouped", "all", "one"])
WINDOWS = pytest.mark.parametrize("window", [0, 50])


@HEADS
@WINDOWS
@pytest.mark.parametrize("is_scattered", [False, True], ids=["contiguous", "scattered"])
def test_chunks_of_a_prompt_and_then_tokens_one_by_one(
    implementation: Implementation, heads: tuple[int, int, int], window: int, is_scattered: bool
) -> None:
    rig = Rig(implementation, heads, window)
    sequence = rig.sequence(is_scattered=is_scattered)
    for count in (1, 15, 16, 230, 70, 1, 1, 8, 9):
        rig.run([(sequence, count)])


@HEADS
@WINDOWS
def test_prompts_and_tokens_of_many_rows_in_one_step(
    implementation: Implementation, heads: tuple[int, int, int], window: int
) -> None:
    rig = Rig(implementation, heads, window)
    rows = [rig.sequence(is_scattered=bool(index % 2), index=index) for index in range(MAX_ROWS)]
    # A block that is scattered in one row may be contiguous in another: give each its own.
    taken: set[int] = set()
    for row in rows:
        free = (block for block in range(rig.num_blocks) if block not in taken)
        row.table = [block if block not in taken else next(free) for block in row.table]
        taken.update(row.table)
    rig.run(list(zip(rows, (1, 16, 17, 40, 260, 3), strict=True)))
    rig.run([(row, 1) for row in rows])
    rig.run([(rows[4], 1), (rows[1], 30), (rows[0], 1)])
    rig.run([(rows[5], 1)])
    rig.run([(rows[2], 5), (rows[3], 1), (rows[5], 1), (rows[1], 1)])


def test_scores_are_bounded(implementation: Implementation) -> None:
    rig = Rig(implementation, (4, 2, 64), 50, softcap=0.5)
    rows = [rig.sequence(is_scattered=bool(index), index=2 * index) for index in range(2)]
    rig.run([(rows[0], 70), (rows[1], 3)])
    rig.run([(row, 1) for row in rows])


def test_sequences_that_share_their_beginning(implementation: Implementation) -> None:
    rig = Rig(implementation, (4, 2, 64), 0)
    first = rig.sequence(is_scattered=True)
    rig.run([(first, 2 * rig.block_tokens + 5)])
    others = []
    for number in (1, 2):
        own = rig.sequence(is_scattered=True, index=number).table
        shared = 2 * rig.block_tokens
        others.append(Sequence([*first.table[:2], *own[2:]], first.k_LGD[:shared], first.v_LGD[:shared]))
    rig.run([(others[0], 20), (first, 1), (others[1], 1)])
    rig.run([(first, 1), (others[0], 1), (others[1], 7)])
