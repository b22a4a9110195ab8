"""Places in a bounded queue, so shared that no tenant leaves none for others."""

from hotslot.errors import QueueFullError
from hotslot.ids import TenantId

QUEUE_SHARE = 8
"""A tenant may have this many times as many places as are left."""
RETRY_AFTER_S = 1.0


class TenantPlaces:
    """Places of a queue that each tenant has taken.

    The bound moves with what is left (dynamic thresholds, Choudhury and Hahne 1998): alone a tenant may take eight
    ninths of the queue, and never so much that others find no place.
    """

    def __init__(self, num_places: int) -> None:
        self.num_places = num_places
        self._taken: dict[TenantId, int] = {}
        self._num_taken = 0

    def __len__(self) -> int:
        return self._num_taken

    def taken_by(self, tenant: TenantId) -> int:
        """Places that a tenant has."""
        return self._taken.get(tenant, 0)

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

    def take(self, tenant: TenantId) -> None:
        """A tenant has one more; ask `has_room` first."""
        self._taken[tenant] = self.taken_by(tenant) + 1
        self._num_taken += 1

    def give_back(self, tenant: TenantId) -> None:
        """A tenant has one less."""
        self._num_taken -= 1
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
