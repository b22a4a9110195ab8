"""`hotslot prune` of several names, against a real store."""

import json

import pytest

from hotslot import BlockingStoreClient
from hotslot.cli.app import run
from hotslot.local.children import Child
from tests.integration.hotslot.conftest import TENANT, PeftFolder

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("names", [("pirate", "missing"), ("missing", "pirate")])
def test_a_name_that_fails_hides_nothing_of_the_others(
    store: BlockingStoreClient,
    store_process: Child,
    peft_folder: PeftFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, str],
) -> None:
    monkeypatch.setenv("HOTSLOT_STORE", store_process.spec.endpoint)
    monkeypatch.setenv("HOTSLOT_TENANT", TENANT)
    for seed in range(2):
        store.push(peft_folder(f"seed-{seed}", seed=seed), "pirate")
    capsys.readouterr()
    code = run(["prune", *names, "--keep", "1", "--json"])
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (len(answer["versions"]) + answer["num_waiting"], answer["num_kept"]) == (1, 1)
    assert json.loads(err)["error"]["reason"] == "ADAPTER_NOT_FOUND"
    assert code == run(["prune", "missing"]) != 0
