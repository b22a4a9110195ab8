"""Requests of a scenario: when they arrive, for which adapter, and how long they run; made once for all policies."""

from dataclasses import dataclass

import numpy as np

SERVICE_S = 4.0
"""Mean time that a request occupies a row."""
SERVICE_SHAPE = 2.0
"""Shape of the gamma distribution of that time: a coefficient of variation of 0.7."""


@dataclass(frozen=True, slots=True)
class FlashCrowd:
    """An adapter that nobody wanted and then many do."""

    adapter: int
    start_s: float
    end_s: float
    workers: float
    """Workers that it keeps busy."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Demand over time."""

    num_adapters: int
    zipf: float
    """Exponent of the popularity: 0 for uniform."""
    utilisation: float
    """Mean share of all rows that is busy."""
    diurnal: float = 0.0
    """Amplitude of the load's swing, as a share of its mean; one period is `period_s`."""
    period_s: float = 600.0
    flash: FlashCrowd | None = None

    def popularity(self, seed: int) -> np.ndarray:
        """Each adapter's share of the requests, without flash crowds; adapters are in random order."""
        weights = np.arange(1, self.num_adapters + 1, dtype=float) ** -self.zipf
        if self.flash is not None:
            weights[-1] = 0.0
        weights /= weights.sum()
        np.random.default_rng([seed, 1]).shuffle(weights[:-1])
        return weights


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival."""

    arrival_s: np.ndarray
    adapter: np.ndarray
    service_s: np.ndarray


def make_trace(demand: Demand, num_workers: int, rows: int, duration_s: float, seed: int) -> Trace:
    """Poisson arrivals; the same for the same arguments."""
    chance = np.random.default_rng([seed, 2])
    rate = demand.utilisation * num_workers * rows / SERVICE_S
    peak = rate * (1 + demand.diurnal)
    arrivals = np.sort(chance.uniform(0, duration_s, chance.poisson(peak * duration_s)))
    if demand.diurnal:
        now = rate * (1 + demand.diurnal * np.sin(2 * np.pi * arrivals / demand.period_s))
        arrivals = arrivals[chance.uniform(0, peak, len(arrivals)) < now]
    adapters = np.searchsorted(np.cumsum(demand.popularity(seed)), chance.uniform(0, 1 - 1e-12, len(arrivals)))
    if demand.flash is not None:
        crowd = demand.flash
        many = chance.poisson(crowd.workers * rows / SERVICE_S * (crowd.end_s - crowd.start_s))
        arrivals = np.concatenate([arrivals, chance.uniform(crowd.start_s, crowd.end_s, many)])
        adapters = np.concatenate([adapters, np.full(many, crowd.adapter)])
        order = np.argsort(arrivals, kind="stable")
        arrivals, adapters = arrivals[order], adapters[order]
    service = chance.gamma(SERVICE_SHAPE, SERVICE_S / SERVICE_SHAPE, len(arrivals))
    return Trace(arrivals, np.minimum(adapters, demand.num_adapters - 1), service)
