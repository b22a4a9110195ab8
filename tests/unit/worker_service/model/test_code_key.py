"""The key of compiled code has all that programs are of."""

from pathlib import Path

import pytest

from hotslot.ids import digest_of
from worker_service.model import code_key as module
from worker_service.model.code_key import code_key
from worker_service.model.options import ModelOptions


def test_a_config_that_changes_beside_its_weights_has_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window is longer than what a start compares, so answers of short prompts do not tell it."""
    monkeypatch.setattr(module, "_compiler", lambda: "")  # it is asked in a process of its own
    config, options = tmp_path / "config.json", ModelOptions("model", "model")
    config.write_text('{"sliding_window": 4096}')
    before = code_key(options, digest_of(b"weights"), tmp_path)
    assert code_key(options, digest_of(b"weights"), tmp_path).digest == before.digest
    config.write_text('{"sliding_window": 2048}')
    after = code_key(options, digest_of(b"weights"), tmp_path)
    assert [found.split()[0] for found in after.differences(before.facts)] == ["config"]
