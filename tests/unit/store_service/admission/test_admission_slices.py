"""Tensors in slices: the same bytes as whole ones, and memory that does not follow their size."""

import hashlib
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.safetensors_header import TensorEntry
from hotslot.formats.weight_values import STORAGE
from store_service.admission import slices
from store_service.admission.admit import admit
from store_service.admission.parts import StoredTensor
from store_service.admission.settings import AdmissionLimits
from store_service.admission.slices import tensor_slices
from tests.support.checkpoints import adapter, mlx_adapter, weights_file

MIB = 2**20


@pytest.mark.parametrize("slice_bytes", [8, 24, 100, 4096])
@pytest.mark.parametrize("block_bytes", [8, 40, 1000, 4096])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (5, 7), (1, 300), (300, 1), (64, 16)])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_slices_are_the_tensor_in_order(
    monkeypatch: pytest.MonkeyPatch, slice_bytes: int, block_bytes: int, shape: tuple[int, int], dtype: str
) -> None:
    monkeypatch.setattr(slices, "SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(slices, "BLOCK_BYTES", block_bytes)
    stored = np.random.default_rng(0).integers(0, 2**16, shape).astype(STORAGE[dtype])
    file = io.BytesIO(b"before" + stored.tobytes() + b"after")
    entry = TensorEntry("t", dtype, shape, 6, 6 + stored.nbytes)
    for is_transposed in (False, True):
        found = list(tensor_slices(file, StoredTensor(entry, is_transposed)))
        expected = stored.T if is_transposed else stored
        np.testing.assert_array_equal(np.concatenate(found), expected.reshape(-1))
        assert max(bits.nbytes for bits in found) <= slice_bytes


@pytest.mark.parametrize("is_mlx", [False, True])
def test_memory_of_admission_does_not_follow_the_largest_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_mlx: bool
) -> None:
    """Mixed types, so that everything is converted, too; the second weights file is written by threads."""
    monkeypatch.setattr(slices, "SLICE_BYTES", 64 * 1024)
    monkeypatch.setattr(slices, "BLOCK_BYTES", 512 * 1024)
    spec = BaseSpec("acme/wide", "llama", "f", (BaseModule("model.layers.0.up_proj", ModuleKind.LINEAR, 2**15, 8),))
    draft = adapter(("up_proj",), spec=spec, rank=256)
    peft_a = next(name for name in draft.tensors if "lora_A" in name)
    draft.tensors[peft_a] = draft.tensors[peft_a].astype(np.float16)
    expected = draft.tensors[peft_a].astype(np.float32).tobytes()
    if is_mlx:
        made = mlx_adapter()
        made.config["lora_parameters"] = {"rank": 256, "scale": 2.0, "dropout": 0.0}
        tensors = {
            name.removeprefix("base_model.model.").replace("_A.weight", "_a").replace("_B.weight", "_b"): value.T
            for name, value in draft.tensors.items()
        }
        made.extra_files["adapters.safetensors"] = weights_file(tensors)
        draft = made
    checkpoint = draft.write(tmp_path)
    del draft
    written = hashlib.sha256()
    tracemalloc.start()
    try:
        manifest = admit(checkpoint, spec, AdmissionLimits(), written.update).require()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert manifest.weights_digest == "sha256:" + written.hexdigest()
    assert manifest.weights_size_bytes > len(expected) == 32 * MIB
    assert peak_bytes < 4 * MIB
