"""Fit of a checkpoint's tensors to a base model by names and shapes alone, whatever its config calls the base. Pure."""

import re

from hotslot.formats.base_spec import BaseSpec, ModuleKind
from hotslot.formats.loaded_modules import completed
from hotslot.formats.safetensors_header import Header
from store_service.admission.keys import Role
from store_service.admission.parts import FoundPart
from store_service.admission.regrouping import read_parts

_COPIES = re.compile(
    r"[-_.](?:unsloth|bnb|4bit|8bit|int4|int8|w4a16|w8a8|w8a16|fp8|fp16|bf16|fp32|nf4|gptq|awq|gguf|hqq|quantized|dynamic"
    r"|exl2|mlx|hf|q[2-8](?:_k(?:_[ms])?|_0)?)(?=[-_.]|$)"
)
"""Endings that copies of a model are told by."""


def fits(header: Header, base: BaseSpec) -> bool:
    """Tell whether every part of an adapter has a module of the base, of its size, whatever ranks and config are."""
    parts, form = read_parts(header, completed(base))
    if parts.unknown_paths or parts.other_layouts or not parts.by_path:
        return False
    modules = form.base.by_path()
    return all(
        _fits(found, role, modules[path].in_features, modules[path].out_features, modules[path].kind)
        for path, roles in parts.by_path.items()
        for role, found in roles.items()
    )


def likeness(name: str, other: str) -> tuple[bool, bool, bool]:
    """Likeness of two base models' names, for sorting: the same but for case and slashes, by the last part of the
    name, and but for what names of quantised copies end with."""
    mine, theirs = name.rstrip("/").casefold(), other.rstrip("/").casefold()
    last, their_last = mine.rpartition("/")[2], theirs.rpartition("/")[2]
    return mine == theirs, last == their_last, _original(last) == _original(their_last)


def _original(last_part: str) -> str:
    return _COPIES.sub("", last_part)


def _fits(found: FoundPart, role: Role, in_features: int, out_features: int, kind: ModuleKind) -> bool:
    shape = found.tensor.shape
    if role in (Role.A, Role.EMBEDDING_A):
        return len(shape) == 2 and shape[1] == in_features and (role is Role.A) == (kind is ModuleKind.LINEAR)
    if role in (Role.B, Role.EMBEDDING_B):
        return len(shape) == 2 and shape[0] == out_features and (role is Role.B) == (kind is ModuleKind.LINEAR)
    return True
