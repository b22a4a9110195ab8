"""Modules that PEFT's word all-linear stands for: the linears of the loaded model."""

from hotslot.formats.base_spec import BaseSpec, ModuleKind
from hotslot.formats.loaded_modules import may_lack


def all_linear(base: BaseSpec) -> dict[str, bool]:
    """Modules that `all-linear` stands for, True where targeted; of those that are left out only the tensors can tell.

    As PEFT 0.21 (tuners/tuners_utils.py, `_maybe_include_all_linear_layers`): all linears of the loaded model but the
    head. Modules outside of the layers are left out: some checkpoints have ones that are never loaded.
    """
    targeted: dict[str, bool] = {}
    for module in base.targets:
        if module.kind is not ModuleKind.LINEAR or module == base.head:
            targeted[module.path] = False
        elif module.is_in_layer and module.absence is None and not may_lack(base, module):
            targeted[module.path] = True
    return targeted
