"""Folders that hold something else than one adapter in one file: what is pushed, and what is said before a byte is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hotslot.clients.checkpoint import checkpoint_files, files_beside, find_checkpoint
from hotslot.errors import InvalidAdapterError
from hotslot.formats.companions import companions_from_json, read_companions
from tests.support.tiny_tokenizers import byte_tokenizer


def folder_with(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def refusal(folder: Path) -> list[tuple[str, str]]:
    with pytest.raises(InvalidAdapterError) as raised:
        checkpoint_files(folder)
    return [(violation.code, violation.message) for violation in raised.value.violations]


@pytest.mark.parametrize(
    "names",
    [
        ("config.json", "model.safetensors"),
        ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        ("adapter_config.json", "model.safetensors"),
        ("adapter_config.json", "pytorch_lora_weights.safetensors"),
    ],
)
def test_a_whole_model_is_refused_and_told_what_it_is(names: tuple[str, ...], tmp_path: Path) -> None:
    ((code, message),) = refusal(folder_with(tmp_path, *names))
    assert code == "MISSING_FILE"
    assert "hotslot base add" in message
    assert not any(file.path.endswith(".safetensors") for file in find_checkpoint(tmp_path).files)


def test_shards_of_an_adapter_that_are_missing_are_named(tmp_path: Path) -> None:
    folder_with(tmp_path, "adapter_config.json", "adapter_model-00001-of-00003.safetensors")
    assert [code for code, _ in refusal(tmp_path)] == ["MISSING_FILE", "MISSING_FILE"]
    assert "adapter_model-00002-of-00003.safetensors" in refusal(tmp_path)[0][1]


def test_several_adapters_in_folders_are_listed(tmp_path: Path) -> None:
    folder_with(tmp_path, "a/adapter_config.json", "b/adapter_config.json", "checkpoint-9/adapter_config.json")
    message = refusal(tmp_path)[0][1]
    assert all(str(tmp_path / name) in message for name in ("a", "b", "checkpoint-9"))


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("name", ["adapter_model.bin", "it's an adapter_model.bin"])
def test_the_command_that_converts_a_pickle_works_on_whatever_is_in_it(
    is_nested: bool, name: str, tmp_path: Path
) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "plain": whole.clone(),
        "transposed": whole.t(),
        "strided": whole[:, ::2],
        "shared": whole[:2],
        "shared again": whole[:2],
        "parameter": torch.nn.Parameter(whole.clone()),
        "half": whole.to(torch.bfloat16),
    }
    entries: dict[str, object] = {**tensors, "step": 3, "name": "x", "none": None, "list": [1.0]}
    folder = tmp_path / "with a space"
    folder_with(folder, "adapter_config.json")
    torch.save({"state_dict": entries} if is_nested else entries, folder / name)
    ((code, message),) = refusal(folder)
    assert code == "UNSUPPORTED_PICKLE"
    command = "python -c" + message.partition("python -c")[2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env={**os.environ, "PATH": path}, timeout=120)
    written = load_file(folder / "adapter_model.safetensors")
    assert written.keys() == tensors.keys()
    for key, tensor in tensors.items():
        torch.testing.assert_close(written[key], tensor.detach())


def test_what_lies_beside_the_weights_is_pushed_as_a_summary(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "plain", "adapter_config.json", "adapter_model.safetensors")
    with files_beside(folder) as files:
        assert files == ()
    byte_tokenizer(extra=["<x>"]).save_pretrained(folder)
    with files_beside(folder) as (file,):
        data = file.local.read_bytes()
        assert (file.path, file.size_bytes) == ("hotslot_companions.json", len(data))
    assert not file.local.exists()
    assert companions_from_json(data) == read_companions(folder)
