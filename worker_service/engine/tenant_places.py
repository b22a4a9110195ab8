"""Places in a bounded queue, so shared that no tenant leaves none for others."""

from collections import Counter

from hotslot.errors import QueueFullError
from hotslot.ids import NO_PARTY, PartyId, TenantId

QUEUE_SHARE = 8
"""A tenant may have this many times as many places as are left."""
RETRY_AFTER_S = 1.0


class TenantPlaces:
    """Places of a queue that each tenant has taken.

    The bound moves with what is left (dynamic thresholds, Choudhury and Hahne 1998): alone a tenant may take eight
    ninths of the queue, and never so much that others find no place. Tenants of one party may have all of them
    together; then one that waits gives its place to a party that has fewer.
    """

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self._taken: dict[TenantId, Counter[PartyId]] = {}
        self._parties: Counter[PartyId] = Counter()
        self._num_taken = 0

    def __len__(self) -> int:
        return self._num_taken

    def taken_by(self, tenant: TenantId) -> int:
        """Places that a tenant has."""
        taken = self._taken.get(tenant)
        return taken.total() if taken is not None else 0

    def crowding(self, party: PartyId) -> tuple[PartyId, TenantId] | None:
        """Party that has the most places, and would still have no fewer than this one after it gave one to it.

        With its tenant that has the most. None where no party has so many.
        """
        if not self._parties:
            return None
        most, num_places = max(self._parties.items(), key=lambda item: item[1])
        if num_places - 1 < self._parties[party] + 1:
            return None
        return most, max(self._taken, key=lambda tenant: self._taken[tenant][most])

    def has_room(self, tenant: TenantId, num_beyond: int) -> bool:
        """Tell whether a tenant may have one more place.

        Just now there are `num_beyond` more places, which any tenant may have: sequences do not wait long in them.
        """
        left = self.num_places + num_beyond - self._num_taken
        return self._num_taken < num_beyond or self.taken_by(tenant) < QUEUE_SHARE * left

    def refusal(self, tenant: TenantId, num_beyond: int, waiting: str, subject: str) -> QueueFullError:
        """The error for a tenant without room; `waiting` says who has places and for what."""
        taken, num_places = self.taken_by(tenant), self.num_places + num_beyond
        if taken and self._num_taken < num_places:
            left = num_places - self._num_taken
            problem = f"this tenant has {taken} of {num_places} places, and the last {left} are for other tenants"
        else:
            problem = f"at most {num_places} may"
        return QueueFullError(
            f"{self._num_taken} {waiting} already; {problem}", subject=subject, retry_after_s=RETRY_AFTER_S
        )

    def take(self, tenant: TenantId, party: PartyId = NO_PARTY) -> None:
        """A tenant has one more; ask `has_room` first."""
        self._taken.setdefault(tenant, Counter())[party] += 1
        self._parties[party] += 1
        self._num_taken += 1

    def give_back(self, tenant: TenantId, party: PartyId = NO_PARTY) -> None:
        """A tenant has one less."""
        self._num_taken -= 1
        for counter in (self._taken[tenant], self._parties):
            counter[party] -= 1
            if not counter[party]:
                del counter[party]
        if not self._taken[tenant]:
            del self._taken[tenant]
