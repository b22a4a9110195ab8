"""The seam to places that checkpoints are imported from."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.errors import RequestCancelledError
from store_service.admission.admit import Checkpoint

ReportBytes = Callable[[int, int], None]
"""Told bytes done and bytes in all (0 while unknown), from any thread."""


@dataclass(frozen=True)
class Fetched:
    """A checkpoint that lies in the store's own folder now."""

    checkpoint: Checkpoint
    origin: str
    """For the record, for example `hf:org/name@commit`."""


class Source(Protocol):
    """One checkpoint somewhere."""

    @property
    def key(self) -> str:
        """The same for two sources exactly when one fetch serves both."""

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Fetched:
        """Copy the checkpoint's files into an empty folder; blocks, and ends soon after `cancelled` is set.

        Raises SourceNotFoundError, SourceForbiddenError, SourceUnavailableError, DigestMismatchError,
        QuotaExceededError and RequestCancelledError.
        """


def stop_if(cancelled: threading.Event) -> None:
    """Raises RequestCancelledError when nobody wants the checkpoint any more."""
    if cancelled.is_set():
        raise RequestCancelledError("the import was cancelled")
