"""A catalog in the hands of a test, and the references of a worker that follows it; time is counted in turns."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from hotslot.errors import (
    AdapterNotFoundError,
    HotslotError,
    RevisionCompactedError,
    StoreUnavailableError,
)
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, Digest, TagName, TenantId, digest_of
from hotslot.references import Reference, parse_reference
from tests.support.waiting import until
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind
from worker_service.adapters.catalog_watch import CatalogWatch
from worker_service.adapters.coming import Arrivals
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.adapters.references import ReferenceCache
from worker_service.adapters.version import AdapterVersion, ComingVersion

AT_ONCE = ReferenceLimits(staleness_s=0.0, watched_staleness_s=1e9, behind_pause_s=0.0)
NAME, OTHER = parse_reference("bot"), parse_reference("other")
HUGE = 2**62


def manifest(seed: int) -> Manifest:
    return Manifest(digest_of(b"base"), digest_of(str(seed).encode()), 10, "F32", (AdapterModule("q_proj", 8, 1.0),))


MANIFESTS = {manifest(seed).digest: manifest(seed) for seed in range(200)}
DIGESTS = tuple(MANIFESTS)


@dataclass
class Store:
    """A catalog with every state that it had, its streams, and the home of versions; time is counted in turns."""

    states: list[dict[Reference, Digest]] = field(default_factory=lambda: [{}])
    changes: list[CatalogChange] = field(default_factory=list)
    catalogs: list[list[dict[Reference, Digest]]] = field(default_factory=list)
    away: bool = False
    deaf: bool = False
    """No change reaches any stream."""
    announces: bool = False
    """Each move is announced before a stream tells of it."""
    bring_turns: int = 3
    """Turns of the loop between the two."""
    questions: int = 0
    answer_turns: int = 0
    """Turns of the loop between the reading of an answer and its arrival."""
    prepare_error: HotslotError | None = None
    preparing: asyncio.Event = field(default_factory=asyncio.Event)
    resident: set[Digest] = field(default_factory=set)
    written: int = 0
    answered: int = 0
    """Number of the catalog of the last answer."""
    stood: int = 0
    """Number of the catalog that a stream stood for."""

    def __post_init__(self) -> None:
        self.catalogs.append(self.states)

    @property
    def revision(self) -> int:
        return len(self.states) - 1

    def move(self, reference: Reference = NAME) -> int:
        """Publish a new version under a reference; returns the revision."""
        digest = DIGESTS[self.written]
        self.written += 1
        return self._change({**self.states[-1], reference: digest}, ChangeKind.TAG_MOVED, reference, digest)

    def delete(self, reference: Reference = NAME) -> int:
        left = {known: digest for known, digest in self.states[-1].items() if known != reference}
        return self._change(left, ChangeKind.ADAPTER_DELETED, reference, Digest(""))

    def _change(self, state: dict[Reference, Digest], kind: ChangeKind, reference: Reference, digest: Digest) -> int:
        self.states.append(state)
        self.changes.append(CatalogChange(self.revision, kind, reference.name, reference.tag or TagName(""), digest))
        return self.revision

    def begin_anew(self) -> None:
        """Lose the catalog: an empty one takes its place."""
        self.states, self.changes = [{}], []
        self.catalogs.append(self.states)

    async def resolve(self, tenant: TenantId, reference: Reference) -> AdapterVersion:
        self.questions += 1
        catalog = len(self.catalogs)
        self._check_serves(catalog)
        digest, revision = self.states[-1].get(reference), self.revision
        for _ in range(self.answer_turns):
            await asyncio.sleep(0)
        if len(self.catalogs) != catalog:
            raise StoreUnavailableError("it ended before it had answered")
        if digest is None:
            raise AdapterNotFoundError(reference.name)
        self.answered = len(self.catalogs)
        return AdapterVersion(tenant, reference, digest, MANIFESTS[digest], revision)

    async def watch(
        self, tenant: TenantId, after_revision: int
    ) -> AsyncGenerator[CatalogChange | ComingVersion | str, None]:
        catalog, position = len(self.catalogs), after_revision
        self._check_serves(catalog)
        if position > self.revision:
            raise RevisionCompactedError(position, 0)
        self.stood = catalog
        yield f"catalog {catalog}"
        while True:
            self._check_serves(catalog)
            if not self.deaf and position < self.revision:
                change = self.changes[position]
                if self.announces and change.kind is ChangeKind.TAG_MOVED:
                    manifest_json = MANIFESTS[change.digest].canonical_json()
                    yield ComingVersion(change.adapter, change.tag, change.digest, manifest_json)
                    for _ in range(self.bring_turns):
                        await asyncio.sleep(0)
                    self._check_serves(catalog)
                position += 1
                yield change
            else:
                await asyncio.sleep(0)

    def _check_serves(self, catalog: int) -> None:
        if self.away or len(self.catalogs) != catalog:
            raise StoreUnavailableError("away")

    def is_resident(self, digest: Digest) -> bool:
        return digest in self.resident

    async def bring(self, version: AdapterVersion) -> None:
        await asyncio.sleep(0)
        self.resident.add(version.digest)

    async def prepare(self, version: AdapterVersion) -> None:
        await self.preparing.wait()
        if self.prepare_error is not None:
            raise self.prepare_error
        self.resident.add(version.digest)

    def moved(self, old: AdapterVersion, new: AdapterVersion) -> None:
        pass


@dataclass
class Worker:
    """A cache that follows a store."""

    store: Store
    limits: ReferenceLimits = AT_ONCE

    async def __aenter__(self) -> "Worker":
        self.watch = CatalogWatch(self.store)
        self.cache = ReferenceCache(self.store, self.store, self.limits, self.watch)
        arrivals = Arrivals(self.cache, self.store)
        self._running = [
            asyncio.create_task(self.watch.run(self.cache, first=arrivals.hear)),
            asyncio.create_task(arrivals.run()),
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for running in self._running:
            running.cancel()
        await asyncio.wait(self._running)
        await self.cache.close()

    async def digest(self, min_revision: int = 0, reference: Reference = NAME) -> Digest:
        return (await self.cache.resolve_current(DEFAULT_TENANT, reference, min_revision)).digest

    async def is_live(self) -> None:
        await until(lambda: self.watch.is_live(DEFAULT_TENANT))


async def following(store: Store, worker: Worker) -> None:
    """Have a version of NAME known, resident, and followed."""
    store.move()
    store.resident.add(await worker.digest())
    await worker.is_live()
