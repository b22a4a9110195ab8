"""Blobs in object storage (S3, Google Cloud Storage, Azure, a mounted folder): the durable tier below the local disk.

`<url>/blobs/<tenant>/<first two hex digits>/<hex>`, with `.<generation>` behind it where the blob was removed before
(`store_service.catalog.blob_claims`). `<url>/owner` names the catalog that these blobs belong to: a
store with another catalog would take them for garbage. Credentials and endpoints come from where each provider's
own tools look for them (for S3 the AWS_* variables). Everything here blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from hotslot.errors import BlobNotFoundError, StoreUnavailableError
from store_service.content.keys import BLOBS_FOLDER, BlobKey, blob_name, object_key, object_name

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

SCHEMES = ("s3", "gs", "az", "file")
READ_BYTES = 8 * 1024 * 1024
RETRY_AFTER_S = 5.0
OWNER = "owner"
NOTE = "waiting"


class ObjectBlobs:
    """Blobs below one URL of an object store."""

    def __init__(self, url: str) -> None:
        """Raises StoreUnavailableError when the URL cannot be used; nothing is asked over the network yet."""
        scheme = url.partition("://")[0]
        if scheme not in SCHEMES:
            raise StoreUnavailableError(f"blob_url has scheme {scheme!r}, expected one of {', '.join(SCHEMES)}")
        try:
            # An optional package, and half a second of a start that may not need it.
            import obstore
            from obstore.store import from_url
        except ImportError as exc:
            raise StoreUnavailableError("blob_url needs the package obstore: pip install 'hotslot[objects]'") from exc
        self._obstore = obstore
        with self._failures_are_typed("opening"):
            self._objects: ObjectStore
            if scheme == "file":
                self._objects = from_url(url, mkdir=True)
            else:
                retry: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(seconds=20)}
                self._objects = from_url(url, retry_config=retry)

    def owner(self) -> str | None:
        """The catalog that the blobs say they belong to; None where they say nothing. Raises StoreUnavailableError."""
        found = self.read_small(OWNER)
        return found.decode(errors="replace")[:64] if found is not None else None

    def claim(self, owner: str, *, adopt: bool = False) -> None:
        """Make the blobs this catalog's, or, with `adopt`, take them over from another.

        Raises StoreUnavailableError when they are another's.
        """
        with self._failures_are_typed("claiming"):
            try:
                self._obstore.put(self._objects, OWNER, owner.encode(), mode="overwrite" if adopt else "create")
                return
            except self._obstore.exceptions.AlreadyExistsError:
                found = self.owner()
        if found != owner:
            raise StoreUnavailableError(
                f"blob_url holds the blobs of another catalog ({found!r}, this one is {owner!r}); give each catalog a "
                "URL of its own"
            )

    def disown(self) -> None:
        """Take the mark of `claim` away; harmless where there is none. Raises StoreUnavailableError."""
        with self._failures_are_typed("disowning"), suppress(FileNotFoundError):
            self._obstore.delete(self._objects, OWNER)

    def write_small(self, name: str, data: bytes) -> None:
        """Replace a small object that is no blob; raises StoreUnavailableError."""
        with self._failures_are_typed(f"writing {name}"):
            self._obstore.put(self._objects, name, data)

    def read_small(self, name: str) -> bytes | None:
        """Bytes of such an object, or None; raises StoreUnavailableError."""
        with self._failures_are_typed(f"reading {name}"):
            try:
                return bytes(self._obstore.get(self._objects, name).bytes())
            except FileNotFoundError:
                return None

    def list_small(self, folder: str) -> dict[str, str]:
        """Names of such objects in a folder, each with a mark that changes when it is written; raises as above."""
        found: dict[str, str] = {}
        with self._failures_are_typed(f"listing {folder}"):
            for page in self._obstore.list(self._objects, prefix=folder):
                found.update((meta["path"], meta["last_modified"].isoformat()) for meta in page)
        return found

    def delete_small(self, name: str) -> None:
        """Remove such an object; harmless when it is not there. Raises StoreUnavailableError."""
        with self._failures_are_typed(f"deleting {name}"), suppress(FileNotFoundError):
            self._obstore.delete(self._objects, name)

    def put(self, key: BlobKey, path: Path, generation: int = 0) -> None:
        """Store a blob durably; raises StoreUnavailableError."""
        with self._failures_are_typed(f"storing {key[1]}"):
            self._obstore.put(self._objects, object_name(key, generation), path)

    def size_bytes(self, key: BlobKey, generation: int = 0) -> int | None:
        """Size of a stored blob, or None where there is none; raises StoreUnavailableError."""
        with self._failures_are_typed(f"looking for {key[1]}"):
            try:
                return int(self._obstore.head(self._objects, object_name(key, generation))["size"])
            except FileNotFoundError:
                return None

    def read(self, key: BlobKey, size_bytes: int, generation: int = 0) -> Iterator[memoryview]:
        """A blob's bytes, unverified; raises BlobNotFoundError and StoreUnavailableError."""
        name = object_name(key, generation)
        # Each stretch is a request of its own, with its own timeout and retries.
        for start in range(0, size_bytes, READ_BYTES):
            end = min(start + READ_BYTES, size_bytes)
            with self._failures_are_typed(f"reading {key[1]}"):
                try:
                    data = self._obstore.get_range(self._objects, name, start=start, end=end)
                except FileNotFoundError as exc:
                    raise BlobNotFoundError(key[1]) from exc
            yield memoryview(data)

    def delete(self, key: BlobKey, generation: int = 0) -> None:
        """Remove a blob; harmless when it is not there. Raises StoreUnavailableError."""
        with self._failures_are_typed(f"deleting {key[1]}"):
            try:
                self._obstore.delete(self._objects, object_name(key, generation))
            except FileNotFoundError:
                return

    def keys(self) -> set[BlobKey]:
        """All blobs; raises StoreUnavailableError."""
        return set(self.found())

    def find(self, key: BlobKey, generation: int = 0) -> tuple[int, int] | None:
        """Generation and size of a blob, wherever it is: of this generation first, since it should be that one.

        A catalog that was restored from an older copy knows other names than there are. Raises StoreUnavailableError.
        """
        size_bytes = self.size_bytes(key, generation)
        if size_bytes is not None:
            return generation, size_bytes
        with self._failures_are_typed(f"looking for {key[1]}"):
            folder = blob_name(key).rpartition("/")[0]
            metas = [meta for page in self._obstore.list(self._objects, prefix=folder) for meta in page]
        sizes = {found[1]: meta["size"] for meta in metas if (found := object_key(meta["path"])) and found[0] == key}
        return max(sizes.items(), default=None)

    def found(self) -> dict[BlobKey, dict[int, int]]:
        """All blobs, with the sizes of their objects by generation; raises StoreUnavailableError."""
        found: dict[BlobKey, dict[int, int]] = {}
        with self._failures_are_typed("listing blobs"):
            for page in self._obstore.list(self._objects, prefix=BLOBS_FOLDER):
                for meta in page:
                    if (known := object_key(meta["path"])) is not None:
                        found.setdefault(known[0], {})[known[1]] = int(meta["size"])
        return found

    @contextmanager
    def _failures_are_typed(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as exc:
            # The library's first line says what; the rest is its own innards.
            cause = str(exc).partition("\n")[0][:300]
            raise StoreUnavailableError(
                f"object storage cannot be used now ({doing}): {cause}", retry_after_s=RETRY_AFTER_S
            ) from exc


class ObjectNote:
    """A small document beside the blobs, which outlives the disk of whatever store serves them."""

    def __init__(self, objects: ObjectBlobs) -> None:
        self._objects = objects

    def read(self) -> bytes | None:
        """Bytes that were written last; None where nothing was."""
        return self._objects.read_small(NOTE)

    def write(self, data: bytes) -> None:
        """Replace it durably."""
        self._objects.write_small(NOTE, data)
