"""A client that publishes, tags and deletes while a backup is taken, and what a store made of it must have."""

import random
from dataclasses import dataclass, field

from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from tests.support.checkpoints import adapter
from tests.support.store import StoreClient


@dataclass
class Publisher:
    """A client that publishes, tags and deletes, and knows what was acknowledged."""

    name: str
    rng: random.Random
    weights: dict[str, bytes] = field(default_factory=dict)
    """Bytes by version, of those that were acknowledged and whose deletion has not begun."""
    tagged: list[str] = field(default_factory=list)
    """Versions that `live` was moved to, each noted before the call."""
    num_tags_acknowledged: int = 0
    deleted: set[str] = field(default_factory=set)

    async def work(self, store: StoreClient) -> None:
        for step in range(100_000):
            draft = adapter(seed=self.rng.randrange(2**31), rank=8)
            version = await store.push(draft, f"{self.name}:v{step}")
            self.weights[version.digest] = await store.read(version.manifest.weights_digest)
            self.tagged.append(version.digest)
            await store.call("SetTag", pb.SetTagRequest(adapter=self.name, tag="live", digest=version.digest))
            self.num_tags_acknowledged = len(self.tagged)
            if step % 3 == 2:
                digest = self.rng.choice([digest for digest in self.weights if digest != version.digest])
                del self.weights[digest]
                request = pb.DeleteVersionRequest(adapter=self.name, digest=digest, force=True)
                await store.call("DeleteVersion", request)
                self.deleted.add(digest)


@dataclass(frozen=True)
class Known:
    """What a publisher knew at a moment."""

    weights: dict[str, bytes]
    tagged: list[str]
    """The last version that the tag was surely moved to, and any it may have been since."""
    deleted: set[str]

    @classmethod
    def of(cls, publisher: Publisher) -> "Known":
        tagged = publisher.tagged[publisher.num_tags_acknowledged - 1 :]
        return cls(dict(publisher.weights), tagged, set(publisher.deleted))


async def assert_restored(store: StoreClient, publisher: Publisher, before: Known) -> None:
    """A restored store has all that was acknowledged before, bit for bit, and can be published to."""
    listed = await store.call("ListVersions", pb.ListVersionsRequest(adapter=publisher.name, page_size=1000))
    found = {version.digest: version.manifest.weights_digest for version in listed.versions}
    # Those that were deleted while the backup was taken may be there or not.
    assert before.weights.keys() & publisher.weights.keys() <= found.keys()
    assert not before.deleted & found.keys()
    for digest, weights_digest in found.items():
        data = await store.read(weights_digest)
        assert digest_of(data) == weights_digest
        assert before.weights.get(digest, data) == data
    live = (await store.resolve(f"{publisher.name}:live")).digest
    assert live in before.tagged + publisher.tagged[publisher.tagged.index(before.tagged[0]) :]
    assert await store.names() == [publisher.name]
    again = await store.push(adapter(seed=1), publisher.name)
    assert (await store.resolve(publisher.name)).digest == again.digest
