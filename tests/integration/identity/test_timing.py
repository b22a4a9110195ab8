"""Times of answers about what another tenant has and about what is not there at all: they cannot be told apart."""

import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import NotFoundError
from hotslot.ids import Digest, digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.pb.hotslot.store.v1 import blob_pb2
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient, open_store
from tests.support.times import Comparison, compared

pytestmark = pytest.mark.integration

NUM_OBJECTS = 20
FIGURES = "HOTSLOT_TEST_TIMES"
"""Variable that names a file for the figures."""


class Objects:
    """What a tenant has, and names of the same form of what nobody has."""

    def __init__(self) -> None:
        self.names = [f"bot-{number:04d}" for number in range(NUM_OBJECTS)]
        self.missing = [f"bot-{number:04d}" for number in range(5000, 5000 + NUM_OBJECTS)]
        self.versions: list[Digest] = []
        self.weights: list[Digest] = []
        self.uploads = [os.urandom(64) for _ in range(NUM_OBJECTS)]


def random_digests() -> list[Digest]:
    return [digest_of(os.urandom(16)) for _ in range(NUM_OBJECTS)]


@asynccontextmanager
async def two_tenants(folder: Path) -> AsyncIterator[tuple[Objects, StoreClient]]:
    """One tenant with objects; the other, with an adapter of its own, asks."""
    async with open_store(folder) as store:
        await store.register()
        owner, asking, objects = store.of("acme"), store.of("umbrella"), Objects()
        for seed, name in enumerate(objects.names):
            version = await owner.push(adapter(seed=seed), name)
            objects.versions.append(Digest(version.digest))
            objects.weights.append(Digest(version.manifest.weights_digest))
            data = objects.uploads[seed]
            await owner.write(data, end=32, finish=False)
        await asking.push(adapter(seed=999), "own")
        # The same number of rows in between, so that neither kind stands at the end of an index.
        yield objects, asking


Ask = Callable[[StoreClient, str], Awaitable[Any]]


def kinds(objects: Objects) -> dict[str, tuple[Ask, list[str], list[str]]]:
    """Questions, with the names of what another tenant has and of what is not there."""
    uploads = [digest_of(data) for data in objects.uploads]

    def by_name(method: str, request: Callable[[str], Any]) -> tuple[Ask, list[str], list[str]]:
        return (lambda store, name: store.call(method, request(name))), objects.names, objects.missing

    def by_digest(
        method: str, request: Callable[[str], Any], theirs: list[Digest], *, streams: bool = False
    ) -> tuple[Ask, list[str], list[str]]:
        async def ask(store: StoreClient, digest: str) -> Any:
            return await (store.stream if streams else store.call)(method, request(digest))

        return ask, list(theirs), list(random_digests())

    return {
        "adapter": by_name("GetAdapter", lambda name: pb.GetAdapterRequest(name=name)),
        "reference": by_name("ResolveAdapter", lambda name: pb.ResolveAdapterRequest(reference=name)),
        "shared name": by_name("ResolveAdapter", lambda name: pb.ResolveAdapterRequest(reference=f"acme~{name}")),
        "versions": by_name("ListVersions", lambda name: pb.ListVersionsRequest(adapter=name)),
        "deletion": by_name("DeleteAdapter", lambda name: pb.DeleteAdapterRequest(name=name)),
        "version": by_digest(
            "ResolveAdapter", lambda digest: pb.ResolveAdapterRequest(reference=f"own@{digest}"), objects.versions
        ),
        "blob": by_digest(
            "ReadBlob", lambda digest: blob_pb2.ReadBlobRequest(digest=digest), objects.weights, streams=True
        ),
        "upload": by_digest("GetWriteStatus", lambda digest: blob_pb2.GetWriteStatusRequest(digest=digest), uploads),
        "missing blobs": by_digest(
            "FindMissingBlobs", lambda digest: blob_pb2.FindMissingBlobsRequest(digests=[digest]), objects.weights
        ),
    }


async def sampled(store: StoreClient, ask: Ask, theirs: list[str], missing: list[str], number: int) -> Comparison:
    """Times of so many questions of either kind, in turns of which the first is drawn."""
    rng = random.Random(number)
    times: dict[bool, list[float]] = {True: [], False: []}
    answers: dict[bool, set[str]] = {True: set(), False: set()}
    for index in range(number + 20):
        order = [True, False]
        rng.shuffle(order)
        for is_theirs in order:
            name = rng.choice(theirs if is_theirs else missing)
            began_s = time.perf_counter()
            try:
                told = str(await ask(store, name))
            except NotFoundError as exc:
                told = f"{type(exc).__name__}: {exc.message}"
            took_s = time.perf_counter() - began_s
            if index >= 20:
                times[is_theirs].append(took_s)
            answers[is_theirs].add(told.replace(name, "NAME"))
    # Nothing of the answer tells either.
    assert answers[True] == answers[False]
    return compared(times[True], times[False])


async def figures(folder: Path, number: int) -> dict[str, Comparison]:
    async with two_tenants(folder) as (objects, store):
        return {
            kind: await sampled(store, ask, theirs, missing, number)
            for kind, (ask, theirs, missing) in kinds(objects).items()
        }


def note(found: dict[str, Comparison]) -> str:
    text = "\n".join(f"{kind}: {comparison}" for kind, comparison in found.items())
    if path := os.environ.get(FIGURES):
        Path(path).write_text(text + "\n")
    return text


async def test_what_is_foreign_takes_as_long_as_what_is_missing(tmp_path: Path) -> None:
    """The short form: a difference that a few hundred questions tell is found."""
    found = await figures(tmp_path, 200)
    for kind, comparison in found.items():
        assert abs(comparison.auc - 0.5) <= 0.15, (kind, note(found))


@pytest.mark.slow
async def test_2000_times_of_either_kind_are_not_told_apart(tmp_path: Path) -> None:
    found = await figures(tmp_path, 2000)
    for kind, comparison in found.items():
        assert abs(comparison.auc - 0.5) <= 0.05, (kind, note(found))
        assert abs(comparison.difference) <= 0.05, (kind, note(found))
    note(found)


_TIMES = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=12)


@given(_TIMES, _TIMES)
def test_the_statistic_is_the_share_of_pairs(first: list[float], second: list[float]) -> None:
    pairs = [(one > other) + (one == other) / 2 for one in first for other in second]
    assert compared(first, [value + 0.0 for value in second]).auc == pytest.approx(sum(pairs) / len(pairs))
