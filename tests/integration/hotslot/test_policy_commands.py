"""`hotslot policy` and the client's calls beneath it, against a real store."""

import json
from collections.abc import Callable

import pytest

from hotslot import BlockingStoreClient
from hotslot.cli.app import run
from hotslot.contract.catalog import AdapterPolicy
from hotslot.local.children import Child
from tests.integration.hotslot.conftest import TENANT, PeftFolder

pytestmark = pytest.mark.integration

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def policy(store_process: Child, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `hotslot policy` in this process; returns exit code, stdout, stderr."""
    monkeypatch.setenv("HOTSLOT_STORE", store_process.spec.endpoint)
    monkeypatch.setenv("HOTSLOT_TENANT", TENANT)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["policy", *arguments])
        return code, *capsys.readouterr()

    return run_command


def as_json(policy: Command, *arguments: str) -> dict[str, object]:
    code, out, _ = policy(*arguments, "--json")
    assert code == 0
    return json.loads(out)  # type: ignore[no-any-return]


def test_what_is_not_named_stays_as_it_is(policy: Command, store: BlockingStoreClient, peft_folder: PeftFolder) -> None:
    store.push(peft_folder(), "pirate")
    as_json(policy, "set", "pirate", "--min", "2", "--max", "4", "--pin")
    made = as_json(policy, "set", "pirate", "--min", "3")["policy"]
    assert isinstance(made, dict)
    assert (made["min_replicas"], made["max_replicas"], made["pinned"]) == (3, 4, True)
    assert (
        as_json(policy, "set", "pirate", "--no-pin", "--max", "0")["policy"]
        == as_json(policy, "show", "pirate")["policy"]
    )
    found = store.get_policy("pirate")
    assert found == AdapterPolicy("pirate", 3, 0, False, found.etag, found.update_time)
    assert store.resolve("pirate").policy == found
    assert list(store.list_policies()) == [found]


def test_a_policy_is_listed_and_removed(policy: Command, store: BlockingStoreClient, peft_folder: PeftFolder) -> None:
    store.push(peft_folder(), "pirate")
    assert "no policies" in policy("ls")[2]
    policy("set", "pirate", "--min", "2", "--pin")
    header, _, row = policy("ls")[1].splitlines()
    assert header.split() == ["ADAPTER", "MIN", "MAX", "PINNED", "CHANGED"]
    assert row.split()[:4] == ["pirate", "2", "-", "yes"]
    code, _, err = policy("rm", "pirate", "--etag", "r0")
    assert code != 0
    assert "etag" in err
    removed = as_json(policy, "rm", "pirate")
    revision = removed.pop("revision")
    assert isinstance(revision, int)
    assert revision > 0
    assert removed == {"removed": "policy", "adapter": "pirate"}
    code, _, err = policy("show", "pirate")
    assert code != 0
    assert "hotslot policy set pirate" in err


def test_a_wrong_bound_is_refused_with_what_would_fit(
    policy: Command, store: BlockingStoreClient, peft_folder: PeftFolder
) -> None:
    store.push(peft_folder(), "pirate")
    code, _, err = policy("set", "pirate", "--min", "3", "--max", "2")
    assert code != 0
    assert "3 to 10000" in err
