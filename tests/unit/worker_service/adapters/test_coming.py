"""Versions that are about to be published are brought where their name is served, and nothing else comes of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from hotslot.errors import StoreUnavailableError
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, AdapterName, Digest, PartyId, TagName, TenantId, digest_of
from hotslot.references import Reference
from shared.identity.parties import PARTY
from tests.support.waiting import until
from worker_service.adapters.catalog_change import CatalogChange, ChangeKind
from worker_service.adapters.coming import MAX_KNOWN, Arrivals
from worker_service.adapters.version import AdapterVersion, ComingVersion

BOT, LIVE = AdapterName("bot"), TagName("live")


def manifest(seed: int) -> Manifest:
    return Manifest(digest_of(b"base"), digest_of(str(seed).encode()), 10, "F32", (AdapterModule("q_proj", 8, 1.0),))


def coming(seed: int, name: str = BOT, tag: str = LIVE) -> ComingVersion:
    found = manifest(seed)
    return ComingVersion(AdapterName(name), TagName(tag), found.digest, found.canonical_json())


@dataclass
class Worker:
    """A worker that serves one reference, and the versions that it was asked to bring."""

    resident: set[Digest] = field(default_factory=lambda: {manifest(0).digest})
    brought: list[Digest] = field(default_factory=list)
    learned: list[AdapterVersion] = field(default_factory=list)
    fails: set[Digest] = field(default_factory=set)
    tags: tuple[TagName, ...] = (LIVE,)
    parties: list[PartyId] = field(default_factory=list)

    def peek(self, tenant: TenantId, reference: Reference) -> AdapterVersion | None:
        if tenant != DEFAULT_TENANT or reference not in [Reference(BOT, tag, None) for tag in self.tags]:
            return None
        return AdapterVersion(tenant, reference, manifest(0).digest, manifest(0))

    def is_resident(self, digest: Digest) -> bool:
        return digest in self.resident

    def learn(self, version: AdapterVersion) -> None:
        self.learned.append(version)

    async def bring(self, version: AdapterVersion) -> None:
        self.brought.append(version.digest)
        self.parties.append(PARTY.get())
        if version.digest in self.fails:
            raise StoreUnavailableError("it went away", retry_after_s=1.0)
        self.resident.add(version.digest)


@asynccontextmanager
async def arrivals_of(worker: Worker) -> AsyncIterator[Arrivals]:
    arrivals = Arrivals(worker, worker)
    running = asyncio.create_task(arrivals.run())
    try:
        yield arrivals
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.mark.parametrize(
    ("tenant", "name", "tag", "is_resident"),
    [
        ("another", BOT, LIVE, True),
        (DEFAULT_TENANT, "other", LIVE, True),
        (DEFAULT_TENANT, BOT, "latest", True),
        (DEFAULT_TENANT, BOT, LIVE, False),
    ],
)
async def test_what_is_not_served_from_here_is_not_brought(tenant: str, name: str, tag: str, is_resident: bool) -> None:
    worker = Worker()
    async with arrivals_of(worker) as arrivals:
        served = worker.resident if is_resident else set()
        worker.resident, resident = served, worker.resident
        arrivals.hear(TenantId(tenant), coming(1, name, tag))
        worker.resident = resident
        arrivals.hear(DEFAULT_TENANT, coming(2))
        await until(lambda: worker.brought != [])
    assert worker.brought == [manifest(2).digest]


async def test_a_version_that_cannot_be_brought_holds_up_none_after_it() -> None:
    worker = Worker(fails={manifest(2).digest})
    async with arrivals_of(worker) as arrivals:
        arrivals.hear(DEFAULT_TENANT, ComingVersion(BOT, LIVE, manifest(1).digest, manifest(3).canonical_json()))
        arrivals.hear(DEFAULT_TENANT, ComingVersion(BOT, LIVE, digest_of(b"{}"), b"{}"))
        arrivals.hear(DEFAULT_TENANT, coming(2))
        arrivals.hear(DEFAULT_TENANT, coming(4))
        await until(lambda: len(worker.brought) == 2)
    assert worker.brought == [manifest(2).digest, manifest(4).digest], "bytes that are not the digest's are no manifest"


async def test_a_version_under_several_tags_is_brought_once_in_a_turn_of_its_tenant() -> None:
    worker = Worker(tags=(LIVE, TagName("best")), fails={manifest(1).digest})
    async with arrivals_of(worker) as arrivals:
        for tag in worker.tags:
            arrivals.hear(DEFAULT_TENANT, coming(1, tag=tag))
        arrivals.hear(DEFAULT_TENANT, coming(2))
        await until(lambda: manifest(2).digest in worker.brought)
        arrivals.hear(DEFAULT_TENANT, coming(1))
        await until(lambda: len(worker.brought) == 3)
    assert worker.brought == [manifest(1).digest, manifest(2).digest, manifest(1).digest], (
        "one that failed may come yet"
    )
    assert worker.parties == [PartyId(f"tenant {DEFAULT_TENANT}")] * 3


def moved(seed: int, name: str = BOT, tag: str = LIVE) -> CatalogChange:
    return CatalogChange(7, ChangeKind.TAG_MOVED, AdapterName(name), TagName(tag), manifest(seed).digest)


async def test_a_name_that_moves_to_what_is_here_by_an_announcement_is_told_once_at_the_changes_revision() -> None:
    worker = Worker()
    async with arrivals_of(worker) as arrivals:
        arrivals.hear(DEFAULT_TENANT, coming(1))
        arrivals.hear(DEFAULT_TENANT, moved(1))
        assert worker.learned == [], "it is not here yet, and may be refused"
        arrivals.hear(DEFAULT_TENANT, coming(2))
        await until(lambda: manifest(2).digest in worker.resident)
        for other in (moved(3), moved(2, name="other"), moved(2, tag="latest")):
            arrivals.hear(DEFAULT_TENANT, other)
        arrivals.hear(TenantId("another"), moved(2))
        for _ in range(2):
            arrivals.hear(DEFAULT_TENANT, moved(2))
    assert [(it.digest, it.revision, it.reference) for it in worker.learned] == [
        (manifest(2).digest, 7, Reference(BOT, LIVE, None))
    ]


async def test_announcements_without_a_publication_are_forgotten() -> None:
    worker = Worker()
    async with arrivals_of(worker) as arrivals:
        for seed in range(1, MAX_KNOWN + 3):
            arrivals.hear(DEFAULT_TENANT, coming(seed))
        await until(lambda: len(worker.brought) == MAX_KNOWN + 2)
        for seed in range(1, MAX_KNOWN + 3):
            arrivals.hear(DEFAULT_TENANT, moved(seed))
    assert len(worker.learned) == MAX_KNOWN
