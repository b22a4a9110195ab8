"""Pulls: versions written as PEFT folders, which appear only once they are whole."""

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

from hotslot.clients.blobs import BlobTransfer
from hotslot.contract.catalog import BaseModel, Version
from hotslot.errors import BaseModelNotFoundError, FieldViolation, InvalidRequestError
from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import parse_manifest
from hotslot.formats.peft_folder import write_peft_folder


def _check_target(folder: Path) -> None:
    """Raise InvalidRequestError where a pull would write over something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = f"{folder} is there and not an empty folder; name another, and nothing is overwritten"
        raise InvalidRequestError([FieldViolation("folder", problem)])
    if not _parent(folder).is_dir():
        raise InvalidRequestError([FieldViolation("folder", f"{_parent(folder)} is not a folder; make it")])


async def pull_version(
    blobs: BlobTransfer, version: Version, models: AsyncGenerator[BaseModel, None], folder: Path
) -> Version:
    """Write a version's PEFT folder; `models` are its base. Raises InvalidAdapterError for what PEFT cannot express."""
    _check_target(folder)
    async with aclosing(models):
        specs = [model.spec async for model in models]
    if not specs:
        raise BaseModelNotFoundError(version.base_model)
    base = next((spec for spec in specs if spec.name == version.base_model), specs[0])
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=_parent(folder)) as scratch:
        blob, made = Path(scratch) / "blob", Path(scratch) / "folder"
        made.mkdir()
        await blobs.download(version.weights_digest, blob)
        await asyncio.to_thread(_write, blob, made, version, base)
        made.rename(folder)
    return version


def _parent(folder: Path) -> Path:
    return folder.absolute().parent


def _write(blob: Path, folder: Path, version: Version, base: BaseSpec) -> None:
    manifest = parse_manifest(version.manifest_json, version.digest)
    with blob.open("rb") as file:
        write_peft_folder(folder, file, manifest, base, uses_rslora=_uses_rslora(version.config_json))


def _uses_rslora(config_json: str) -> bool:
    """Tell if the config that was admitted has the other scaling, which gives its alphas back as they were."""
    with suppress(ValueError, AttributeError):
        return json.loads(config_json).get("use_rslora") is True
    return False
