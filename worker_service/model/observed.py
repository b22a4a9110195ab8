"""Loaded modules as a worker sees them: where the model has the modules of its checkpoint, and what it lacks."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from hotslot.formats.base_spec import Absence, BaseModule, BaseSpec, LoadedModules, ModuleKind


def loaded_paths(model: PreTrainedModel, modules: Iterable[BaseModule]) -> dict[str, str]:
    """The paths in a loaded model of a checkpoint's modules, as transformers renames them when it loads.

    Modules whose weights are converted, such as experts that become one parameter, have none.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    state = model.state_dict()
    paths = {}
    for module in modules:
        name, converter = rename_source_key(
            f"{module.path}.weight", renamings, converters, model.base_model_prefix, state
        )
        if converter is None and name in state:
            paths[module.path] = name.removesuffix(".weight")
    return paths


def observed(spec: BaseSpec, paths: Mapping[str, str], loaded: Mapping[str, nn.Module]) -> BaseSpec:
    """The spec with what the loaded model lacks, in place of what rules had derived.

    `paths` are those of the spec's modules in the model; `loaded` has the modules of its text part by those paths.
    """

    def absence(module: BaseModule) -> Absence | None:
        if module.kind is not ModuleKind.LINEAR:
            return module.absence
        found = loaded.get(paths.get(module.path, ""))
        return None if isinstance(found, nn.Linear | Conv1D) else module.absence or Absence.REPLACED

    modules = tuple(replace(module, absence=absence(module)) for module in spec.modules)
    return replace(spec, modules=modules, loaded=LoadedModules.OBSERVED)
