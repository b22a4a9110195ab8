"""The capture audit passes every kind of step, and finds what no graph can keep."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.model.tiny_worker import apart
from tests.support.device_on_cpu import FORMS, loaded_as_on_cuda
from tools.bench.recorded_capture import RecordedCapture
from worker_service.model.capture_audit import audit
from worker_service.model.device_steps import DeviceSteps
from worker_service.model.graph_checks import audited, capture_steps, replays_exactly
from worker_service.model.options import LoadedModel
from worker_service.model.sampling import Sampler
from worker_service.model.step_graphs import GraphKey

BUCKETS = {"portable": (8,), "kernels": (1, 8)}


@pytest.fixture(scope="module", params=FORMS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    folder = Path(tmp_path_factory.mktemp("model"))
    with apart(), loaded_as_on_cuda(request.param, folder, token_buckets=BUCKETS[request.param]) as found:
        yield found


@pytest.fixture
def steps(loaded: LoadedModel) -> DeviceSteps:
    assert loaded.runner.device_steps is not None
    return loaded.runner.device_steps


def test_every_kind_of_step_passes_is_captured_and_answers_alike_with_other_plans(steps: DeviceSteps) -> None:
    draws = random.Random(5)
    assert len(steps.kinds) >= 6
    assert {key: audited(steps, key, draws) for key in steps.kinds} == {key: [] for key in steps.kinds}
    capture = RecordedCapture()
    capture_steps(steps, capture)
    assert set(steps.graphs.keys) == set(steps.kinds)
    assert capture.num_captured == len(steps.kinds)


def of_mutated_step(loaded: LoadedModel, mutation: Callable[[DeviceSteps, torch.Tensor], object]) -> list[str]:
    """Findings when something else happens in every step, in the middle of the model."""
    steps = loaded.runner.device_steps
    assert steps is not None
    norm = steps.model.get_submodule("model.layers.1.input_layernorm")
    hook = norm.register_forward_hook(lambda module, args, output: mutation(steps, output))
    try:
        return audited(steps, _key(steps), random.Random(5))
    finally:
        hook.remove()


def _key(steps: DeviceSteps) -> GraphKey:
    return next(
        key for key in steps.kinds if key.num_tokens == 8 and key.with_adapters and key.sampler is Sampler.GREEDY
    )


def branch_on_data(steps: DeviceSteps, x: torch.Tensor) -> object:
    return x + 1 if steps.plan.staging.on_device["positions"].sum() % 2 else x * 2 - x


def host_tensor(steps: DeviceSteps, x: torch.Tensor) -> object:
    return x * torch.tensor([1.0] * x.shape[-1], dtype=x.dtype)


def host_number(steps: DeviceSteps, x: torch.Tensor) -> object:
    """As an architecture that scales by a constant does: no graph needs more than its value."""
    return x * torch.tensor(1.0, dtype=x.dtype)


def copied_tensor(steps: DeviceSteps, x: torch.Tensor) -> object:
    return x * torch.empty_like(x).copy_(torch.from_numpy(x.detach().float().numpy()))


def growing_list(steps: DeviceSteps, x: torch.Tensor) -> None:
    kept.append(x.clone())


def replaced_buffer(steps: DeviceSteps, x: torch.Tensor) -> None:
    module = steps.model.get_submodule("model.layers.1.input_layernorm")
    module.seen = x.clone()


def baked_number(steps: DeviceSteps, x: torch.Tensor) -> object:
    counts.append(len(counts))
    return x[:, : x.shape[1]] + counts[-1]


def foreign_tensor(steps: DeviceSteps, x: torch.Tensor) -> object:
    return x + FOREIGN.to(x.dtype)


kept: list[torch.Tensor] = []
counts: list[int] = []
FOREIGN = torch.zeros(1)
FOREIGN_TENSOR = "no part of the model or of the plan"
WAITS, MADE, LIVES = "hands values to the host", "of the host's values", "lives on after the step"


@pytest.mark.parametrize(
    ("mutation", "expected"),
    [
        pytest.param(branch_on_data, WAITS, id="a branch on a value"),
        pytest.param(lambda steps, x: x * x.amax().item(), WAITS, id="item"),
        pytest.param(lambda steps, x: x.tolist() and None, WAITS, id="tolist"),
        pytest.param(lambda steps, x: x.nonzero() is None or None, WAITS, id="nonzero"),
        pytest.param(lambda steps, x: x[x > 0].sum() + x, WAITS, id="a mask as an index"),
        pytest.param(lambda steps, x: x.cpu() + 0, WAITS, id="a copy to the host"),
        pytest.param(host_tensor, MADE, id="a tensor of a list"),
        pytest.param(copied_tensor, FOREIGN_TENSOR, id="a tensor of an array"),
        pytest.param(foreign_tensor, FOREIGN_TENSOR, id="a tensor from elsewhere"),
        pytest.param(growing_list, LIVES, id="a tensor that is kept"),
        pytest.param(replaced_buffer, LIVES, id="a buffer that is replaced"),
        pytest.param(baked_number, "is given", id="another number each time"),
    ],
)
def test_what_no_graph_can_keep_is_found(
    loaded: LoadedModel, mutation: Callable[[DeviceSteps, torch.Tensor], object], expected: str
) -> None:
    assert any(expected in finding for finding in of_mutated_step(loaded, mutation))


@pytest.mark.parametrize("mutation", [host_number, lambda steps, x: x * 1.0], ids=["a constant", "a number"])
def test_what_is_the_same_in_every_step_is_no_finding(
    loaded: LoadedModel, mutation: Callable[[DeviceSteps, torch.Tensor], object]
) -> None:
    assert of_mutated_step(loaded, mutation) == []


def test_a_graph_that_answers_otherwise_is_dropped_with_a_reason(steps: DeviceSteps) -> None:
    """The audit misses what is in neither of its runs; the comparison does not."""
    key = _key(steps)
    steps.graphs.capture([key], _Baking(steps), steps.compute)
    assert not all(replays_exactly(steps, key, random.Random(seed)) for seed in range(3))


class _Baking:
    """A capture that keeps the tokens of its own step instead of reading the plan."""

    def __init__(self, steps: DeviceSteps) -> None:
        self._steps = steps

    def capture(self, compute: Callable[[], None]) -> Callable[[], None]:
        areas = self._steps.plan.staging.on_device
        kept = areas["input_ids"].clone()

        def replay() -> None:
            areas["input_ids"].copy_(kept)
            compute()

        return replay


def test_memory_that_was_freed_and_taken_again_is_not_taken_for_the_steps_own() -> None:
    plan = torch.zeros(64)

    def compute() -> None:
        for _ in range(4):
            made = plan + 1
            del made
            plan.copy_(torch.zeros(64).detach() + _outside())

    assert any("no part of" in finding for finding in audit(lambda: None, compute, [plan]))


def _outside() -> torch.Tensor:
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.ones(64)
