"""The catalog in a backup: copied from one that is being written to, looked through, and made a store's own again."""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from hotslot.errors import CatalogDamagedError, StoreUnavailableError
from hotslot.ids import Digest, TenantId
from store_service.catalog.tables import blob_claims, blob_generations, damaged_objects, leases
from store_service.content.keys import BlobKey

TIMEOUT_S = 60.0
LOST_CHANGES = 1_000_000
"""Revisions that a restored catalog skips: more than a tenant can have made after the backup was taken."""


def copy_catalog(source: Path, target: Path) -> None:
    """Copy a SQLite catalog in one of its states, with all that was acknowledged before, while others write to it.

    Raises CatalogDamagedError and StoreUnavailableError.
    """
    with _opened(source) as live, _opened(target, "rwc") as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, which is everything
    with target.open("rb") as file:
        os.fsync(file.fileno())


def check_catalog(path: Path) -> str:
    """The id of a catalog whose file is whole; raises CatalogDamagedError."""
    with _opened(path, "ro") as catalog:
        for pragma in ("integrity_check(1)", "foreign_key_check"):
            first = catalog.execute(f"PRAGMA {pragma}").fetchone()
            if first is not None and first[0] != "ok":
                raise CatalogDamagedError(f"{pragma} found {' '.join(str(part) for part in first)}")
        return str(catalog.execute("SELECT id FROM catalog_identity").fetchone()[0])


def referenced_blobs(path: Path) -> dict[BlobKey, list[str]]:
    """The weights of all versions, deleted adapters' included, each with where its versions came from."""
    found: dict[BlobKey, list[str]] = {}
    with _opened(path, "ro") as catalog:
        for tenant, digest, source in catalog.execute(
            "SELECT adapters.tenant, versions.weights_digest, versions.source FROM versions "
            "JOIN adapters ON adapters.id = versions.adapter_id ORDER BY versions.id DESC"
        ):
            found.setdefault((TenantId(tenant), Digest(digest)), []).append(source)
    return found


def blob_is_referenced(path: Path, key: BlobKey) -> bool:
    """True while a version of a catalog has these weights."""
    with _opened(path, "ro") as catalog:
        found = catalog.execute(
            "SELECT 1 FROM versions JOIN adapters ON adapters.id = versions.adapter_id "
            "WHERE adapters.tenant = ? AND versions.weights_digest = ? LIMIT 1",
            key,
        )
        return found.fetchone() is not None


def forget_versions(path: Path, keys: Iterable[BlobKey]) -> None:
    """Take the versions with these weights out of a copy, with their tags: they were deleted after it was made."""
    with _opened(path) as catalog, catalog:
        catalog.execute("PRAGMA foreign_keys = ON")
        catalog.executemany(
            "DELETE FROM versions WHERE weights_digest = ?2 AND adapter_id IN "
            "(SELECT id FROM adapters WHERE tenant = ?1)",
            keys,
        )


def begin_new_history(path: Path) -> None:
    """Leave behind all revisions of changes that this copy has not seen, so that no watch goes on from one of them.

    Watchers of the store that was lost hear REVISION_COMPACTED and ask for everything anew. Leases of then have ended,
    and objects are restored under their first names.
    """
    with _opened(path) as catalog, catalog:
        known = {name for (name,) in catalog.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table in known & {leases.name, blob_claims.name, blob_generations.name, damaged_objects.name}:
            catalog.execute(f"DELETE FROM {table}")
        catalog.execute("UPDATE tenants SET revision = revision + ?", (LOST_CHANGES,))
        catalog.execute("UPDATE tenants SET oldest_revision = revision")


@contextmanager
def _opened(path: Path, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=TIMEOUT_S)) as found:
            yield found
    except sqlite3.OperationalError as exc:
        raise StoreUnavailableError(f"the catalog {path} cannot be used: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise CatalogDamagedError(f"{path}: {exc}") from exc
