"""Changes of one tenant's catalog as a worker heard of them: until which revision an answer of the store still holds.

Pure. The store streams every change in order, so an answer holds until the first heard change that may alter it, or,
when there is none, until the last one that was heard.
"""

from collections import OrderedDict

from hotslot.references import Reference
from worker_service.adapters.catalog_change import CatalogChange, ChangeScope, scopes_of

MAX_SCOPES = 4_096


class HeardChanges:
    """Changes after a revision."""

    def __init__(self, since: int, max_scopes: int = MAX_SCOPES) -> None:
        """`since` is the revision after which every change is heard of."""
        self.until = since
        """Revision of the last change that was heard of; `since` before the first."""
        self._since = since
        self._max_scopes = max_scopes
        # Not a library's map: what makes room raises the revision since which all is known.
        self._last_two: OrderedDict[ChangeScope, tuple[int, int]] = OrderedDict()

    def add(self, change: CatalogChange) -> None:
        """Take in the next change."""
        self.until = change.revision
        if change.scope is None:
            return
        _, before = self._last_two.pop(change.scope, (0, 0))
        self._last_two[change.scope] = before, change.revision
        while len(self._last_two) > self._max_scopes:
            _, (_, forgotten) = self._last_two.popitem(last=False)
            self._since = max(self._since, forgotten)

    def held_until(self, reference: Reference, revision: int) -> int:
        """The newest revision at which an answer that held at `revision` is known to hold; never less than that."""
        if revision < self._since:
            return revision
        until = self.until
        for scope in scopes_of(reference):
            before, last = self._last_two.get(scope, (0, 0))
            if before > revision:
                return revision
            if last > revision:
                until = min(until, last - 1)
        return max(revision, until)
