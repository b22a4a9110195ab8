"""The capture audit's rules, on steps of a few operators: what each part of a trace tells apart."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import torch

from worker_service.model import capture_audit
from worker_service.model.capture_audit import audit

PLAN, OTHER = torch.arange(8.0), torch.arange(8.0)
ON_DEVICE = torch.zeros(8, device="meta")
PERSISTENT = (PLAN, OTHER, ON_DEVICE)


def of(compute: Callable[[], object], plan: Callable[[], object] = lambda: None) -> list[str]:
    return audit(plan, compute, PERSISTENT)


def test_a_step_that_reads_another_persistent_tensor_each_time_is_found() -> None:
    turns = count()
    (finding,) = of(lambda: PERSISTENT[next(turns) % 2] + 1)
    assert "is given" in finding


@pytest.mark.parametrize(
    "other", [PLAN[:3], PLAN[::2], PLAN.view(torch.int32)[:4]], ids=["shape", "stride", "element type"]
)
def test_a_step_that_reads_another_view_of_a_place_each_time_is_found(other: torch.Tensor) -> None:
    """Views that were made before the step, so that no call of it tells."""
    views, turns = (PLAN[:4], other), count()
    (finding,) = of(lambda: views[next(turns) % 2] * 2)
    assert "is given" in finding


def test_a_step_that_reads_another_tensor_of_its_own_each_time_is_found() -> None:
    turns = count()

    def compute() -> torch.Tensor:
        made = (PLAN + 1, PLAN + 1)
        return made[next(turns) % 2] * 2

    (finding,) = of(compute)
    assert "is given" in finding


def test_a_step_that_makes_other_calls_each_time_is_found() -> None:
    turns = count()
    assert "in one run and" in of(lambda: PLAN + 1 if next(turns) % 2 else PLAN * 1)[0]


def test_a_step_that_makes_more_calls_each_time_is_found() -> None:
    turns = count()
    (finding,) = of(lambda: [PLAN + 1 for _ in range(next(turns))] and None)
    assert "one run makes" in finding


def test_a_copy_between_devices_is_found_and_a_number_of_the_hosts_is_none() -> None:
    assert any("copies between cpu and meta" in finding for finding in of(lambda: ON_DEVICE.copy_(PLAN)))
    assert of(lambda: ON_DEVICE * torch.tensor(2.0)) == []


def test_a_number_that_is_made_on_the_device_is_a_copy() -> None:
    assert any("of the host's values" in finding for finding in of(lambda: PLAN * torch.tensor(2.0, device="cpu")))


def test_another_number_of_the_hosts_each_time_is_found() -> None:
    turns = count()
    (finding,) = of(lambda: PLAN * torch.tensor(float(next(turns))))
    assert "is given" in finding


def test_what_is_done_once_is_no_finding() -> None:
    """Python's caches are filled by a first run, of which nothing is noted."""
    turns = count()

    def compute() -> None:
        if next(turns) == 0:
            OTHER.add_(0)
        PLAN.add_(0)

    assert of(compute) == []


def test_a_cycle_of_objects_does_not_count_as_memory_that_lives_on() -> None:
    def compute() -> None:
        cycle: list[Any] = [PLAN + 1]
        cycle.append(cycle)

    assert of(compute) == []


@pytest.mark.parametrize(
    ("read", "finding"),
    [
        (lambda x: x.tolist(), "tolist hands values to the host"),
        (lambda x: x.nonzero(), "nonzero.default hands values"),
    ],
    ids=["a function", "an operator"],
)
def test_operators_of_ours_are_looked_into(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[torch.Tensor], object], finding: str
) -> None:
    library = torch.library.Library("hotslot_audited", "DEF")  # type: ignore[no-untyped-call]
    library.define("reads(Tensor x) -> Tensor")  # type: ignore[no-untyped-call]

    def reads(x: torch.Tensor) -> torch.Tensor:
        read(x)
        return x + 1

    library.impl("reads", reads, "CPU")  # type: ignore[no-untyped-call]
    compute = lambda: torch.ops.hotslot_audited.reads(PLAN)  # noqa: E731
    assert of(compute) == []
    monkeypatch.setattr(capture_audit, "LOOKED_INTO", {"hotslot_audited::reads": reads})
    assert any(finding in each for each in of(compute))
    library._destroy()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", ["item", "cpu", "numpy", "__int__", "__float__", "__bool__", "__index__"])
def test_a_value_that_goes_to_the_host_is_found(name: str) -> None:
    one = torch.ones((), dtype=torch.int64)
    found = audit(lambda: None, lambda: getattr(torch.Tensor, name)(one), [one])
    assert any("hands values to the host" in finding for finding in found)


def test_a_view_of_what_a_step_made_is_no_memory_of_elsewhere_and_its_place_counts() -> None:
    assert of(lambda: (PLAN + 1)[2:4] * 2) == []
    turns = count()
    assert "is given" in of(lambda: (PLAN + 1)[next(turns) :][:1] * 2)[0]
