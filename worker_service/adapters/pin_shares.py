"""Decides whether a tenant may pin more slots: a part of them stays for others, and for what nothing pins. Pure."""

from collections.abc import Mapping

from hotslot.errors import QuotaExceededError
from hotslot.ids import TenantId

MOST_OF_ONE = 2
"""One tenant may pin one half of the slots."""
UNPINNED = 4
"""One quarter of the slots, and one at least, is pinned by no tenant."""


def check_pins(pinned: Mapping[TenantId, int], tenant: TenantId, num_more: int, num_slots: int) -> None:
    """Raise QuotaExceededError where so many more slots are not for this tenant to pin.

    Where there is one slot alone it may be pinned.
    """
    if num_slots == 1:
        return
    own, every = pinned.get(tenant, 0) + num_more, sum(pinned.values()) + num_more
    most_own = max(num_slots // MOST_OF_ONE, 1)
    most = num_slots - max(num_slots // UNPINNED, 1)
    if own <= most_own and every <= most:
        return
    raise QuotaExceededError(
        f"this tenant's pins would take {own} slots, and all tenants' {every}, of {num_slots}: one tenant may pin "
        f"{most_own}, and all together {most}; unpin an adapter, or let an operator pin",
        subject="pinned_slots",
    )
