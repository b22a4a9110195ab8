"""`hotslot backup` and `hotslot restore` on this machine."""

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest

from hotslot.cli.app import run
from tests.support.checkpoints import adapter
from tests.support.store import open_store

pytestmark = pytest.mark.integration


async def fill(data: Path) -> None:
    async with open_store(data) as store:
        await store.register()
        await store.push(adapter(), "bot")


async def names(data: Path) -> list[str]:
    async with open_store(data) as store:
        return await store.names()


@pytest.mark.parametrize("names_the_store", [True, False])
def test_a_backup_of_what_up_runs_becomes_a_store_again(
    names_the_store: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(fill(tmp_path / "up" / "store"))
    data, backup = tmp_path / "up" / ("store" if names_the_store else "."), tmp_path / "b.tar"
    capfd.readouterr()
    assert run(["backup", str(backup), "--data-dir", str(data), "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["num_blobs"], document["data_dir"]) == (1, str(tmp_path / "up" / "store"))
    assert run(["restore", str(backup), "--check", "--data-dir", str(data)]) == 0
    assert "verified" in capfd.readouterr().out
    assert run(["restore", str(backup), "--data-dir", str(tmp_path / "up")]) == 5
    assert str(tmp_path / "up" / "store") in capfd.readouterr().err
    assert run(["restore", str(backup), "--data-dir", str(tmp_path / "new")]) == 0
    assert asyncio.run(names(tmp_path / "new")) == ["bot"]


def test_a_failure_is_one_line_and_a_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["restore", str(tmp_path / "nothing"), "--data-dir", str(tmp_path / "new"), "--json"]) == 3
    assert json.loads(capfd.readouterr().err)["error"]["reason"] == "NOT_FOUND"
    assert run(["backup", str(tmp_path / "b"), "--data-dir", str(tmp_path / "no-store")]) == 3
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_where_there_is_no_store_the_command_says_where_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(["backup", str(tmp_path / "b"), "--data-dir", str(tmp_path)]) == 2
    assert "in the pod" in capfd.readouterr().err
