"""Which files of a PEFT folder are pushed."""

from pathlib import Path

import pytest

from hotslot.clients.checkpoint import checkpoint_files, file_digest
from hotslot.errors import InvalidAdapterError, SourceNotFoundError


def folder_with(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize(
    ("found", "pushed"),
    [
        (
            ("adapter_config.json", "adapter_model.safetensors", "README.md", "optimizer.pt", "tokenizer.json"),
            ["adapter_config.json", "adapter_model.safetensors"],
        ),
        (
            ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "other.safetensors"),
            ["adapter_config.json", "adapter_model.safetensors"],
        ),
        (("adapter_config.json", "adapters.safetensors"), ["adapter_config.json", "adapters.safetensors"]),
        (
            (
                "adapter_config.json",
                "adapter_model-00001-of-00002.safetensors",
                "adapter_model-00002-of-00002.safetensors",
                "adapter_model.safetensors.index.json",
            ),
            [
                "adapter_config.json",
                "adapter_model-00001-of-00002.safetensors",
                "adapter_model-00002-of-00002.safetensors",
                "adapter_model.safetensors.index.json",
            ],
        ),
    ],
)
def test_only_what_matters_is_pushed(tmp_path: Path, found: tuple[str, ...], pushed: list[str]) -> None:
    files = checkpoint_files(folder_with(tmp_path, *found))
    assert [file.path for file in files] == pushed
    assert [file.size_bytes for file in files] == [len(name) for name in pushed]


def test_pickled_weights_alone_are_refused_with_the_command_that_converts_them(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapterError) as raised:
        checkpoint_files(folder_with(tmp_path, "adapter_config.json", "training_args.bin", "adapter_model.bin"))
    (violation,) = raised.value.violations
    assert violation.code == "UNSUPPORTED_PICKLE"
    assert violation.subject == "adapter_model.bin"
    assert "adapter_model.bin" in violation.message
    assert "torch.load(" in violation.message
    assert "weights_only=True" in violation.message


def test_every_missing_file_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapterError) as raised:
        checkpoint_files(folder_with(tmp_path, "README.md"))
    assert [v.code for v in raised.value.violations] == ["MISSING_FILE", "MISSING_FILE"]


def test_an_empty_file_is_named_beside_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(InvalidAdapterError) as raised:
        checkpoint_files(tmp_path)
    assert [v.code for v in raised.value.violations] == ["MISSING_FILE", "FILE_TRUNCATED"]


def test_a_trainer_folder_points_at_its_last_checkpoint(tmp_path: Path) -> None:
    folder_with(tmp_path, "checkpoint-100/adapter_config.json", "checkpoint-200/adapter_config.json")
    with pytest.raises(InvalidAdapterError, match=r"did you mean .*checkpoint-200"):
        checkpoint_files(tmp_path)


def test_a_path_that_is_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="is not a folder"):
        checkpoint_files(tmp_path / "nowhere")


def test_the_digest_is_that_of_the_bytes_and_progress_adds_up(tmp_path: Path) -> None:
    folder_with(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    heard: list[int] = []
    files = checkpoint_files(tmp_path)
    assert file_digest(files[0], heard.append).startswith("sha256:")
    assert sum(heard) == files[0].size_bytes
