"""Quantised checkpoints are refused as base models by the name of the method, whether config or tensors tell it."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from hotslot.errors import InvalidRequestError
from hotslot.formats.base_model import spec_from_folder
from hotslot.formats.quantisation import method_of
from hotslot.formats.safetensors_header import TensorEntry

Q = "model.layers.0.self_attn.q_proj"
WHOLE = {"model.embed_tokens.weight": ("BF16", (8, 4)), f"{Q}.weight": ("BF16", (4, 4)), f"{Q}.bias": ("BF16", (4,))}
CONFIGS: dict[str, dict[str, Any]] = {
    "bitsandbytes, 4 bit": {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
    "bitsandbytes, 8 bit": {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True},
    "GPTQ, 4 bit": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "AWQ, 4 bit": {"quant_method": "awq", "bits": 4},
    "FP8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "HQQ": {"quant_method": "hqq", "quant_config": {}},
    "torchao": {"quant_method": "torchao", "quant_type": "int8_weight_only"},
    "MXFP4": {"quant_method": "mxfp4"},
    "NVFP4": {"quant_algo": "NVFP4"},
    "some_new_method": {"quant_method": "some_new_method"},
}
TENSORS: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "bitsandbytes, 4 bit": {
        f"{Q}.weight": ("U8", (8, 1)), f"{Q}.weight.absmax": ("U8", (1,)),
        f"{Q}.weight.quant_state.bitsandbytes__nf4": ("U8", (80,)),
    },
    "bitsandbytes, 8 bit": {f"{Q}.weight": ("I8", (4, 4)), f"{Q}.SCB": ("F32", (4,))},
    "GPTQ": {f"{Q}.qweight": ("I32", (1, 4)), f"{Q}.qzeros": ("I32", (1, 1)), f"{Q}.g_idx": ("I32", (4,))},
    "AWQ or GPTQ": {f"{Q}.qweight": ("I32", (4, 1)), f"{Q}.qzeros": ("I32", (1, 1)), f"{Q}.scales": ("F16", (1, 4))},
    "FP8 or another method with scales": {
        f"{Q}.weight": ("F8_E4M3", (4, 4)), f"{Q}.weight_scale_inv": ("F32", (1, 1)),
    },
    "FP8": {f"{Q}.weight": ("F8_E5M2", (4, 4))},
    "compressed-tensors": {f"{Q}.weight_packed": ("I32", (4, 1)), f"{Q}.weight_scale": ("BF16", (4, 1))},
    "HQQ": {f"{Q}.W_q": ("U8", (4, 2)), f"{Q}.scale": ("F16", (1, 4))},
    "Quanto": {f"{Q}.weight._data": ("I8", (4, 4)), f"{Q}.weight._scale": ("F16", (4, 1))},
    "torchao": {f"{Q}._weight_qdata": ("I8", (4, 4)), f"{Q}._weight_scale": ("F32", (4, 1))},
    "AQLM": {f"{Q}.codes": ("I16", (4, 1, 1)), f"{Q}.codebooks": ("F16", (1, 4, 1, 4))},
    "a method that its names do not tell": {f"{Q}.weight": ("U32", (4, 1)), f"{Q}.scales": ("F16", (4, 1))},
}  # fmt: skip
BYTES = {"BF16": 2, "F16": 2, "I16": 2, "F32": 4, "I32": 4, "U32": 4}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES.get(dtype, 1)
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        spec_from_folder(folder, "tiny")
    assert "register the original model" in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("place", ["quantization_config", "text_config", "llm_config", "language_config"])
@pytest.mark.parametrize("method", CONFIGS)
def test_a_config_names_its_method_wherever_it_stands(method: str, place: str, tmp_path: Path) -> None:
    inner = {"quantization_config": CONFIGS[method]}
    config = inner if place == "quantization_config" else {place: inner}
    assert f"quantised by {method} (config.json has quantization_config)" in refusal(
        write(tmp_path / "m", config, WHOLE)
    )


@pytest.mark.parametrize("name", ["quantization_config", "compression_config", "quantization"])
@pytest.mark.parametrize(("value", "method"), [("gptq", "GPTQ"), ("4bit", "4bit"), ([4], "[4]"), (True, "True")])
def test_a_method_that_is_no_object_is_refused_as_well(value: Any, method: str, name: str, tmp_path: Path) -> None:
    said = refusal(write(tmp_path / "m", {name: value}, WHOLE))
    assert f"quantised by {method} (config.json has {name})" in said


def test_mlx_has_a_field_of_its_own(tmp_path: Path) -> None:
    config = {"quantization": {"group_size": 64, "bits": 4}}
    assert "quantised by MLX, 4 bit" in refusal(write(tmp_path / "m", config, WHOLE))


@pytest.mark.parametrize("method", TENSORS)
def test_tensors_tell_the_method_where_the_config_is_silent(method: str, tmp_path: Path) -> None:
    tensors = {name: value for name, value in WHOLE.items() if name != f"{Q}.weight"} | TENSORS[method]
    assert re.search(rf"quantised by {re.escape(method)} \(", refusal(write(tmp_path / "m", {}, tensors)))


def test_gguf_files_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model-q4_k_m.gguf").write_bytes(b"GGUF")
    assert "quantised by GGUF" in refusal(tmp_path)


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_whole_weights_are_no_method(config: dict[str, Any], tmp_path: Path) -> None:
    assert spec_from_folder(write(tmp_path / "m", config, WHOLE), "tiny").modules
    kept = ("model.rotary_emb.inv_freq", "model.layers.0.self_attn.scale", "model.position_ids", "logit_scale")
    assert method_of({}, [TensorEntry(name, "F32", (4,), 0, 16) for name in kept]) == ""
