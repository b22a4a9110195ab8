"""Progress of an import."""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Stage of an import."""

    QUEUED = "queued"
    RESOLVING = "resolving"
    FETCHING = "fetching"
    VALIDATING = "validating"
    PUBLISHING = "publishing"


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage, and the bytes fetched by then."""

    stage: Stage
    done_bytes: int = 0
    total_bytes: int = 0
    """0 while unknown."""


QUEUED = Progress(Stage.QUEUED)
