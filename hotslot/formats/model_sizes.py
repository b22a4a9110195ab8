"""Sizes of a base model, computed from its folder alone: what a worker's memory for it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hotslot.formats.base_model import num_parameters, spec_from_folder
from hotslot.formats.base_spec import ALL_LINEAR, BaseModule, BaseSpec, ModuleKind
from hotslot.formats.loaded_modules import KV_SHARED, NUM_LAYERS, kv_row_features


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """Numbers, of elements, that a worker's memory follows from."""

    name: str
    num_parameters: int
    slot_features: int
    """Inputs and outputs of all modules with slots: elements of one rank of one slot, and of one rank of an adapter
    that targets all of them."""
    kv_features: int
    """Elements of a token's keys and values in all layers."""


def sizes_of(folder: Path, name: str, target_modules: Sequence[str] = ()) -> ModelSizes:
    """Read a model's sizes; modules with slots are chosen as a worker's `target_modules` chooses them.

    Raises InvalidRequestError when the folder is no model that can be served.
    """
    spec = spec_from_folder(folder, name)
    features = sum(module.in_features + module.out_features for module in targets_of(spec, target_modules))
    return ModelSizes(name, num_parameters(folder), features, _kv_features(spec))


def targets_of(spec: BaseSpec, names: Sequence[str] = ()) -> tuple[BaseModule, ...]:
    """Modules that get slots: the linears in the layers, or those named; token embedding and head only if named."""
    all_linear = not names or ALL_LINEAR in names
    ends = (spec.token_embedding, spec.head)
    return tuple(
        module
        for module in spec.modules
        if module.absence is None
        and (
            module.name in names
            if module in ends
            else module.kind is ModuleKind.LINEAR and module.is_in_layer and (all_linear or module.name in names)
        )
    )


def _kv_features(spec: BaseSpec) -> int:
    """Elements of a token's keys and values; 0 where the model's config does not say."""
    details = spec.details
    if details is None:
        return 0
    num_layers = details.layers.get(NUM_LAYERS, 0) - details.layers.get(KV_SHARED, 0)
    return 2 * num_layers * kv_row_features(details.attention)
