"""Lists of the columns that are on: what the kernels on CUDA read is what tokens have on, and nothing else."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from worker_service.model.cuda.active_columns import (
    NO_COLUMN,
    PIECE,
    ActiveColumns,
    GatedTokens,
    list_columns,
    tile_tokens,
)

SLOTS = st.lists(st.integers(0, 5), max_size=3, unique=True)


@given(
    st.lists(st.tuples(st.integers(0, 70), SLOTS), max_size=9),
    st.integers(0, 3),
    st.sampled_from([1, 8, 16, 24]).flatmap(
        lambda rank: st.tuples(st.just(rank), st.lists(st.integers(0, rank), min_size=6, max_size=6))
    ),
)
def test_a_tile_lists_the_ranks_that_its_tokens_have_on(
    rows: list[tuple[int, list[int]]], padding: int, ranks: tuple[int, list[int]]
) -> None:
    slot_rank, slot_ranks = ranks
    spans: list[GatedTokens] = []
    slots_of_tokens: list[set[int]] = []
    for count, slots in rows:
        spans.append(GatedTokens(len(slots_of_tokens), count, slots))
        slots_of_tokens += [set(slots)] * count
    num_tokens = max(len(slots_of_tokens) + padding, 1)
    columns = ActiveColumns.allocate(num_tokens, 6, slot_rank, torch.device("cpu"))
    columns.fill(spans, num_tokens, slot_rank, slot_ranks)
    begins, listed = (tensor.tolist() for tensor in columns.of_step(num_tokens))
    assert begins[-1] <= len(listed), "lists of all columns in every tile fit"
    tile = tile_tokens(num_tokens)
    for number, (begin, end) in enumerate(itertools.pairwise(begins)):
        tokens = slots_of_tokens[number * tile : (number + 1) * tile]
        on = sorted(set().union(*tokens))
        expected = [slot * slot_rank + rank for slot in on for rank in range(slot_ranks[slot])]
        assert [column for column in listed[begin:end] if column != NO_COLUMN] == expected
        firsts = [listed.index(slot * slot_rank, begin, end) for slot in on if slot_ranks[slot]]
        assert all((first - begins[0]) % PIECE == 0 for first in firsts)


def test_a_step_without_adapters_lists_nothing() -> None:
    begins, listed = list_columns([GatedTokens(0, 3, ())], 4, 16, [16])
    assert begins.tolist() == [0, 0]
    assert not len(listed)
