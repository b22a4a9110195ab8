"""Decides which modules get slots, and refuses a model whose modules are not what its checkpoint says.

transformers may rename, fuse or replace what a checkpoint stores. Adapters are admitted against the checkpoint, so a
module that is another one in the loaded model would make adapters fail, or worse, long after the worker's start.
"All linears" are therefore those that the loaded model has, and the reasons why others have no slots are kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hotslot.errors import FieldViolation, InvalidRequestError, ModelNotServableError
from hotslot.formats.base_spec import ALL_LINEAR, BaseModule, BaseSpec, ModuleKind

"""Stands for all linears in the layers, as PEFT's word does: the head is named by itself."""
MAX_SHOWN = 3


@dataclass(frozen=True)
class SlotTargets:
    """The modules that get slots, all known to be in the loaded model with the spec's shapes."""

    linears: tuple[BaseModule, ...]
    """In the layers."""
    embedding: BaseModule | None
    head: BaseModule | None
    """Head, if it gets slots. The spec's paths of embedding and head may not be the model's."""
    without_slots: Mapping[str, str] = field(default_factory=dict)
    """Linears in the layers that cannot have slots, by path: what they are in the loaded model."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """Paths in the loaded model where they are not the spec's."""

    def path_of(self, linear: BaseModule) -> str:
        """The path in the loaded model of a linear in its layers."""
        return self.paths.get(linear.path, linear.path)

    @property
    def modules(self) -> tuple[BaseModule, ...]:
        """All of them, in layer order."""
        return tuple(module for module in (self.embedding, *self.linears, self.head) if module is not None)


def find_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers. Raises ModelNotServableError when the model has no list of that length."""
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    model_type = model.config.model_type
    raise ModelNotServableError(f"{model_type}: no list of {num_layers} layers found; it cannot be served", model_type)


def as_linear(module: nn.Module) -> nn.Linear:
    """A linear as it is; GPT-2's Conv1D, which stores its weight `[in, out]`, as the same linear."""
    if isinstance(module, nn.Linear):
        return module
    assert isinstance(module, Conv1D)
    linear = nn.Linear(module.nx, module.nf, device="meta", dtype=module.weight.dtype)
    linear.weight = nn.Parameter(module.weight.T.contiguous(), requires_grad=False)
    linear.bias = module.bias
    return linear


def choose_targets(
    model: PreTrainedModel, spec: BaseSpec, names: Sequence[str], paths: Mapping[str, str] | None = None
) -> SlotTargets:
    """The modules whose last name is in `names`; all linears of the loaded model's layers if it is empty.

    Linears that transformers replaced when it loaded the model, such as experts that became one parameter, are left
    out unless they are named. `paths` are those of the spec's modules in the model, where they are not the same.
    Raises InvalidRequestError for a name that means nothing, when a named module is not in the loaded model as the
    spec has it, when a size is another one, and when nothing is left.
    """
    all_linear = not names or ALL_LINEAR in names
    inside = {id(module) for layer in find_layers(model) for module in layer.modules()}
    loaded = dict(model.named_modules())
    paths = paths or {}
    ends = (spec.token_embedding, spec.head)
    linears: list[BaseModule] = []
    misfits: dict[BaseModule, str] = {}
    without_slots: dict[str, str] = {}
    for module in spec.modules:
        is_linear = module.kind is ModuleKind.LINEAR and module not in ends
        if not is_linear or not (all_linear or module.name in names):
            continue
        found = loaded.get(paths.get(module.path, module.path))
        is_inside = module.is_in_layer if found is None else id(found) in inside
        if not is_inside:
            continue
        problem = _misfit(module, found)
        is_absent = module.absence is not None or module.name not in names
        if problem and is_absent and not isinstance(found, nn.Linear | Conv1D):
            without_slots[module.path] = problem
            continue
        linears.append(module)
        if problem:
            misfits[module] = problem
    embedding, head = (module if module is not None and module.name in names else None for module in ends)
    for end, found in ((embedding, model.get_input_embeddings()), (head, model.get_output_embeddings())):
        problem = _misfit(end, found) if end is not None else ""
        if end is not None and problem:
            misfits[end] = problem
    if misfits:
        raise _misfits_error(spec, misfits, linears)
    targets = SlotTargets(tuple(linears), embedding, head, without_slots, paths)
    if without_slots and not linears:
        raise _misfits_error(spec, {m: without_slots[m.path] for m in spec.modules if m.path in without_slots}, ())
    _check_names(names, {module.name for module in targets.modules}, spec)
    return targets


def _misfit(module: BaseModule, found: nn.Module | None) -> str:
    """Difference that keeps a module of the loaded model from being the spec's, in words; empty when it is."""
    if found is None:
        return "is not in the loaded model"
    if module.kind is ModuleKind.EMBEDDING:
        if not isinstance(found, nn.Embedding) or found.max_norm is not None:
            return f"is a {type(found).__name__}, expected an Embedding without max_norm"
        shape = found.num_embeddings, found.embedding_dim
    elif isinstance(found, nn.Linear):
        shape = found.in_features, found.out_features
    elif isinstance(found, Conv1D):
        shape = found.nx, found.nf
    else:
        return f"is a {type(found).__name__}, expected a Linear"
    expected = module.in_features, module.out_features
    return f"has sizes {shape}, expected {expected}" if shape != expected else ""


def _misfits_error(
    spec: BaseSpec, misfits: dict[BaseModule, str], linears: Iterable[BaseModule]
) -> InvalidRequestError:
    shown = "; ".join(f"{module.path} {problem}" for module, problem in list(misfits.items())[:MAX_SHOWN])
    more = f"; and {len(misfits) - MAX_SHOWN} more" if len(misfits) > MAX_SHOWN else ""
    bad_names = {module.name for module in misfits}
    good_names = sorted({module.name for module in linears} - bad_names)
    advice = f"set it to {','.join(good_names)} to serve adapters on these alone" if good_names else "none of them fits"
    problem = f"modules of {spec.name} are not in the loaded model as its checkpoint has them: {shown}{more}; {advice}"
    return _bad(problem)


def _check_names(names: Sequence[str], chosen: set[str], spec: BaseSpec) -> None:
    unknown = sorted(set(names) - chosen - {ALL_LINEAR})
    if unknown or not chosen:
        linears = (m for m in spec.modules if m.kind is ModuleKind.LINEAR and m.absence is None)
        known = {module.name for module in linears if module.is_in_layer}
        known |= {module.name for module in (spec.token_embedding, spec.head) if module is not None}
        raise _bad(f"found {unknown or list(names)}, expected {ALL_LINEAR} or some of {', '.join(sorted(known))}")


def _bad(problem: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation("target_modules", problem)])
