"""Claims and generations of blobs: what one store publishes is not what another one removes, however late."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Engine

from hotslot.errors import VersionNotFoundError
from hotslot.ids import AdapterName, TenantId
from store_service.catalog import blob_claims
from store_service.catalog.blob_claims import BlobClaims, ClaimBrokenError
from store_service.catalog.catalog import Catalog
from store_service.content.keys import BlobKey
from tests.contract.test_catalog import new_version

ACME = TenantId("acme")
BOT = AdapterName("bot")
VERSION = new_version(1)
KEY: BlobKey = (ACME, VERSION.manifest.weights_digest)
NUM_STEPS = 16


@dataclass
class Bucket:
    """Object storage that runs deletions as late as it likes."""

    rng: random.Random
    objects: set[int] = field(default_factory=set)
    late: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, generation: int) -> None:
        with self.lock:
            self._run_some()
            self.objects.add(generation)
        time.sleep(self.rng.uniform(0, 0.01))  # an upload takes time, and a removal may come in between

    def delete(self, generation: int) -> None:
        with self.lock:
            self.late.append(generation)
            self._run_some()

    def has(self, generation: int) -> bool:
        with self.lock:
            self._run_some()
            return generation in self.objects

    def _run_some(self) -> None:
        self.rng.shuffle(self.late)
        for _ in range(self.rng.randint(0, len(self.late))):
            self.objects.discard(self.late.pop())


def publish(catalog: Catalog, claims: BlobClaims, bucket: Bucket) -> bool:
    """Publish as a store does; false where a removal broke the claim."""
    claim = claims.claim(KEY)
    bucket.put(claim.generation)
    try:
        catalog.create_version(ACME, BOT, VERSION, tag=None, new_labels={}, tag_etag="", claim=claim)
    except ClaimBrokenError:
        return False
    return True


def remove(claims: BlobClaims, bucket: Bucket) -> bool:
    last = claims.condemn(KEY)
    if last is not None:
        bucket.delete(last)
    return last is not None


def test_a_blob_that_is_being_published_is_not_removed(engine: Engine) -> None:
    publishing, removing = BlobClaims(engine, "one"), BlobClaims(engine, "two")
    claim = publishing.claim(KEY)
    assert removing.condemn(KEY) is None
    publishing.give_up(claim)
    assert removing.condemn(KEY) == 0


def test_a_blob_that_a_version_refers_to_is_not_removed(engine: Engine) -> None:
    catalog, claims = Catalog(engine), BlobClaims(engine, "one")
    assert publish(catalog, claims, Bucket(random.Random(0)))
    assert BlobClaims(engine, "two").condemn(KEY) is None
    catalog.delete_version(ACME, BOT, VERSION.manifest.digest, force=True)
    assert BlobClaims(engine, "two").condemn(KEY) == 0


def test_the_next_publication_uses_another_name(engine: Engine) -> None:
    claims = BlobClaims(engine, "one")
    assert [claims.condemn(KEY), claims.condemn(KEY)] == [0, 1]
    assert claims.claim(KEY).generation == claims.generation(KEY) == 2
    assert claims.generations() == {KEY: 2}


def test_a_broken_claim_makes_no_version(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, claims = Catalog(engine), BlobClaims(engine, "one")
    monkeypatch.setattr(blob_claims, "CLAIM_S", -1.0)
    claim = claims.claim(KEY)
    assert BlobClaims(engine, "two").condemn(KEY) == 0
    with pytest.raises(ClaimBrokenError):
        catalog.create_version(ACME, BOT, VERSION, tag=None, new_labels={}, tag_etag="", claim=claim)
    assert catalog.referenced_weights() == set()
    assert catalog.revision(ACME) == 0


def test_a_store_that_starts_again_gives_up_what_it_had_claimed_and_no_more(engine: Engine) -> None:
    other = (ACME, new_version(2).manifest.weights_digest)
    BlobClaims(engine, "one").claim(KEY)
    BlobClaims(engine, "two").claim(other)
    BlobClaims(engine, "one").forget_own()
    assert BlobClaims(engine, "two").condemn(KEY) == 0
    assert BlobClaims(engine, "one").condemn(other) is None


def test_generations_of_what_is_used_are_kept_for_ever(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, claims = Catalog(engine), BlobClaims(engine, "one")
    claims.condemn(KEY)
    claims.purge()
    assert claims.generation(KEY) == 1
    monkeypatch.setattr(blob_claims, "KEPT_S", -1.0)
    assert publish(catalog, claims, Bucket(random.Random(0)))
    claims.purge()
    assert claims.generation(KEY) == 1
    catalog.delete_version(ACME, BOT, VERSION.manifest.digest, force=True)
    claims.purge()
    assert claims.generation(KEY) == 0


@pytest.mark.parametrize("claim_s", [600.0, 0.0], ids=["claims last", "claims are broken at once"])
def test_stores_that_publish_and_remove_one_blob_lose_it_never(
    engine: Engine, claim_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_claims, "CLAIM_S", claim_s)
    catalog, bucket = Catalog(engine), Bucket(random.Random(0))
    lost: list[int] = []

    def store(number: int) -> int:
        claims, rng, num_removed = BlobClaims(engine, f"store-{number}"), random.Random(number), 0
        for _ in range(NUM_STEPS):
            if rng.random() < 0.5:
                num_removed += remove(claims, bucket)
            elif publish(catalog, claims, bucket):
                # Acknowledged; a version is deleted by one thread at a time, and not before it was looked at.
                with turn, suppress(VersionNotFoundError):
                    if KEY in catalog.referenced_weights() and not bucket.has(claims.generation(KEY)):
                        lost.append(claims.generation(KEY))
                    catalog.delete_version(ACME, BOT, VERSION.manifest.digest, force=True)
        return num_removed

    turn = threading.Lock()
    with ThreadPoolExecutor(4) as threads:
        num_removed = sum(threads.map(store, range(4)))
    assert lost == []
    assert num_removed > 0
