"""One look at a resource: what the store lacks of what its spec wants is written there, and the status says so."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import structlog

from controller_service.adapter_resource import (
    Condition,
    DeletionPolicy,
    Outcome,
    Phase,
    WantedAdapter,
    reason_of,
    wanted_of,
)
from hotslot.backoff import Backoff
from hotslot.clients.hotslot import HotslotClient
from hotslot.contract.catalog import AdapterPolicy, Version
from hotslot.contract.placement import Tier
from hotslot.errors import (
    AdapterNotFoundError,
    ConflictError,
    ExhaustedError,
    HotslotError,
    InvalidRequestError,
    NotFoundError,
    NotImplementedYetError,
    PolicyNotFoundError,
    TagNotFoundError,
    UnavailableError,
    VersionNotFoundError,
)
from hotslot.sources import HubName, StoreFolder, parse_source

log = structlog.get_logger(__name__)

RETRIED = (UnavailableError, ExhaustedError, ConflictError)
"""Errors that may be over soon."""
BACKOFF = Backoff(1.0, 120.0)
MEMORY = (Tier.SLOT, Tier.HOST)
MAX_WORKERS = 20
"""Workers that a status names; it counts all."""
Importing = Callable[[], Awaitable[None]]


class Reconciler:
    """Writes desired state to the store. Every write may be repeated, also by another controller beside this one."""

    def __init__(self, client: HotslotClient, retry_refused_s: float, backoff: Backoff = BACKOFF) -> None:
        self._client = client
        self._retry_refused_s = retry_refused_s
        self._backoff = backoff
        self._failures: dict[str, int] = {}

    async def reconcile(self, resource: dict[str, Any], importing: Importing) -> Outcome:
        """Bring the store to what the spec wants; `importing` is awaited before an import begins."""
        name = resource["metadata"]["name"]
        status = resource.get("status") or {}
        try:
            wanted = wanted_of(resource)
        except InvalidRequestError as exc:
            return Outcome(Phase.FAILED, [Condition("Ready", False, "InvalidSpec", exc.message)])
        conditions: list[Condition] = []
        facts: dict[str, Any] = {"reference": wanted.reference}
        try:
            version = await self._imported(wanted, status, importing)
            facts |= _facts_of(wanted, version)
            conditions.append(Condition("Imported", True, "Imported", f"from {version.source}"))
            facts |= await self._with_policy(wanted, status)
            if wanted.policy is not None:
                conditions.append(Condition("PolicyApplied", True, "Applied"))
            facts |= await self._placed(wanted, version)
        except HotslotError as exc:
            return self._failed(name, exc, conditions, facts)
        self._failures.pop(name, None)
        conditions.insert(0, Condition("Ready", True, "Ready", f"{wanted.reference} is {version.digest}"))
        return Outcome(Phase.READY, conditions, facts)

    async def remove(self, resource: dict[str, Any]) -> Outcome | None:
        """Do what the deletion policy says; None when it is done, so that the resource may go."""
        try:
            wanted = wanted_of(resource)
        except InvalidRequestError:
            return None  # It never was in the store.
        if wanted.deletion_policy is DeletionPolicy.KEEP:
            return None
        try:
            await self._delete(wanted)
        except HotslotError as exc:
            outcome = self._failed(resource["metadata"]["name"], exc, [], {})
            return Outcome(Phase.DELETING, outcome.conditions, {}, outcome.retry_s)
        self.forget(resource["metadata"]["name"])
        return None

    def forget(self, name: str) -> None:
        """A resource is gone."""
        self._failures.pop(name, None)

    async def _imported(self, wanted: WantedAdapter, status: dict[str, Any], importing: Importing) -> Version:
        """The version that the tag points at, imported, or pointed at again, where that is not so."""
        digest = status.get("digest", "")
        if digest and status.get("importKey") == wanted.import_key:
            with suppress(AdapterNotFoundError, VersionNotFoundError):
                pinned = f"{wanted.name}@{digest}"
                try:
                    version = (await self._client.store.resolve(wanted.reference)).version
                except TagNotFoundError:
                    version = None
                if version is None or version.digest != digest:
                    version = (await self._client.store.resolve(pinned)).version
                    await self._client.store.set_tag(wanted.name, wanted.tag, digest)
                    log.info("tag_brought_back", reference=wanted.reference, digest=digest)
                return version
        await importing()
        version = await self._import(wanted)
        log.info("adapter_imported", reference=wanted.reference, digest=version.digest, source=version.source)
        return version

    async def _import(self, wanted: WantedAdapter) -> Version:
        source = parse_source(wanted.uri, wanted.digest)
        options: dict[str, Any] = {"base_model": wanted.base_model, "labels": wanted.labels}
        store = self._client.store
        if isinstance(source, HubName):
            revision, subfolder = source.revision, source.subfolder
            return await store.import_hub(
                source.repo_id, wanted.reference, revision=revision, subfolder=subfolder, **options
            )
        if isinstance(source, StoreFolder):
            return await store.import_directory(source.path, wanted.reference, **options)
        return await store.import_url(str(source), wanted.reference, **options)

    async def _with_policy(self, wanted: WantedAdapter, status: dict[str, Any]) -> dict[str, Any]:
        """Set the policy where it is another one; one that this controller set goes when the spec has none any more."""
        store = self._client.store
        if wanted.policy is None:
            if status.get("desiredReplicas") is not None:
                with suppress(PolicyNotFoundError):
                    await store.delete_policy(wanted.name)
            return {"desiredReplicas": None}
        try:
            known: AdapterPolicy | None = await store.get_policy(wanted.name)
        except PolicyNotFoundError:
            known = None
        fields = wanted.policy.model_dump()
        if known is None or {name: getattr(known, name) for name in fields} != fields:
            await store.set_policy(wanted.name, **fields)
        return {"desiredReplicas": max(wanted.policy.min_replicas, int(wanted.policy.pinned))}

    async def _placed(self, wanted: WantedAdapter, version: Version) -> dict[str, Any]:
        """Workers that have the version in memory; nothing where the store knows of no workers."""
        try:
            workers = sorted(
                [
                    placement.worker_id
                    async for placement in self._client.placement.list_placements(adapter_digest=version.digest)
                    if placement.tier in MEMORY
                ]
            )
        except (NotImplementedYetError, UnavailableError) as exc:
            log.info("placements_unknown", reference=wanted.reference, why=str(exc))
            return {}
        return {"readyReplicas": len(workers), "workers": workers[:MAX_WORKERS]}

    async def _delete(self, wanted: WantedAdapter) -> None:
        """Remove the tag, and the adapter when it has no other one; what is gone already is no error."""
        store = self._client.store
        with suppress(NotFoundError):
            with suppress(TagNotFoundError):
                await store.delete_tag(wanted.name, wanted.tag)
            adapter = await store.get(wanted.name)
            if not adapter.tags:
                # The etag: a tag that came meanwhile keeps the adapter.
                await store.delete_adapter(wanted.name, etag=adapter.etag)
        log.info("adapter_removed", reference=wanted.reference)

    def _failed(self, name: str, exc: HotslotError, conditions: list[Condition], facts: dict[str, Any]) -> Outcome:
        """The outcome of an error: tried again soon, or after a long while where trying again changes nothing."""
        is_retried = isinstance(exc, RETRIED)
        failures = self._failures.get(name, 0)
        self._failures[name] = failures + 1
        log.warning("reconciliation_failed", name=name, code=exc.code, why=exc.message)
        ready = Condition("Ready", False, reason_of(exc.reason), exc.message)
        phase = Phase.PENDING if is_retried else Phase.FAILED
        pause_s = self._backoff.pause_s(failures) if is_retried else self._retry_refused_s
        return Outcome(phase, [ready, *conditions], facts, pause_s)


def _facts_of(wanted: WantedAdapter, version: Version) -> dict[str, Any]:
    return {
        "digest": version.digest,
        "source": version.source,
        "baseModel": version.base_model,
        "rank": version.max_rank,
        "importKey": wanted.import_key,
    }
