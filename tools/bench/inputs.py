"""Files that the peers share: the model as GGUF, and the same adapters in PEFT's form and llama.cpp's."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as GgmlType
from safetensors.torch import save_file

from tools.bench.smollm import HEADS, KEY_HEADS, LAYERS, SHAPES
from worker_service.demo_model import BASE_MODEL, fetch_gguf

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
ROTATED = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KEY_HEADS}
"""Heads of the linears whose outputs llama.cpp keeps in another order, for its form of rotary embedding."""
INITIAL = 0.02
"""Standard deviation of an adapter's values: answers differ from the base's, and stay finite."""
FORMS = {
    "bf16": (GgmlType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (GgmlType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def gguf_model(form: str, folder: Path) -> Path:
    """The demo's model as a GGUF file, made if it is not there; all keys and the tokenizer are those of the original.

    The original is 4-bit, and transformers' copy is its values in bfloat16: so are these, or Q8_0 of these.
    """
    target = folder / f"SmolLM2-135M-Instruct.{form}.gguf"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        reader = gguf.GGUFReader(fetch_gguf(Path(scratch)))
        built = Path(scratch) / target.name
        _rewrite(reader, built, *FORMS[form])
        built.replace(target)
    return target


def _rewrite(reader: gguf.GGUFReader, path: Path, matrix_type: GgmlType, file_type: gguf.LlamaFileType) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    # The writer has its own idea of these.
    written = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count", "general.architecture", "general.file_type"}
    for name, field in reader.fields.items():
        if name not in written:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    writer.add_file_type(file_type)
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).bfloat16().float().numpy()
        # llama.cpp wants norms in float32.
        kind = matrix_type if values.ndim > 1 else GgmlType.F32
        writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
    _write(writer)


def adapter_folders(rank: int, count: int, folder: Path) -> list[Path]:
    """Adapters on every linear, made if they are not there, for PEFT and for llama.cpp, in bfloat16."""
    return [_adapter(folder / f"rank-{rank}" / str(number), rank, number) for number in range(count)]


def _adapter(target: Path, rank: int, number: int) -> Path:
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        pairs = dict(_pairs(rank, seed=1000 * rank + number))
        save_file(
            {
                f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight": tensor
                for (layer, module), pair in pairs.items()
                for side, tensor in zip("AB", pair, strict=True)
            },
            scratch / "adapter_model.safetensors",
        )
        config: dict[str, Any] = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": BASE_MODEL, "r": rank,
            "lora_alpha": rank, "target_modules": sorted({module.rpartition(".")[2] for module in SHAPES}),
        }  # fmt: skip
        (scratch / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        _write_lora(scratch / "adapter.gguf", pairs, rank)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _pairs(rank: int, seed: int) -> Iterator[tuple[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    for layer in range(LAYERS):
        for module, (num_in, num_out) in SHAPES.items():
            a_RI = (torch.randn(rank, num_in, generator=generator) * INITIAL).bfloat16()
            b_OR = (torch.randn(num_out, rank, generator=generator) * INITIAL).bfloat16()
            yield (layer, module), (a_RI, b_OR)


def _write_lora(path: Path, pairs: dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]], rank: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for (layer, module), (a_RI, b_OR) in pairs.items():
        b_OR = rotary_order(b_OR, ROTATED[module]) if module in ROTATED else b_OR
        for side, tensor in (("a", a_RI), ("b", b_OR)):
            data = gguf.quantize(tensor.float().contiguous().numpy(), GgmlType.BF16)
            writer.add_tensor(f"blk.{layer}.{GGUF_NAMES[module]}.weight.lora_{side}", data, raw_dtype=GgmlType.BF16)
    _write(writer)


def rotary_order(b_OR: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Outputs of each head in llama.cpp's order: the two halves that rotate together lie side by side."""
    half = b_OR.shape[0] // num_heads // 2
    return b_OR.reshape(num_heads, 2, half, -1).transpose(1, 2).reshape(b_OR.shape)


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prompt(length: int, seed: int) -> list[int]:
    """Token ids unlike those of any other seed; ids below 5 mean something to the model."""
    return (5 + np.random.default_rng(seed).integers(0, 40_000, length)).tolist()  # type: ignore[no-any-return]
