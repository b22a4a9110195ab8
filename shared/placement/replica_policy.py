"""What an adapter's owner decides about where it may be."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaPolicy:
    """Bounds on the homes of one adapter's versions."""

    min_replicas: int = 1
    """Homes it has however little it is wanted."""
    max_replicas: int | None = None
    """Workers that it may be on however much it is wanted; None for as many as there are."""
    pinned: bool = False
    """Whether its homes load it before anyone asks, and never evict it."""

    def __post_init__(self) -> None:
        assert self.min_replicas >= 1, self
        assert self.max_replicas is None or self.max_replicas >= self.min_replicas, self


DEFAULT_REPLICA_POLICY = ReplicaPolicy()
