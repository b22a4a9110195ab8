"""Size of a mix of adapters in slots."""

from collections.abc import Mapping

from hotslot.errors import FieldViolation, InvalidRequestError
from worker_service.engine.limits import EngineLimits


def mix_too_large(num_ranks: Mapping[str, int], limits: EngineLimits) -> InvalidRequestError | None:
    """The error for a mix that has no room even in empty slots, however long it waits; ranks are by adapter's name."""
    num_slots = {name: limits.slots_for(ranks) for name, ranks in num_ranks.items()}
    needed = sum(num_slots.values())
    if needed <= limits.num_slots:
        return None
    each = ", ".join(f"{name!r} takes {count}" for name, count in num_slots.items())
    problem = (
        f"together they need {needed} slots ({each}), this worker has {limits.num_slots}; "
        "name fewer, or raise HOTSLOT_NUM_SLOTS"
    )
    return InvalidRequestError([FieldViolation("adapters", problem)])
