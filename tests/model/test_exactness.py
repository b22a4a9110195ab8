"""Every option that admission supports answers as freshly loaded PEFT does in fp32, whatever happened before."""

import itertools
import random
from collections.abc import Iterator

import pytest

from tests.model.architectures import CASES
from tests.model.exact_adapters import ExactBench, evict, kinds_of, prompt_of, snapshot_of
from tests.model.random_adapters import random_adapter
from tests.model.tiny_worker import apart

KINDS = tuple(kinds_of(CASES["llama"].architecture))
ARCHITECTURES = [
    *("llama", "gemma2", "phi3", "gpt_neox"),
    pytest.param("llama, compiled", marks=pytest.mark.slow),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "qwen3", "olmo2", "smollm3", "gpt2", "opt")),
]
NUM_SWAPS = 50
PROMPTS = {name: prompt_of(index) for index, name in enumerate(KINDS)}
MIXES = [
    {"plain": 0.7, "large": 0.4, "ends": -0.3},
    {"biases": 0.5, "rslora": -0.5, "rank pattern": 1.5},
    {"one layer": 2.0, "alpha pattern": 0.25, "biases": 1.0},
]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExactBench]:
    name, _, is_compiled = request.param.partition(",")
    with apart():
        folder = tmp_path_factory.mktemp(name)
        yield ExactBench.make(CASES[name].architecture, folder, compile=bool(is_compiled))


@pytest.fixture(autouse=True)
def nothing_recompiles_and_nothing_moves(bench: ExactBench) -> Iterator[None]:
    before = bench.loaded.runner.addresses(), bench.loaded.runner.recompiles
    yield
    assert (bench.loaded.runner.addresses(), bench.loaded.runner.recompiles) == before


def test_alone(bench: ExactBench) -> None:
    driver = bench.driver()
    for name in KINDS:
        bench.check_all(driver, [({name: 1.0}, PROMPTS[name])])
    bench.check_all(driver, [({}, PROMPTS["plain"])])


def test_in_a_mixed_batch_of_eight(bench: ExactBench) -> None:
    bench.check_all(bench.driver(), [({name: 1.0}, PROMPTS[name]) for name in KINDS])
    assert len(KINDS) == bench.loaded.limits.max_running


def test_composed_of_three_with_weights_beside_others(bench: ExactBench) -> None:
    for mix, name in zip(MIXES, KINDS, strict=False):
        bench.check_all(bench.driver(), [(mix, prompt_of(9)), ({name: 1.0}, PROMPTS[name]), ({}, prompt_of(10))])
    assert set(KINDS) == set(itertools.chain(*MIXES))


def test_after_fifty_random_swaps(bench: ExactBench) -> None:
    driver, rng = bench.driver(), random.Random(0)
    for number in range(NUM_SWAPS):
        if number % 10 == 0:
            bench.submit(driver, {rng.choice(KINDS): 1.0}, prompt_of(number), max_tokens=12)
        driver.activate(random_adapter(bench.loaded, number))
    driver.finish()
    bench.check_all(driver, [({name: 1.0}, PROMPTS[name]) for name in KINDS])


def test_after_eviction_and_reload_into_other_slots(bench: ExactBench) -> None:
    driver = bench.driver()
    for number, name in enumerate(KINDS):
        before = driver.activate(bench.adapters[name])
        evict(driver, bench.adapters[name])
        driver.activate(random_adapter(bench.loaded, 1000 + number, max_rank=3))
        after = driver.activate(bench.adapters[name])
        assert not after.already
        assert after.slots != before.slots
        bench.check_all(driver, [({name: 1.0}, PROMPTS[name])])
        evict(driver, bench.adapters[name])


def test_after_preemption(bench: ExactBench) -> None:
    driver = bench.driver(num_blocks=20, max_sequence_tokens=40)
    bench.check_all(driver, [({name: 1.0}, PROMPTS[name]) for name in KINDS], max_tokens=16)
    assert snapshot_of(driver).preemptions > 0


def test_with_a_cached_prefix(bench: ExactBench) -> None:
    driver = bench.driver()
    for name in KINDS:
        prompt = PROMPTS[name]
        bench.check_all(driver, [({name: 1.0}, prompt)])
        again = bench.submit(driver, {name: 1.0}, prompt)
        driver.finish()
        assert driver.cached_tokens[again] > 0
        bench.check(driver, again, {name: 1.0}, prompt)
