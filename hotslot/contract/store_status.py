"""Status of a store: what it needs, and why what does not work does not."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class StorePart:
    """Part that a store needs."""

    name: str
    """catalog, disk, object_storage or redis."""
    works: bool
    why: str = ""
    """Reason why it does not work; empty while it does."""
    required: bool = True
    """False for a part without which adapters are served all the same."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """State of one process of a store now."""

    ready: bool
    """True while every required part works."""
    version: str
    """Release of the store."""
    start_time: datetime | None = None
    parts: tuple[StorePart, ...] = ()

    @property
    def failing(self) -> tuple[StorePart, ...]:
        """Parts that do not work."""
        return tuple(part for part in self.parts if not part.works)
