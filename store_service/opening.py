"""Opens a store's data: a catalog and the blobs that belong to it, or nothing at all."""

import os
import secrets
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import structlog
from sqlalchemy import Engine, make_url

from hotslot.content_files import make_directory, write_file
from hotslot.errors import StoreUnavailableError
from hotslot.file_lock import try_lock
from hotslot.formats.file_names import CATALOG_FILE
from hotslot.rpc.server_facts import installed_version
from hotslot.secret_urls import masked_url
from store_service.catalog.blob_claims import BlobClaims
from store_service.catalog.catalog import Catalog
from store_service.catalog.changes import OnChange
from store_service.catalog.damaged_objects import DamagedObjects
from store_service.catalog.database import migrate_database, open_database
from store_service.catalog.leases import CatalogLeases
from store_service.catalog.quota_checks import NO_QUOTAS, StoredQuotas
from store_service.catalog.running_stores import RunningStores
from store_service.catalog.schema import newest, steps
from store_service.catalog.store_notes import RunningStore
from store_service.content.folder import BlobFolder, found_below
from store_service.content.keys import BLOBS_FOLDER, BlobKey
from store_service.content.leases import Leases
from store_service.content.object_collection import ObjectCollection
from store_service.content.objects import ObjectBlobs, ObjectNote
from store_service.content.origins import retention_of
from store_service.content.ownership import NO_CATALOG, FolderOwner, Ownership, Place, require_owned
from store_service.content.store import ContentStore
from store_service.content.upload_parts import UploadParts
from store_service.content.verified import Verified
from store_service.content.waiting import FileNote, Ledger, Note, last_num_changes
from store_service.settings import StoreSettings

log = structlog.get_logger(__name__)

LOCK_FILE = "lock"
NOTE_FILE = "waiting.json"
ID_FILE = "store-id"


@dataclass(frozen=True, slots=True)
class Data:
    """Catalog and blobs of a store, open."""

    engine: Engine
    catalog: Catalog
    blobs: ContentStore
    ledger: Ledger
    ownership: Ownership
    claims: BlobClaims
    leases: CatalogLeases
    stores: RunningStores
    damaged: DamagedObjects
    parts: UploadParts | None
    """Uploads of all stores of the catalog, where there may be several."""
    objects: ObjectCollection | None
    """Collection of object storage, where there is any."""


def open_data(settings: StoreSettings, on_change: OnChange, quotas: StoredQuotas = NO_QUOTAS) -> Data:
    """Open the catalog and its blobs.

    Raises StoreUnavailableError where they do not belong together (nothing is changed then) or cannot be used, and
    CatalogDamagedError.
    """
    objects = ObjectBlobs(settings.blob_url.value) if settings.blob_url is not None else None
    note = FileNote(settings.data_dir / NOTE_FILE)
    notes: list[Note] = [note, ObjectNote(objects)] if objects is not None else [note]
    url = settings.catalog_url.value if settings.catalog_url else f"sqlite:///{settings.data_dir / CATALOG_FILE}"
    if not _is_there(url):
        # Looked at before there is a new catalog: its files would be in the way of the old one's.
        for place in _places(settings, objects):
            require_owned(place, NO_CATALOG, frozenset(), settings.adopt_blobs)
    engine = open_database(url)
    try:
        catalog = Catalog(engine, on_change, quotas)
        state, known = catalog.state(), catalog.referenced_weights()
        places = list(_places(settings, objects, max(last_num_changes(each, state.id) for each in notes)))
        for place in places:
            require_owned(place, state, known, settings.adopt_blobs)
        _warn_of_absence(places, known)
        folder = FolderOwner(settings.data_dir / BLOBS_FOLDER)
        if objects is not None:
            objects.claim(state.id, adopt=objects.owner() == settings.adopt_blobs)
        folder.write(state.id)
        holder = store_id(settings.data_dir)
        claims, leases = BlobClaims(engine, holder), CatalogLeases(engine, holder)
        own = RunningStore(holder, installed_version(), newest(), objects is not None)
        stores = RunningStores(leases, own)
        if engine.dialect.name == "sqlite":
            stores.renew()  # it is alone, and a copy of another store's catalog may say otherwise
        else:
            stores.join()
        claims.forget_own()
        blobs = ContentStore(
            BlobFolder(settings.data_dir),
            objects,
            Leases(settings.blob_lease_s),
            budget_bytes=settings.blob_cache_bytes,
            retention=partial(retention_of, catalog),
            verified=Verified(settings.verify_every_s),
            generation_of=claims.generation,
        )
    except BaseException:
        engine.dispose()
        raise
    ownership = Ownership(settings.data_dir, state.id, folder, objects)
    # A SQLite catalog has one store.
    parts = UploadParts(objects) if objects is not None and engine.dialect.name != "sqlite" else None
    collection = None
    if objects is not None:
        options = settings.collection_options
        collection = ObjectCollection(objects, claims, leases, ObjectNote(objects), ownership, options)
    return Data(
        engine,
        catalog,
        blobs,
        Ledger(note, state),
        ownership,
        claims,
        leases,
        stores,
        DamagedObjects(engine),
        parts,
        collection,
    )


def stay_known(data: Data) -> None:
    """Have other stores know that this one runs, and go on with a migration that waited for earlier releases to end."""
    data.stores.renew()
    if any(step.contracts for step in steps()):
        migrate_database(data.engine)


def leave(data: Data) -> None:
    """End what outlives the process."""
    data.blobs.save_use_times()
    try:
        data.stores.leave()
    except StoreUnavailableError as exc:
        log.warning("leave_not_told", why=exc.message)


def store_id(data_dir: Path) -> str:
    """Id of the store on a data folder, which it keeps over restarts; made with the folder."""
    path = data_dir / ID_FILE
    if not path.is_file():
        write_file(path, BytesIO(secrets.token_hex(16).encode()))
    return path.read_text().strip()[:64]


def _places(settings: StoreSettings, objects: ObjectBlobs | None, num_changes: int = 0) -> Iterator[Place]:
    folder = settings.data_dir / BLOBS_FOLDER
    found = {blob.key for blob in found_below(folder)}
    yield Place(str(folder), "data_dir", FolderOwner(folder).read(), found, num_changes)
    if objects is not None and settings.blob_url is not None:
        owner = objects.owner()
        owners = frozenset([owner]) if owner is not None else frozenset()
        yield Place(masked_url(settings.blob_url.value), "blob_url", owners, objects.keys(), num_changes)


def _warn_of_absence(places: Sequence[Place], known: Set[BlobKey]) -> None:
    names = [place.name for place in places]
    found = frozenset[BlobKey]().union(*(place.blobs for place in places))
    if num_unknown := len(found - known):
        log.warning(
            "unreferenced_blobs_found",
            advice="each stays for unreferenced_grace_s from when it was first seen so",
            places=names,
            num_blobs=num_unknown,
        )
    if known and not known & found:
        log.error(
            "no_referenced_blob_found",
            advice="is the right volume mounted?",
            places=names,
            num_blobs=len(known),
        )


def _is_there(url: str) -> bool:
    """Tell if a database exists that would otherwise be made anew; raises StoreUnavailableError for half of one."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        return True
    path = Path(parsed.database)
    if path.is_file() and path.stat().st_size:
        return True
    journal = path.with_name(path.name + "-wal")
    if journal.is_file() and journal.stat().st_size:
        raise StoreUnavailableError(
            f"{path} is missing, but its journal {journal.name} is there: the catalog was moved, or copied, without "
            "it. Bring the file back to where its journal lies, or `hotslot restore` a backup; nothing was changed"
        )
    return False


@contextmanager
def locked(data_dir: Path) -> Iterator[BinaryIO]:
    """Hold a data folder: two stores on one would remove each other's work. Raises StoreUnavailableError."""
    make_directory(data_dir.absolute())
    with (data_dir / LOCK_FILE).open("a+b") as file:
        if not try_lock(file.fileno()):
            raise StoreUnavailableError(f"another store process uses {data_dir}; give each its own data_dir")
        if not (data_dir / LOCK_FILE).exists() or not os.path.samestat(
            os.fstat(file.fileno()), (data_dir / LOCK_FILE).stat()
        ):
            raise StoreUnavailableError(f"{data_dir} was in use until now; start again")
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield file
