"""What a forward computes from positions alone comes from tables, with the same bits; everything else is computed."""

from collections.abc import Callable

import pytest
import torch

from worker_service.model.forward_calls import noted
from worker_service.model.position_tables import MAX_POSITIONS, PositionTables

TOKENS, POSITIONS, SIZE = 3, 11, 8
WEIGHT_VI = torch.randn(POSITIONS, SIZE, generator=torch.Generator().manual_seed(1))
FREQUENCIES_I = torch.linspace(0.1, 1.0, SIZE)
SLOT_VI = torch.zeros(POSITIONS, SIZE)
POSITIONS_T = torch.zeros(TOKENS, dtype=torch.int64)
IDS_T = torch.zeros(TOKENS, dtype=torch.int64)
LASTING = (WEIGHT_VI, FREQUENCIES_I, SLOT_VI, POSITIONS_T, IDS_T)
FIXED = (WEIGHT_VI, FREQUENCIES_I)


def embedded() -> torch.Tensor:
    return torch.nn.functional.embedding(IDS_T[None], WEIGHT_VI)


def rotary() -> torch.Tensor:
    angles = POSITIONS_T[None, :, None].float() * FREQUENCIES_I
    return embedded() * angles.cos() + embedded() * (angles.sin() * 0.5).to(torch.bfloat16)


def learned() -> torch.Tensor:
    return embedded() + torch.nn.functional.embedding(POSITIONS_T[None], WEIGHT_VI)


def of_slots() -> torch.Tensor:
    return embedded() + torch.nn.functional.embedding(POSITIONS_T[None], SLOT_VI)


def of_all_positions() -> torch.Tensor:
    return embedded() * POSITIONS_T.float().sum()


def draw() -> None:
    POSITIONS_T.random_(POSITIONS)
    IDS_T.random_(POSITIONS)
    SLOT_VI.normal_()


def tables(num_positions: int = POSITIONS) -> PositionTables:
    return PositionTables(POSITIONS_T, FIXED, num_positions)


@pytest.mark.parametrize(("forward", "num_calls"), [(rotary, 7), (learned, 3)])
def test_tables_answer_as_the_forward(forward: Callable[[], torch.Tensor], num_calls: int) -> None:
    calls = noted(forward, LASTING)
    with_tables = tables().put_into(calls, TOKENS)
    assert len(with_tables) == num_calls
    for _ in range(5):
        draw()
        assert torch.equal(with_tables.run(), forward())


@pytest.mark.parametrize("forward", [of_slots, of_all_positions])
def test_what_is_not_a_row_for_each_position_is_computed(forward: Callable[[], torch.Tensor]) -> None:
    calls = noted(forward, LASTING)
    assert tables().put_into(calls, TOKENS) is calls


def test_very_long_contexts_are_computed() -> None:
    calls = noted(rotary, LASTING)
    assert tables(MAX_POSITIONS + 1).put_into(calls, TOKENS) is calls


def test_smaller_steps_read_the_tables_of_the_largest() -> None:
    found = tables()
    found.put_into(noted(rotary, LASTING), TOKENS)

    def smaller() -> torch.Tensor:
        angles = POSITIONS_T[None, :1, None].float() * FREQUENCIES_I
        embedded_1TI = torch.nn.functional.embedding(IDS_T[None, :1], WEIGHT_VI)
        return embedded_1TI * angles.cos() + embedded_1TI * (angles.sin() * 0.5).to(torch.bfloat16)

    calls = noted(smaller, LASTING)
    draw()
    with_tables = found.put_into(calls, 1)
    assert len(with_tables) < len(calls)
    assert torch.equal(with_tables.run(), smaller())


def test_tables_that_a_step_computes_otherwise_are_not_put_in() -> None:
    found = tables()
    found.put_into(noted(rotary, LASTING), TOKENS)

    def faster() -> torch.Tensor:
        angles = POSITIONS_T[None, :1, None].float() * (FREQUENCIES_I * 2)
        embedded_1TI = torch.nn.functional.embedding(IDS_T[None, :1], WEIGHT_VI)
        return embedded_1TI * angles.cos() + embedded_1TI * (angles.sin() * 0.5).to(torch.bfloat16)

    calls = noted(faster, LASTING)
    assert found.put_into(calls, 1) is calls
