"""`python -m store_service.backup create|restore|verify`: backups of the store that its settings describe.

Run it with the settings of the store (HOTSLOT_DATA_DIR, HOTSLOT_CATALOG_URL, HOTSLOT_BLOB_URL), and for a data folder
where the store runs, as the same user; `create` while it runs or not, `restore` while it does not.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hotslot import errors
from hotslot.formats.file_names import CATALOG_FILE
from hotslot.rpc.status import row_for
from shared.settings import load
from store_service.backup.manifest import BackupManifest
from store_service.backup.places import STREAM, reading_from, writing_to
from store_service.backup.restoring import restore_backup, verify_backup
from store_service.backup.store_places import places_of
from store_service.backup.taking import take_backup
from store_service.settings import StoreSettings

PROG = "python -m store_service.backup"
EXIT_FAILURE = 1
# As those of the `hotslot` command; the first class that fits decides.
_EXIT_CODES: tuple[tuple[type[errors.HotslotError], int], ...] = (
    (errors.InvalidRequestError, 2),
    (errors.NotFoundError, 3),
    (errors.PreconditionError, 5),
    (errors.UnavailableError, 7),
    (errors.DigestMismatchError, 8),
    (errors.CatalogDamagedError, 8),
)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or what the failure stands for."""
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", type=Path, help="the store's data_dir; by default HOTSLOT_DATA_DIR")
    shared.add_argument("--json", action="store_true", help="print one JSON object, on stderr where stdout is taken")
    commands = parser.add_subparsers(dest="command", required=True)
    place = "a folder, a file that ends with .tar, or - for a stream of one"
    for name, help_text in (
        ("create", "copy the catalog and its blobs, while the store runs"),
        ("restore", "make an empty data_dir of a backup, once all of it is verified"),
        ("verify", "compare every byte of a backup with what it says"),
    ):
        commands.add_parser(name, help=help_text, parents=[shared]).add_argument("backup", help=place)
    options = parser.parse_args(arguments)
    settings = load(StoreSettings, prog=PROG, argv=[])
    data_dir = options.data_dir or settings.data_dir
    try:
        manifest = _COMMANDS[options.command](settings, data_dir, options.backup)
    except errors.HotslotError as exc:
        return _report(exc, as_json=options.json)
    except OSError as exc:
        where = f" {exc.filename}" if exc.filename is not None else ""
        sys.stderr.write(f"hotslot: cannot read or write{where}: {exc.strerror or exc}\n")
        return EXIT_FAILURE
    out = sys.stderr if options.command == "create" and options.backup == STREAM else sys.stdout
    size_bytes = sum(manifest.blobs.values()) + manifest.catalog.size_bytes
    if options.json:
        document: dict[str, Any] = {
            "backup": options.backup,
            "data_dir": str(data_dir),
            "catalog_id": manifest.catalog_id,
            "create_time": manifest.create_time,
            "num_blobs": len(manifest.blobs),
            "size_bytes": size_bytes,
            "num_elsewhere": len(manifest.elsewhere),
        }
        out.write(json.dumps(document) + "\n")
        return 0
    done = {"create": "backed up to", "restore": f"restored to {data_dir} from", "verify": "verified:"}
    blobs = f"{len(manifest.blobs)} blob{'s' * (len(manifest.blobs) != 1)}"
    out.write(f"{done[options.command]} {options.backup}: the catalog of {manifest.create_time} with {blobs}\n")
    if manifest.elsewhere:
        sys.stderr.write(
            f"{len(manifest.elsewhere)} more were not on the store's disk: the backup names the commits that the store "
            "fetches them from when they are wanted\n"
        )
    return 0


def _create(settings: StoreSettings, data_dir: Path, backup: str) -> BackupManifest:
    if backup != STREAM and Path(backup).resolve().is_relative_to(data_dir.resolve()):
        problem = f"{backup} is inside of the store's data folder, and would be lost with it; name a place outside"
        raise errors.InvalidRequestError([errors.FieldViolation("backup", problem)], problem)
    with writing_to(backup, sys.stdout.buffer) as target:
        return take_backup(places_of(settings, data_dir), target, _show_progress)


def _restore(settings: StoreSettings, data_dir: Path, backup: str) -> BackupManifest:
    places = places_of(settings, data_dir)
    if places.catalog_file not in (None, data_dir / CATALOG_FILE):
        raise errors.PreconditionError(
            f"no restore: HOTSLOT_CATALOG_URL names {places.catalog_file}, and a restored catalog is "
            f"{data_dir / CATALOG_FILE}; unset it for the restore, and move the file there afterwards",
            "catalog_url",
        )
    return restore_backup(reading_from(backup, sys.stdin.buffer), backup, places)


def _verify(settings: StoreSettings, data_dir: Path, backup: str) -> BackupManifest:
    # One blob after the other passes through: only the catalog is looked into.
    with tempfile.TemporaryDirectory(prefix="hotslot-backup-") as scratch:
        return verify_backup(reading_from(backup, sys.stdin.buffer), backup, Path(scratch), lambda key, path: None)


_COMMANDS: dict[str, Callable[[StoreSettings, Path, str], BackupManifest]] = {
    "create": _create,
    "restore": _restore,
    "verify": _verify,
}


def _show_progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {of} blobs" + "\n" * (done == of))
        sys.stderr.flush()


def _report(error: errors.HotslotError, *, as_json: bool) -> int:
    if as_json:
        document = {"reason": row_for(error).reason, "message": error.message, "violations": []}
        sys.stderr.write(json.dumps({"error": document}) + "\n")
    else:
        sys.stderr.write(f"hotslot: {' '.join(error.message.split())}\n")
    return next((code for cls, code in _EXIT_CODES if isinstance(error, cls)), EXIT_FAILURE)


if __name__ == "__main__":
    sys.exit(main())
