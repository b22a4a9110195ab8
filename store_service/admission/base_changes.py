"""Checks the words of a config that stand for changes of the base itself: biases, whole modules, initialisations.

Each is a reason to refuse only where it can have changed something: biases where the base has some, whole modules
unless the checkpoint's copies are the base's own values (values.py compares those).
"""

from collections.abc import Iterator

from hotslot.errors import Violation
from hotslot.formats.base_spec import BaseModule, BaseSpec
from store_service.admission.keys import Role
from store_service.admission.lora_settings import LoraSettings
from store_service.admission.parts import CheckpointParts

OTHER_HEADS = frozenset({"score", "classifier"})
"""Heads of tasks other than generation: PEFT looks for them by these names, and finds none in a causal model."""


def check_base_changes(settings: LoraSettings, base: BaseSpec, parts: CheckpointParts) -> Iterator[Violation]:
    """Words that mean a change of the base, or that PEFT does not load with this base."""
    yield from _check_bias(settings, base, parts)
    for name in settings.saved_modules:
        yield from _check_saved(name, base, parts)
    if settings.init:
        modules = base.by_path()
        for path in parts.by_path:
            yield from _check_init(settings, modules[path])


def _check_bias(settings: LoraSettings, base: BaseSpec, adapted: CheckpointParts) -> Iterator[Violation]:
    if settings.bias == "none":
        return
    if base.details is None:
        problem = (
            f"whether {base.name} has biases that could have changed is not known, because it was registered by an "
            "older version; start a worker of this version, or register it again"
        )
        yield Violation.of("UNSUPPORTED_CONFIG", "bias", repr(settings.bias), "'none'", problem)
        return
    changed = base.details.bias_paths
    if settings.bias == "lora_only":
        changed = changed & adapted.by_path.keys()
    if changed:
        problem = (
            f"biases of the base, such as {min(changed)}.bias, would have to change with the adapter; train with "
            "bias='none'"
        )
        yield Violation.of("UNSUPPORTED_CONFIG", "bias", repr(settings.bias), "'none'", problem)


def _check_saved(name: str, base: BaseSpec, parts: CheckpointParts) -> Iterator[Violation]:
    """PEFT takes every module whose path ends so (utils/other.py, `_set_trainable`), and needs its weight."""
    subject = f"modules_to_save[{name!r}]"
    saved = [path for path in parts.copies if _ends_so(path, name)]
    adapted = [path for path in parts.by_path if _ends_so(path, name)]
    if adapted:
        problem = f"{adapted[0]} has an adapter besides, and only one of the two can be applied"
        yield Violation.of("UNSUPPORTED_CONFIG", subject, "an adapted module", "another module", problem)
    elif not saved and (name not in OTHER_HEADS or _is_there(name, base)):
        problem = (
            "the checkpoint has no copy of it that could be compared with the base's; whole modules that were trained "
            "cannot be served with an adapter, and an untrained one need not be named"
        )
        yield Violation.of("UNSUPPORTED_CONFIG", subject, "no copy", "a copy of the base's, or no such name", problem)
    for path in saved:
        if Role.BASE_WEIGHT not in parts.copies[path]:
            problem = "PEFT does not load a copy of a module without its weight"
            yield Violation.of("MISSING_TENSOR", f"{path}.weight", "only a bias", "the base's weight", problem)


def _is_there(name: str, base: BaseSpec) -> bool:
    return any(_ends_so(module.path, name) for module in base.targets)


def _ends_so(path: str, name: str) -> bool:
    return path.endswith(name)


def _check_init(settings: LoraSettings, module: BaseModule) -> Iterator[Violation]:
    """Initialisations that PEFT runs again when it loads, before the checkpoint's values replace what they made."""
    rank = settings.rank_of(module.path)
    problem = f"with init_lora_weights={settings.init!r} PEFT does not load this rank; write true there"
    if settings.init == "orthogonal" and rank % 2:
        yield Violation.of("UNSUPPORTED_CONFIG", "init_lora_weights", f"rank {rank}", "an even rank", problem)
    smaller = min(module.in_features, module.out_features)
    if settings.init == "mica" and rank > smaller:
        expected = f"at most rank {smaller} for {module.path}"
        yield Violation.of("UNSUPPORTED_CONFIG", "init_lora_weights", f"rank {rank}", expected, problem)
