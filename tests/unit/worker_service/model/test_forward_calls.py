"""Calls of a forward answer as the forward on other inputs, or the forward is refused."""

from collections.abc import Callable

import pytest
import torch

from worker_service.model.cpu.recorder import NotRecordableError
from worker_service.model.forward_calls import ForwardCalls, noted

SIZE = 8
WEIGHT_OI = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))
INPUT_TI = torch.zeros(3, SIZE)
POSITIONS_T = torch.zeros(3, dtype=torch.int64)
LASTING = (WEIGHT_OI, INPUT_TI, POSITIONS_T)
LATER_TI = torch.ones(3, SIZE)
"""Memory that nobody says stays."""
Forward = Callable[[], torch.Tensor]


def several_results() -> torch.Tensor:
    first, second = (INPUT_TI @ WEIGHT_OI).chunk(2, dim=1)
    return torch.cat([second, first * 2.0], dim=1)


def in_place() -> torch.Tensor:
    found = INPUT_TI.clone()
    found.mul_(3.0)
    found[1:].add_(1.0)
    return found


def number_of_the_host() -> torch.Tensor:
    return INPUT_TI * torch.tensor(SIZE**0.5, dtype=torch.float32)


def views_of_inputs() -> torch.Tensor:
    return INPUT_TI[None, 1:].transpose(1, 2).squeeze(0) + WEIGHT_OI[:, :2]


def rows_by_position() -> torch.Tensor:
    return torch.nn.functional.embedding(POSITIONS_T, WEIGHT_OI)[POSITIONS_T % 3].cos()


def of_larger(result: Callable[[torch.Tensor], torch.Tensor]) -> Forward:
    return lambda: result(INPUT_TI.relu())


def draw() -> None:
    INPUT_TI.normal_()
    POSITIONS_T.random_(SIZE)


@pytest.mark.parametrize("forward", [several_results, in_place, number_of_the_host, views_of_inputs, rows_by_position])
def test_calls_answer_as_the_forward_whatever_the_inputs(forward: Forward) -> None:
    draw()
    calls = noted(forward, LASTING)
    answers = []
    for _ in range(3):
        draw()
        answers.append(calls.run())
        assert torch.equal(answers[-1], forward())
    assert not torch.equal(answers[0], answers[1]), "what is made is made anew"
    assert calls.run().data_ptr() != answers[-1].data_ptr()


def test_views_of_what_stays_are_no_calls() -> None:
    assert len(noted(views_of_inputs, LASTING)) == 1


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (of_larger(lambda x: x * float(x.sum())), "_local_scalar_dense.* hands values"),
        (of_larger(lambda x: x[x > 0]), "index.* hands values"),
        (of_larger(lambda x: x + torch.rand(3, SIZE)), "draws numbers"),
        (lambda: INPUT_TI + LATER_TI, "no part of the model or of the step"),
        (lambda: torch.tensor(1.0).mul_(2.0) * INPUT_TI, "writes to a number of the host"),
        (lambda: INPUT_TI[1:], "what no call made"),
    ],
)
def test_what_cannot_be_called_again_is_refused(forward: Forward, why: str) -> None:
    with pytest.raises(NotRecordableError, match=why):
        noted(forward, LASTING)


def test_no_calls_are_kept_of_a_forward_that_fails() -> None:
    def fails() -> torch.Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        noted(fails, LASTING)
    assert isinstance(noted(in_place, LASTING), ForwardCalls)
