"""Commands on a store's data, where its settings are: backup, restore.

The work is that of the store's own program, `python -m store_service.backup`, with the store's settings; these commands
find the folder.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from hotslot.cli.options import JsonOption
from hotslot.errors import InvalidRequestError
from hotslot.formats.file_names import CATALOG_FILE

UP_DATA_DIR = Path("~/.local/share/hotslot")
STORE_FOLDER = "store"
"""Folder of the store in that of `hotslot up`."""
StoreDirOption = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="HOTSLOT_DATA_DIR",
        metavar="DIR",
        help="The store's data folder; by default that of `hotslot up`, ~/.local/share/hotslot/store.",
    ),
]


def backup(
    target: Annotated[
        str, typer.Argument(metavar="DIR|FILE.tar|-", help="A new or empty folder, a new .tar file, or - for a stream.")
    ],
    data_dir: StoreDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the store's catalog and blobs, in one consistent state, while the store runs.

    For the machine that the store is on: `kubectl exec hotslot-store-0 -- hotslot backup - > backup.tar` for a pod.
    Every adapter that was acknowledged before is in it; uploads that were not admitted, and compiled code, are not. A
    copy of catalog.sqlite3 alone is none: of a running store it lacks what is in catalog.sqlite3-wal. For a store with
    PostgreSQL or object storage set HOTSLOT_CATALOG_URL and HOTSLOT_BLOB_URL as for the store, on any machine.

    JSON: {backup, data_dir, catalog_id, create_time, num_blobs, size_bytes, num_elsewhere}; on stderr for -.
    """
    folder = _chosen(data_dir)
    if not (folder / CATALOG_FILE).exists() and (folder / STORE_FOLDER / CATALOG_FILE).exists():
        folder /= STORE_FOLDER
    _run("create", target, folder, as_json=as_json)


def restore(
    source: Annotated[
        str, typer.Argument(metavar="DIR|FILE.tar|-", help="A backup that `hotslot backup` made; - for a stream of it.")
    ],
    data_dir: StoreDirOption = None,
    check: Annotated[bool, typer.Option("--check", help="Verify the backup, and restore nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make an empty data folder of a backup, once every byte of it is verified; then start the store on it.

    With HOTSLOT_CATALOG_URL and HOTSLOT_BLOB_URL it becomes that database and that bucket's content, whatever kind of
    store the backup is of. Nothing is overwritten: move what is there away first. Workers follow the restored catalog
    by themselves.

    JSON: {backup, data_dir, catalog_id, create_time, num_blobs, size_bytes, num_elsewhere}.
    """
    _run("verify" if check else "restore", source, _chosen(data_dir), as_json=as_json)


def _chosen(data_dir: Path | None) -> Path:
    return (data_dir or UP_DATA_DIR / STORE_FOLDER).expanduser()


def _run(command: str, place: str, data_dir: Path, *, as_json: bool) -> None:
    """Run the store's program on our own input and output, and end with its exit code where that is not 0."""
    if importlib.util.find_spec("store_service") is None:
        problem = "the store is not installed here; run this on the machine, or in the pod, that it is on"
        raise InvalidRequestError([], problem)
    arguments = [sys.executable, "-m", "store_service.backup", command, place, "--data-dir", str(data_dir)]
    finished = subprocess.run([*arguments, *(["--json"] if as_json else [])], check=False)
    if finished.returncode:
        raise typer.Exit(finished.returncode if finished.returncode > 0 else 1)
