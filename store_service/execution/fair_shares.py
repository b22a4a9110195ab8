"""Decides whose work is next: tenants take turns by the time that their work took. State in, decision out."""

from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from hotslot.errors import StoreBusyError

SHARE = 8
"""Multiple of the places left that a tenant may let wait: dynamic thresholds, as for streams."""
RETRY_AFTER_S = 2.0

Work = TypeVar("Work")


class FairShares(Generic[Work]):
    """Work that waits, by tenant in order, and the time that each tenant's work has taken.

    Among tenants whose work waits, the one is next whose work took least. Idle time earns no credit: a tenant that
    comes back begins where the least served of the others is.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._num_waiting = 0
        self._waiting: dict[str, deque[Work]] = {}
        self._running: dict[Work, tuple[str, float]] = {}
        """Tenant and beginning of what runs."""
        self._taken_s: defaultdict[str, float] = defaultdict(float)

    @property
    def num_waiting(self) -> int:
        """Work that waits."""
        return self._num_waiting

    def add(self, tenant: str, work: Work, now_s: float) -> None:
        """Let a piece of work wait; raises StoreBusyError where a tenant lets too many wait."""
        if len(self._waiting.get(tenant, ())) >= SHARE * (self._max_waiting - self._num_waiting):
            message = f"{self._num_waiting} calls wait for admission; try again shortly"
            raise StoreBusyError(message, retry_after_s=RETRY_AFTER_S)
        others = set(self._active()) - {tenant}
        if others and tenant not in set(self._active()):
            self._taken_s[tenant] = max(self._taken_s[tenant], min(self._time_of(other, now_s) for other in others))
        self._waiting.setdefault(tenant, deque()).append(work)
        self._num_waiting += 1

    def next(self, now_s: float) -> Work | None:
        """Begin the next piece of work; None where none waits."""
        if not self._waiting:
            return None
        tenant = min(self._waiting, key=lambda name: (self._num_running(name) > 0, self._time_of(name, now_s)))
        work = self._waiting[tenant].popleft()
        self._dropped(tenant)
        self._running[work] = tenant, now_s
        return work

    def leave(self, tenant: str, work: Work) -> None:
        """A piece of work that waits is not wanted any more."""
        self._waiting[tenant].remove(work)
        self._dropped(tenant)

    def end(self, work: Work, now_s: float) -> None:
        """A piece of work that ran has ended."""
        tenant, began_s = self._running.pop(work)
        self._taken_s[tenant] += now_s - began_s
        if not self._waiting and not self._running:
            self._taken_s.clear()

    def _dropped(self, tenant: str) -> None:
        self._num_waiting -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    def _active(self) -> Iterator[str]:
        yield from self._waiting
        for tenant, _ in self._running.values():
            yield tenant

    def _num_running(self, tenant: str) -> int:
        return sum(of_tenant == tenant for of_tenant, _ in self._running.values())

    def _time_of(self, tenant: str, now_s: float) -> float:
        """Time that a tenant's work has taken, including the work that runs."""
        return self._taken_s[tenant] + sum(
            now_s - began_s for of_tenant, began_s in self._running.values() if of_tenant == tenant
        )
