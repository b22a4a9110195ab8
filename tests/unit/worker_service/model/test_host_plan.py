"""Every tensor of a step's plan holds what plain lists made from its meaning say, over steps that reuse memory."""

from random import Random

import pytest
import torch

from hotslot.contract.generation import Sampling
from worker_service.engine.limits import EngineLimits
from worker_service.engine.messages import Segment
from worker_service.model.host_plan import HostPlan
from worker_service.model.step_state import StepState

LIMITS = EngineLimits(
    num_slots=3, slot_rank=2, max_running=4, max_waiting=4, num_blocks=12, block_tokens=4, max_sequence_tokens=24,
    max_step_tokens=16,
)  # fmt: skip


def plan(*, is_alone: bool) -> tuple[HostPlan, StepState]:
    step = StepState.allocate(
        max_tokens=16, num_slots=3, max_segments=5, max_blocks=6, device=torch.device("cpu"), with_kernels=True
    )
    return HostPlan(step, LIMITS, 16, 4, is_alone=is_alone), step


def drawn(random: Random) -> list[Segment]:
    """Up to four segments in blocks of their own; rows come back with tables that grew, or have others."""
    free = list(range(LIMITS.num_blocks))
    if random.random() < 0.5:
        random.shuffle(free)
    segments = []
    for _ in range(random.randint(1, 4)):
        count = random.choice([1, 1, random.randint(1, 4)])
        start = random.randint(0, 8)
        table = tuple(free.pop(0) for _ in range(LIMITS.blocks_for(start + count)))
        gates = tuple((slot, random.choice([1.0, -0.5])) for slot in range(3) if random.random() < 0.3)
        tokens = tuple(random.randrange(50) for _ in range(count))
        segments.append(Segment(tokens, start, table, gates, random.choice([Sampling(), None])))
    return segments


@pytest.mark.parametrize("is_alone", [False, True])
def test_every_tensor_is_what_its_meaning_says(is_alone: bool) -> None:
    random = Random(4)
    host, step = plan(is_alone=is_alone)
    kinds = set()
    for _ in range(300):
        segments = drawn(random)
        tokens = [token for each in segments for token in each.token_ids]
        places = [(each, each.start + at) for each in segments for at in range(len(each.token_ids))]
        padding = random.randint(0, 16 - len(tokens))
        last = host.write(segments, len(tokens) + padding, [2, 2, 2])
        assert host.input_ids_T[: len(tokens) + padding].tolist() == tokens + [0] * padding
        assert host.position_ids_T[: len(tokens) + padding].tolist() == [at for _, at in places] + [0] * padding
        spare = LIMITS.num_blocks * LIMITS.block_tokens
        in_cache = [each.block_table[at // 4] * 4 + at % 4 for each, at in places]
        assert step.cache_positions_T[: len(tokens) + padding].tolist() == in_cache + [spare] * padding
        first, rows, ends = 0, [], []
        for each in segments:
            table, count = each.block_table, len(each.token_ids)
            in_one = table == tuple(range(table[0], table[0] + len(table)))
            rows.append([first, count, each.start + count, table[0] * 4 if in_one else -1])
            first += count
            ends += [first - 1] if each.sampling is not None else []
            kinds.add(in_one)
        assert step.segments_R4[: len(rows) + 1].tolist() == [*rows, [0, 0, 0, 0]]
        for row, each in enumerate(segments):
            assert step.block_tables_RB[row, : len(each.block_table)].tolist() == list(each.block_table)
        assert last == ends
        assert step.with_adapters == any(each.gates for each in segments)
        if step.with_adapters:
            gates = [[dict(each.gates).get(slot, 0.0) for slot in range(3)] for each, _ in places]
            assert step.gates_TS[: len(tokens) + padding].tolist() == gates + [[0.0] * 3] * padding
        num_rows = random.randint(max(len(last), 1), 4)
        host.point_at(last, num_rows, [2, 2, 2], has_head_slots=True)
        assert host.last_tokens_R[:num_rows].tolist() == last + [0] * (num_rows - len(last))
        if step.with_adapters:
            expected_RS = step.gates_TS[host.last_tokens_R[:num_rows]]
            assert torch.equal(step.row_gates_RS[:num_rows], expected_RS)
    assert kinds == {False, True}


def test_tables_that_others_overwrite_are_written_again() -> None:
    host, step = plan(is_alone=False)
    segments = [Segment((3,), 5, (2, 7), (), Sampling())]
    host.write(segments, 1, [])
    step.block_tables_RB.zero_()
    host.write(segments, 1, [])
    assert step.block_tables_RB[0, :2].tolist() == [2, 7]


def test_a_step_of_nothing_has_only_padding() -> None:
    host, step = plan(is_alone=True)
    assert host.write([], 2, []) == []
    assert step.cache_positions_T[:2].tolist() == [LIMITS.num_blocks * 4] * 2
    assert step.segments_R4[0].tolist() == [0, 0, 0, 0]
