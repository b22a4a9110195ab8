"""Decoding of weights blobs: every value that is not finite is named, and a known header changes nothing."""

import json
import struct
from itertools import product

import numpy as np
import pytest
import torch

from hotslot.errors import InvalidAdapterError
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import Digest, digest_of
from worker_service.model.weights import SlotLayout, SlotWeightsDecoder

IN, OUT, RANK = 24, 40, 3
PATHS = ("layers.0.q", "layers.1.q")
NAMES = [f"{path}.lora_{end}" for path in PATHS for end in ("A", "B", "B.bias")]
SHAPES = {"A": (RANK, IN), "B": (OUT, RANK), "bias": (OUT,)}
BAD = [float("nan"), float("inf"), float("-inf"), 1e39]


def blob_of(tensors: dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]) -> bytes:
    document, data = {}, b""
    for name, values in tensors.items():
        end = len(data) + values.nbytes
        document[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), end]}
        data += values.tobytes()
    text = json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensors_of(seed: int) -> dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(SHAPES[name.rpartition("_")[2].split(".")[-1]], np.float32) for name in NAMES}


def manifest_of(blob: bytes) -> Manifest:
    modules = tuple(AdapterModule(path, RANK, 2.0, has_bias=True) for path in PATHS)
    return Manifest(Digest("sha256:" + "0" * 64), digest_of(blob), len(blob), "F32", modules)


def decoder(dtype: torch.dtype = torch.float32) -> SlotWeightsDecoder:
    shapes = dict.fromkeys(PATHS, (IN, OUT))
    return SlotWeightsDecoder(SlotLayout(Digest("sha256:" + "0" * 64), shapes, 64, 64, (), dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "value"), list(product(NAMES, BAD)))
def test_every_tensor_with_a_value_that_is_not_finite_is_named(dtype: torch.dtype, name: str, value: float) -> None:
    tensors = tensors_of(1)
    at = np.random.default_rng(len(name)).integers(tensors[name].size)
    with np.errstate(over="ignore"):
        tensors[name].reshape(-1)[at] = value
    blob = blob_of(tensors)
    with pytest.raises(InvalidAdapterError) as refused:
        decoder(dtype).decode(manifest_of(blob), blob)
    assert [(found.code, found.subject) for found in refused.value.violations] == [("NOT_FINITE", name)]


def test_what_overflows_in_the_models_type_alone_is_named() -> None:
    tensors = tensors_of(1)
    tensors[NAMES[0]][0, 0] = 7e4
    blob = blob_of(tensors)
    decoder().decode(manifest_of(blob), blob)
    with pytest.raises(InvalidAdapterError, match="float16"):
        decoder(torch.float16).decode(manifest_of(blob), blob)


def test_other_shapes_and_values_that_are_not_finite_are_all_named() -> None:
    tensors = tensors_of(1)
    tensors[NAMES[0]] = tensors[NAMES[0]][:, 1:]
    tensors[NAMES[4]][0, 0] = np.nan
    tensors["more"] = tensors[NAMES[1]]
    blob = blob_of(tensors)
    with pytest.raises(InvalidAdapterError) as refused:
        decoder().decode(manifest_of(blob), blob)
    found = [(each.code, each.subject) for each in refused.value.violations]
    assert found == [("SHAPE_MISMATCH", NAMES[0]), ("NOT_FINITE", NAMES[4]), ("UNEXPECTED_TENSOR", "more")]


def test_a_blob_with_a_known_header_has_its_own_values() -> None:
    known, reversed_names = decoder(), dict(reversed(tensors_of(3).items()))
    for tensors in (tensors_of(1), tensors_of(2), reversed_names, tensors_of(1)):
        blob = blob_of(tensors)
        found = known.decode(manifest_of(blob), blob).modules
        for path in PATHS:
            np.testing.assert_array_equal(found[path].a_RI[:RANK].numpy(), tensors[f"{path}.lora_A"])
            np.testing.assert_array_equal(found[path].b_RO[:RANK].numpy().T, tensors[f"{path}.lora_B"])
            np.testing.assert_array_equal(found[path].b_RO[RANK].numpy(), tensors[f"{path}.lora_B.bias"])
            assert not found[path].a_RI[RANK].any()


def test_a_header_that_was_known_is_no_reason_to_take_a_cut_or_a_longer_file() -> None:
    blob, known = blob_of(tensors_of(1)), decoder()
    known.decode(manifest_of(blob), blob)
    for spoiled in (blob[:-1], blob + b"x", blob[:100], blob[:4], struct.pack("<Q", 2**63) + blob[8:]):
        with pytest.raises(InvalidAdapterError):
            known.decode(manifest_of(blob), spoiled)
