"""Oracle for accepted inputs: rules as the safetensors library and PEFT see them, not as hotslot does."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from hotslot.formats.base_spec import BaseSpec
from hotslot.formats.manifest import Manifest
from hotslot.formats.safetensors_header import Header
from store_service.admission.lora_settings import LoraSettings
from tests.support.checkpoints import HIDDEN, INTERMEDIATE, KV
from tools.fuzz.packed import Packed
from tools.fuzz.target import OracleError, require

NUMPY_DTYPES = {"F64", "F32", "F16", "I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL", "C64"}
"""Element types that the library's numpy flavour can hold."""
_QUANTIFIED_GROUP = re.compile(r"\)[*+?{]")
_QUANTIFIER = re.compile(r"[*+?{]")
MAX_PATTERN_CHARS = 120
_KEY = re.compile(
    r"(?:.*\blayers\.(?P<layer>\d+)\.)?(?:.*\.)?(?P<leaf>[^.]+)\.lora_(?:embedding_)?(?P<role>[abAB])"
    r"(?:\.(?!weight|bias)[^.]+){0,2}(?P<last>\.weight|\.bias)?"
)
ROWS = {
    "qkv_proj": {"q_proj": HIDDEN, "k_proj": KV, "v_proj": KV},
    "gate_up_proj": {"gate_proj": INTERMEDIATE, "up_proj": INTERMEDIATE},
}
"""Rows of the fused base's linears, and of those that adapters for it have."""
GROUPS = tuple(frozenset({fused, *parts}) for fused, parts in ROWS.items())
ATTENTION = frozenset({"qkv_proj", *ROWS["qkv_proj"]})
TensorPlace = tuple[int | None, str]
"""A layer, and the last part of a path."""
_OTHER_LEAVES = {
    "output_proj": "o_proj", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj", "unembed_tokens": "lm_head",
}  # fmt: skip


def library_tensors(file: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor by name, as the library reads the file."""
    try:
        tensors = safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as exc:
        raise OracleError(f"safetensors refuses what hotslot accepts: {exc}") from exc
    return {name: (tensor["dtype"], list(tensor["shape"]), bytes(tensor["data"])) for name, tensor in tensors}


def check_header(file: bytes, header: Header, path: Path) -> None:
    """The library reads the same names, types, shapes, bytes and metadata; numpy holds what it has types for."""
    theirs = library_tensors(file)
    ours = {t.name: (t.dtype, list(t.shape), file[t.begin : t.end]) for t in header.tensors}
    require(ours == theirs, f"hotslot reads {ours}, safetensors {theirs}")
    path.write_bytes(file)
    with safetensors.safe_open(str(path), framework="np") as opened:
        require((opened.metadata() or {}) == header.metadata, "the metadata differs")
        for name, (dtype, shape, data) in ours.items():
            if dtype in NUMPY_DTYPES:
                array = opened.get_tensor(name)
                require(list(array.shape) == shape and array.tobytes() == data, f"{name!r} differs in numpy")


def check_settings(document: Mapping[str, Any], settings: LoraSettings, paths: Sequence[str]) -> None:
    """Rank, scaling and targets of every module are those that PEFT gives, wherever PEFT ends in bounded time."""
    for path in paths:
        require(settings.rank_of(path) > 0, f"rank {settings.rank_of(path)} for {path}")
        require(bool(np.isfinite(settings.scaling_of(path))), f"scaling {settings.scaling_of(path)} for {path}")
        settings.targets.include(path)
        check_scaling(document, path, settings.rank_of(path), settings.scaling_of(path))
    _check_targets(document, settings, paths)


def check_scaling(document: Mapping[str, Any], path: str, rank: int, scaling: float) -> None:
    """A module's rank and scaling are those that PEFT gives, or mlx-lm."""
    if _is_of_mlx(document):
        # mlx-lm multiplies arrays of floats by it. Versions that know alpha scale by alpha / rank, too.
        parameters = document["lora_parameters"]
        their_rank, their_alpha = parameters["rank"], parameters.get("alpha")
        factor = float(parameters["scale"])
        require(their_alpha is None or factor * (their_alpha / their_rank) == factor, f"alpha {their_alpha} is dropped")
        theirs = (their_rank, factor)
    else:
        ranks, alphas = document.get("rank_pattern") or {}, document.get("alpha_pattern") or {}
        if not _is_tame(*ranks, *alphas):
            return
        from peft.utils.other import get_pattern_key  # It brings torch, which the header's target does without.

        their_rank = ranks.get(get_pattern_key(ranks.keys(), path), _value(document, "r", 8))
        their_alpha = alphas.get(get_pattern_key(alphas.keys(), path), _value(document, "lora_alpha", 8))
        theirs = (their_rank, their_alpha / (their_rank**0.5 if document.get("use_rslora") else their_rank))
    require((rank, scaling) == theirs, f"{path}: rank and scaling {(rank, scaling)}, its trainer had {theirs}")


def _check_targets(document: Mapping[str, Any], settings: LoraSettings, paths: Sequence[str]) -> None:
    wanted, excluded = document.get("target_modules"), document.get("exclude_modules")
    names = document.get("layers_pattern") or []
    expressions = [item for item in (wanted, excluded) if isinstance(item, str)]
    expressions += [names] if isinstance(names, str) else names
    if wanted is None or _is_of_mlx(document) or settings.targets.all_linear or not _is_tame(*expressions):
        return
    from peft.tuners.tuners_utils import check_target_module_exists

    config = SimpleNamespace(
        target_modules=wanted,
        exclude_modules=excluded,
        target_parameters=None,
        layers_to_transform=document.get("layers_to_transform"),
        layers_pattern=document.get("layers_pattern"),
    )
    for path in paths:
        ours = settings.targets.include(path)
        theirs = bool(check_target_module_exists(config, path))
        require(ours is theirs, f"{path}: targeted {ours}, PEFT says {theirs}")


def check_version(packed: Packed, manifest: Manifest, blob: bytes, base: BaseSpec) -> None:
    """The blob is what the manifest says, and holds every tensor of the input, converted exactly, and nothing else."""
    require("sha256:" + hashlib.sha256(blob).hexdigest() == manifest.weights_digest, "another digest")
    require(len(blob) == manifest.weights_size_bytes, "another size")
    stored, given = library_tensors(blob), library_tensors(packed.weights)
    document = json.loads(packed.config)
    identities = {name: _identity(name) for name in (*given, *stored)}
    require(len({identities[n] for n in given}) == len(given), f"two tensors for one place: {sorted(given)}")
    theirs, ours = {identities[name][1] for name in given}, {identities[name][1] for name in stored}
    regrouped = frozenset(leaf for group in GROUPS if group & theirs != group & ours for leaf in group)
    if regrouped:
        check_regrouped(document, manifest, stored, given, regrouped)
    expected = {
        identities[name]: _tensor(name, *found, manifest.dtype)
        for name, found in given.items()
        if identities[name][1] not in regrouped
    }
    found = {identities[name]: t for name, t in stored.items() if identities[name][1] not in regrouped}
    require(found == expected, f"the blob holds {sorted(stored)}, the checkpoint {sorted(given)}, or bits differ")
    paths = [module.path for module in base.modules]
    order = [paths.index(module.path) for module in manifest.modules]
    require(order == sorted(set(order)), "modules are not in layer order")
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    header.pop("__metadata__")
    in_file_order = sorted(header, key=lambda name: header[name]["data_offsets"])
    require(
        in_file_order
        == [
            f"{module.path}.lora_{role}"
            for module in manifest.modules
            for role in ("A", "B", "B.bias")
            if role != "B.bias" or module.has_bias
        ],
        "tensors are not in the manifest's order",
    )
    for module in manifest.modules:
        if module.path.rpartition(".")[2] not in regrouped:
            check_scaling(document, module.path, module.rank, module.scaling)
        require(stored[f"{module.path}.lora_A"][1][0] == module.rank, f"{module.path} has another rank")


def check_regrouped(
    document: Mapping[str, Any],
    manifest: Manifest,
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    leaves: frozenset[str],
) -> None:
    """Whatever was fused or parted changes each part's rows as its trainer's modules do, and no others."""
    if not _is_tame(*(document.get("alpha_pattern") or {})):
        return
    scalings = {_place(f"{module.path}.lora_A"): module.scaling for module in manifest.modules}
    ours = _changes_of_parts(stored, manifest.dtype, leaves, lambda place, rank: scalings[place])
    theirs = _changes_of_parts(given, "F32", leaves, lambda place, rank: _their_scaling(document, place, rank))
    require(ours.keys() == theirs.keys(), f"the blob changes {sorted(ours)}, the checkpoint {sorted(theirs)}")
    for part, change in theirs.items():
        # Sums of few products of F32, in double precision: only their order may tell them apart.
        tolerance = 1e-9 * float(np.abs(change).max())
        is_alike = ours[part].shape == change.shape and np.allclose(ours[part], change, rtol=0, atol=tolerance)
        require(is_alike, f"{part} changes otherwise")


def _changes_of_parts(
    tensors: Mapping[str, Any], dtype: str, leaves: frozenset[str], scaling: Callable[[TensorPlace, int], float]
) -> dict[TensorPlace, npt.NDArray[np.float64]]:
    """Gains of `y` at each output of each part, `[out, in + 1]` with the bias last, where there are any."""
    modules: dict[TensorPlace, dict[str, npt.NDArray[np.float64]]] = {}
    for name, (found_dtype, shape, data) in tensors.items():
        layer, leaf, role = _identity(name)
        if leaf in leaves:
            bits = _tensor(name, found_dtype, shape, data, dtype)
            modules.setdefault((layer, leaf), {})[role] = _doubles(*bits)
    changes = {}
    for (layer, leaf), roles in modules.items():
        a, b = roles["A"], roles["B"]
        bias = roles.get("bias", np.zeros(len(b)))
        change = scaling((layer, leaf), len(a)) * np.column_stack([b @ a, bias])
        begin = 0
        for part, size in ROWS.get(leaf, {leaf: len(b)}).items():
            if change[begin : begin + size].any():
                changes[layer, part] = change[begin : begin + size]
            begin += size
    return changes


def _place(name: str) -> TensorPlace:
    layer, leaf, _ = _identity(name)
    return layer, leaf


def _doubles(dtype: str, shape: list[int], data: bytes) -> npt.NDArray[np.float64]:
    if dtype == "BF16":
        bits = np.frombuffer(data, "<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(shape).astype(np.float64)
    return np.frombuffer(data, {"F32": "<f4", "F16": "<f2"}[dtype]).reshape(shape).astype(np.float64)


def _their_scaling(document: Mapping[str, Any], place: TensorPlace, rank: int) -> float:
    if _is_of_mlx(document):
        return float(document["lora_parameters"]["scale"])
    alphas = document.get("alpha_pattern") or {}
    from peft.utils.other import get_pattern_key

    path = f"model.layers.{place[0]}.{'self_attn' if place[1] in ATTENTION else 'mlp'}.{place[1]}"
    alpha = alphas.get(get_pattern_key(alphas.keys(), path), _value(document, "lora_alpha", 8))
    return float(alpha / (rank**0.5 if document.get("use_rslora") else rank))


def _identity(name: str) -> tuple[int | None, str, str]:
    """Layer, last part of the path and role: enough to tell the small base's modules apart."""
    match = _KEY.fullmatch(name)
    if match is None:
        raise OracleError(f"a tensor that is no part of an adapter was admitted: {name!r}")
    layer = match["layer"]
    leaf = _OTHER_LEAVES.get(match["leaf"], match["leaf"])
    return None if layer is None else int(layer), leaf, "bias" if match["last"] == ".bias" else match["role"].upper()


def _tensor(name: str, dtype: str, shape: list[int], data: bytes, to: str) -> tuple[str, list[int], bytes]:
    """A tensor of the input as the blob must have it."""
    array: npt.NDArray[Any] = np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[dtype]).reshape(shape)
    if ".lora_a" in name or ".lora_b" in name:
        array = array if name.endswith(".weight") else array.T
    if dtype != to:
        require(to == "F32", f"{dtype} became {to}")
        array = (array.astype("<u4") << 16).view("<f4") if dtype == "BF16" else array.astype("<f4")
    as_float = array.astype("<u4") << 16 if array.dtype == "<u2" else array
    require(
        bool(np.isfinite(as_float.view("<f4") if array.dtype == "<u2" else as_float).all()), f"{name} is not finite"
    )
    return to, list(array.shape), np.ascontiguousarray(array).tobytes()


def _is_of_mlx(document: Mapping[str, Any]) -> bool:
    return "peft_type" not in document and isinstance(document.get("lora_parameters"), dict)


def _value(document: Mapping[str, Any], name: str, default: float) -> float:
    value = document.get(name)
    return default if value is None else value


def _is_tame(*expressions: str) -> bool:
    """Tell whether Python's engine, which backtracks, ends soon on all of them."""
    return all(
        len(text) <= MAX_PATTERN_CHARS and len(_QUANTIFIER.findall(text)) <= 2 and not _QUANTIFIED_GROUP.search(text)
        for text in expressions
    )
