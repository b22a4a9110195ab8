"""Restores a backup into an empty store: the catalog is in its place last, once everything was verified."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hotslot.content_files import READ_ONLY, Readable, make_directory, sync_directory, write_file
from hotslot.errors import DigestMismatchError, PreconditionError, StoreUnavailableError
from hotslot.formats.file_names import CATALOG_FILE
from store_service.backup.catalog_copy import begin_new_history, check_catalog, referenced_blobs
from store_service.backup.database_copy import fill_database, require_no_catalog
from store_service.backup.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    BackedUpFile,
    BackupManifest,
    parse_manifest,
)
from store_service.backup.places import NamedFiles, incomplete
from store_service.backup.store_places import StorePlaces
from store_service.content.keys import BLOBS_FOLDER, BlobKey, blob_key
from store_service.content.objects import ObjectBlobs
from store_service.content.ownership import FolderOwner
from store_service.opening import LOCK_FILE, locked

STAGE = ".restoring"


def restore_backup(files: NamedFiles, where: str, places: StorePlaces) -> BackupManifest:
    """Make a store of a backup, of whatever kinds its places are.

    Raises PreconditionError where something is in one of them or the backup is incomplete, DigestMismatchError and
    CatalogDamagedError where the backup is not what was written, and StoreUnavailableError where a store runs; the
    places are as empty as before then.
    """
    data_dir, objects = places.data_dir, places.objects()
    _require_empty(data_dir)
    if places.catalog_file is None:
        require_no_catalog(places.database_url)
    if objects is not None and objects.keys():
        raise PreconditionError(
            f"{places.blobs_name} is not empty, and a restore overwrites nothing: name another bucket or prefix",
            "blob_url",
        )
    had_lock = (data_dir / LOCK_FILE).exists()
    with locked(data_dir), _as_before(data_dir, had_lock=had_lock), _stage(data_dir) as stage:
        with _uploading(objects) as upload:
            manifest = verify_backup(files, where, stage, upload)
            begin_new_history(stage / CATALOG_FILE)
            _sync(stage / CATALOG_FILE)
            # Blobs first: a store refuses to start on those alone, where a catalog alone would start without them.
            if objects is not None:
                objects.claim(manifest.catalog_id, adopt=True)
            else:
                make_directory(stage / BLOBS_FOLDER)
                FolderOwner(stage / BLOBS_FOLDER).write(manifest.catalog_id)
                (stage / BLOBS_FOLDER).rename(data_dir / BLOBS_FOLDER)
                sync_directory(data_dir)
            if places.catalog_file is None:
                fill_database(stage / CATALOG_FILE, places.database_url)
        if places.catalog_file is not None:
            (stage / CATALOG_FILE).rename(data_dir / CATALOG_FILE)
            sync_directory(data_dir)
    return manifest


OnBlob = Callable[[BlobKey, Path], None]
"""Takes a blob that was verified from where it was staged."""


def verify_backup(files: NamedFiles, where: str, stage: Path, on_blob: OnBlob | None = None) -> BackupManifest:
    """Copy a backup into a folder, and compare every byte of it with what it says; raises as `restore_backup`.

    With `on_blob` each blob is handed on once it was compared, and does not stay in the folder.
    """
    found: dict[str, BackedUpFile] = {}
    manifest: BackupManifest | None = None
    for name, file in files:
        if name == MANIFEST:
            manifest = parse_manifest(file.read(MAX_MANIFEST_BYTES))
            break
        found[name] = _write(stage, name, file)
        key = blob_key(name)
        if key is not None and found[name].digest != key[1]:
            raise DigestMismatchError(f"{name} in {where}", found[name].digest, key[1])
        if key is not None and on_blob is not None:
            on_blob(key, stage / name)
            (stage / name).unlink()
    if manifest is None:
        raise incomplete(where, f"{MANIFEST}, which is written last, is missing")
    _compare(found, manifest, where)
    _check_references(stage, manifest, where)
    return manifest


@contextmanager
def _uploading(objects: ObjectBlobs | None) -> Iterator[OnBlob | None]:
    """Takes blobs to object storage, where there is any; what was taken goes again when the block fails."""
    if objects is None:
        yield None
        return
    taken: list[BlobKey] = []
    owner = objects.owner()

    def take(key: BlobKey, path: Path) -> None:
        taken.append(key)
        objects.put(key, path)

    try:
        yield take
    except BaseException:
        with suppress(StoreUnavailableError):
            for key in taken:
                objects.delete(key)
            if owner is None:
                objects.disown()
            else:
                objects.claim(owner, adopt=True)
        raise


def _compare(found: dict[str, BackedUpFile], manifest: BackupManifest, where: str) -> None:
    catalog = found.pop(CATALOG_FILE, None)
    if catalog is None:
        raise incomplete(where, f"{CATALOG_FILE} is missing")
    if catalog != manifest.catalog:
        raise DigestMismatchError(f"{CATALOG_FILE} in {where}", catalog.digest, manifest.catalog.digest)
    blobs = {key: content.size_bytes for name, content in found.items() if (key := blob_key(name)) is not None}
    if missing := manifest.blobs.keys() - blobs.keys():
        raise incomplete(where, f"{len(missing)} of {len(manifest.blobs)} blobs are missing, {min(missing)[1]} first")
    if blobs != manifest.blobs:
        raise incomplete(where, f"it has {len(blobs)} blobs, and {MANIFEST} describes {len(manifest.blobs)}")


def _check_references(stage: Path, manifest: BackupManifest, where: str) -> None:
    """See that catalog and manifest speak of the same; raises as `restore_backup`."""
    catalog_id = check_catalog(stage / CATALOG_FILE)
    if catalog_id != manifest.catalog_id:
        raise incomplete(where, f"{CATALOG_FILE} is {catalog_id}, and {MANIFEST} describes {manifest.catalog_id}")
    known = manifest.blobs.keys() | manifest.elsewhere.keys()
    if missing := referenced_blobs(stage / CATALOG_FILE).keys() - known:
        raise incomplete(
            where, f"versions refer to {len(missing)} blobs that it does not have, {min(missing)[1]} first"
        )


def _write(stage: Path, name: str, file: Readable) -> BackedUpFile:
    mode = READ_ONLY if blob_key(name) is not None else None
    return BackedUpFile(*write_file(stage / name, file, mode=mode))


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _require_empty(data_dir: Path) -> None:
    """Raises PreconditionError, having changed nothing."""
    nearest = next(place for place in (data_dir, *data_dir.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise PreconditionError(
            f"{nearest} is a file; a restore needs a folder: name an empty one, or a new one", str(data_dir)
        )
    if not data_dir.exists():
        return
    held = sorted(path.name for path in data_dir.iterdir() if path.name not in (LOCK_FILE, "lost+found"))
    if held:
        hint = ""
        if STAGE in held:
            hint = "; an earlier restore was interrupted: remove what it left"
        elif "store" in held or "logs" in held:
            hint = f"; the store of `hotslot up` is in {data_dir / 'store'}"
        raise PreconditionError(
            f"{data_dir} is not empty ({', '.join(held[:5])}{', …' * (len(held) > 5)}), and a restore overwrites "
            f"nothing: name an empty folder, or move these away first{hint}",
            str(data_dir),
        )


@contextmanager
def _as_before(data_dir: Path, *, had_lock: bool) -> Iterator[None]:
    """Remove the lock's file, while it is held, when the block fails and the file was not there before."""
    try:
        yield
    except BaseException:
        if not had_lock:
            (data_dir / LOCK_FILE).unlink()
        raise


@contextmanager
def _stage(data_dir: Path) -> Iterator[Path]:
    stage = data_dir / STAGE
    make_directory(stage)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
