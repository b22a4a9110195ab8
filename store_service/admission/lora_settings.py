"""Settings of a LoRA from a checkpoint's config: all that decides its rank, scaling and targets."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

from store_service.admission.match_budget import spend
from store_service.admission.patterns import Pattern, PatternTable, path_ends

_ENDS = ("embed_tokens", "lm_head")
_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")


@dataclass(frozen=True)
class Targets:
    """Targets of an adapter: suffixes, one regular expression, or everything the tensors name."""

    suffixes: frozenset[str] | None = None
    regex: Pattern | None = None
    all_linear: bool = False
    by_model_type: bool = False
    """True if the config names none, so that PEFT goes by the base model's type."""
    exclude_suffixes: frozenset[str] = frozenset()
    exclude_regex: Pattern | None = None
    layers: frozenset[int] | None = None
    layer_patterns: tuple[Pattern, ...] = ()
    """Names of the module lists that hold the layers, for example `layers`."""

    def include(self, path: str) -> bool | None:
        """Tell whether a module is targeted; None where only the base model or the tensors can tell.

        As PEFT 0.21 (tuners/tuners_utils.py, `check_target_module_exists`).
        """
        spend()
        if self._excluded(path):
            return False
        if self.regex is not None:
            return self.regex.matches_whole(path)
        if self.suffixes is None:
            return None
        if path in self.suffixes:
            return True  # Layers are not asked for where the whole path is named.
        if self.suffixes.isdisjoint(path_ends(path)):
            return False
        return self.layers is None or self._layer_index(path) in self.layers

    def name_an_end(self) -> bool:
        """Tell whether PEFT sees the embedding or the head targeted, by these two names alone.

        As PEFT 0.21 (tuners/tuners_utils.py, `_check_tied_modules`), which ties only then.
        """
        if self.regex is not None:
            return any(self.regex.matches_whole(name) for name in _ENDS)
        return any(suffix.rpartition(".")[2] in _ENDS for suffix in self.suffixes or ())

    def _excluded(self, path: str) -> bool:
        if self.exclude_regex is not None and self.exclude_regex.matches_whole(path):
            return True
        return not self.exclude_suffixes.isdisjoint(path_ends(path))

    def _layer_index(self, path: str) -> int | None:
        """The first number behind a layer list's name (any name, when no pattern is given)."""
        if not self.layer_patterns:
            match = _FIRST_INDEX.match(path)
            return int(match.group("idx")) if match else None
        parts = path.split(".")
        for pattern in self.layer_patterns:
            for index in range(1, len(parts) - 1):
                spend()
                if parts[index].isdecimal() and pattern.matches_end(".".join(parts[:index])):
                    return int(parts[index])
        return None


@dataclass(frozen=True)
class LoraSettings:
    """Rank, alpha and targets, with PEFT's patterns."""

    rank: int
    alpha: float
    use_rslora: bool = False
    rank_patterns: PatternTable[int] = field(default_factory=PatternTable)
    alpha_patterns: PatternTable[float] = field(default_factory=PatternTable)
    targets: Targets = field(default_factory=Targets)
    base_model_name: str = ""
    """Name of the base model in the config; empty when it has none."""
    has_bias: bool = False
    """True if B has a bias (lora_bias)."""
    ties_weights: bool = False
    """True if a tied head has the embedding's adapter, transposed (ensure_weight_tying)."""
    bias: str = "none"
    """Biases of the base that were trained: none, lora_only or all."""
    saved_modules: tuple[str, ...] = ()
    """Modules of which the checkpoint has a whole copy (modules_to_save)."""
    init: str = ""
    """The name of the initialisation, where it has one."""
    fixed_scaling: float | None = None
    """MLX writes the factor itself instead of alpha."""

    def rank_of(self, path: str) -> int:
        """As PEFT 0.21 (tuners/lora/model.py, `_create_and_replace`)."""
        return self.rank_patterns.find(path, self.rank)

    def scaling_of(self, path: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA (PEFT, tuners/lora/layer.py, `update_layer`)."""
        if self.fixed_scaling is not None:
            return self.fixed_scaling
        alpha = self.alpha_patterns.find(path, self.alpha)
        rank = self.rank_of(path)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def is_rank(value: Any) -> bool:
    """Tell whether a JSON value is a rank."""
    return type(value) is int and 0 < value < 2**31


def is_finite(value: Any) -> bool:
    """Tell whether a JSON value is a number that arithmetic survives."""
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e30


def is_bool(value: Any) -> bool:
    """Tell whether a JSON value is a truth value."""
    return isinstance(value, bool)
