"""The audit log of a real store: digests that changes made, and those that uses took."""

import json
from pathlib import Path

import pytest

from hotslot.clients.store import StoreClient
from tests.support.checkpoints import adapter, base_spec
from tests.support.store import open_store

pytestmark = pytest.mark.integration


async def test_lines_have_the_digests_that_a_change_made_and_a_use_took(tmp_path: Path) -> None:
    log, folder = tmp_path / "audit.log", tmp_path / "one"
    adapter(seed=1).write(folder)
    async with (
        open_store(tmp_path / "store", audit="all", audit_file=log) as served,
        StoreClient(served.endpoint) as client,
    ):
        await client.register_base_model(base_spec())
        pushed = await client.push(folder, "bot:prod")
        # The line of a change is there when its caller hears of it.
        assert pushed.version.digest in log.read_text()
        await client.set_tag("bot", "stable", pushed.version.digest)
        await client.resolve("bot:stable")
        await client.download_blob(pushed.version.weights_digest, tmp_path / "blob")
        await client.delete_adapter("bot")
        assert [adapter.name async for adapter in client.list_adapters()] == []
    found = [json.loads(line) for line in log.read_text().splitlines()]
    told = {line["rpc"].rpartition("/")[2]: line for line in found}
    digest = pushed.version.digest
    assert {line["code"] for line in found} == {"OK"}
    assert told["CreateVersion"]["object"]["version.digest"] == digest
    assert told["CreateVersion"]["object"]["reference"] == "bot:prod"
    assert told["SetTag"]["object"]["digest"] == told["SetTag"]["object"]["tag.digest"] == digest
    assert told["ResolveAdapter"]["object"] == {"reference": "bot:stable", "version.digest": digest}
    assert told["ReadBlob"]["object"]["digest"] == pushed.version.weights_digest
    assert told["DeleteAdapter"]["object"]["adapter.name"] == "bot"
    assert "ListAdapters" not in told
    assert {line["act"] for line in found} == {"change", "use"}
