"""`hotslot base` against a real store."""

import errno
import json
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hotslot import BlockingStoreClient
from hotslot.cli.app import run
from hotslot.local.children import Child
from tests.integration.hotslot.conftest import TENANT

pytestmark = pytest.mark.integration


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    weight = np.arange(64, dtype=np.float32).reshape(8, 8)
    names = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")
    save_file(dict.fromkeys(names, weight), folder / "model.safetensors")
    return folder


@pytest.mark.usefixtures("store")
def test_a_folder_becomes_a_base_model_that_is_listed(
    store_process: Child, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", store_process.spec.endpoint, "--tenant", TENANT, "--json"]
    assert run(["base", "add", str(base_folder), "--name", "org/added", *where]) == 0
    added = json.loads(capsys.readouterr().out)
    assert (added["name"], added["model_type"], added["num_modules"]) == ("org/added", "llama", 2)
    assert run(["base", "ls", *where]) == 0
    assert added in json.loads(capsys.readouterr().out)["base_models"]


def test_what_is_no_base_model_is_refused(
    store: BlockingStoreClient, store_process: Child, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", store_process.spec.endpoint, "--tenant", TENANT]
    before = list(store.list_base_models())
    assert run(["base", "add", str(tmp_path / "nowhere"), *where]) == 3
    assert run(["base", "add", str(tmp_path), *where]) == 2
    assert run(["base", "add", "hf:no-slash", *where]) == 2
    assert "is not a base model: config.json cannot be read" in capsys.readouterr().err
    assert list(store.list_base_models()) == before


@pytest.mark.usefixtures("store")
def test_a_repository_is_known_by_its_name(
    store_process: Child, base_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str | None]] = []

    def snapshot(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision))
        if revision == "away":
            raise ConnectionError("offline")
        if revision == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "blob")
        return str(base_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    where = ["--store", store_process.spec.endpoint, "--tenant", TENANT]
    assert run(["base", "add", "hf:org/base@v1", *where]) == 0
    assert capsys.readouterr().out.startswith("org/base is base model sha256:")
    assert run(["base", "add", "hf:org/base@away", *where]) == 7
    assert "hf:org/base@away cannot be fetched now: ConnectionError" in capsys.readouterr().err
    assert run(["base", "add", "hf:org/base@full", *where]) == 1
    assert "No space left on device: 'blob'" in capsys.readouterr().err
    assert asked == [("org/base", "v1"), ("org/base", "away"), ("org/base", "full")]


@pytest.mark.usefixtures("store")
def test_only_the_weights_that_the_index_names_are_downloaded(
    store_process: Child, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = "model-00001-of-00001.safetensors"
    weights = (base_folder / "model.safetensors").read_bytes()
    index = json.dumps({"weight_map": {"model.embed_tokens.weight": shard}}).encode()
    config = (base_folder / "config.json").read_bytes()
    others = ("consolidated.safetensors", "original/model.safetensors", "original/config.json")
    wanted = {"config.json": config, "model.safetensors.index.json": index, shard: weights}
    repository = {**wanted, **dict.fromkeys(others, weights)}
    snapshot_folder = tmp_path / ("c" * 40)
    asked: list[str | None] = []

    def snapshot(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(revision)
        # So does the hub's library match: a star stands for slashes, too.
        for name in (name for name in repository if any(fnmatch(name, pattern) for pattern in allow_patterns)):
            (snapshot_folder / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot_folder / name).write_bytes(repository[name])
        return str(snapshot_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    where = ["--store", store_process.spec.endpoint, "--tenant", TENANT]
    assert run(["base", "add", "hf:org/sharded", *where]) == 0
    found = {str(path.relative_to(snapshot_folder)) for path in snapshot_folder.rglob("*") if path.is_file()}
    assert found == set(wanted)
    assert asked == [None, snapshot_folder.name], "what the index names comes from the commit of the index"


@pytest.mark.usefixtures("store")
def test_a_name_is_taken_moved_and_removed(
    store_process: Child, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}')
    names = ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")
    save_file(dict.fromkeys(names, np.ones((8, 8), dtype=np.float32)), other / "model.safetensors")
    where = ["--store", store_process.spec.endpoint, "--tenant", TENANT]
    digests = {}
    for folder, name in ((base_folder, "org/name"), (other, "org/other")):
        assert run(["base", "add", str(folder), "--name", name, *where, "--json"]) == 0
        digests[folder] = json.loads(capsys.readouterr().out)["digest"]
    assert run(["base", "add", str(other), "--name", "org/name", *where]) == 5
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1
    assert all(part in message for part in (*digests.values(), "--move", "org/name"))
    assert run(["base", "add", str(other), "--name", digests[base_folder], *where]) == 2
    assert "looks like a digest" in capsys.readouterr().err
    elsewhere = ["--store", store_process.spec.endpoint, "--tenant", "mallory"]
    assert run(["base", "add", str(other), "--name", "org/name", "--move", *elsewhere]) == 5
    assert run(["base", "rm", "org/name", "--yes", *elsewhere]) == 5
    assert "another tenant" in capsys.readouterr().err
    assert run(["base", "add", str(other), "--name", "org/name", "--move", *where]) == 0
    capsys.readouterr()
    assert run(["base", "ls", *where, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["base_models"]
    standing = {(m["name"], m["digest"]): m["superseded"] for m in listed if m["name"] == "org/name"}
    assert standing == {("org/name", digests[base_folder]): True, ("org/name", digests[other]): False}
    assert run(["base", "rm", "org/name", *where]) == 2
    assert "--yes" in capsys.readouterr().err
    assert run(["base", "rm", "org/name", "--yes", *where, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["removed"]) == 2
    assert run(["base", "rm", "org/name", "--yes", *where]) == 3
