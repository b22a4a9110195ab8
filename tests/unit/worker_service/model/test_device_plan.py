"""The plan of a step for a device, against plain lists that are made from the meaning of each field.

Steps follow each other over the same two halves of memory, so that whatever an earlier step left there shows.
"""

# mypy: disable-error-code="no-untyped-call"
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hotslot.contract.generation import Sampling
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment
from worker_service.model.buckets import bucket_for
from worker_service.model.cuda.active_columns import NO_COLUMN, tile_tokens
from worker_service.model.device_plan import NEUTRAL_FACTORS, NOT_FED, DevicePlan
from worker_service.model.sampling import Sampler
from worker_service.model.staging import ALIGNMENT_BYTES
from worker_service.model.step_graphs import GraphKey
from worker_service.model.step_state import StepState

TOKEN_BUCKETS = (1, 4, 16, 48, 96)
MAX_RUNNING = 20
MAX_SEQUENCE_TOKENS = 120
NUM_SLOTS = 5
ROW_BUCKETS = tuple(sorted({bucket_for(TOKEN_BUCKETS, n) for n in range(1, MAX_RUNNING + 1)}))
NUMBERS = st.floats(0.0, 1.0, width=32)


@dataclass(frozen=True)
class PlannedSteps:
    """Steps that follow each other on one device."""

    limits: EngineLimits
    with_lists: bool
    has_head_slots: bool
    slot_ranks: tuple[int, ...]
    steps: tuple[tuple[Segment, ...], ...]


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    seed = draw(st.none() | st.integers(-(2**63), 2**64 - 1))
    temperature = draw(st.sampled_from([0.0, 0.3, 1.0, 100.0]))
    return Sampling(temperature, draw(st.integers(0, 2**31)), draw(NUMBERS), draw(NUMBERS), seed)


@st.composite
def segments_of(draw: st.DrawFn, limits: EngineLimits, before: Sequence[Segment], room: int, bulk: Random) -> Segment:
    """A decoding row, a whole prompt or a part of one, fed by the step before or not."""
    feeding = [place for place, segment in enumerate(before) if segment.sampling is not None]
    fed_by = draw(st.none() | st.sampled_from(feeding)) if feeding else None
    count = 1 if fed_by is not None else draw(st.sampled_from([1, 1, 2, 5, 33, 96]).map(lambda n: min(n, room)))
    start = draw(st.integers(0, limits.max_sequence_tokens - count))
    num_blocks = draw(st.integers(limits.blocks_for(start + count), limits.blocks_for(limits.max_sequence_tokens)))
    mixed = st.sampled_from([0.5, 1.0, -2.0])
    return Segment(
        token_ids=tuple(bulk.randrange(2**17) for _ in range(count)),
        start=start,
        block_table=tuple(bulk.sample(range(limits.num_blocks), num_blocks)),
        gates=tuple(draw(st.dictionaries(st.integers(0, limits.num_slots - 1), mixed, max_size=3)).items()),
        sampling=draw(st.none() | samplings()),
        fed_by=fed_by,
    )


@st.composite
def planned_steps(draw: st.DrawFn) -> PlannedSteps:
    block_tokens, slot_rank = draw(st.sampled_from([1, 16, 64])), draw(st.sampled_from([1, 8, 24]))
    blocks = -(-MAX_SEQUENCE_TOKENS // block_tokens)
    limits = EngineLimits(
        num_slots=NUM_SLOTS,
        slot_rank=slot_rank,
        max_running=MAX_RUNNING,
        max_waiting=1,
        num_blocks=blocks + draw(st.integers(0, 4)),
        block_tokens=block_tokens,
        max_step_tokens=TOKEN_BUCKETS[-1],
        max_sequence_tokens=MAX_SEQUENCE_TOKENS,
    )
    steps: list[tuple[Segment, ...]] = []
    bulk = Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 4))):
        segments: list[Segment] = []
        room = limits.max_step_tokens
        for _ in range(draw(st.sampled_from([0, 1, 2, 5, MAX_RUNNING]))):
            if room:
                segments.append(draw(segments_of(limits, steps[-1] if steps else (), room, bulk)))
                room -= len(segments[-1].token_ids)
        steps.append(tuple(segments))
    return PlannedSteps(
        limits,
        with_lists=draw(st.booleans()),
        has_head_slots=draw(st.booleans()),
        slot_ranks=tuple(draw(st.lists(st.integers(0, slot_rank), min_size=NUM_SLOTS, max_size=NUM_SLOTS))),
        steps=tuple(steps),
    )


def allocated(planned: PlannedSteps) -> DevicePlan:
    limits = planned.limits
    step = StepState.allocate(
        max_tokens=limits.max_step_tokens,
        num_slots=limits.num_slots,
        max_segments=ROW_BUCKETS[-1] + 1,
        max_blocks=limits.blocks_for(limits.max_sequence_tokens),
        device=torch.device("cpu"),
        with_varlen=True,
        slot_rank_of_lists=limits.slot_rank if planned.with_lists else 0,
    )
    return DevicePlan.allocate(step, limits)


def key_for(segments: Sequence[Segment]) -> GraphKey:
    num_tokens = bucket_for(TOKEN_BUCKETS, sum(len(segment.token_ids) for segment in segments))
    num_rows = bucket_for(ROW_BUCKETS, min(num_tokens, MAX_RUNNING))
    return GraphKey(num_tokens, num_rows, False, any(s.gates for s in segments), Sampler.TRUNCATED)


def rows_of(segments: Sequence[Segment]) -> list[int | None]:
    """Rows of logits: those of the segments that want a token, in their order."""
    rows: list[int | None] = []
    for segment in segments:
        wanted_before = sum(row is not None for row in rows)
        rows.append(wanted_before if segment.sampling is not None else None)
    return rows


def meaning(
    segments: Sequence[Segment], before: Sequence[Segment], key: GraphKey, limits: EngineLimits
) -> dict[str, list[Any]]:
    """Every field as lists, one token and one row after the other."""
    spare = limits.num_blocks * limits.block_tokens
    found: dict[str, list[Any]] = {name: [] for name in ("input_ids", "fed", "positions", "cache_positions", "gates")}
    for segment in segments:
        for index, token_id in enumerate(segment.token_ids):
            position = segment.start + index
            fed = NOT_FED if segment.fed_by is None else rows_of(before)[segment.fed_by]
            found["fed"].append(fed)
            # A token that the step before chooses has no number yet.
            found["input_ids"].append(token_id if fed == NOT_FED else None)
            found["positions"].append(position)
            block = segment.block_table[position // limits.block_tokens]
            found["cache_positions"].append(block * limits.block_tokens + position % limits.block_tokens)
            found["gates"].append([dict(segment.gates).get(slot, 0.0) for slot in range(limits.num_slots)])
    total = len(found["positions"])
    for _ in range(key.num_tokens - total):
        padding = {"input_ids": 0, "fed": NOT_FED, "positions": 0, "cache_positions": spare}
        for name, value in padding.items():
            found[name].append(value)
        found["gates"].append([0.0] * limits.num_slots)

    found |= {"last_tokens": [], "counts": [], "factors": [], "is_greedy": []}
    end = 0
    for segment in segments:
        end += len(segment.token_ids)
        options = segment.sampling
        if options is None:
            continue
        greedy = options.temperature == 0.0
        found["last_tokens"].append(end - 1)
        found["is_greedy"].append(greedy)
        position = segment.start + len(segment.token_ids)
        found["counts"].append([0, 0, 0] if greedy else [(options.seed or 0) % 2**64, position, options.top_k])
        drawn = [float(np.float32(factor)) for factor in (options.temperature, options.top_p, options.min_p)]
        found["factors"].append(list(NEUTRAL_FACTORS) if greedy else drawn)
    for _ in range(key.num_rows - len(found["last_tokens"])):
        found["last_tokens"].append(0)
        found["is_greedy"].append(True)
        found["counts"].append([0, 0, 0])
        found["factors"].append(list(NEUTRAL_FACTORS))

    # Attention's rows: each segment, then rows without tokens, and the last one, which holds the padding.
    num_rows = ROW_BUCKETS[-1] + 1
    ends = list(itertools.accumulate(len(segment.token_ids) for segment in segments))
    found["cu_tokens"] = [0, *ends, *[total] * (num_rows - 1 - len(segments)), key.num_tokens]
    found["num_keys"] = [s.start + len(s.token_ids) for s in segments] + [0] * (num_rows - len(segments))
    found["cu_keys"] = [0, *itertools.accumulate(found["num_keys"])]
    return found


def read(areas: Any, name: str, like: list[Any]) -> list[Any]:
    tensor = areas[name][: len(like)]
    if name == "counts":
        return tensor.numpy().view(np.uint64).tolist()  # type: ignore[no-any-return]
    return tensor.tolist()  # type: ignore[no-any-return]


def listed_columns(areas: Any, kind: str, num_tokens: int) -> list[list[int]]:
    """Columns that each tile of tokens reads."""
    num_tiles = -(-num_tokens // tile_tokens(num_tokens))
    begins = areas[f"{kind}begins"][: num_tiles + 1].tolist()
    columns = areas[f"{kind}columns"].tolist()
    return [
        [column for column in columns[begin:end] if column != NO_COLUMN] for begin, end in itertools.pairwise(begins)
    ]


def columns_that_are_on(gates: list[list[float]], planned: PlannedSteps) -> list[list[int]]:
    tile, slot_rank = tile_tokens(len(gates)), planned.limits.slot_rank
    found = []
    for first in range(0, len(gates), tile):
        on = [any(token[slot] for token in gates[first : first + tile]) for slot in range(NUM_SLOTS)]
        ranks = [range(planned.slot_ranks[slot]) for slot in range(NUM_SLOTS)]
        found.append([slot * slot_rank + rank for slot in range(NUM_SLOTS) if on[slot] for rank in ranks[slot]])
    return found


class _Copies(TorchDispatchMode):
    """Counts what would be copies to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "copy" in str(func)
        return func(*args, **(kwargs or {}))


@given(planned_steps())
@settings(max_examples=30, deadline=None)
def test_every_field_of_a_plan_is_what_it_means(planned: PlannedSteps) -> None:
    plan = allocated(planned)
    areas = plan.staging.on_device
    before: tuple[Segment, ...] = ()
    for segments in planned.steps:
        key = key_for(segments)
        with _Copies() as copies:
            rows = plan.write(segments, key, rows_of(before), planned.slot_ranks, has_head_slots=planned.has_head_slots)
        assert copies.count == 1, "a step takes one copy"
        assert rows == rows_of(segments)
        expected = meaning(segments, before, key, planned.limits)
        gates = expected.pop("gates")
        for name, values in expected.items():
            found = read(areas, name, values)
            if name == "input_ids":
                found = [None if value is None else token for token, value in zip(found, values, strict=True)]
            assert found == values, name
        for row, segment in enumerate(segments):
            assert areas["tables"][row, : len(segment.block_table)].tolist() == list(segment.block_table)
        if key.with_adapters:
            assert areas["gates"][: key.num_tokens].tolist() == gates
            if planned.with_lists:
                assert listed_columns(areas, "", key.num_tokens) == columns_that_are_on(gates, planned)
            if planned.with_lists and planned.has_head_slots:
                # Padding reads the first token's logits, and nothing of any adapter.
                wanted = [gates[token] for token in expected["last_tokens"][: sum(row is not None for row in rows)]]
                wanted += [[0.0] * NUM_SLOTS] * (key.num_rows - len(wanted))
                assert listed_columns(areas, "row_", key.num_rows) == columns_that_are_on(wanted, planned)
        before = segments


@given(planned_steps())
@settings(max_examples=15, deadline=None)
def test_the_half_that_the_device_may_still_copy_is_not_written_to(planned: PlannedSteps) -> None:
    plan, last = allocated(planned), None
    for segments in planned.steps:
        plan.write(segments, key_for(segments), [0] * MAX_RUNNING, planned.slot_ranks, has_head_slots=False)
        if last is not None:
            half, kept = last
            assert torch.equal(half, kept)
        half = plan.staging._halves[plan.staging._turn]
        last = (half, half.clone())


@pytest.mark.parametrize("with_lists", [False, True])
def test_the_model_reads_the_plans_areas_which_never_move(with_lists: bool) -> None:
    limits = EngineLimits(NUM_SLOTS, 8, MAX_RUNNING, 1, 8, 16, TOKEN_BUCKETS[-1], MAX_SEQUENCE_TOKENS)
    planned = PlannedSteps(limits, with_lists, True, (8,) * NUM_SLOTS, ())
    plan = allocated(planned)
    step, areas = plan.step, plan.staging.on_device
    assert step.varlen is not None
    read_by_model = {
        "gates": step.gates_TS,
        "cache_positions": step.cache_positions_T,
        "tables": step.block_tables_RB,
        "cu_tokens": step.varlen.cu_tokens_R1,
        "cu_keys": step.varlen.cu_keys_R1,
        "num_keys": step.varlen.num_keys_R,
    }
    for kind, lists in (("", step.columns), ("row_", step.row_columns)):
        assert (lists is not None) == with_lists
        if lists is not None:
            read_by_model |= {f"{kind}begins": lists.begins_U1, f"{kind}columns": lists.columns_P}
    for name, tensor in read_by_model.items():
        assert tensor.data_ptr() == areas[name].data_ptr(), name
    spans = sorted((a.data_ptr(), a.data_ptr() + a.nbytes) for a in areas.values() if a.numel())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans)), "no two share a byte"
    whole = min(begin for begin, _ in spans)
    assert all((begin - whole) % ALIGNMENT_BYTES == 0 for begin, _ in spans)
    addresses = {name: area.data_ptr() for name, area in areas.items()}
    plan.write(
        [Segment((1, 2), 0, (3,), ((1, 1.0),), Sampling())],
        GraphKey(4, 4, False, True, Sampler.GREEDY),
        (),
        planned.slot_ranks,
        has_head_slots=True,
    )
    assert {name: area.data_ptr() for name, area in plan.staging.on_device.items()} == addresses
