"""Autoscaling: the measures of a base model's pools, their targets, and if a worker is wanted at all."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from hotslot.errors import BaseModelNotFoundError, FieldViolation, InvalidRequestError
from hotslot.ids import DIGEST_PREFIX, Digest, WorkerId
from shared.fleet.records import WorkerRecord
from shared.server.deadline import HasDeadline
from store_service.catalog.base_models import BaseModels
from store_service.execution.call_queue import CallQueue
from store_service.placement.fleets import REFRESH_S, FleetCache
from store_service.placement.pressure import DEFAULT_TARGETS, Measure, is_busy, num_busy_versions, pressure_of
from store_service.placement.unserved import UnservedPicks

DEFAULT_ACTIVE_S = 300.0
REPEAT_S = 20.0
"""Longest time between two answers of a watch, so that a side that went is noticed."""
TriggerMetadata = Mapping[str, str]
DigestNamed = Callable[[str, HasDeadline], Awaitable[Sequence[Digest]]]
"""Digests that a base model's name stands for in the catalog; none for a name that is not registered."""


@dataclass(frozen=True, slots=True)
class ScaledPool:
    """A trigger's metadata, read."""

    base_model: str
    targets: Mapping[Measure, float]
    active_s: float


def scaled_pool_of(metadata: TriggerMetadata) -> ScaledPool:
    """Read a trigger's metadata, passing over what is not ours; raises InvalidRequestError with every problem."""
    problems = []
    base_model = metadata.get("baseModel", "").strip()
    if not base_model:
        problems.append(FieldViolation("baseModel", "must be set to the base model's name or digest"))
    numbers: dict[str, float] = {}
    defaults = {str(measure): target for measure, target in DEFAULT_TARGETS.items()} | {"activeS": DEFAULT_ACTIVE_S}
    for name, default in defaults.items():
        text = metadata.get(name, str(default))
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            problems.append(FieldViolation(name, f"found {text[:80]!r}, expected a number of 0 or more"))
        numbers[name] = number
    targets = {measure: numbers[measure] for measure in Measure if numbers[measure]}
    if not problems and not targets:
        problems.append(FieldViolation(", ".join(Measure), "all are 0, which leaves nothing to scale by"))
    if problems:
        raise InvalidRequestError(problems)
    return ScaledPool(base_model, targets, numbers["activeS"])


class Scaling:
    """Looks at the fleets for an autoscaler. Belongs to one event loop.

    Every method may raise InvalidRequestError for the metadata, and CoordinationUnavailableError.
    """

    def __init__(
        self,
        fleets: FleetCache,
        unserved: UnservedPicks,
        digests_named: DigestNamed,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleets = fleets
        self._unserved = unserved
        self._digests_named = digests_named
        self._clock = clock

    def targets(self, metadata: TriggerMetadata) -> Mapping[Measure, float]:
        """The targets by measure, without those that are left out."""
        return scaled_pool_of(metadata).targets

    async def measured(self, metadata: TriggerMetadata, measure: str) -> float:
        """A measure of the base model's workers now."""
        targets = self.targets(metadata)
        if measure not in targets:
            raise InvalidRequestError(
                [FieldViolation("metricName", f"found {measure[:80]!r}, expected {' or '.join(targets)}")]
            )
        total = 0.0
        for pool in await self._fleets.pools_named(scaled_pool_of(metadata).base_model):
            workers = (await self._fleets.picture(pool)).workers
            num_busy = await self._num_busy(pool, workers) if measure == Measure.SLOTS else {}
            total += pressure_of(Measure(measure), workers, num_busy)
        return total

    async def is_wanted(self, metadata: TriggerMetadata, caller: HasDeadline) -> bool:
        """True if a worker of the base model is busy, or one was lately asked for and not there."""
        scaled = scaled_pool_of(metadata)
        pools = await self._fleets.pools_named(scaled.base_model)
        for pool in pools:
            if is_busy((await self._fleets.picture(pool)).workers):
                return True
        registered = await self._digests_named(scaled.base_model, caller)
        return self._unserved.age_s((scaled.base_model, *pools, *registered)) <= scaled.active_s

    async def watch(self, metadata: TriggerMetadata, caller: HasDeadline) -> AsyncGenerator[bool, None]:
        """The same at once, with each change and every REPEAT_S; never ends."""
        said: bool | None = None
        said_at_s = -math.inf
        while True:
            wanted = await self.is_wanted(metadata, caller)
            if wanted is not said or self._clock() - said_at_s >= REPEAT_S:
                said, said_at_s = wanted, self._clock()
                yield wanted
            await asyncio.sleep(REFRESH_S)

    async def _num_busy(self, pool: Digest, workers: Sequence[WorkerRecord]) -> Mapping[WorkerId, int]:
        """Versions with sequences in flight on each worker that has any."""
        busy = [worker.info.worker_id for worker in workers if worker.load.in_flight]
        return {one: num_busy_versions(await self._fleets.directory.residency(pool, one)) for one in busy}


class RegisteredBases:
    """Digests of base models by name, as the catalog knows them: behind the queue of look-ups."""

    def __init__(self, base_models: BaseModels, lookups: CallQueue) -> None:
        self._base_models = base_models
        self._lookups = lookups

    async def digests_named(self, name: str, caller: HasDeadline) -> tuple[Digest, ...]:
        """None for a name that is not registered; a digest stands for itself."""
        if name.startswith(DIGEST_PREFIX):
            return ()
        try:
            return ((await self._lookups(caller, self._base_models.get, name)).spec.digest,)
        except BaseModelNotFoundError:
            return ()
