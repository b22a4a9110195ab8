"""Constants of the placement policy, with their reasons."""

from dataclasses import dataclass

from shared.fleet.demand import DEFAULT_DEMAND, DemandOptions


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """The constants of the policy."""

    demand: DemandOptions = DEFAULT_DEMAND
    max_load_ratio: float = 1.25
    """Ratio to the fleet's mean load above which a worker is overloaded. As in consistent hashing with bounded loads
    (Mirrokni, Thorup and Zadimoghaddam, 2018), c = 1.25."""
    spill_above: float = 0.5
    """Share of its rows below which a worker's usual load is never too much: in an idle fleet one request is far above
    the mean, and a cold load costs more than a shared step."""
    full_above: float = 1.25
    """The same for the load of the moment: a short wait for a row is cheaper than a cold load."""
    spill_range: float = 0.3
    """Distance above its bound, as a share of it, at which a worker spills everything. A spilled request costs a load
    and leaves a copy behind, so a steep answer to loads that are seconds old costs more than it evens out."""
    cold_below: float = 0.95
    """Share of its bound up to which a worker is given what it has to load: that costs as much anywhere else."""
    cold_share: float = 0.3
    """Part of its share that a home gets while it has to load the version first."""
    slots_exponent: float = 0.5
    """Power of a version's slots, by the pool's mean, that it weighs; 0 has all ranks alike. Below 1, so that a hot
    version of a large rank keeps enough homes to share its load out."""
    most_weight: float = 4.0
    """Largest weight, and the inverse of the smallest."""


DEFAULT_POLICY = PolicyOptions()
