"""Places where a store keeps its data, of each kind: SQLite or another database, a folder or object storage."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import Protocol

from sqlalchemy import make_url

from hotslot.content_files import Readable
from hotslot.errors import BlobNotFoundError, NotFoundError, PreconditionError
from hotslot.formats.file_names import CATALOG_FILE
from hotslot.secret_urls import masked_url
from store_service.backup.catalog_copy import blob_is_referenced, copy_catalog
from store_service.backup.database_copy import copy_database, opened_as_it_is, refers_to
from store_service.content.hold import holding
from store_service.content.keys import BlobKey, blob_name
from store_service.content.objects import ObjectBlobs
from store_service.settings import StoreSettings

HOLD_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class StorePlaces:
    """A store's places, as its settings name them."""

    data_dir: Path
    catalog_file: Path | None
    """None where the catalog is in another database than SQLite."""
    database_url: str = field(default="", repr=False)
    blob_url: str = field(default="", repr=False)
    """Empty where blobs are in `data_dir` alone."""

    @property
    def blobs_name(self) -> str:
        """The place of blobs, for people."""
        return masked_url(self.blob_url) if self.blob_url else str(self.data_dir)

    def objects(self) -> ObjectBlobs | None:
        """Object storage, where the store keeps its blobs in one; raises StoreUnavailableError."""
        return ObjectBlobs(self.blob_url) if self.blob_url else None


def places_of(settings: StoreSettings, data_dir: Path) -> StorePlaces:
    """Places that settings name, with another data folder; `data_dir` has the SQLite catalog that they do not name."""
    blob_url = settings.blob_url.value if settings.blob_url is not None else ""
    if settings.catalog_url is None:
        return StorePlaces(data_dir, data_dir / CATALOG_FILE, blob_url=blob_url)
    url = make_url(settings.catalog_url.value)
    if url.get_backend_name() == "sqlite":
        return StorePlaces(data_dir, Path(url.database or CATALOG_FILE), blob_url=blob_url)
    return StorePlaces(data_dir, None, settings.catalog_url.value, blob_url)


class LiveCatalog(Protocol):
    """The seam to a catalog that a store may be writing to."""

    def copy_to(self, target: Path) -> None:
        """Make a SQLite file of one of its states, with all that was acknowledged before.

        Raises CatalogDamagedError and StoreUnavailableError.
        """

    def refers_to(self, key: BlobKey) -> bool:
        """True while a version of it has these weights; raises as `copy_to`."""


class SqliteCatalog:
    """A catalog in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def copy_to(self, target: Path) -> None:
        """See `LiveCatalog.copy_to`."""
        copy_catalog(self._path, target)

    def refers_to(self, key: BlobKey) -> bool:
        """See `LiveCatalog.refers_to`."""
        return blob_is_referenced(self._path, key)


class DatabaseCatalog:
    """A catalog in PostgreSQL, or another server's database."""

    def __init__(self, url: str) -> None:
        self._url = url

    def copy_to(self, target: Path) -> None:
        """See `LiveCatalog.copy_to`."""
        with opened_as_it_is(self._url) as engine:
            copy_database(engine, target)

    def refers_to(self, key: BlobKey) -> bool:
        """See `LiveCatalog.refers_to`."""
        with opened_as_it_is(self._url) as engine:
            return refers_to(engine, key)


def catalog_at(places: StorePlaces) -> LiveCatalog:
    """The catalog of a store; raises NotFoundError where there is none."""
    if places.catalog_file is None:
        return DatabaseCatalog(places.database_url)
    if not places.catalog_file.is_file():
        raise NotFoundError(
            f"{places.catalog_file} does not exist: {places.data_dir} is no store's data_dir, or its catalog is in "
            "another database (HOTSLOT_CATALOG_URL names it)",
            str(places.catalog_file),
        )
    return SqliteCatalog(places.catalog_file)


class PublishedPlace(Protocol):
    """The seam to where published blobs lie."""

    def open(self, key: BlobKey) -> AbstractContextManager[tuple[Readable, int]]:
        """A blob's bytes, unverified, and their number; raises BlobNotFoundError and StoreUnavailableError."""


class FolderPlace:
    """Blobs in a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir

    @contextmanager
    def open(self, key: BlobKey) -> Iterator[tuple[Readable, int]]:
        """See `PublishedPlace.open`."""
        try:
            file = (self._data_dir / blob_name(key)).open("rb")
        except FileNotFoundError as exc:
            raise BlobNotFoundError(key[1]) from exc
        with file:
            yield file, (self._data_dir / blob_name(key)).stat().st_size


class ObjectPlace:
    """Blobs in object storage."""

    def __init__(self, objects: ObjectBlobs) -> None:
        self._objects = objects

    @contextmanager
    def open(self, key: BlobKey) -> Iterator[tuple[Readable, int]]:
        """See `PublishedPlace.open`."""
        found = self._objects.find(key)
        if found is None:
            raise BlobNotFoundError(key[1])
        generation, size_bytes = found
        yield _Stretches(self._objects.read(key, size_bytes, generation)), size_bytes


class _Stretches(RawIOBase):
    """Pieces that come one after the other, read as a file."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, as many as are wanted unless the end comes before."""
        found = bytearray()
        while size < 0 or len(found) < size:
            if not self._left:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._left = piece
            taken = self._left if size < 0 else self._left[: size - len(found)]
            found += taken
            self._left = self._left[len(taken) :]
        return bytes(found)


def blobs_at(places: StorePlaces) -> PublishedPlace:
    """The blobs of a store; raises StoreUnavailableError."""
    objects = places.objects()
    return ObjectPlace(objects) if objects is not None else FolderPlace(places.data_dir)


def removing_nothing(places: StorePlaces) -> AbstractContextManager[None]:
    """Keep the store on this data folder from removing anything; raises StoreUnavailableError."""
    if places.data_dir.is_dir():
        return holding(places.data_dir, HOLD_TIMEOUT_S)
    if not places.blob_url:
        raise PreconditionError(f"{places.data_dir} is no folder", str(places.data_dir))
    return nullcontext()
