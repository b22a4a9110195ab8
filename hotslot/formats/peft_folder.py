"""PEFT folders of admitted versions: what `PeftModel.from_pretrained` loads to the same deltas.

A version's weights blob has the tensors that PEFT wants, under other names: only the header is written anew, the values
are copied byte by byte. PEFT knows biases for all modules or none, so that a module without one gets one of zeros.
"""

import json
import math
import re
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from hotslot.errors import InvalidAdapterError, Violation
from hotslot.formats.base_spec import BaseSpec, ModuleKind
from hotslot.formats.companions import GENERATION_CONFIG
from hotslot.formats.file_names import CONFIG_FILE, WEIGHTS_FILE
from hotslot.formats.manifest import DTYPE_SIZES_BYTES, LORA_A, LORA_B, LORA_B_BIAS, AdapterModule, Manifest
from hotslot.formats.safetensors_header import PREFIX_BYTES, Header, HeaderLimits, TensorEntry, read_header

_PREFIX = "base_model.model."
_ENDS = {
    (ModuleKind.LINEAR, LORA_A): ".lora_A.weight",
    (ModuleKind.LINEAR, LORA_B): ".lora_B.weight",
    (ModuleKind.LINEAR, LORA_B_BIAS): ".lora_B.bias",
    (ModuleKind.EMBEDDING, LORA_A): ".lora_embedding_A",
    (ModuleKind.EMBEDDING, LORA_B): ".lora_embedding_B",
}
_LIMITS = HeaderLimits(max_header_bytes=2**26, max_tensors=2**20)
_ALIGNMENT_BYTES = 8


def write_peft_folder(folder: Path, blob: BinaryIO, manifest: Manifest, base: BaseSpec, *, uses_rslora: bool) -> None:
    """Write config and weights into an empty folder; raises InvalidAdapterError for what PEFT cannot express."""
    kinds = {module.path: module.kind for module in base.targets}
    _refuse_what_peft_lacks(manifest, kinds)
    config = peft_config(manifest, base.name, uses_rslora=uses_rslora)
    header = read_header(blob, manifest.weights_size_bytes, str(manifest.weights_digest), _LIMITS)
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        zeros_bytes = _write_header(weights, header, manifest, kinds)
        blob.seek(header.tensors[0].begin)
        shutil.copyfileobj(blob, weights)
        weights.write(bytes(zeros_bytes))
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    if manifest.end_token_ids:
        document = {"eos_token_id": list(manifest.end_token_ids)}
        (folder / GENERATION_CONFIG).write_text(json.dumps(document, indent=2) + "\n")


def peft_config(manifest: Manifest, base_name: str, *, uses_rslora: bool) -> dict[str, Any]:
    """PEFT's configuration of a version; the modules are named by their whole paths."""
    rank = manifest.max_rank
    alphas = {module.path: _alpha(module, uses_rslora=uses_rslora) for module in manifest.modules}
    alpha = next(alphas[module.path] for module in manifest.modules if module.rank == rank)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": uses_rslora,
        "lora_bias": manifest.has_biases,
        "bias": "none",
        "target_modules": [module.path for module in manifest.modules],
        "rank_pattern": {_pattern(m.path): m.rank for m in manifest.modules if m.rank != rank},
        "alpha_pattern": {_pattern(path): value for path, value in alphas.items() if value != alpha},
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def _alpha(module: AdapterModule, *, uses_rslora: bool) -> float:
    """The alpha that gives the scaling exactly, where there is one; else one that is off by a rounding."""
    divisor = math.sqrt(module.rank) if uses_rslora else module.rank
    near = module.scaling * divisor
    candidates = (round(near), near, math.nextafter(near, -math.inf), math.nextafter(near, math.inf))
    found = next((alpha for alpha in candidates if alpha / divisor == module.scaling), near)
    return int(found) if found == int(found) else found


def _pattern(path: str) -> str:
    # PEFT matches a key as `(.*\.)?(key)$`; the anchor keeps it from the end of a longer path.
    return "^" + re.escape(path)


def _refuse_what_peft_lacks(manifest: Manifest, kinds: Mapping[str, ModuleKind]) -> None:
    paths = {module.path for module in manifest.modules}
    violations = [
        Violation.of("UNSUPPORTED_MODULE", path, "no such module", "a module of the base", "the base does not have it")
        for path in sorted(paths - kinds.keys())
    ]
    if manifest.has_biases:
        problem = "PEFT has no lora_bias beside an embedding, so that no config loads this adapter"
        violations += [
            Violation.of("UNSUPPORTED_CONFIG", path, "an embedding beside biases", "linears alone", problem)
            for path in sorted(paths & kinds.keys())
            if kinds[path] is ModuleKind.EMBEDDING
        ]
    if violations:
        raise InvalidAdapterError(violations)


def _write_header(weights: BinaryIO, header: Header, manifest: Manifest, kinds: Mapping[str, ModuleKind]) -> int:
    """Write the header with PEFT's names; returns the bytes of biases that follow the values, all zero."""
    begin, end = header.tensors[0].begin, header.tensors[-1].end
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for tensor in header.tensors:
        name = _named(tensor, kinds)
        document[name] = _entry(tensor.dtype, tensor.shape, tensor.begin - begin, tensor.end - begin)
    outputs = {t.name.removesuffix(LORA_B): t.shape[0] for t in header.tensors if t.name.endswith(LORA_B)}
    position = end - begin
    for module in manifest.modules if manifest.has_biases else ():
        if not module.has_bias:
            size_bytes = outputs[module.path] * DTYPE_SIZES_BYTES[manifest.dtype]
            name = _PREFIX + module.path + _ENDS[ModuleKind.LINEAR, LORA_B_BIAS]
            document[name] = _entry(manifest.dtype, (outputs[module.path],), position, position + size_bytes)
            position += size_bytes
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-(PREFIX_BYTES + len(text)) % _ALIGNMENT_BYTES)
    weights.write(struct.pack("<Q", len(text)) + text)
    return position - (end - begin)


def _named(tensor: TensorEntry, kinds: Mapping[str, ModuleKind]) -> str:
    """PEFT's name of a tensor."""
    suffix = next(suffix for suffix in (LORA_A, LORA_B, LORA_B_BIAS) if tensor.name.endswith(suffix))
    path = tensor.name.removesuffix(suffix)
    return _PREFIX + path + _ENDS[kinds[path], suffix]


def _entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
