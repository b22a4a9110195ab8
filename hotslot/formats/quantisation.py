"""Quantised checkpoints: which method made one, told from its config and its tensors, without torch."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hotslot.formats.safetensors_header import TensorEntry

_CONFIGS = ("quantization_config", "compression_config", "quantization")
"""Fields of config.json: transformers', an older one of compressed-tensors, and MLX's."""
TEXT_CONFIGS = ("thinker_config", "text_config", "llm_config", "language_config")
"""Configs of text models inside of those of larger ones."""
_METHODS = {
    "aqlm": "AQLM", "auto-round": "AutoRound", "awq": "AWQ", "bitnet": "BitNet", "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors", "eetq": "EETQ", "exl2": "EXL2", "exl3": "EXL3",
    "fbgemm_fp8": "FBGEMM FP8", "fp8": "FP8", "gguf": "GGUF", "gptq": "GPTQ", "higgs": "HIGGS", "hqq": "HQQ",
    "mlx": "MLX", "modelopt": "ModelOpt", "mxfp4": "MXFP4", "quanto": "Quanto", "quark": "Quark", "spqr": "SpQR",
    "torchao": "torchao", "vptq": "VPTQ",
}  # fmt: skip
_BY_NAME: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), method)
    for pattern, method in (
        (r"\.quant_state\.bitsandbytes__|\.(?:nested_)?absmax$", "bitsandbytes, 4 bit"),
        (r"\.(?:SCB|weight_format)$", "bitsandbytes, 8 bit"),
        (r"\.g_idx$", "GPTQ"),
        (r"\.weight_(?:packed|zero_point|g_idx)$", "compressed-tensors"),
        (r"\.(?:W_q|weight\.W_q)$", "HQQ"),
        (r"\.(?:codebooks|codes)$", "AQLM"),
        (r"\.weight\._(?:data|scale)$|\.weight_quantizer\.", "Quanto"),
        (r"\.(?:weight:|weight\.|_weight_)(?:tensor_impl|qdata|quantized_data|block_scale|_?layout)", "torchao"),
        (r"\.weight_(?:blocks|scales)_mxfp4$|_blocks$", "MXFP4"),
        (r"\.(?:q_weight|trellis|svh|suh)$", "EXL2 or EXL3"),
        (r"\.qweight$", "AWQ or GPTQ"),
        (r"\.weight_scale(?:_inv)?$", "FP8 or another method with scales"),
    )
)
_MAX_SHOWN = 40
"""Letters of a method that is written as a text, or as anything but an object."""
_EIGHT_BIT_FLOATS = ("F8_", "F4", "F6_")
_INTEGERS = frozenset({"I8", "U8", "I16", "U16", "I32", "U32"})


def method_of(config: Mapping[str, Any], entries: Iterable[TensorEntry]) -> str:
    """The method that quantised a checkpoint, for people; empty where its weights are whole."""
    configured = _configured(config)
    if configured:
        return configured
    by_name: dict[int, str] = {}
    odd_type = ""
    for entry in entries:
        found = next((i for i, (pattern, _) in enumerate(_BY_NAME) if pattern.search(entry.name)), None)
        if found is not None:
            by_name[found] = entry.name
        if entry.name.endswith(".weight") and len(entry.shape) == 2:
            if entry.dtype.startswith(_EIGHT_BIT_FLOATS):
                odd_type = odd_type or f"FP8 ({entry.name} is {entry.dtype})"
            elif entry.dtype in _INTEGERS:
                odd_type = odd_type or f"a method that its names do not tell ({entry.name} is {entry.dtype})"
    if by_name:
        first = min(by_name)
        return f"{_BY_NAME[first][1]} (it has {by_name[first]})"
    return odd_type


def _configured(config: Mapping[str, Any]) -> str:
    for name in _CONFIGS:
        found = config.get(name)
        if found:
            known = found if isinstance(found, Mapping) else {"quant_method": str(found)[:_MAX_SHOWN]}
            return f"{_named(name, known)} (config.json has {name})"
    parts = (config.get(name) for name in TEXT_CONFIGS)
    return next((found for part in parts if isinstance(part, Mapping) and (found := _configured(part))), "")


def _named(field: str, found: Mapping[str, Any]) -> str:
    method = found.get("quant_method") or found.get("quant_algo") or ("mlx" if field == "quantization" else "")
    if not isinstance(method, str) or not method:
        method = "bitsandbytes" if any(str(key).startswith(("load_in_", "bnb_")) for key in found) else "unknown"
    bits = found.get("bits")
    if method.startswith("bitsandbytes"):
        method, bits = "bitsandbytes", 8 if found.get("load_in_8bit") else 4
    shown = _METHODS.get(method.lower(), method)
    return f"{shown}, {bits} bit" if isinstance(bits, int) and not isinstance(bits, bool) else shown
