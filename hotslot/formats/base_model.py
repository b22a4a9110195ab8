"""The spec of a base model, computed from its folder alone: config.json and safetensors, without torch.

Workers and people get the same digest from the same folder. The weights fingerprint is the SHA-256 over
all parameters in order of their names: one line of JSON `[name, dtype, shape]`, then the first and the last
2 KiB of its bytes (all of them where there are no more than 4 KiB).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hotslot.errors import FieldViolation, InvalidAdapterError, InvalidRequestError
from hotslot.formats.base_details import BaseDetails
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind, check_spec
from hotslot.formats.companions import GENERATION_CONFIG, read_companions
from hotslot.formats.loaded_modules import attention_numbers, layer_numbers, with_absences
from hotslot.formats.quantisation import method_of
from hotslot.formats.safetensors_header import HeaderLimits, TensorEntry, read_header_of
from hotslot.formats.weight_values import STORAGE, values_digest

SAMPLE_BYTES = 2048
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_LIMITS = HeaderLimits(max_header_bytes=100_000_000, max_tensors=1_000_000)
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_tokens_per_layer|embed_in|embed_positions|embeddings?|wte|wpe|tok_embeddings"
    r"|word_embeddings)$"
)
_NORM = re.compile(r"(?:norm|ln_\w+|layernorm)$", re.IGNORECASE)
_INPUT_FIRST_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Models whose layers are transformers' Conv1D, which stores `[in_features, out_features]`."""


@dataclass(frozen=True, slots=True)
class _Parameter:
    file: Path
    entry: TensorEntry


def spec_from_folder(folder: Path, name: str) -> BaseSpec:
    """Compute the spec of the model in `folder`, to be known as `name`.

    Modules are the 2-D `<path>.weight` tensors: embeddings by name, everything else linear; the order is
    embeddings, layers by number, the rest. Names and shapes are those of the checkpoint, so fused
    projections stay fused, and parameters of another rank (3-D expert weights) are not targets. Which of them the
    loaded model has is derived beside the digest (`hotslot/formats/loaded_modules.py`). Raises
    InvalidRequestError when the folder is not a model with safetensors, or a quantised one.
    """
    config = _read_json(folder / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise _bad_folder(folder, "config.json has no model_type")
    refuse_quantised(folder)
    parameters = _read_parameters(folder)
    if method := method_of({}, (parameter.entry for parameter in parameters.values())):
        raise _quantised(folder, method)
    modules = modules_of((parameter.entry for parameter in parameters.values()), model_type)
    if not any(module.kind is ModuleKind.LINEAR for module in modules):
        raise _bad_folder(folder, "it has no linear layers that an adapter could target")
    # A folder's name is the same with a slash behind it, and so is what adapters' configs call it.
    spec = with_absences(BaseSpec(name.rstrip("/") or name, model_type, _fingerprint(parameters), modules), config)
    # Adapters on these come with a copy of their weight, which has to be known again.
    copied = (spec.token_embedding, spec.head)
    spec = replace(
        spec,
        modules=tuple(
            replace(m, values_digest=_values_digest(m.path, parameters)) if m in copied else m for m in spec.modules
        ),
        details=_details(folder, config, parameters),
    )
    check_spec(spec)
    return spec


def num_parameters(folder: Path) -> int:
    """Elements of all tensors in a model's folder; raises InvalidRequestError."""
    return sum(parameter.entry.num_elements for parameter in _read_parameters(folder).values())


def refuse_quantised(folder: Path) -> None:
    """Raise InvalidRequestError where config.json says that weights are quantised; no other file need be there."""
    if method := method_of(_read_json(folder / "config.json"), ()):
        raise _quantised(folder, method)


def modules_of(entries: Iterable[TensorEntry], model_type: str) -> tuple[BaseModule, ...]:
    """The modules that a checkpoint's tensors are weights of."""
    modules = [module for entry in entries if (module := _module(entry, model_type)) is not None]
    return tuple(sorted(modules, key=_layer_order))


def weights_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights; those that an index names need not be there.

    Raises InvalidRequestError when there is neither a single file nor an index that can be read.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if not (folder / INDEX_FILE).is_file():
        if any(folder.glob("*.gguf")):
            raise _quantised(folder, "GGUF, a format of llama.cpp")
        raise _bad_folder(folder, f"neither {SINGLE_FILE} nor {INDEX_FILE} is there")
    weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise _bad_folder(folder, f"{INDEX_FILE} has no weight_map")
    files = [folder / file_name for file_name in sorted(set(weight_map.values()))]
    outside = [file.name for file in files if file.parent != folder]
    if outside:
        raise _bad_folder(folder, f"{INDEX_FILE} names files outside of the folder: {outside[:3]}")
    return files


def _details(folder: Path, config: Mapping[str, Any], parameters: Iterable[str]) -> BaseDetails | None:
    """Facts beyond the modules; a model without a generation config ends where its config says."""
    companions = replace(read_companions(folder), damaged={})
    if GENERATION_CONFIG not in companions.files or not companions.end_token_ids:
        text_config = config.get("text_config")
        found = [c.get("eos_token_id") for c in (config, text_config) if isinstance(c, dict)]
        ids = [i for value in found for i in (value if isinstance(value, list) else [value]) if type(i) is int]
        companions = replace(companions, end_token_ids=tuple(sorted(set(ids))))
    biases = frozenset(name.removesuffix(".bias") for name in parameters if name.endswith(".bias"))
    return BaseDetails(biases, companions, layer_numbers(config), attention_numbers(config)).within_bounds()


def _read_parameters(folder: Path) -> dict[str, _Parameter]:
    """All tensors of all files, by name."""
    parameters: dict[str, _Parameter] = {}
    for file in weights_files(folder):
        try:
            header = read_header_of(file, _LIMITS)
        except OSError as exc:
            raise _bad_folder(folder, f"{file.name}: {exc.strerror}") from exc
        except InvalidAdapterError as exc:
            raise _bad_folder(folder, exc.violations[0].message) from exc
        for entry in header.tensors:
            if entry.name in parameters:
                raise _bad_folder(folder, f"{entry.name!r} is in {file.name} and {parameters[entry.name].file.name}")
            parameters[entry.name] = _Parameter(file, entry)
    return parameters


def _module(entry: TensorEntry, model_type: str) -> BaseModule | None:
    if not entry.name.endswith(".weight") or len(entry.shape) != 2:
        return None
    path = entry.name.removesuffix(".weight")
    rows, columns = entry.shape
    if _NORM.search(path):
        return None
    if _EMBEDDING.search(path):
        return BaseModule(path, ModuleKind.EMBEDDING, rows, columns)
    module = BaseModule(path, ModuleKind.LINEAR, columns, rows)
    if model_type in _INPUT_FIRST_MODELS and module.is_in_layer:
        return replace(module, in_features=rows, out_features=columns)
    return module


def _layer_order(module: BaseModule) -> tuple[int, tuple[tuple[int, str], ...]]:
    outside = 0 if module.kind is ModuleKind.EMBEDDING else 2
    group = 1 if module.is_in_layer else outside
    parts = re.split(r"(\d+)", module.path)
    return group, tuple((int(part), "") if part.isdecimal() else (-1, part) for part in parts)


def _values_digest(path: str, parameters: dict[str, _Parameter]) -> str:
    """Digest of a module's weight and bias; empty where an element type is not one that adapters could copy."""
    found = [parameters[name] for name in (f"{path}.weight", f"{path}.bias") if name in parameters]
    if any(parameter.entry.dtype not in STORAGE for parameter in found):
        return ""
    with ExitStack() as stack:
        return values_digest([(stack.enter_context(p.file.open("rb")), p.entry) for p in found])


def _fingerprint(parameters: dict[str, _Parameter]) -> str:
    digest = hashlib.sha256()
    for name in sorted(parameters):
        parameter = parameters[name]
        entry = parameter.entry
        line = json.dumps([name, entry.dtype, list(entry.shape)], separators=(",", ":"), ensure_ascii=True)
        digest.update(line.encode() + b"\n")
        with parameter.file.open("rb") as file:
            file.seek(entry.begin)
            if entry.size_bytes <= 2 * SAMPLE_BYTES:
                digest.update(file.read(entry.size_bytes))
            else:
                digest.update(file.read(SAMPLE_BYTES))
                file.seek(entry.end - SAMPLE_BYTES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as exc:
        raise _bad_folder(path.parent, f"{path.name} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise _bad_folder(path.parent, f"{path.name} is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise _bad_folder(path.parent, f"{path.name} is not a JSON object")
    return document


def _quantised(folder: Path, method: str) -> InvalidRequestError:
    advice = "adapters are checked and computed against whole weights"
    problem = f"its weights are quantised by {method}; {advice}"
    return InvalidRequestError(
        [FieldViolation("base", problem)],
        f"{folder} cannot be a base model: {problem}: register the original model, in bfloat16, float16 or float32",
    )


def _bad_folder(folder: Path, problem: str) -> InvalidRequestError:
    return InvalidRequestError(
        [FieldViolation("base", problem)],
        f"{folder} is not a base model: {problem}; give a folder with config.json and safetensors weights",
    )
