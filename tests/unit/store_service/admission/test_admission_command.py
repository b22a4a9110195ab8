"""`python -m store_service.admission`: what it says, and the exit codes that a build relies on."""

import json
from pathlib import Path

import numpy as np
import pytest

from hotslot.formats.base_spec import BaseSpec
from store_service.admission.__main__ import EXIT_REFUSED, EXIT_USAGE, EXIT_VALID, main
from tests.support.checkpoints import adapter, base_spec, weights_file


def write_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tensors = {
        f"{module.path}.weight": np.zeros((module.out_features, module.in_features), np.float32)
        for module in base_spec().modules
        if module.name != "embed_tokens"
    }
    (folder / "model.safetensors").write_bytes(weights_file(tensors))


def as_document(spec: BaseSpec) -> dict[str, object]:
    modules = [[module.path, module.kind.value, module.in_features, module.out_features] for module in spec.modules]
    return {
        "name": spec.name, "model_type": spec.model_type, "weights_fingerprint": spec.weights_fingerprint,
        "modules": modules,
    }  # fmt: skip


def test_the_base_may_be_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "tiny")
    adapter().write(tmp_path / "bot")
    monkeypatch.chdir(tmp_path / "tiny")
    assert main(["../bot", "--base", "."]) == EXIT_VALID


def test_a_refused_adapter_has_an_exit_code_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.json").write_text(json.dumps(as_document(base_spec())))
    draft = adapter()
    draft.write(tmp_path / "sound")
    draft.config["r"] = 3
    draft.write(tmp_path / "broken")
    assert main([str(tmp_path / "sound"), "--base", str(tmp_path / "base.json"), "--json"]) == EXIT_VALID
    assert json.loads(capsys.readouterr().out)["valid"] is True
    assert main([str(tmp_path / "broken"), "--base", str(tmp_path / "base.json"), "--json"]) == EXIT_REFUSED
    assert json.loads(capsys.readouterr().out)["valid"] is False


@pytest.mark.parametrize("base", ["[]", "7", "{}", "{", '{"modules": 7}', "[" * 100_000])
def test_a_base_that_cannot_be_read_refuses_no_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: str
) -> None:
    adapter().write(tmp_path / "bot")
    (tmp_path / "base.json").write_text(base)
    assert main([str(tmp_path / "bot"), "--base", str(tmp_path / "base.json"), "--json"]) == EXIT_USAGE
    said = capsys.readouterr()
    assert "neither a model folder nor a base spec" in json.loads(said.out)["error"]
    assert json.loads(said.out)["error"] in said.err


def test_a_folder_that_is_not_there_is_told_to_programs_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing"), "--base", str(tmp_path), "--json"]) == EXIT_USAGE
    assert "is no folder" in json.loads(capsys.readouterr().out)["error"]
