"""Draws come from a counter hash: the same in any batch and by any implementation, distributed as the softmax says."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot.contract.generation import Sampling
from worker_service.demo_model import default_cache_dir
from worker_service.engine.messages import Segment
from worker_service.model import sampling
from worker_service.model.counter_hash import exponentials, philox, words
from worker_service.model.cpu import library

LARGE = 0xFFFFFFFF
KNOWN_BLOCKS = {
    (0, 0, 0, 0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    (LARGE, LARGE, LARGE, LARGE, LARGE, LARGE): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): (
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ),
}  # fmt: skip
"""Counters and key to words: the vectors that Random123 is published with."""

SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([1e-5, 0.3, 1.0, 1.7, 100.0]),
    top_k=st.sampled_from([0, 0, 1, 3, 40, 500, 10_000]),
    top_p=st.sampled_from([1.0, 1.0, 5e-324, 0.3, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.5, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    assert library.load_kernels(default_cache_dir()), "this machine has a C++ compiler"


@pytest.fixture(params=["kernels", "operators"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "operators":
            patch.setattr(library, "are_loaded", lambda: False)
        yield request.param


def segment(options: Sampling, position: int = 5) -> Segment:
    return Segment((1,), position - 1, (0,), (), options)


def logits_of(seed: int, num_rows: int, vocab: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def draws(logits_RV: torch.Tensor, rows: list[Segment]) -> list[int]:
    found = sampling.sample(logits_RV.clone(), rows)
    return [token.token_id for token in found if token is not None]


@pytest.mark.parametrize("given_words", KNOWN_BLOCKS)
def test_the_hash_is_philox(given_words: tuple[int, int, int, int, int, int]) -> None:
    c0, c1, c2, c3, k0, k1 = (torch.tensor(word) for word in given_words)
    found = philox((c0, c1, c2, c3), (k0, k1))
    assert tuple(int(word) for word in found) == KNOWN_BLOCKS[given_words]


@given(seed=st.integers(-(2**63), 2**63 - 1), position=st.integers(0, 2**31 - 1), size=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_a_token_has_its_own_noise_in_both_implementations(seed: int, position: int, size: int) -> None:
    seeds, positions = torch.tensor([seed]), torch.tensor([position])
    (found_V,) = words(seeds, positions, size)
    token = size - 1
    key = torch.tensor(seed & LARGE), torch.tensor(seed >> 32 & LARGE)
    block = philox((torch.tensor(token // 4), torch.tensor(position), torch.tensor(0), torch.tensor(0)), key)
    assert found_V[token] == block[token % 4]
    (noise_V,) = exponentials(seeds, positions, size)
    torch.testing.assert_close(torch.ops.hotslot_cpu.noise(seed, position, size), noise_V, rtol=3e-7, atol=0)


def test_noise_is_exponential_to_its_ends() -> None:
    (noise_V,) = exponentials(torch.tensor([3]), torch.tensor([9]), 2**20)
    uniform = np.sort(1 - np.exp(-noise_V.double().numpy()))
    expected = (np.arange(len(uniform)) + 0.5) / len(uniform)
    assert np.abs(uniform - expected).max() < 1.63 / len(uniform) ** 0.5, "Kolmogorov and Smirnov, 1 %"
    assert noise_V.min() > 0
    assert noise_V.max() < 17


@given(options=SETTINGS, seed=st.integers(0, 1000), vocab=st.sampled_from([1, 5, 32, 1000, 1031]))
@settings(max_examples=60, deadline=None)
def test_kernels_draw_what_the_operators_draw(options: Sampling, seed: int, vocab: int) -> None:
    # Rounded as a model's are, so that many are equal.
    logits_RV = logits_of(seed, 4, vocab).bfloat16()
    rows = [segment(options, position) for position in (1, 2, 70_000, 2**31)]
    by_kernels = draws(logits_RV, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "are_loaded", lambda: False)
        assert draws(logits_RV, rows) == by_kernels


@given(rows=st.lists(st.tuples(SETTINGS, st.integers(1, 9)), min_size=2, max_size=6), order=st.randoms())
@settings(max_examples=60, deadline=None)
def test_a_draw_is_the_same_in_any_batch_and_any_order(rows: list[tuple[Sampling, int]], order: object) -> None:
    logits_RV = logits_of(len(rows), len(rows), 200)
    segments = [segment(options, position) for options, position in rows]
    alone = [draws(logits_RV[row : row + 1], [segments[row]])[0] for row in range(len(rows))]
    indices = list(range(len(rows)))
    order.shuffle(indices)  # type: ignore[attr-defined]
    assert draws(logits_RV[indices], [segments[row] for row in indices]) == [alone[row] for row in indices]


def chi_square(found: Counter[int], expected: np.ndarray) -> float:
    """Per degree of freedom, over the tokens of which some are expected."""
    seen = np.array([found[token] for token in range(len(expected))])
    likely = expected >= 5
    degrees = max(likely.sum() - 1, 1)
    return float((((seen - expected) ** 2)[likely] / expected[likely]).sum() / degrees)


def earlier_draws(probabilities_V: torch.Tensor, count: int) -> Counter[int]:
    """Draws as they were before there was a counter hash: a generator for each."""
    found: Counter[int] = Counter()
    for position in range(count):
        generator = torch.Generator().manual_seed(position * 0x9E3779B97F4A7C15 % 2**63)
        noise_V = torch.empty_like(probabilities_V).exponential_(generator=generator)
        found[int((probabilities_V / noise_V).argmax())] += 1
    return found


@pytest.mark.parametrize("seeds", ["one seed, many positions", "one position, many seeds"])
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (1.5, 12)])
def test_draws_are_distributed_as_the_softmax(implementation: str, seeds: str, temperature: float, top_k: int) -> None:
    count, vocab = 2000, 50
    logits_V = logits_of(11, 1, vocab, 1.5)[0]
    kept_V = (logits_V / temperature).topk(top_k or vocab)
    probabilities_V = torch.zeros(vocab).scatter(0, kept_V.indices, kept_V.values.softmax(-1))
    rows = [
        segment(
            Sampling(temperature, top_k, seed=7 if "one seed" in seeds else index), index if "one seed" in seeds else 3
        )
        for index in range(count)
    ]
    found = Counter(draws(logits_V.expand(count, -1), rows))
    assert set(found) <= set(kept_V.indices.tolist())
    # 1 for the right distribution, give or take; some 3 standard deviations of a chi-square with 12 to 50 degrees.
    assert chi_square(found, probabilities_V.numpy() * count) < 2.1
    earlier = earlier_draws(probabilities_V, count)
    assert chi_square(earlier, probabilities_V.numpy() * count) < 2.1
    tilted = (logits_V / temperature * 1.5).softmax(-1).numpy() * count
    assert chi_square(found, tilted) > 2.1, "a distribution that is too sharp by half is told apart"


def test_top_p_and_min_p_keep_the_likeliest_tokens_that_they_name(implementation: str) -> None:
    probabilities_V = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
    for options, kept in (
        (Sampling(1.0, top_p=0.69), {1, 3}),
        (Sampling(1.0, top_p=0.71), {1, 3, 4}),
        (Sampling(1.0, min_p=0.3), {1, 3, 4}),
        (Sampling(1.0, top_k=4, top_p=0.73), {1, 3}),
        (Sampling(1.0, top_k=2, min_p=0.9), {1}),
    ):
        rows = [segment(options, position) for position in range(400)]
        assert set(draws(probabilities_V.log().expand(400, -1), rows)) == kept


def test_seeded_draws_stay_as_they_are(implementation: str) -> None:
    logits_RV = logits_of(5, 1, 49_152).expand(8, -1)
    rows = [segment(Sampling(1.5, seed=2**63 + 12345), position) for position in range(1, 9)]
    assert draws(logits_RV, rows) == [48402, 1380, 10993, 36, 38163, 19929, 31472, 44673]
    rows = [segment(Sampling(0.8, top_p=0.95, top_k=50, seed=42), position) for position in range(1, 9)]
    assert draws(logits_RV, rows) == [42299, 9613, 24155, 26235, 15005, 42299, 42299, 42299]


@settings(max_examples=200)
@given(
    rows=st.lists(
        st.lists(st.sampled_from([-np.inf, np.inf, np.nan, -3.0, 0.0, 0.0, 1.0, 1.0, 2.5]), min_size=1, max_size=70),
        min_size=1,
        max_size=3,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    spare=st.integers(0, 3),
)
def test_the_greedy_token_is_the_first_of_the_highest_and_none_where_logits_are_not_finite(
    rows: list[list[float]], dtype: torch.dtype, spare: int
) -> None:
    size = min(map(len, rows))
    logits_RV = torch.zeros(len(rows), size + spare, dtype=dtype)
    logits_RV[:, :size] = torch.tensor([row[:size] for row in rows])
    found = torch.ops.hotslot_cpu.greedy(logits_RV[:, :size]).tolist()
    for token_id, row in zip(found, rows, strict=True):
        logits = row[:size]
        finite = not any(np.isnan(logits)) and np.inf not in logits and max(logits) > -np.inf
        assert token_id == (logits.index(max(logits)) if finite else sampling.NOT_FINITE)
