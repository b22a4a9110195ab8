"""What a checkpoint's config says, reduced to what decides the adapter's rank, scaling and targets."""

import math
import re
from dataclasses import dataclass, field

from store_service.admission.patterns import Pattern

ALL_LINEAR = "all-linear"
_ENDS = ("embed_tokens", "lm_head")
_FIRST_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")


@dataclass(frozen=True)
class Targets:
    """Which modules an adapter is for: suffixes, one regular expression, or everything the tensors name."""

    suffixes: tuple[str, ...] | None = None
    regex: Pattern | None = None
    all_linear: bool = False
    exclude_suffixes: tuple[str, ...] = ()
    exclude_regex: Pattern | None = None
    layers: frozenset[int] | None = None
    layer_patterns: tuple[Pattern, ...] = ()
    """Names of the module lists that hold the layers, for example `layers`."""

    def include(self, path: str) -> bool | None:
        """Whether a module is targeted; None where only the tensors can tell.

        As PEFT 0.21 (tuners/tuners_utils.py, `check_target_module_exists`).
        """
        if self._excluded(path):
            return False
        if self.regex is not None:
            return self.regex.matches_whole(path)
        if self.suffixes is None:
            return None
        if not any(path == suffix or path.endswith("." + suffix) for suffix in self.suffixes):
            return False
        return self.layers is None or self._layer_index(path) in self.layers

    def name_an_end(self) -> bool:
        """Whether PEFT sees the embedding or the head targeted, which it tells by these two names alone.

        As PEFT 0.21 (tuners/tuners_utils.py, `_check_tied_modules`), which ties only then.
        """
        if self.regex is not None:
            return any(self.regex.matches_whole(name) for name in _ENDS)
        return any(suffix.rpartition(".")[2] in _ENDS for suffix in self.suffixes or ())

    def _excluded(self, path: str) -> bool:
        if self.exclude_regex is not None and self.exclude_regex.matches_whole(path):
            return True
        return any(path == suffix or path.endswith("." + suffix) for suffix in self.exclude_suffixes)

    def _layer_index(self, path: str) -> int | None:
        """The first number behind a layer list's name (any name, when no pattern is given)."""
        if not self.layer_patterns:
            match = _FIRST_INDEX.match(path)
            return int(match.group("idx")) if match else None
        parts = path.split(".")
        for pattern in self.layer_patterns:
            for index in range(1, len(parts) - 1):
                if parts[index].isdecimal() and pattern.matches_end(".".join(parts[:index])):
                    return int(parts[index])
        return None


@dataclass(frozen=True)
class LoraSettings:
    """Rank, alpha and targets, with PEFT's patterns."""

    rank: int
    alpha: float
    use_rslora: bool = False
    rank_patterns: tuple[tuple[Pattern, int], ...] = ()
    alpha_patterns: tuple[tuple[Pattern, float], ...] = ()
    targets: Targets = field(default_factory=Targets)
    base_model_name: str = ""
    """What the config calls its base; empty when it does not say."""
    has_bias: bool = False
    """Whether B has a bias (lora_bias)."""
    ties_weights: bool = False
    """Whether a tied head has the embedding's adapter, transposed (ensure_weight_tying)."""
    fixed_scaling: float | None = None
    """MLX writes the factor itself instead of alpha."""

    def rank_of(self, path: str) -> int:
        """As PEFT 0.21 (tuners/lora/model.py, `_create_and_replace`)."""
        return next((rank for pattern, rank in self.rank_patterns if pattern.matches_end(path)), self.rank)

    def scaling_of(self, path: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA (PEFT, tuners/lora/layer.py, `update_layer`)."""
        if self.fixed_scaling is not None:
            return self.fixed_scaling
        alpha = next((alpha for pattern, alpha in self.alpha_patterns if pattern.matches_end(path)), self.alpha)
        rank = self.rank_of(path)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank
