"""The Triton kernels for adapters, in Triton's interpreter, against the dense form over all slots."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_service.model.cuda.active_columns import ActiveColumns, GatedTokens, list_columns
from worker_service.model.cuda.add_slots import add_slots
from worker_service.model.slot_linear import select

pytestmark = pytest.mark.triton

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Case:
    """One step of one group of linears."""

    seed: int
    spans: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    """Tokens of each row, and the slots that are on for them with their weights."""
    padding: int
    in_features: int
    outs: tuple[int, ...]
    slot_rank: int
    slot_ranks: tuple[int, ...]
    off_modules: frozenset[tuple[int, int]]
    """Linears that a slot's adapter does not target."""
    biased: frozenset[int]
    """Slots whose last rank has the input 1."""
    poisoned: frozenset[int]
    """Slots that are full of NaN."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    num_slots = draw(st.integers(1, 6))
    slot_rank = draw(st.sampled_from([4, 16, 24, 64]))
    slots = st.integers(0, num_slots - 1)
    gates = st.dictionaries(slots, st.sampled_from([1.0, 0.5, -1.0, 2.0]), max_size=3)
    counts = st.sampled_from([1, 1, 1, 2, 5, 15, 40])
    spans = draw(st.lists(st.tuples(counts, gates.map(lambda g: tuple(sorted(g.items())))), min_size=1, max_size=9))
    outs = tuple(draw(st.lists(st.sampled_from([8, 40, 130]), min_size=1, max_size=3)))
    pairs = st.tuples(st.integers(0, len(outs) - 1), slots)
    return Case(
        seed=draw(st.integers(0, 2**31)),
        spans=tuple(spans),
        padding=draw(st.integers(0, 3)),
        in_features=draw(st.sampled_from([16, 48, 530])),
        outs=outs,
        slot_rank=slot_rank,
        slot_ranks=tuple(draw(st.lists(st.integers(1, slot_rank), min_size=num_slots, max_size=num_slots))),
        off_modules=draw(st.frozensets(pairs, max_size=2)),
        biased=draw(st.frozensets(slots, max_size=2)),
        poisoned=draw(st.frozensets(slots, max_size=2)),
    )


def run(case: Case, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(case.seed)

    def random(*shape: int) -> torch.Tensor:
        deviation = shape[-1] ** -0.5
        return torch.normal(0.0, deviation, shape, generator=generator).to(dtype)

    num_slots, slot_rank, num_linears = len(case.slot_ranks), case.slot_rank, len(case.outs)
    num_columns, num_outputs = num_slots * slot_rank, sum(case.outs)
    num_tokens = sum(count for count, _ in case.spans) + case.padding
    x, y = random(num_tokens, case.in_features), random(num_tokens, num_outputs)
    a, b = random(num_linears, num_columns, case.in_features), random(num_columns, num_outputs)
    scales = torch.rand(num_linears, num_slots, generator=generator) + 0.5
    ones = torch.zeros(num_linears, num_slots, slot_rank)
    for pair in case.off_modules:
        scales[pair] = 0.0
    for slot in case.biased:
        ones[:, slot, case.slot_ranks[slot] - 1] = 1.0
        a[:, slot * slot_rank + case.slot_ranks[slot] - 1] = 0.0
    gates, spans, first = torch.zeros(num_tokens, num_slots), [], 0
    for count, on in case.spans:
        for slot, weight in on:
            gates[first : first + count, slot] = weight
        spans.append(GatedTokens(first, count, [slot for slot, _ in on]))
        first += count
    # Beyond an adapter's own ranks there may be anything, and in slots that no token has on.
    real_a, real_b = a.clone(), b.clone()
    for slot, rank in enumerate(case.slot_ranks):
        unused = slice(slot * slot_rank + rank, (slot + 1) * slot_rank)
        real_a[:, unused] = real_b[unused] = 0.0
        a[:, unused] = b[unused] = torch.nan
        whole = slice(slot * slot_rank, (slot + 1) * slot_rank)
        if slot in case.poisoned:
            a[:, whole] = real_a[:, whole] = torch.nan
        if not gates[:, slot].any():
            b[whole] = torch.nan
    expected, begin = y.float(), 0
    for linear, size in enumerate(case.outs):
        here = slice(begin, begin + size)
        h = x.float() @ real_a[linear].float().T
        chosen = select(h, gates, scales[linear], ones[linear])
        expected[:, here] += chosen @ real_b[:, here].float()
        begin += size

    columns = ActiveColumns.allocate(num_tokens, num_slots, slot_rank, torch.device("cpu"))
    begins, listed = list_columns(spans, num_tokens, slot_rank, case.slot_ranks)
    columns.begins_U1[: len(begins)] = torch.from_numpy(begins)
    columns.columns_P[: len(listed)] = torch.from_numpy(listed)
    before = y.clone()
    ends = torch.tensor(case.outs).cumsum(0).tolist()
    blocks = torch.cat([block.flatten() for block in torch.split(b, list(case.outs), dim=1)])
    add_slots(x, y, a, blocks, scales, ones, gates, *columns.of_step(num_tokens), ends)

    of_poison = gates[:, sorted(case.poisoned)].any(-1)
    is_off = ~gates.any(-1)
    assert torch.equal(y[is_off], before[is_off]), "a token without adapters is the base's"
    found, wanted = y[~of_poison].float(), expected[~of_poison]
    assert found.isfinite().all(), "a poisoned slot reaches only tokens that have it on"
    error = (found - wanted).abs().amax() if found.numel() else torch.tensor(0.0)
    assert error <= TOLERANCES[dtype] * max(1.0, float(wanted.abs().amax()) if found.numel() else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases())
@settings(max_examples=8, deadline=None)
def test_tokens_get_what_the_dense_form_adds(case: Case, dtype: torch.dtype) -> None:
    run(case, dtype)
