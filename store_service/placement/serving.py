"""Warnings for a version that no live worker of its base model could serve, with the settings that would allow it."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import replace

import structlog

from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.errors import HotslotError
from hotslot.formats.base_spec import END_NAMES
from hotslot.formats.manifest import Manifest
from shared.fleet.records import WorkerInfo
from store_service.admission.admit import Verdict
from store_service.catalog.records import VersionRecord
from store_service.placement.fleets import FleetCache

log = structlog.get_logger(__name__)

PATIENCE_S = 1.0
"""Longest wait of an answer for Redis: the version is published already."""
RANK = "RANK_NOT_SERVED_NOW"
TARGET = "TARGET_NOT_SERVED_NOW"
_SETTING = "HOTSLOT_TARGET_MODULES"


class ServingAdvice:
    """Asks placement who could serve a version. Lives on the event loop."""

    def __init__(self, fleets: FleetCache | None) -> None:
        """Without Redis no worker is known to serve anything, and there are no warnings."""
        self._fleets = fleets

    async def advised(self, record: VersionRecord) -> VersionRecord:
        """A version that was just admitted, with what its owner should know of who could serve it."""
        return replace(record, warnings=(*record.warnings, *await self.warnings(record.manifest)))

    async def judged(self, verdict: Verdict) -> Verdict:
        """The verdict of a dry run, with the same."""
        if verdict.manifest is None:
            return verdict
        return replace(verdict, warnings=(*verdict.warnings, *await self.warnings(verdict.manifest)))

    async def warnings(self, manifest: Manifest) -> tuple[AdmissionWarning, ...]:
        """Those for a version; none where placement cannot say."""
        if self._fleets is None:
            return ()
        try:
            async with asyncio.timeout(PATIENCE_S):
                picture = await self._fleets.picture(manifest.base_model_digest)
        except (HotslotError, TimeoutError) as exc:
            log.info("no_serving_advice", why=str(exc))
            return ()
        return not_served(manifest, (record.info for record in picture.workers))


def not_served(manifest: Manifest, workers: Iterable[WorkerInfo]) -> tuple[AdmissionWarning, ...]:
    """Warnings where none of the workers whose limits are known could serve a version.

    They are those of the worker that lacks least: what would have to change there.
    """
    lacking = [tuple(_lacking(manifest, worker)) for worker in workers if worker.num_slots and worker.max_rank]
    return min(lacking, key=len, default=())


def _lacking(manifest: Manifest, worker: WorkerInfo) -> Iterator[AdmissionWarning]:
    """Warnings of all that keeps a worker from serving a version."""
    settings = []
    total_ranks = worker.num_slots * worker.slot_rank
    if manifest.max_rank > worker.max_rank:
        settings.append(f"HOTSLOT_MAX_RANK={manifest.max_rank}")
    if manifest.ranks_in_slots > total_ranks:
        num_slots = -(-manifest.ranks_in_slots // worker.slot_rank)
        settings.append(f"HOTSLOT_NUM_SLOTS={num_slots} (or a larger HOTSLOT_SLOT_RANK than {worker.slot_rank})")
    if settings:
        biased = " and a bias" if manifest.ranks_in_slots > manifest.max_rank else ""
        yield AdmissionWarning(
            RANK,
            f"rank {manifest.max_rank}{biased} is more than any live worker of this base model takes (at most "
            f"{min(worker.max_rank, total_ranks)}): start workers with {' and '.join(settings)}",
        )
    served = {name for name in worker.target_modules.split(",") if name}
    paths = {module.path.rpartition(".")[2]: module.path for module in manifest.modules}
    missing = sorted(paths.keys() - served) if served else []
    if missing:
        ends = (served | set(missing)) & END_NAMES
        inside = [name for name in missing if name not in END_NAMES]
        # All linears, unless the workers were told to serve fewer and just lack an end.
        names = ["all-linear"] if inside or not served - END_NAMES else sorted(served - END_NAMES)
        setting = ",".join([*names, *sorted(ends)])
        yield AdmissionWarning(
            TARGET,
            f"{', '.join(missing)} (such as {paths[missing[0]]}) {'has' if len(missing) == 1 else 'have'} no slots on "
            f"any live worker of this base model: start workers with {_SETTING}={setting}",
        )
