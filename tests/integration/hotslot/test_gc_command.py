"""`hotslot gc` against a real store: a dry run says what a run then removes."""

import json
from pathlib import Path
from typing import Any

import pytest

from hotslot import BlockingStoreClient, ChannelOptions
from hotslot.cli.app import run
from hotslot.ids import TenantId
from tests.integration.hotslot.conftest import SPEC, TENANT, PeftFolder
from tests.support.store_process import store_forks

pytestmark = pytest.mark.integration


async def test_gc_says_what_would_go_and_removes_it(
    tmp_path: Path, peft_folder: PeftFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graces = {"delete_grace_s": 0, "unreferenced_grace_s": 0, "collect_every_s": 3600}
    with store_forks() as forks:
        async with forks.store(tmp_path, **graces) as process:
            endpoint = f"127.0.0.1:{process.port}"
            monkeypatch.setenv("HOTSLOT_STORE", endpoint)
            with BlockingStoreClient(endpoint, ChannelOptions(tenant=TenantId(TENANT))) as client:
                client.register_base_model(SPEC)
                version = client.push(peft_folder(), "pirate").version
                client.delete_adapter("pirate")
            plan = answered(["gc", "--dry-run", "-o", "json"], capsys)
            kinds = {removal["kind"]: removal for removal in plan["removals"]}
            assert kinds.keys() == {"adapter", "blob"}
            assert (kinds["adapter"]["name"], kinds["adapter"]["reason"]) == ("pirate", "deleted")
            assert kinds["blob"]["digest"] == version.weights_digest
            assert kinds["blob"]["size_bytes"] == version.weights_size_bytes
            assert run(["gc", "-n"]) == 0
            out, err = capsys.readouterr()
            assert "pirate" in out
            assert "1 adapter, 1 blob would go" in err
            removed = answered(["gc", "--json"], capsys)
            assert [r["digest"] for r in removed["removals"]] == [r["digest"] for r in plan["removals"]]
            left = answered(["gc", "--dry-run", "--all", "--json"], capsys)["removals"]
            assert {(removal["kind"], removal["wait_s"] > 0) for removal in left} == {("upload", True)}


def answered(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run(arguments) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]
