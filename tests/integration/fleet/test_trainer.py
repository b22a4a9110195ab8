"""A trainer that brings versions and generates in a loop, beside sixteen clients; store and workers are processes.

It pushes folders, or publishes from memory with a retention, where in the end nothing may have grown.

`HOTSLOT_TEST_PUBLICATIONS` sets the length of the long form.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hotslot import AdapterSelection, ChannelOptions, GenerationRequest, HotslotClient, WorkerClient
from hotslot.clients.written_revision import WrittenRevision
from hotslot.contract.catalog import AdmittedVersion
from hotslot.contract.generation import Completion
from hotslot.errors import NotFoundError
from hotslot.formats.file_names import CONFIG_FILE, WEIGHTS_FILE
from store_service.admission.admit import admit
from store_service.admission.settings import AdmissionLimits
from tests.chaos.fleet import SPEC, Fleet
from tests.chaos.traffic import Load, Traffic, run_clients
from tests.support.checkpoints import adapter
from tests.support.echo_model import voice
from tests.support.growth import MIB, Sizes, files_below, growth, rss_mib
from tests.support.tag_ledger import TagLedger
from worker_service.adapters.known_reference import ReferenceLimits

NUM_WORKERS, NUM_CLIENTS = 3, 16
Ask = Callable[[GenerationRequest], Awaitable[Completion]]
NAME = "train"
STALENESS_S = ReferenceLimits().watched_staleness_s + ReferenceLimits().patience_s
"""Documented bound of clients that wrote nothing."""
SHORT = 60
PUBLICATIONS = int(os.environ.get("HOTSLOT_TEST_PUBLICATIONS", "1000"))
LONG_TIMEOUT_S = 3600
KEEP = 8
SAMPLE_EVERY = 10
BOUNDED = {
    # An adapter of the echo model has 1.5 KB: caches are full early, and what grows after that has no bound.
    "host_cache_bytes": str(2**16),
    "disk_cache_bytes": str(2**16),
}
STORE_BOUNDED = {"retention_grace_s": "2", "collect_every_s": "5"}
SLACK = {"store_rss_mib": 24.0, "workers_rss_mib": 24.0, "blobs_mib": 0.1, "num_store_files": 24.0}
SLACK |= {"catalog_mib": 1.0, "workers_disk_mib": 0.1, "redis_keys": 8.0}
"""Most that the last third of a long run may have more than the one before it."""


@dataclass
class Trainer:
    """Publishes, moves and removes a name, and asks for it at once: each worker in turn, or the one that is picked."""

    client: HotslotClient
    workers: list[WorkerClient]
    ledger: TagLedger
    folder: Path
    from_memory: bool = False
    look: Callable[[], Awaitable[Sizes]] | None = None
    sizes: list[Sizes] = field(default_factory=list)
    unready: list[str] = field(default_factory=list)
    """Reasons for which workers did not have a publication yet when it returned."""
    digests: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    push_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    """Of the first answer by what was written."""
    again_s: list[float] = field(default_factory=list)
    """Of the next one from the same worker."""
    took_s: float = 0.0

    async def publish(self, step: int) -> str:
        """Bring a new version under the name."""
        expected = await asyncio.to_thread(self._write, step)
        tenure = self.ledger.begin(NAME, expected, time.monotonic())
        began_s = time.monotonic()
        brought = await self._bring(NAME, step)
        self.push_s.append(time.monotonic() - began_s)
        self.ledger.acknowledge(NAME, tenure, time.monotonic())
        assert (brought.version.digest, brought.revision) == (expected, self.client.revision)
        self.digests.append(expected)
        return expected

    def _write(self, step: int) -> str:
        """Make a step's folder; returns the digest that admission will give it."""
        checkpoint = adapter(spec=SPEC, seed=1_000 + step).write(self.folder / f"step-{step}")
        return str(admit(checkpoint, SPEC, AdmissionLimits()).require().digest)

    async def _bring(self, name: str, step: int) -> AdmittedVersion:
        """Have the store admit a step, from its folder or from memory."""
        folder = self.folder / f"step-{step}"
        if not self.from_memory:
            return await self.client.store.push(folder, name, base_model=SPEC.digest)
        weights, config = ((folder / file).read_bytes() for file in (WEIGHTS_FILE, CONFIG_FILE))
        figures = {"step": step, "loss": 1 / (step + 1)}
        published = await self.client.publish(
            weights, config, name, metadata=figures, tags=["best"], keep=KEEP, base_model=SPEC.digest
        )
        self.unready += [worker.problem for worker in published.workers if not worker.ready]
        return published

    async def move_back(self, chance: random.Random) -> str:
        """Point the name at an earlier version."""
        digest = chance.choice(self.digests[-4:])
        tenure = self.ledger.begin(NAME, digest, time.monotonic())
        await self.client.store.set_tag(NAME, "latest", digest)
        self.ledger.acknowledge(NAME, tenure, time.monotonic())
        return digest

    async def check(self, step: int, expected: str) -> None:
        """Ask twice, and note what is not by the version that the name stands for."""
        asks: tuple[Ask, ...] = (self.client.complete, *(worker.complete for worker in self.workers))
        ask = asks[step % len(asks)]
        for times in (self.first_s, self.again_s):
            began_s = time.monotonic()
            answer = await ask(GenerationRequest("hello", (AdapterSelection(NAME),)))
            times.append(time.monotonic() - began_s)
            self._note(answer, expected, step)

    async def remove_and_check(self, step: int) -> None:
        """Delete a name of its own, and expect that no worker serves it."""
        name = f"{NAME}-{step}"
        await self._bring(name, step)
        request = GenerationRequest("hello", (AdapterSelection(name),))
        for worker in self.workers:
            self._note(await worker.complete(request), self.digests[-1], step)
        await self.client.store.delete_adapter(name)
        for worker in self.workers:
            try:
                await worker.complete(request)
            except NotFoundError:
                continue
            self.stale.append(f"step {step}: {name} was served after it was deleted")

    def _note(self, answer: Completion, expected: str, step: int) -> None:
        found = answer.started.adapters[0].digest
        if found != expected or answer.text != voice(expected):
            self.stale.append(f"step {step}: {found} said {answer.text!r}, expected {expected}")

    async def run(self, publications: int) -> None:
        """The loop."""
        chance, began_s = random.Random(5), time.monotonic()
        for step in range(publications):
            await self.check(step, await self.publish(step))
            if step % 8 == 7:
                await self.check(step, await self.move_back(chance))
            if step % 16 == 15:
                await self.publish(step)
                await self.remove_and_check(step)
            if self.look is not None and step % SAMPLE_EVERY == 0:
                self.sizes.append(await self.look())
        self.took_s = time.monotonic() - began_s


async def train(
    folder: Path, publications: int, *, reads_own_writes: bool = True, from_memory: bool = False
) -> tuple[Trainer, Traffic]:
    """A trainer's loop under load; returns what it and the others saw."""
    ledger = TagLedger()
    (folder / "fleet").mkdir()
    others = [f"other-{number}" for number in range(5)]
    settings = {"lease_s": "2", "num_slots": "8"}
    if from_memory:
        settings |= BOUNDED | {"disk_cache_dir": str(folder / "disk")}
    fleet = Fleet(folder / "fleet", **settings)
    fleet.store_settings |= STORE_BOUNDED
    async with fleet, AsyncExitStack() as stack:
        for name, digest in zip(others, await fleet.push(others, 10), strict=True):
            ledger.acknowledge(name, ledger.begin(name, digest, 0.0), 0.0)
        children = await fleet.add_workers(NUM_WORKERS)
        written, store_endpoint = WrittenRevision(), fleet.store_child.spec.endpoint
        client = HotslotClient(store_endpoint, fleet.proxy.endpoint, written=written, reads_own_writes=reads_own_writes)
        needed = written if reads_own_writes else None
        workers = [WorkerClient(child.spec.endpoint, ChannelOptions(), written=needed) for child in children]
        await stack.enter_async_context(client)
        for worker in workers:
            await stack.enter_async_context(worker)

        async def look() -> Sizes:
            store_files = files_below(folder / "fleet" / "store", but="catalog")
            return Sizes(
                rss_mib(fleet.store_child.pid),
                max(rss_mib(child.pid) for child in children),
                sum(store_files) / MIB,
                len(store_files),
                sum(files_below(folder / "fleet" / "store", only="catalog")) / MIB,
                sum(files_below(folder / "disk")) / MIB,
                await fleet.num_keys(),
            )

        trainer = Trainer(client, workers, ledger, folder, from_memory, look)
        traffic, is_over = Traffic(ledger), asyncio.Event()
        await trainer.publish(publications)
        load = Load([NAME, *others], NUM_CLIENTS, pause_s=0.2)
        async with asyncio.TaskGroup() as group:
            group.create_task(run_clients(traffic, load, store_endpoint, fleet.proxy.endpoint, is_over))
            try:
                await trainer.run(publications)
            finally:
                is_over.set()
    return trainer, traffic


def figures(trainer: Trainer, traffic: Traffic) -> dict[str, object]:
    """Figures of a run, in milliseconds."""
    extra = [first - again for first, again in zip(trainer.first_s, trainer.again_s, strict=True)]
    named = {"push": trainer.push_s, "first": trainer.first_s, "again": trainer.again_s, "extra": extra}
    return {
        "publications": len(trainer.push_s),
        "stale_for_the_trainer": len(trainer.stale),
        "answers_of_others": traffic.answered,
        "max_staleness_of_others_ms": round(max(traffic.staleness_s) * 1e3),
        "stale_answers_of_others": sum(age > 0 for age in traffic.staleness_s),
        "bound_of_others_ms": round(STALENESS_S * 1e3),
        "took_s": round(trainer.took_s),
        "unready": len(trainer.unready),
        "unready_why": sorted(set(trainer.unready))[:3],
        "growth": growth(trainer.sizes),
        **{f"{name}_ms": [round(_share(times, q) * 1e3, 1) for q in (0.5, 0.99)] for name, times in named.items()},
    }


def _share(times_s: list[float], share: float) -> float:
    return sorted(times_s)[min(len(times_s) - 1, int(share * len(times_s)))]


async def check_trainer(folder: Path, publications: int, *, from_memory: bool = False) -> Trainer:
    trainer, traffic = await train(folder, publications, from_memory=from_memory)
    print(json.dumps(figures(trainer, traffic)))  # noqa: T201 (pytest shows it when the test fails, or with -s)
    assert trainer.stale == []
    assert traffic.answered > publications
    assert not traffic.wrong
    assert not traffic.failures
    assert max(traffic.staleness_s) <= STALENESS_S
    return trainer


@pytest.mark.integration
@pytest.mark.parametrize("from_memory", [pytest.param(False, marks=pytest.mark.slow), True], ids=["push", "publish"])
async def test_a_trainer_is_served_by_what_it_wrote_and_others_within_the_bound(
    tmp_path: Path, from_memory: bool
) -> None:
    trainer = await check_trainer(tmp_path, SHORT, from_memory=from_memory)
    if from_memory:
        assert trainer.sizes[-1].num_store_files < SHORT, "retention removes what nobody keeps"


@pytest.mark.slow
@pytest.mark.timeout(LONG_TIMEOUT_S)
@pytest.mark.integration
async def test_a_thousand_publications_in_a_row_serve_the_trainer_nothing_stale(tmp_path: Path) -> None:
    await check_trainer(tmp_path, PUBLICATIONS)


@pytest.mark.slow
@pytest.mark.timeout(LONG_TIMEOUT_S)
@pytest.mark.integration
async def test_a_thousand_publications_from_memory_leave_nothing_larger_than_before(tmp_path: Path) -> None:
    trainer = await check_trainer(tmp_path, PUBLICATIONS, from_memory=True)
    grown = {
        name: (before, after) for name, (before, after) in growth(trainer.sizes).items() if after - before > SLACK[name]
    }
    assert not grown
