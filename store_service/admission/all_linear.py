"""Which modules PEFT's word all-linear stands for, as far as a base model's checkpoint tells."""

from collections.abc import Container, Iterable

from shared.base_spec import BaseModule, BaseSpec, ModuleKind

_MAYBE_NO_LINEAR = frozenset({"expert", "experts", "gate", "router", "relative_attention_bias"})
"""Parts of the paths of experts and routers, which transformers may load as parameters of another module, and of T5's
table of distances, an embedding."""
_SHARED_KEYS = ("gemma4", frozenset({"k_proj", "v_proj"}))
"""How types of models begin whose last layers use the keys and values of others, and what those layers lack once they
are loaded, though their checkpoints have it."""
_PREDICTS_FURTHER_TOKENS = "eh_proj"
"""Only layers that are for speculation have it; transformers leaves them out."""


def all_linear(base: BaseSpec, adapted: Iterable[str]) -> dict[str, bool]:
    """Whether each module is targeted; of modules that are left out only the tensors can tell.

    As PEFT 0.21 (tuners/tuners_utils.py, `_maybe_include_all_linear_layers`): all linears of the loaded model but the
    head. A checkpoint may have more than is loaded, so a list of layers counts only where a module in it is adapted.
    """
    modules = base.by_path()
    layer_lists = {modules[path].layer_list for path in adapted}
    left_out = {_layer(module) for module in base.modules if module.name == _PREDICTS_FURTHER_TOKENS}
    shares_keys = base.model_type.startswith(_SHARED_KEYS[0])
    targeted: dict[str, bool] = {}
    for module in base.targets:
        if module.kind is not ModuleKind.LINEAR or module == base.head:
            targeted[module.path] = False
        elif shares_keys and module.name in _SHARED_KEYS[1]:
            continue
        elif module.is_in_layer and module.layer_list in layer_lists and _is_loaded(module, left_out):
            targeted[module.path] = True
    return targeted


def _is_loaded(module: BaseModule, left_out: Container[str]) -> bool:
    """Whether the loaded model surely has it, as a linear."""
    return _MAYBE_NO_LINEAR.isdisjoint(module.path.split(".")) and _layer(module) not in left_out


def _layer(module: BaseModule) -> str:
    """The path of the layer that a module is in."""
    number = module.path[len(module.layer_list) + 1 :].partition(".")[0]
    return f"{module.layer_list}.{number}"
