"""One reference of one tenant, as a worker knows it: the version that it serves and the store's newest answer. Pure."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hotslot.errors import ForbiddenError, HotslotError, InvalidAdapterError, InvalidRequestError, NotFoundError
from hotslot.ids import Digest
from worker_service.adapters.version import AdapterVersion

DEFINITIVE = (NotFoundError, ForbiddenError, InvalidRequestError, InvalidAdapterError)
"""The store has spoken: what was served under the reference must not be served any more."""


@dataclass(frozen=True, slots=True)
class ReferenceLimits:
    """The bounds of the cache."""

    staleness_s: float = 2.0
    """Time for which an answer of the store is trusted."""
    watched_staleness_s: float = 30.0
    """The same while changes are heard of, if it is longer."""
    patience_s: float = 1.0
    """Longest wait of a request whose version is resident for a slow store before it is served without an answer."""
    swap_retry_s: float = 10.0
    """After a failed swap, when to try the same version again."""
    behind_pause_s: float = 0.1
    """After an answer at a smaller revision than a request needs, when the store is asked for such a request again."""
    behind_retry_s: float = 0.5
    """Pause that the caller of such a request is told of."""
    just_now_s: float = 0.25
    """Age at which an answer is as good as a new one for a caller who needs what was written a moment ago."""
    shared_unconfirmed_s: float = 300.0
    """Longest time for which an adapter that another tenant shares is served without an answer of the store, which
    might be that it is shared no more."""
    max_entries: int = 10_000


DEFAULT_LIMITS = ReferenceLimits()


@dataclass(slots=True)
class KnownReference:
    """Entry of the cache of references."""

    version: AdapterVersion
    """Serves requests."""
    checked_s: float
    """Time of the last question to the store, answered or not."""
    answered_s: float = field(init=False)
    """Time of the store's last answer."""
    latest: AdapterVersion = field(init=False)
    """The store's newest answer; another version than `version` while that is being prepared, or cannot be."""
    confirmed: bool = True
    """The store said so when it was last asked, and no newer version is on its way."""
    failure: HotslotError | None = None
    """Failure of the last question."""
    swap: "tuple[Digest, asyncio.Task[None]] | None" = None
    """A newer version being prepared."""
    failed_digest: Digest | None = None
    failed_s: float = 0.0
    behind_s: float = float("-inf")
    """Time of the last answer at a smaller revision than a request needed."""

    def __post_init__(self) -> None:
        self.latest, self.answered_s = self.version, self.checked_s

    def version_at(self, min_revision: int, held_until: Callable[[int], int]) -> AdapterVersion | None:
        """The version for a request that needs a revision or a later one; None where the store has to be asked.

        `held_until` tells until which revision an answer at a revision is known to hold.
        """
        for version in (self.version, self.latest):
            if held_until(version.revision) >= min_revision:
                return version
        return None

    def just_answered(
        self, now_s: float, min_revision: int, held_until: Callable[[int], int], limits: ReferenceLimits
    ) -> AdapterVersion | None:
        """The store's answer of a moment ago, where it held at a revision or later."""
        is_new = self.failure is None and now_s - self.answered_s < limits.just_now_s
        return self.latest if is_new and held_until(self.latest.revision) >= min_revision else None

    def answered(self, now_s: float, *, confirmed: bool) -> None:
        """Note an answer of the store."""
        self.checked_s = self.answered_s = now_s
        self.confirmed = confirmed

    def is_old(self, now_s: float, limits: ReferenceLimits, *, is_watched: bool) -> bool:
        """Tell whether the store is to be asked before the next request is served."""
        trusted_s = limits.staleness_s
        if self.confirmed and is_watched:
            trusted_s = max(trusted_s, limits.watched_staleness_s)
        return now_s - self.checked_s >= trusted_s

    def is_believed(self, now_s: float, limits: ReferenceLimits) -> bool:
        """Tell whether another tenant's adapter may still be served without a new answer of the store."""
        return now_s - self.answered_s < limits.shared_unconfirmed_s

    def doubt(self) -> None:
        """Forget at which revisions the answers held: they may be of a catalog that is no more."""
        self.version, self.latest = replace(self.version, revision=0), replace(self.latest, revision=0)

    def end_swap(self) -> None:
        """End the preparation of a newer version."""
        if self.swap is not None:
            self.swap[1].cancel()
            self.swap = None
