"""Checkpoints in folders of object storage: the known files, each as it was when it was looked at.

Objects are asked for by their names and never listed: a tenant's row may be for reading alone.
"""

import json
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from hotslot.errors import QuotaExceededError, SourceChangedError, SourceForbiddenError, SourceNotFoundError
from hotslot.formats.companions import COMPANION_FILES, MAX_FILE_BYTES, read_companions
from hotslot.formats.file_names import (
    CHECKPOINT_FILES,
    CONFIG_FILE,
    INDEX_FILE,
    MAX_SHARDS,
    SIGNATURE_FILE,
    WEIGHTS_FILES,
)
from hotslot.ids import digest_of, hex_of
from hotslot.source_urls import ObjectFolderUrl
from store_service.admission.admit import PICKLE_FILES, Checkpoint
from store_service.admission.shards import shard_names
from store_service.execution.full_disk import no_room_is_a_quota
from store_service.sources.access import SourceGrant
from store_service.sources.remote.options import WebOptions
from store_service.sources.remote.requests import SourceRequests, WebFile
from store_service.sources.remote.signing import ObjectAddresses
from store_service.sources.source import ReportBytes, no_adapter_message

log = structlog.get_logger(__name__)

MAX_INDEX_BYTES = 16 * 2**20
ETAGS_CHARS = 16
"""Digits of the digest of ETags in an origin."""


def resolve_objects(url: ObjectFolderUrl, grant: SourceGrant, options: WebOptions, max_bytes: int) -> "ObjectsContent":
    """Look at a folder's known files; raises as `Source.resolve`."""
    folder = _Folder(url, ObjectAddresses(url, grant), options, max_bytes)
    with SourceRequests(str(url), options, folder.addresses.begin) as requests:
        return folder.content(requests)


class _Folder:
    """One folder, with what it takes to ask for its files."""

    def __init__(self, url: ObjectFolderUrl, addresses: ObjectAddresses, options: WebOptions, max_bytes: int) -> None:
        self.url = url
        self.addresses = addresses
        self.options = options
        self.max_bytes = max_bytes

    def content(self, requests: SourceRequests) -> "ObjectsContent":
        """The files that are there now; raises as `Source.resolve`."""
        found: dict[str, WebFile] = {}
        refusal: SourceForbiddenError | None = None
        for name in (*CHECKPOINT_FILES, INDEX_FILE, *PICKLE_FILES, *COMPANION_FILES, SIGNATURE_FILE):
            try:
                file = requests.look(name, self.addresses.of(name))
            except SourceForbiddenError as exc:
                # Where no listing is allowed, a file that is not there is refused as one that may not be read.
                refusal = refusal or exc
                continue
            if file is not None:
                found[name] = file
        pickles = [name for name in PICKLE_FILES if found.pop(name, None) is not None]
        if INDEX_FILE in found and not any(name in found for name in WEIGHTS_FILES):
            found |= self._shards(requests, found[INDEX_FILE])
        found.pop(INDEX_FILE, None)
        weights = [name for name in found if name in WEIGHTS_FILES or shard_names([name])]
        if not weights and not pickles and refusal is not None:
            raise refusal
        if not weights and not pickles and CONFIG_FILE not in found:
            raise SourceNotFoundError(no_adapter_message(str(self.url), [], [], ""), str(self.url))
        files = [
            file for name, file in found.items() if name not in COMPANION_FILES or file.size_bytes <= MAX_FILE_BYTES
        ]
        size_bytes = sum(file.size_bytes for file in files)
        if size_bytes > self.max_bytes:
            message = f"{self.url} has {size_bytes} bytes, at most {self.max_bytes} are taken"
            raise QuotaExceededError(message, subject="max_adapter_bytes")
        return ObjectsContent(self, files, pickles)

    def _shards(self, requests: SourceRequests, index: WebFile) -> dict[str, WebFile]:
        data = bytearray()

        def write(more: bytes) -> int:
            data.extend(more)
            if len(data) > MAX_INDEX_BYTES:
                raise SourceForbiddenError(f"{INDEX_FILE} of {self.url} has more than {MAX_INDEX_BYTES} bytes")
            return len(data)

        requests.fetch(index, self.addresses.of(INDEX_FILE), write, threading.Event())
        try:
            names = shard_names({str(name) for name in json.loads(data)["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise SourceNotFoundError(f"{INDEX_FILE} of {self.url} names no files of weights", str(self.url)) from exc
        if len(names) > MAX_SHARDS:
            message = f"{self.url} has its weights in {len(names)} files, at most {MAX_SHARDS} are taken"
            raise QuotaExceededError(message, subject="max_shards")
        looked = ((name, requests.look(name, self.addresses.of(name))) for name in names)
        return {name: file for name, file in looked if file is not None}


class ObjectsContent:
    """The files of one folder, as they were when they were looked at."""

    def __init__(self, folder: _Folder, files: Sequence[WebFile], pickles: Sequence[str]) -> None:
        self._folder = folder
        self._files = files
        self._pickles = pickles
        stamps = json.dumps([(file.name, file.size_bytes, file.etag, file.version) for file in files])
        self.key = f"{folder.url}#{stamps}"
        """Changes with every change to the files."""
        self.origin = f"{folder.url}#etags:{hex_of(digest_of(stamps.encode()))[:ETAGS_CHARS]}"
        self.size_bytes = sum(file.size_bytes for file in files)

    def fetch(self, target: Path, report: ReportBytes, cancelled: threading.Event) -> Checkpoint:
        """Copy the files, all of one save; see `FixedCheckpoint.fetch`."""
        folder, before_bytes = self._folder, 0
        with SourceRequests(str(folder.url), folder.options, folder.addresses.begin) as requests:
            for file in self._files:
                with (target / file.name).open("xb") as copy:

                    def write(data: bytes, copy: object = copy, before_bytes: int = before_bytes) -> int:
                        with no_room_is_a_quota(f"import of {folder.url}"):
                            copy.write(data)  # type: ignore[attr-defined]
                        done_bytes = int(copy.tell())  # type: ignore[attr-defined]
                        if before_bytes + done_bytes > folder.max_bytes:
                            message = f"{folder.url} has more than {folder.max_bytes} bytes"
                            raise QuotaExceededError(message, subject="max_adapter_bytes")
                        report(before_bytes + done_bytes)
                        return done_bytes

                    size_bytes = requests.fetch(file, folder.addresses.of(file.name), write, cancelled)
                if size_bytes != file.size_bytes:
                    raise SourceChangedError(f"{file.name} of {folder.url}")
                before_bytes += size_bytes
            # The first was looked at before the last: all of them are of one save if none has changed by now.
            look = partial(self._is_the_same, requests)
            if not all(look(file) for file in self._files):
                raise SourceChangedError(str(folder.url))
        for file in self._files:
            log.info("source_read", source=str(folder.url), file=file.name, etag=file.etag, version=file.version)
        # A pickle is only ever mentioned, never fetched.
        names = (*(file.name for file in self._files), *self._pickles)
        return Checkpoint({name: target / name for name in names}, read_companions(target))

    def _is_the_same(self, requests: SourceRequests, file: WebFile) -> bool:
        return requests.look(file.name, self._folder.addresses.of(file.name)) == file
