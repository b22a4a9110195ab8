"""Counters of what a process refused, cut off or left out by its bounds: plain numbers, for whatever shows them."""

from collections import Counter
from collections.abc import Mapping

from hotslot.errors import ExhaustedError, HotslotError, InvalidRequestError, StreamStalledError, TenantQuotaError

QUOTA_REFUSALS = "quota_refusals"
BOUND_REFUSALS = "bound_refusals"
CUT_OFF = "streams_cut_off"
MESSAGE = "message"
"""Label of a request that was refused undecoded: its size, or a field's bound."""
METADATA = "metadata"

MEANINGS: Mapping[str, str] = {
    QUOTA_REFUSALS: "Calls that were refused by a quota of their tenant, by its kind.",
    BOUND_REFUSALS: "Calls that were refused by a bound of the process, by its name.",
    CUT_OFF: "Streams that were ended since their caller was idle or too slow, by what it did.",
}
"""Every counter, and what its label says."""


class Counters:
    """Counters of one process; they only grow. Add on one thread; any may read."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, label: str, amount: int = 1) -> None:
        """Count something; the label is one of few, never a tenant's or a caller's word."""
        assert name in MEANINGS, name
        self._counts[name, label] += amount

    def count_refusal(self, error: HotslotError) -> None:
        """Count an error that a bound of the process caused; others are none of these."""
        if isinstance(error, TenantQuotaError):
            return  # Counted by its kind, where it is known.
        if isinstance(error, StreamStalledError):
            self.add(CUT_OFF, "stalled")
        elif isinstance(error, ExhaustedError):
            self.add(BOUND_REFUSALS, error.subject)
        elif isinstance(error, InvalidRequestError) and [field.field for field in error.fields] == [METADATA]:
            self.add(BOUND_REFUSALS, METADATA)

    def snapshot(self) -> dict[tuple[str, str], int]:
        """Counts by name and label."""
        return dict(self._counts)
