"""The seam to places that checkpoints are imported from."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from hotslot.errors import RequestCancelledError
from hotslot.formats.file_names import CONFIG_FILE
from store_service.admission.admit import Checkpoint

MAX_LISTED = 20
"""Folders with adapters that an error names."""

ReportBytes = Callable[[int], None]
"""Told the bytes done, from any thread."""


class Source(Protocol):
    """A checkpoint by its name; the content that the name stands for may change."""

    @property
    def key(self) -> str:
        """The same for two sources exactly when they are named the same."""

    @property
    def is_remote(self) -> bool:
        """True if resolving asks another machine, which is not to be asked again and again for what it has not."""

    def resolve(self) -> "FixedCheckpoint":
        """Resolve the name to its content of now; blocks.

        Raises SourceNotFoundError, SourceForbiddenError, SourceUnavailableError and QuotaExceededError.
        """


class FixedCheckpoint(Protocol):
    """A checkpoint that does not change any more: a commit, or files as they were when they were looked at."""

    @property
    def key(self) -> str:
        """The same for two exactly when one fetch serves both."""

    @property
    def origin(self) -> str:
        """For the record, for example `hf:org/name@commit`."""

    @property
    def size_bytes(self) -> int:
        """Bytes to fetch."""

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        """Copy the checkpoint's files into an empty folder; blocks, and ends soon after `cancelled` is set.

        Raises SourceNotFoundError, SourceForbiddenError, SourceUnavailableError, DigestMismatchError,
        QuotaExceededError and RequestCancelledError; SourceChangedError where it is something else by now, which
        resolving again finds.
        """


def no_adapter_message(key: str, adapters: Sequence[str], whole_models: Sequence[str], choice: str) -> str:
    """Message about a place without an adapter: its folders that have one and how to choose, or what it is."""
    if adapters:
        more = f" and {len(adapters) - MAX_LISTED} more" if len(adapters) > MAX_LISTED else ""
        listed = ", ".join(sorted(adapters)[:MAX_LISTED]) + more
        return f"{key} has its adapters in folders: {listed}; name one of them, as {choice.format(min(adapters))}"
    if whole_models:
        return f"{key} is a whole model ({whole_models[0]}) and no adapter; register it as a base model instead"
    return f"{key} has neither {CONFIG_FILE} nor weights"


def stop_if(cancelled: threading.Event) -> None:
    """Raises RequestCancelledError when no import wants the checkpoint any more."""
    if cancelled.is_set():
        raise RequestCancelledError("the import was cancelled")
