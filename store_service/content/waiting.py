"""Counts for how long things have been seen without a use, over all lives of a store.

Only time is counted during which a store ran and saw, twice in a row, that nothing refers to the thing. So neither a
restart, a clock that jumps, nor an old modification time that was restored makes anything older than it was seen to be.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import structlog

from hotslot.content_files import write_file
from hotslot.ids import digest_of
from store_service.catalog.records import CatalogState

log = structlog.get_logger(__name__)

FORMAT = "hotslot.waiting/1"


@dataclass(frozen=True, slots=True)
class CollectionOptions:
    """Times after which things go."""

    unreferenced_grace_s: float
    upload_ttl_s: float
    max_elapsed_s: float
    """Most of the time between two passes that counts as seen; a process may have been stopped."""


@dataclass(frozen=True, slots=True)
class UploadMark:
    """An upload that no stream holds."""

    tenant: str
    mark: str
    """It changes when the upload is asked for or written to."""
    size_bytes: int
    touch_time_s: float | None = None
    """Modification time of its file, in seconds since the epoch; None in object storage."""


class Note(Protocol):
    """The seam to a small document that outlives the process."""

    def read(self) -> bytes | None:
        """Bytes that were written last; None where nothing was."""

    def write(self, data: bytes) -> None:
        """Replace it durably, or leave it as it was."""


class FileNote:
    """A note in a file of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes | None:
        """Bytes that were written last; None where nothing was."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, data: bytes) -> None:
        """Replace it durably."""
        write_file(self._path, BytesIO(data))


class Waiting:
    """Things of one kind that nothing refers to, each with the seconds that it was seen so."""

    def __init__(self, seen: Mapping[str, Sequence[Any]]) -> None:
        self._seen = {name: (str(mark), float(waited_s)) for name, (mark, waited_s) in seen.items()}

    def observe(self, now: Mapping[str, str], elapsed_s: float) -> None:
        """These, and no others, wait now, each with a mark; `elapsed_s` passed since the last time.

        One that was in use in between, or has another mark, begins anew.
        """
        self._seen = self.after(now, elapsed_s)._seen

    def after(self, now: Mapping[str, str], elapsed_s: float) -> "Waiting":
        """The things that wait once these were observed."""
        return Waiting(
            {
                name: (mark, found[1] + elapsed_s if (found := self._seen.get(name)) and found[0] == mark else 0.0)
                for name, mark in now.items()
            }
        )

    def waited_s(self, name: str) -> float:
        """Seconds for which a thing was seen to wait."""
        found = self._seen.get(name)
        return found[1] if found is not None else 0.0

    def due(self, grace_s: float) -> list[str]:
        """Names of things that have waited for so long."""
        return [name for name, (_, waited_s) in self._seen.items() if waited_s >= grace_s]

    def forget(self, name: str) -> None:
        """It is gone."""
        self._seen.pop(name, None)

    def all(self) -> dict[str, tuple[str, float]]:
        """Everything that waits: mark and seconds."""
        return dict(self._seen)


class Ledger:
    """Note of what waits, and of how far the catalog was."""

    def __init__(self, note: Note, catalog: CatalogState) -> None:
        """Reads the note. One of another catalog, one from a later state of this one, and one that changed by itself
        count as none: then everything waits from now on."""
        self._note = note
        self._catalog_id = catalog.id
        document = _read(note, catalog.id)
        if int(document.get("num_changes", 0)) > catalog.num_changes:
            log.warning(
                "catalog_older_than_its_note",
                advice="it is an older copy of the one that ran here last; unreferenced blobs wait from now on",
                num_changes=catalog.num_changes,
                num_changes_before=document["num_changes"],
            )
            document = {}
        self.blobs = Waiting(document.get("blobs", {}))
        self.uploads = Waiting(document.get("uploads", {}))
        self._saved: bytes | None = None
        self._saving = threading.Lock()

    def save(self, num_changes: int) -> None:
        """Write everything down durably."""
        document = {
            "format": FORMAT,
            "catalog": self._catalog_id,
            "num_changes": num_changes,
            "blobs": self.blobs.all(),
            "uploads": self.uploads.all(),
        }
        body = json.dumps(document, sort_keys=True).encode()
        with self._saving:
            if body != self._saved:
                self._note.write(f"{digest_of(body)}\n".encode() + body)
                self._saved = body


def last_num_changes(note: Note, catalog_id: str) -> int:
    """Number of changes that a catalog had when it was last noted; 0 where it never was."""
    return int(_read(note, catalog_id).get("num_changes", 0))


def _read(note: Note, catalog_id: str) -> dict[str, Any]:
    data = note.read()
    if data is None:
        return {}
    digest, _, body = data.partition(b"\n")
    if digest.decode(errors="replace") != digest_of(body):
        log.warning("removal_note_damaged")
        return {}
    document: dict[str, Any] = json.loads(body)
    return document if (document["format"], document["catalog"]) == (FORMAT, catalog_id) else {}
