"""Calls of the store's client that have it import an adapter; each is a method of `StoreClient`."""

from collections.abc import Mapping
from typing import Protocol

from hotslot.clients.admission import Admission, OnProgress
from hotslot.contract.catalog import Version
from hotslot.rpc.pool import Closable


class ImportCalls(Closable, Protocol):
    """The part of the store's client that imports go through."""

    _admission: Admission


async def import_hub(
    self: ImportCalls,
    repo_id: str,
    reference: str,
    *,
    revision: str = "",
    subfolder: str = "",
    base_model: str = "",
    labels: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> Version:
    """Have the store fetch a Hugging Face repository and admit it as `name[:tag]`."""
    source = {"hub": {"repo_id": repo_id, "revision": revision, "subfolder": subfolder}}
    return await self._admission.import_(source, reference, base_model, labels, on_progress)


async def import_directory(
    self: ImportCalls,
    path: str,
    reference: str,
    *,
    base_model: str = "",
    labels: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> Version:
    """Have the store admit a folder of its own machine, inside one of its allowed roots."""
    source = {"directory": {"path": path}}
    return await self._admission.import_(source, reference, base_model, labels, on_progress)


async def import_url(
    self: ImportCalls,
    url: str,
    reference: str,
    *,
    digest: str = "",
    base_model: str = "",
    labels: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> Version:
    """Have the store admit a folder of object storage (s3, gs, az), or an https archive with its digest.

    The store's operator has allowed the tenant the URL's prefix, and has the credentials.
    """
    source = {"url": {"url": url, "digest": digest}}
    return await self._admission.import_(source, reference, base_model, labels, on_progress)
