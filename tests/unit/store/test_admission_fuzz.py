"""Random configs and checkpoints: admission ends with a manifest or with violations, and never otherwise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import Violation
from store_service.admission.admit import Checkpoint, admit
from store_service.admission.config import parse_config
from store_service.admission.config_fields import FIELDS
from store_service.admission.settings import AdmissionLimits
from tests.support.checkpoints import adapter, base_spec, weights_file

BASE = base_spec()
GOOD = adapter()
QUIET = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
patterns = st.one_of(st.sampled_from(["q_proj", r".*\.0\..*", "(", "[", "a{9}", ".*"]), st.text(max_size=6))
configs = st.dictionaries(
    st.one_of(st.sampled_from(sorted(FIELDS)), st.text(max_size=6)),
    st.one_of(json_values, st.lists(patterns, max_size=3), st.dictionaries(patterns, st.integers(-1, 9), max_size=3)),
    max_size=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def admitted(folder: Path, config: bytes, weights: bytes) -> bytes | None:
    """The normalised bytes, or None with at least one violation."""
    (folder / "c").write_bytes(config)
    (folder / "w").write_bytes(weights)
    files = {"adapter_config.json": folder / "c", "adapter_model.safetensors": folder / "w"}
    written = bytearray()
    verdict = admit(Checkpoint(files), BASE, AdmissionLimits(), written.extend)
    assert (verdict.manifest is None) == bool(verdict.violations)
    return bytes(written) if verdict.manifest is not None else None


@QUIET
@given(configs)
def test_any_config_is_read_or_refused(config: dict[str, Any]) -> None:
    violations: list[Violation] = []
    found = parse_config(json.dumps(config).encode(), violations)
    assert found is not None or violations
    if found is not None:
        for module in BASE.modules:
            assert found.rank_of(module.path) > 0
            assert np.isfinite(found.scaling_of(module.path))
            found.targets.include(module.path)


@QUIET
@given(st.binary(max_size=300))
def test_any_bytes_are_a_config_or_refused(data: bytes) -> None:
    violations: list[Violation] = []
    assert parse_config(data, violations) is not None or violations


@QUIET
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), json_values, max_size=3))
def test_a_good_config_with_fields_changed_is_admitted_whole_or_not_at_all(
    folder: Path, changes: dict[str, Any]
) -> None:
    config = json.dumps(GOOD.config | changes).encode()
    data = admitted(folder, config, weights_file(GOOD.tensors))
    assert data is None or len(safetensors.deserialize(data)) == len(GOOD.tensors)  # type: ignore[no-untyped-call]


@QUIET
@given(st.data())
def test_a_file_with_bytes_changed_is_refused_or_holds_what_the_library_reads(
    folder: Path, data: st.DataObject
) -> None:
    file = bytearray(weights_file(GOOD.tensors))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(len(file) - 1, 900)))
        file[position] = data.draw(st.integers(0, 255))
    normalised = admitted(folder, json.dumps(GOOD.config).encode(), bytes(file))
    if normalised is None:
        return
    theirs = {bytes(t["data"]) for _, t in safetensors.deserialize(bytes(file))}  # type: ignore[no-untyped-call]
    ours = {bytes(t["data"]) for _, t in safetensors.deserialize(normalised)}  # type: ignore[no-untyped-call]
    assert ours == theirs
