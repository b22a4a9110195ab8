"""Answers of PlacementService: picks and listings."""

import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from hotslot.contract.placement import Tier
from hotslot.errors import (
    BaseModelMismatchError,
    FieldViolation,
    InvalidRequestError,
    NoWorkersError,
    Violation,
)
from hotslot.ids import DIGEST_PREFIX, Digest, TenantId, WorkerId, parse_digest
from hotslot.references import Reference
from shared.fleet.policy import RankedWorker
from shared.fleet.records import PlacedVersion, WorkerRecord, placed_for
from shared.fleet.replica_policy import DEFAULT_REPLICA_POLICY, ReplicaPolicy
from shared.metrics.numbers import Measured, Spreads, Tally
from shared.server.deadline import HasDeadline
from store_service.placement.fleets import REFRESH_S, FleetCache
from store_service.placement.groups import UNKNOWN_RANKS, Ranks, choose
from store_service.placement.unserved import UnservedPicks

DEFAULT_CANDIDATES = 3
MAX_CANDIDATES = 100
MAX_ADAPTERS = 64
NO_WORKERS = "no_workers"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Adapter that a request asks for, as placement needs to know it."""

    digest: Digest
    base_model_digest: Digest
    policy: ReplicaPolicy = DEFAULT_REPLICA_POLICY
    ranks: Ranks = UNKNOWN_RANKS


class WantedResolver(Protocol):
    """Resolver of references; the catalog is one."""

    async def resolve(self, tenant: TenantId, reference: Reference, caller: HasDeadline) -> Wanted:
        """Raises AdapterNotFoundError, TagNotFoundError, VersionNotFoundError or StoreBusyError."""


@dataclass(frozen=True, slots=True)
class Pick:
    """Workers that a request may go to, best first."""

    candidates: tuple[RankedWorker, ...]
    digests: tuple[Digest, ...]
    ttl_s: float
    revision: int


class PlacementQueries:
    """Reads the directory; every method may raise CoordinationUnavailableError."""

    def __init__(self, fleets: FleetCache, resolver: WantedResolver, unserved: UnservedPicks) -> None:
        self._directory = fleets.directory
        self._fleets = fleets
        self._unserved = unserved
        self._resolver = resolver
        self._turns = itertools.count()
        outcomes = (Tier.SLOT, Tier.HOST, Tier.DISK, Tier.NONE, NO_WORKERS)
        self._decisions = Tally("hotslot_placement_decisions_total", [(str(name),) for name in outcomes])
        self._spills = Tally("hotslot_placement_spills_total")
        self._replicas = Spreads("hotslot_placement_replicas")

    def readings(self) -> Iterator[Measured]:
        """Numbers of the picks."""
        for numbers in (self._decisions, self._spills, self._replicas):
            yield from numbers.readings()

    async def pick(
        self,
        tenant: TenantId,
        references: Sequence[Reference],
        base_model: str,
        max_workers: int,
        *,
        caller: HasDeadline,
    ) -> Pick:
        """The best workers for these adapters; raises what PickWorkers' comment lists."""
        problems = []
        if not 0 <= max_workers <= MAX_CANDIDATES:
            problems.append(FieldViolation("max_workers", f"found {max_workers}, expected 0 to {MAX_CANDIDATES}"))
        if len(references) > MAX_ADAPTERS:
            problems.append(FieldViolation("adapters", f"found {len(references)}, at most {MAX_ADAPTERS}"))
        if not references and not base_model:
            problems.append(FieldViolation("base_model", "must be set when no adapters are given"))
        if problems:
            raise InvalidRequestError(problems)
        resolved = [await self._resolver.resolve(tenant, reference, caller) for reference in references]
        try:
            pool = await self._pool(references, [wanted.base_model_digest for wanted in resolved], base_model)
        except NoWorkersError:
            self._unserved.note(base_model)
            raise
        digests = tuple(wanted.digest for wanted in resolved)
        picture = await self._fleets.picture(pool)
        turn = next(self._turns)
        key = digests[0] if digests else str(turn)
        # Several references may stand for one version, which takes its slots once.
        fleet = choose(picture.groups, key, {wanted.digest: wanted.ranks for wanted in resolved})
        if fleet is None:
            self._decisions.add(NO_WORKERS)
            self._unserved.note(pool)
            raise NoWorkersError(
                f"no worker of base model {base_model or pool} takes requests now; "
                "start one, or wait for one to be ready",
                retry_after_s=1.0,
            )
        policy = resolved[0].policy if resolved else DEFAULT_REPLICA_POLICY
        held, count = await picture.placements(digests), max_workers or DEFAULT_CANDIDATES
        placements = {digest: placed_for(tenant, found) for digest, found in held.items()}
        candidates = fleet.pick(digests, placements, count=count, turn=turn, policy=policy)
        self._count(candidates, fleet.homes(digests[0], placements.get(digests[0], ()), policy) if digests else ())
        return Pick(tuple(candidates), digests, REFRESH_S, picture.revision)

    def _count(self, candidates: Sequence[RankedWorker], homes: Sequence[WorkerId]) -> None:
        """Count a pick of workers for a version with these homes."""
        self._decisions.add(str(candidates[0].tier) if candidates else NO_WORKERS)
        if homes:
            self._replicas.add(len(homes))
            if candidates and candidates[0].worker.info.worker_id not in homes:
                self._spills.add()

    async def list_workers(
        self, base_model: str, limit: int, after: tuple[str, str]
    ) -> tuple[list[WorkerRecord], tuple[str, str] | None]:
        """Workers whose leases run behind a position (pool, worker), and the position to go on from."""
        found = [
            record
            for pool in await self._fleets.pools_named(base_model)
            for record in (await self._fleets.picture(pool)).workers
            if (pool, record.info.worker_id) > after
        ]
        page = found[:limit]
        if len(found) <= limit:
            return page, None
        last = page[-1].info
        return page, (last.base_model_digest, last.worker_id)

    async def list_placements(
        self, tenant: TenantId, digest: str, worker_id: str, limit: int, after: tuple[str, str, str]
    ) -> tuple[list[PlacedVersion], tuple[str, str, str] | None]:
        """The tenant's versions behind a position (pool, worker, digest), and the position to go on from."""
        wanted = parse_digest(digest, field="adapter_digest") if digest else None
        page: list[PlacedVersion] = []
        position = after
        async with aclosing(self._in_order(wanted, worker_id, after)) as placements:
            async for pool, placement in placements:
                key = (pool, placement.worker_id, placement.resident.digest)
                resident = placement.resident.seen_by(tenant)
                if key <= after or resident is None:
                    continue
                if len(page) == limit:
                    return page, position
                page.append(PlacedVersion(placement.worker_id, resident))
                position = key
        return page, None

    async def _in_order(
        self, digest: Digest | None, worker_id: str, after: tuple[str, str, str]
    ) -> AsyncGenerator[tuple[Digest, PlacedVersion], None]:
        """Placements by pool, worker and digest, read as far as they are asked for; may begin before `after`."""
        for pool in await self._fleets.pools():
            if digest is not None:
                for placement in sorted(
                    (await self._directory.placements(pool, [digest]))[digest], key=lambda p: p.worker_id
                ):
                    if worker_id in ("", placement.worker_id):
                        yield pool, placement
                continue
            for record in (await self._fleets.picture(pool)).workers:
                here = record.info.worker_id
                if worker_id in ("", here) and (pool, here) >= after[:2]:
                    for placement in await self._directory.residency(pool, here):
                        yield pool, placement

    async def _pool(self, references: Sequence[Reference], bases: Sequence[Digest], base_model: str) -> Digest:
        """The one pool that a request is for."""
        for reference, base in zip(references, bases, strict=True):
            if base != bases[0]:
                raise _mismatch(str(reference), base, f"{bases[0]}, as {references[0]}")
        if base_model.startswith(DIGEST_PREFIX):
            named = [parse_digest(base_model, field="base_model")]
        else:
            named = await self._fleets.pools_named(base_model) if base_model else []
        if bases:
            if named and bases[0] not in named:
                raise _mismatch(str(references[0]), bases[0], base_model)
            return bases[0]
        if not named:
            raise NoWorkersError(f"no worker serves base model {base_model!r}", retry_after_s=1.0)
        if len(named) > 1:
            raise InvalidRequestError(
                [FieldViolation("base_model", f"{base_model!r} stands for {', '.join(named)}; give one of the digests")]
            )
        return named[0]


def _mismatch(subject: str, found: str, expected: str) -> BaseModelMismatchError:
    message = f"adapter {subject} is for base model {found}, expected {expected}"
    return BaseModelMismatchError([Violation("BASE_MODEL_MISMATCH", subject, found, expected, message)], message)
