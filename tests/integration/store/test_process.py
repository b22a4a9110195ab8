"""The store's processes from outside: settings, the end, and the command that checks a folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from hotslot.formats.base_spec import BaseSpec
from hotslot.local.child_processes import free_port
from tests.support.checkpoints import adapter, base_spec
from tests.support.store import dial


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, **(environment or {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("environment", "setting"),
    [
        ({"HOTSLOT_MAX_RANK": "0"}, "HOTSLOT_MAX_RANK"),
        ({"HOTSLOT_MAX_RANK": "many"}, "HOTSLOT_MAX_RANK"),
        ({"HOTSLOT_REDIS_URL": "nonsense"}, "HOTSLOT_REDIS_URL"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(environment: dict[str, str], setting: str) -> None:
    finished = run("store_service", environment=environment)
    assert finished.returncode == 2
    assert setting in finished.stderr.splitlines()[0]
    assert "Traceback" not in finished.stderr


def test_an_address_that_cannot_be_had_is_one_clear_line(tmp_path: Path) -> None:
    settings = {"HOTSLOT_LISTEN": "203.0.113.1:7400", "HOTSLOT_INSECURE": "true", "HOTSLOT_DATA_DIR": str(tmp_path)}
    finished = run("store_service", environment=settings)
    assert finished.returncode == 1
    assert "cannot start: " in finished.stderr.splitlines()[-1]
    assert "203.0.113.1:7400" in finished.stderr.splitlines()[-1]
    assert "Traceback" not in finished.stderr


def test_a_catalog_that_was_lost_is_one_clear_line(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "default" / "ab" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"what was acknowledged")
    settings = {"HOTSLOT_LISTEN": "127.0.0.1:0", "HOTSLOT_DATA_DIR": str(tmp_path)}
    for _ in range(2):
        finished = run("store_service", environment=settings)
        assert finished.returncode == 1
        assert "holds 1 blob" in finished.stderr.splitlines()[-1]
        assert "hotslot restore" in finished.stderr.splitlines()[-1]
        assert "Traceback" not in finished.stderr
    assert blob.read_bytes() == b"what was acknowledged"
    assert not (tmp_path / "catalog.sqlite3").exists()


async def test_sigterm_ends_the_store_in_order(tmp_path: Path) -> None:
    port = free_port()
    settings = {"HOTSLOT_LISTEN": f"127.0.0.1:{port}", "HOTSLOT_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "store_service"]
    process = subprocess.Popen(command, env={**os.environ, **settings})  # noqa: ASYNC220
    async with dial(f"127.0.0.1:{port}") as client:
        await client.channel.channel_ready()
        await client.register()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def spec_file(folder: Path, spec: BaseSpec) -> Path:
    path = folder / "base.json"
    path.write_text(json.dumps({**json.loads(spec.canonical_json()), "name": spec.name}))
    return path


def test_a_folder_is_checked_without_any_server(tmp_path: Path) -> None:
    base = spec_file(tmp_path, base_spec())
    adapter().write(tmp_path / "good")
    draft = adapter()
    draft.config |= {"use_dora": True, "unknown": 1}
    draft.write(tmp_path / "bad")
    draft.raw_config = b"not JSON"
    draft.write(tmp_path / "text")
    good = run("store_service.admission", str(tmp_path / "good"), "--base", str(base), "--json")
    bad = run("store_service.admission", str(tmp_path / "bad"), "--base", str(base), "--json")
    text = run("store_service.admission", str(tmp_path / "text"), "--base", str(base), "--json")
    people = run("store_service.admission", str(tmp_path / "bad"), "--base", str(base))
    usage = run("store_service.admission", str(tmp_path / "good"), "--base", str(tmp_path / "nothing"))
    assert [done.returncode for done in (good, bad, text, people, usage)] == [0, 1, 1, 1, 2]
    assert json.loads(good.stdout)["valid"]
    assert [violation["code"] for violation in json.loads(bad.stdout)["violations"]] == [
        "UNSUPPORTED_CONFIG",
        "UNKNOWN_CONFIG_FIELD",
    ]
    assert [violation["code"] for violation in json.loads(text.stdout)["violations"]] == ["CONFIG_NOT_JSON"]
    assert "use_dora" in people.stdout
    assert "Traceback" not in usage.stderr


def test_the_store_runs_without_torch() -> None:
    finished = run("tests.support.without_torch", "store_service.app", "store_service.admission.__main__")
    assert finished.returncode == 0, finished.stderr
