"""Downloads of base models take the weights that are loaded, once, and for workers what lies beside them."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub.utils._paths import filter_repo_objects

from hotslot.base_fetch import fetch_base_model
from hotslot.cli.app import run
from hotslot.errors import InvalidRequestError
from worker_service.model.folder import model_folder

COMMIT = "c" * 40
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a.weight": SHARDS[0], "b.weight": SHARDS[1]}})
BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "merges.txt")
SECOND_COPIES = (
    "consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "original/model.safetensors",
    "original/params.json", "model.fp16.safetensors", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json",
    "model-q4.gguf", "modeling_custom.py", "adapter_model.safetensors",
)  # fmt: skip


class Hub:
    """A repository, as the hub's library filters and places its files."""

    def __init__(self, files: dict[str, str], folder: Path) -> None:
        self.files = files
        self.snapshot_folder = folder / COMMIT
        self.revisions: list[str | None] = []

    def snapshot(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str] | None = None,
        ignore_patterns: list[str] | None = None,
    ) -> str:
        self.revisions.append(revision)
        chosen = filter_repo_objects(self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        self.snapshot_folder.mkdir(exist_ok=True)
        for name in chosen:
            (self.snapshot_folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.snapshot_folder / name).write_text(self.files[name])
        return str(self.snapshot_folder)

    @property
    def fetched(self) -> set[str]:
        paths = (path for path in self.snapshot_folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.snapshot_folder)) for path in paths}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    files = dict.fromkeys((*BESIDE, *SECOND_COPIES, *SHARDS), "x")
    made = Hub({**files, "config.json": '{"model_type": "llama"}', "model.safetensors.index.json": INDEX}, tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot)
    return made


def test_a_worker_takes_what_the_index_names_and_what_lies_beside_it(hub: Hub) -> None:
    assert model_folder("org/sharded") == hub.snapshot_folder
    assert hub.fetched == {"config.json", "model.safetensors.index.json", *SHARDS, *BESIDE}
    assert hub.revisions == [None, COMMIT, COMMIT], "one commit, wherever the branch moves meanwhile"


def test_a_registration_takes_no_more_than_the_spec_is_computed_from(hub: Hub) -> None:
    assert fetch_base_model("org/sharded", "v1") == hub.snapshot_folder
    assert hub.fetched == {"config.json", "model.safetensors.index.json", *SHARDS}


def test_shards_of_a_quantised_model_are_not_downloaded(hub: Hub) -> None:
    hub.files["config.json"] = '{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}'
    with pytest.raises(InvalidRequestError, match="quantised by AWQ"):
        model_folder("org/sharded")
    assert hub.fetched == {"config.json", "model.safetensors.index.json"}


def test_a_folder_is_taken_as_it_is(tmp_path: Path, hub: Hub) -> None:
    assert model_folder(str(tmp_path)) == tmp_path
    assert hub.revisions == []


NO_NAMES = ("/nonexistent", "./nonexistent", "../x", "~/models/x", "models/x/", "a/b/c", "C:\\models\\x")
"""Models that nobody can mean a repository with."""


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_folder_that_is_not_there_is_said_to_be_missing(
    name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError, match=re.escape(f"no such folder: {name}")):
        model_folder(name)
    assert run(["up", "--model", name, "--data-dir", str(tmp_path / "up")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"hotslot: no such folder: {name}; a model is a folder or ORG/NAME on the hub"
    ]
    assert hub.revisions == []
    assert not (tmp_path / "up").exists()


def test_a_file_is_no_folder_of_a_model(tmp_path: Path, hub: Hub) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(InvalidRequestError, match="is a file; name the folder"):
        model_folder(str(path))
    assert hub.revisions == []


@pytest.mark.parametrize("name", ["a b/c", "org/na--me", "-x/y"])
def test_a_name_that_the_hub_cannot_have_is_refused_in_words_of_our_own(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        fetch_base_model(name)
    assert caught.value.message == f"{name!r} is neither a folder here nor a repository's name (ORG/NAME)"
