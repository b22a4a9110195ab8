"""Clients pass on the revision of what they wrote with every request that a write may change the answer to."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hotslot import BlockingHotslotClient, GenerationRequest, HotslotClient
from tests.unit.hotslot.conftest import Served

Write = Callable[[BlockingHotslotClient, Path], object]
WRITES: dict[str, Write] = {
    "push": lambda client, folder: client.store.push(folder, "pirate"),
    "import": lambda client, folder: client.store.import_hub("org/bot", "pirate"),
    "tag": lambda client, folder: client.store.set_tag("pirate", "new", client.store.resolve("pirate").version.digest),
    "delete a tag": lambda client, folder: client.store.delete_tag("pirate", "latest"),
    "delete a version": lambda client, folder: client.store.delete_version(
        "pirate", client.store.resolve("pirate").version.digest, force=True
    ),
    "delete an adapter": lambda client, folder: client.store.delete_adapter("pirate"),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("route", [True, False])
def test_a_generation_after_a_write_asks_for_its_revision(
    served: Served, adapter_folder: Path, name: str, route: bool
) -> None:
    with BlockingHotslotClient(*served.endpoints, route=route) as client:
        client.complete("before")
        assert (client.revision, served.worker.inference.requests[-1].min_revision) == (0, 0)
        WRITES[name](client, adapter_folder)
        assert client.revision == client.store.revision > 0
        client.complete("after")
        client.worker.complete("after")
        assert [one.min_revision for one in served.worker.inference.requests[-2:]] == [client.revision] * 2
        client.complete(GenerationRequest("ahead", min_revision=client.revision + 5))
        client.complete(GenerationRequest("base", base_only=True))
        told = [one.min_revision for one in served.worker.inference.requests[-2:]]
        assert told == [client.revision + 5, 0]


def test_a_client_that_does_not_read_its_writes_passes_on_what_a_request_says(
    served: Served, adapter_folder: Path
) -> None:
    with BlockingHotslotClient(*served.endpoints, reads_own_writes=False) as client:
        pushed = client.store.push(adapter_folder, "pirate")
        assert pushed.revision == client.revision
        client.complete("after")
        client.complete(GenerationRequest("after", min_revision=3))
        assert [one.min_revision for one in served.worker.inference.requests[-2:]] == [0, 3]


async def test_a_revision_of_another_process_is_set_once_for_all_requests(served: Served) -> None:
    async with HotslotClient(*served.endpoints) as client:
        client.revision = 41
        await client.complete("after")
        assert served.worker.inference.requests[-1].min_revision == 41
        client.revision = 0
        await client.complete("after")
        assert served.worker.inference.requests[-1].min_revision == 0
