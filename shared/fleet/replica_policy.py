"""Policy of an adapter's owner on the workers that it may be on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaPolicy:
    """Bounds on the homes of one adapter's versions."""

    min_replicas: int = 0
    """Homes it has however little it is wanted; a version that is wanted has one in any case."""
    max_replicas: int | None = None
    """Workers that it may be on however much it is wanted; None for as many as there are."""
    pinned: bool = False
    """True if as many homes, at least one, load it before a request asks, and keep it in memory."""

    def __post_init__(self) -> None:
        assert self.min_replicas >= 0, self
        assert self.max_replicas is None or self.max_replicas >= max(1, self.min_replicas), self


DEFAULT_REPLICA_POLICY = ReplicaPolicy()
