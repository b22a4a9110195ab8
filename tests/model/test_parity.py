"""Every shipped adapter, the base, and all of them in one batch answer as freshly loaded PEFT does."""

from typing import Any

import pytest

from tests.model.conftest import ADAPTERS_DIR
from tests.model.driver import Driver, Mix
from worker_service.engine.messages import SampledToken
from worker_service.model.options import LoadedModel
from worker_service.model.weights import HostAdapter

pytestmark = pytest.mark.model

TOLERANCE = 1e-3
NAMES = ("base", *sorted(folder.name for folder in ADAPTERS_DIR.iterdir() if folder.is_dir()))
Reference = dict[str, list[dict[str, Any]]]


def mix_of(name: str, adapters: dict[str, HostAdapter]) -> Mix:
    return () if name == "base" else ((adapters[name], 1.0),)


def check_logprobs(found: list[SampledToken], expected: dict[str, Any]) -> None:
    """The log-probabilities of the chosen tokens and of the alternatives, at the positions that the reference has."""
    positions = zip(found, expected["top_ids"], expected["top_logits"], expected["logsumexp"], strict=False)
    for token, ids, logits, logsumexp in positions:
        wanted = {token_id: logit - logsumexp for token_id, logit in zip(ids, logits, strict=True)}
        assert token.logprob == pytest.approx(wanted[token.token_id], abs=TOLERANCE)
        assert len(token.alternatives) == 20
        for alternative in token.alternatives:
            assert alternative.logprob == pytest.approx(wanted[alternative.token_id], abs=TOLERANCE)


def test_the_reference_covers_every_shipped_adapter(reference: Reference, adapters: dict[str, HostAdapter]) -> None:
    assert set(reference) == {"base", *adapters}
    assert set(NAMES) == set(reference)


@pytest.mark.parametrize("name", NAMES)
def test_alone_it_answers_as_peft(
    name: str, driver: Driver, adapters: dict[str, HostAdapter], reference: Reference
) -> None:
    expected = reference[name][0]
    sequence_id = driver.submit(expected["prompt_ids"], mix_of(name, adapters), max_tokens=32)
    driver.finish()
    assert driver.token_ids(sequence_id) == expected["greedy_ids"][:32]
    check_logprobs(driver.tokens[sequence_id], expected)


@pytest.mark.parametrize("prompt", [0, 1, 2])
def test_in_one_mixed_batch_each_answers_as_peft(
    prompt: int, driver: Driver, adapters: dict[str, HostAdapter], reference: Reference, loaded: LoadedModel
) -> None:
    rows = {
        name: driver.submit(reference[name][prompt]["prompt_ids"], mix_of(name, adapters), max_tokens=32)
        for name in NAMES
    }
    driver.finish()
    for name, sequence_id in rows.items():
        expected = reference[name][prompt]
        assert driver.token_ids(sequence_id) == expected["greedy_ids"][:32], name
        check_logprobs(driver.tokens[sequence_id], expected)
    assert loaded.runner.recompiles == 0


def test_an_adapter_with_weight_zero_is_the_base(
    driver: Driver, adapters: dict[str, HostAdapter], reference: Reference
) -> None:
    expected = reference["base"][0]
    sequence_id = driver.submit(expected["prompt_ids"], ((adapters["pirate"], 0.0),), max_tokens=16)
    driver.finish()
    assert driver.token_ids(sequence_id) == expected["greedy_ids"][:16]
