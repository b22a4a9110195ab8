"""Pulls: versions written as PEFT folders, which appear only once they are whole."""

import asyncio
import json
import tempfile
from contextlib import suppress
from pathlib import Path

from hotslot.clients.blobs import BlobTransfer
from hotslot.contract.catalog import Version
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import parse_manifest
from hotslot.formats.peft_folder import write_peft_folder


def check_target(folder: Path) -> None:
    """Raise InvalidRequestError where a pull would write over something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = f"{folder} is there and not an empty folder; name another, and nothing is overwritten"
        raise InvalidRequestError([FieldViolation("folder", problem)])
    if not folder.absolute().parent.is_dir():
        raise InvalidRequestError([FieldViolation("folder", f"{folder.absolute().parent} is not a folder; make it")])


async def pull_version(blobs: BlobTransfer, version: Version, base: BaseSpec, folder: Path) -> None:
    """Write a version's PEFT folder; raises InvalidAdapterError for what PEFT cannot express."""
    manifest = parse_manifest(version.manifest_json, version.digest)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent) as scratch:
        blob, made = Path(scratch) / "blob", Path(scratch) / "folder"
        made.mkdir()
        await blobs.download(manifest.weights_digest, blob)
        await asyncio.to_thread(_write, blob, made, version, base)
        made.rename(folder)


def _write(blob: Path, folder: Path, version: Version, base: BaseSpec) -> None:
    manifest = parse_manifest(version.manifest_json, version.digest)
    with blob.open("rb") as file:
        write_peft_folder(folder, file, manifest, base, uses_rslora=_uses_rslora(version.config_json))


def _uses_rslora(config_json: str) -> bool:
    """Tell if the config that was admitted has the other scaling, which gives its alphas back as they were."""
    with suppress(ValueError, AttributeError):
        return json.loads(config_json).get("use_rslora") is True
    return False
