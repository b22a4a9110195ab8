"""Steps as on CUDA, on the CPU: captured, one step ahead and fed by the step before, they answer as steps at once."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest
import torch

from hotslot.contract.generation import Sampling
from tests.model.driver import TWENTY, Driver
from tests.model.tiny_worker import apart, decoded
from tests.support.device_on_cpu import loaded_as_on_cuda
from tests.support.steps_at_once import StepsAtOnce
from tools.bench.recorded_capture import RecordedCapture
from worker_service.engine.core import EngineCore
from worker_service.engine.graph_counts import UncapturedKinds
from worker_service.engine.messages import NO_LOGPROBS, AdapterWeights, Computed, Segment, StopRules
from worker_service.model.graph_checks import capture_steps, step_of
from worker_service.model.options import LoadedModel
from worker_service.model.runner import TorchRunner
from worker_service.model.sampling import Sampler
from worker_service.model.step_graphs import NEEDS_HOST

SAMPLINGS = (Sampling(), Sampling(0.7, seed=3), Sampling(1.2, top_k=9, top_p=0.8, min_p=0.02, seed=2**63 + 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[LoadedModel]:
    with apart(), loaded_as_on_cuda("portable", folder, token_buckets=(1, 8)) as found:
        steps = found.runner.device_steps
        assert steps is not None
        capture_steps(steps, RecordedCapture())
        yield found


class AtOnce(StepsAtOnce):
    """The same model, of which each step is computed when it is launched, by the path of steps that need the host."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner
        self.recompiles, self.graphs, self.write_slots = 0, runner.graphs, runner.write_slots

    def run(self, segments: Sequence[Segment]) -> list[Computed]:
        return self._runner.run(segments)


def answers(driver: Driver, adapter: AdapterWeights) -> list[list[int]]:
    """Of prompts of many lengths, with and without adapters, that come while others are being answered."""
    random = Random(4)
    rows = []
    for number in range(14):
        prompt = [random.randrange(3, 60) for _ in range(random.choice([1, 2, 5, 11, 30]))]
        mix = ((adapter, random.choice([1.0, 0.5])),) if number % 3 == 0 else ()
        sampling = SAMPLINGS[number % len(SAMPLINGS)]
        rows.append(driver.submit(prompt, mix, max_tokens=3 + number, sampling=sampling, logprobs=NO_LOGPROBS))
        driver.turn()
    driver.finish()
    return [driver.token_ids(row) for row in rows]


def test_captured_steps_one_ahead_answer_as_steps_at_once(loaded: LoadedModel, folder: Path) -> None:
    adapter = decoded(loaded, folder / "adapter")
    before = loaded.runner.graphs
    at_once = answers(Driver(EngineCore(AtOnce(loaded.runner), loaded.limits, lambda: 0.0)), adapter)
    assert loaded.runner.graphs == before, "the path of comparison replays nothing"
    addresses = loaded.runner.addresses()
    found = answers(Driver(EngineCore(loaded.runner, loaded.limits, lambda: 0.0)), adapter)
    assert found == at_once
    assert len({tuple(answer) for answer in found}) > 10, "random enough to tell rows apart"
    after = loaded.runner.graphs
    assert after.num_replayed - before.num_replayed > 20
    assert after.uncaptured == before.uncaptured == ()
    assert loaded.runner.addresses() == addresses


def test_steps_that_need_the_host_run_uncaptured_with_a_reason(loaded: LoadedModel) -> None:
    driver = Driver(EngineCore(loaded.runner, loaded.limits, lambda: 0.0))
    penalised = driver.submit((3, 4, 5), sampling=Sampling(presence_penalty=1.5), max_tokens=4, logprobs=NO_LOGPROBS)
    with_logprobs = driver.submit((3, 4, 5), max_tokens=4, logprobs=TWENTY)
    driver.finish()
    assert len(driver.token_ids(penalised)) == 4
    assert all(len(token.alternatives) == 20 for token in driver.tokens[with_logprobs])
    (uncaptured,) = loaded.runner.graphs.uncaptured
    assert uncaptured == UncapturedKinds(NEEDS_HOST.reason, NEEDS_HOST.why, num_kinds=0, num_steps=4)


def test_a_fed_token_is_the_one_that_the_step_before_chose(loaded: LoadedModel) -> None:
    """Of the place that the segment names, not of its own."""
    runner = loaded.runner
    rows = [Segment((number, number + 1), 0, (number,), (), Sampling()) for number in range(3, 7)]
    first = [item.token.token_id for item in runner.run(rows) if item.token is not None]
    order = [2, 0, 3]

    def following(fed: bool) -> list[Segment]:
        return [
            Segment(
                (0 if fed else first[place],), 2, rows[place].block_table, (), Sampling(), fed_by=place if fed else None
            )
            for place in order
        ]

    expected = runner.run(following(fed=False))
    runner.launch(rows)
    runner.launch(following(fed=True))
    assert [item.token.token_id for item in runner.collect() if item.token is not None] == first
    assert runner.collect() == expected


def test_a_chunk_that_wants_no_token_has_no_row(loaded: LoadedModel) -> None:
    runner = loaded.runner
    chunk = Segment((5, 6, 7), 0, (0,), (), None)
    wanted = Segment((5, 6, 7), 0, (1,), (), Sampling())
    runner.launch([chunk, wanted])
    following = Segment((0,), 3, (1,), (), Sampling(), fed_by=1)
    runner.launch([following])
    first, second = runner.collect(), runner.collect()
    assert first[0] == Computed()
    assert first[1].token is not None
    assert second[0].token is not None


def test_logits_that_are_not_finite_are_told_one_step_late_and_touch_no_other_row(loaded: LoadedModel) -> None:
    runner, steps = loaded.runner, loaded.runner.device_steps
    assert steps is not None
    embedding = steps.model.get_input_embeddings().weight
    kept = embedding[9].clone()
    rows = [Segment((9,), 0, (0,), (), Sampling()), Segment((8,), 0, (1,), (), Sampling(0.9, seed=1))]
    expected = runner.run(rows[1:])
    with torch.no_grad():
        embedding[9] = torch.nan
    try:
        runner.launch(rows)
        runner.launch([Segment((0,), 1, (row,), (), Sampling(), fed_by=row) for row in range(2)])
        first, second = runner.collect(), runner.collect()
    finally:
        with torch.no_grad():
            embedding[9] = kept
            for cache in runner._caches:
                cache.k_NGD.zero_()
                cache.v_NGD.zero_()
    assert [item.is_finite for item in first] == [False, True]
    assert first[1:] == expected
    assert second[1].is_finite


def test_a_stop_token_is_known_one_step_late_and_what_follows_is_dropped(loaded: LoadedModel) -> None:
    driver = Driver(EngineCore(loaded.runner, loaded.limits, lambda: 0.0))
    whole = driver.submit((3, 9, 27), max_tokens=12, logprobs=NO_LOGPROBS)
    driver.finish()
    answer = driver.token_ids(whole)
    stop = StopRules(12, stop_token_ids=frozenset({answer[5]}))
    cut = driver.submit((3, 9, 27), logprobs=NO_LOGPROBS, stop=stop)
    driver.finish()
    assert driver.token_ids(cut) == answer[: answer.index(answer[5]) + 1]


def test_a_step_of_nothing_is_computed(loaded: LoadedModel) -> None:
    loaded.runner.launch([])
    assert loaded.runner.collect() == []


def test_every_sampler_has_steps_of_its_own(loaded: LoadedModel) -> None:
    steps = loaded.runner.device_steps
    assert steps is not None
    rows = [Segment((5,), 0, (row,), (), sampling) for row, sampling in enumerate(SAMPLINGS)]
    assert [steps.key_of([row]).sampler for row in rows] == list(Sampler)
    assert steps.key_of(rows).sampler is Sampler.TRUNCATED
    assert steps.key_of([Segment((5,), 0, (0,), (), None)]).sampler is Sampler.GREEDY


@pytest.mark.slow
def test_compiled_steps_need_nothing_that_the_warm_up_did_not_compile(tmp_path: Path) -> None:
    """Layers and head are guarded; steps from the plan's buffer meet the graphs of those before them."""
    draws = Random(1)
    with apart(), loaded_as_on_cuda("portable", tmp_path, token_buckets=(1, 8), compile=True) as compiled:
        runner, steps = compiled.runner, compiled.runner.device_steps
        assert steps is not None
        for key in steps.kinds:
            segments = step_of(steps, key, draws)
            runner.launch(segments)
            found = runner.collect()
            assert [item.token for item in found] == [item.token for item in runner.run(segments)], key
        assert runner.recompiles == 0
