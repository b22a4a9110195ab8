"""A row that no step of the real code can compute, or whose numbers leave their range, harms only itself."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hotslot.contract.generation import Logprobs, Sampling
from hotslot.errors import NonFiniteLogitsError, StepFailedError
from tests.model.driver import Driver
from tests.model.random_adapters import random_adapter
from tests.model.tiny_worker import apart, load_tiny
from tests.support.tiny_models import make_model
from worker_service.engine.core import EngineCore
from worker_service.model.loading import DTYPES
from worker_service.model.options import LoadedModel
from worker_service.model.weights import HostAdapter

PROMPTS = [[3, 5, 7, 9], [11, 13, 2], [17, 19, 23, 29, 31, 4, 6, 8, 10]]
DRAWN = Sampling(temperature=0.8, seed=3)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[LoadedModel]:
    """With torch's operators, and with the kernels for few tokens, of which every step is."""
    folder: Path = tmp_path_factory.mktemp("broken_rows")
    buckets = (8, 64) if request.param == "float32" else (8, 16)
    with apart():
        yield load_tiny(make_model(folder, "llama", is_tied=False), dtype=request.param, token_buckets=buckets)


@pytest.fixture
def driver(loaded: LoadedModel) -> Driver:
    return Driver(EngineCore(loaded.runner, loaded.limits, lambda: 0.0))


def overflowing(loaded: LoadedModel) -> HostAdapter:
    """Finite in every weight, and far beyond fp32 in what it computes."""
    adapter = random_adapter(loaded, 1)
    dtype = DTYPES[loaded.dtype]
    modules = {
        path: replace(module, a_RI=(module.a_RI * 1e24).to(dtype), b_RO=(module.b_RO * 1e24).to(dtype))
        for path, module in adapter.modules.items()
    }
    return replace(adapter, modules=modules)


def answers_alone(driver: Driver) -> list[list[int]]:
    found = []
    for prompt in PROMPTS:
        sequence_id = driver.submit(prompt, max_tokens=8, sampling=DRAWN, logprobs=Logprobs(2))
        driver.finish()
        found.append(driver.token_ids(sequence_id))
    return found


def test_a_token_beyond_the_embedding_ends_its_row_and_the_rows_beside_it_go_on(
    loaded: LoadedModel, driver: Driver
) -> None:
    """The front refuses such tokens; what else may break a step is not known, and this one really does."""
    expected = answers_alone(driver)
    running = [driver.submit(prompt, max_tokens=8, sampling=DRAWN, logprobs=Logprobs(2)) for prompt in PROMPTS[:2]]
    for _ in range(3):
        driver.turn()
    late = driver.submit(PROMPTS[2], max_tokens=8, sampling=DRAWN, logprobs=Logprobs(2))
    poisoned = driver.submit([3, 5, loaded.vocab_size, 7], max_tokens=8)
    while driver.open:
        driver.turn()
    assert {number: type(error) for number, error in driver.failures.items()} == {poisoned: StepFailedError}
    assert [driver.token_ids(sequence_id) for sequence_id in (*running, late)] == expected
    assert driver.core._scheduler.kv.blocks.num_free == loaded.limits.num_blocks


@pytest.mark.parametrize("prompt_logprobs", [False, True])
def test_an_adapter_that_overflows_ends_its_row_and_leaves_no_nan_for_others(
    driver: Driver, loaded: LoadedModel, prompt_logprobs: bool
) -> None:
    expected = answers_alone(driver)
    mix = ((overflowing(loaded), 1.0),)
    broken = [
        driver.submit(PROMPTS[2] * 3, mix, max_tokens=8, logprobs=Logprobs(20, prompt_logprobs)) for _ in range(2)
    ]
    beside = [driver.submit(prompt, max_tokens=8, sampling=DRAWN, logprobs=Logprobs(2)) for prompt in PROMPTS]
    while driver.open:
        driver.turn()
    assert {number: type(error) for number, error in driver.failures.items()} == dict.fromkeys(
        broken, NonFiniteLogitsError
    )
    assert [driver.token_ids(sequence_id) for sequence_id in beside] == expected
    # Their blocks, full of NaN, are others' now.
    driver.failures.clear()
    assert answers_alone(driver) == expected
    scores = [token.logprob for tokens in driver.tokens.values() for token in tokens]
    assert all(logprob is not None and math.isfinite(logprob) for logprob in scores)


def test_a_step_of_nothing_computes(loaded: LoadedModel) -> None:
    assert loaded.runner.run([]) == []


def test_no_token_is_drawn_that_the_model_cannot_read(
    driver: Driver, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if its head had more rows than its embedding."""
    monkeypatch.setattr(loaded.runner, "num_embeddings", 20)
    options = Sampling(temperature=5.0, seed=1)
    sequence_id = driver.submit(PROMPTS[0], max_tokens=30, sampling=options, logprobs=Logprobs(20, prompt=True))
    driver.finish()
    alternatives = [a.token_id for token in driver.tokens[sequence_id] for a in token.alternatives]
    assert max(*driver.token_ids(sequence_id), *alternatives) < 20
