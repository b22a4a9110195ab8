"""What each name stood for, and when, as far as whoever moved the tags can know."""

import math
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tenure:
    """One version's time under a name."""

    digest: str
    from_s: float
    """When it was asked for: from then on it may be served."""
    until_s: float = math.inf
    """When a later move was acknowledged."""


@dataclass
class TagLedger:
    """The history of every name. A move whose outcome is not known leaves both versions possible until the next."""

    tenures: dict[str, list[Tenure]] = field(default_factory=dict)

    def begin(self, name: str, digest: str, now_s: float) -> Tenure:
        """A move is about to be asked for."""
        tenure = Tenure(digest, now_s)
        self.tenures.setdefault(name, []).append(tenure)
        return tenure

    def acknowledge(self, name: str, tenure: Tenure, now_s: float) -> None:
        """The store said yes: everything before it is over."""
        for earlier in self.tenures[name]:
            if earlier is not tenure:
                earlier.until_s = min(earlier.until_s, now_s)

    def staleness_s(self, name: str, digest: str, asked_s: float, answered_s: float) -> float:
        """How long before the request a digest was the name's for the last time; infinite if it never was till then."""
        ages = [
            max(0.0, asked_s - tenure.until_s)
            for tenure in self.tenures[name]
            if tenure.digest == digest and tenure.from_s <= answered_s
        ]
        return min(ages, default=math.inf)
