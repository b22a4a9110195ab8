"""Reads adapter_config.json through a typed allow-list; PEFT is never asked, nothing in it is executed."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.errors import Violation
from hotslot.formats.base_spec import ALL_LINEAR
from hotslot.formats.file_names import CONFIG_FILE
from hotslot.formats.strict_json import DuplicateKeyError, StrictJsonError, parse_object
from store_service.admission.config_fields import FIELDS, Decision, Unlisted, is_unset, judge_unlisted
from store_service.admission.lora_settings import LoraSettings, Targets, is_bool, is_finite, is_rank
from store_service.admission.mlx_config import MLX_FIELDS, MLX_NAMES, is_mlx_config, parse_mlx_config
from store_service.admission.patterns import Pattern, PatternError, PatternTable, is_name

MAX_LIST_ITEMS = 20_000
MAX_EXPRESSIONS = 256
"""Regular expressions in one config; each is tried on each module, and held compiled."""
MAX_PYTHON_EXPRESSIONS = 8
"""Most expressions among those for Python's own engine, each with a bounded time of its own."""
MAX_TOLD = 12
MAX_TOLD_CHARS = 40
"""Names in the warning of fields that are not used, and the letters of each."""


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Content of adapter_config.json, parsed."""

    settings: LoraSettings | None
    """None where it is unusable."""
    violations: tuple[Violation, ...]
    """Reasons for that, and others although there are settings: what can still be checked is."""
    warnings: tuple[AdmissionWarning, ...] = ()
    """Notes about what is not used."""
    shown_json: str = "{}"
    """The fields that decided about the adapter, as JSON for people."""
    digest: bytes = b""
    """SHA-256 of what was read."""


def parse_config(data: bytes) -> ReadConfig:
    """Read the bytes of adapter_config.json."""
    try:
        document = parse_object(data)
    except StrictJsonError as exc:
        code = "DUPLICATE_KEY" if isinstance(exc, DuplicateKeyError) else "CONFIG_NOT_JSON"
        problem = Violation.of(code, CONFIG_FILE, str(exc), "a JSON object", "it cannot be read")
        return ReadConfig(None, (problem,))
    violations: list[Violation] = []
    is_mlx = is_mlx_config(document)
    unlisted = [name for name in document if name not in (MLX_NAMES if is_mlx else FIELDS)]
    warnings = _not_used([name for name in unlisted if judge_unlisted(name, document[name]) is Unlisted.TELL])
    if is_mlx:
        settings = parse_mlx_config(document, violations)
    else:
        _apply_decisions(document, violations)
        settings = _Reader(document, violations).settings()
    shown = _shown(document, is_mlx=is_mlx)
    return ReadConfig(settings, tuple(violations), tuple(warnings), shown, hashlib.sha256(data).digest())


def _shown(document: Mapping[str, Any], *, is_mlx: bool) -> str:
    supported = {name for name, rule in FIELDS.items() if rule.decision is not Decision.IGNORE}
    names = MLX_FIELDS if is_mlx else supported
    shown = {name: document[name] for name in sorted(names & document.keys()) if not is_unset(document[name])}
    return json.dumps(shown, sort_keys=True)


def _apply_decisions(document: Mapping[str, Any], violations: list[Violation]) -> None:
    if "peft_type" not in document:
        problem = "without it PEFT does not load the adapter"
        violations.append(Violation.of("BAD_CONFIG_VALUE", "peft_type", "no such field", "'LORA'", problem))
    for name, value in document.items():
        rule = FIELDS.get(name)
        if rule is None:
            if judge_unlisted(name, value) is Unlisted.REFUSE:
                problem = (
                    "what it does is not known, so the adapter cannot be served exactly; remove it where it only "
                    "describes the adapter"
                )
                expected = "a field of PEFT 0.21's LoraConfig"
                violations.append(Violation.of("UNKNOWN_CONFIG_FIELD", name, repr(value), expected, problem))
        elif rule.decision is Decision.REFUSE_WHEN_SET and not is_unset(value):
            violations.append(Violation.of("UNSUPPORTED_CONFIG", name, repr(value), "unset", rule.reason))
        elif rule.decision is Decision.REFUSE_WHEN_NOT_NULL and value is not None:
            violations.append(Violation.of("UNSUPPORTED_CONFIG", name, repr(value), "null", rule.reason))
        elif rule.check is not None and not rule.check(value):
            code = "UNSUPPORTED_CONFIG" if rule.decision is Decision.REFUSE_OTHER else "BAD_CONFIG_VALUE"
            violations.append(Violation.of(code, name, repr(value), rule.expected, rule.reason))


def _not_used(names: Sequence[str]) -> Iterator[AdmissionWarning]:
    if names:
        shown = ", ".join(repr(name[:MAX_TOLD_CHARS]) for name in names[:MAX_TOLD])
        more = f" and {len(names) - MAX_TOLD} more" if len(names) > MAX_TOLD else ""
        message = f"{CONFIG_FILE} has {shown}{more}, which are no fields of the adapter's method and are not used"
        yield AdmissionWarning("CONFIG_FIELDS_NOT_USED", message)


class _Reader:
    """Reads the supported fields; a value of the wrong form becomes a violation and its default."""

    def __init__(self, document: Mapping[str, Any], violations: list[Violation]) -> None:
        self._document = document
        self._violations = violations
        self._usable = True
        self._num_expressions = 0
        self._num_python_expressions = 0

    def settings(self) -> LoraSettings | None:
        rank = self._value("r", 8, is_rank, "a positive integer", may_be_null=False)
        alpha = self._value("lora_alpha", 8, is_finite, "a finite number", may_be_null=False)
        use_rslora = self._value("use_rslora", False, is_bool, "true or false")
        has_bias = self._value("lora_bias", False, is_bool, "true or false")
        ties_weights = self._value("ensure_weight_tying", False, is_bool, "true or false")
        rank_patterns = self._patterns("rank_pattern", is_rank, "a positive integer")
        alpha_patterns = self._patterns("alpha_pattern", is_finite, "a finite number")
        targets = self._targets()
        name = self._value("base_model_name_or_path", "", lambda value: isinstance(value, str), "text")
        bias = self._value("bias", "none", lambda value: isinstance(value, str), "text", may_be_null=False)
        saved = self._texts("modules_to_save", self._document.get("modules_to_save"))
        init = self._document.get("init_lora_weights", True)
        if has_bias and not isinstance(init, bool):
            self._bad("init_lora_weights", init, "true or false beside lora_bias, or PEFT does not load it")
        if not self._usable:
            return None
        return LoraSettings(
            rank=rank,
            alpha=alpha,
            use_rslora=use_rslora,
            rank_patterns=rank_patterns,
            alpha_patterns=alpha_patterns,
            targets=targets,
            base_model_name=name,
            has_bias=has_bias,
            ties_weights=ties_weights,
            bias=bias,
            saved_modules=tuple(dict.fromkeys(saved)),
            init=init if isinstance(init, str) else "",
        )

    def _targets(self) -> Targets:
        wanted = self._document.get("target_modules")
        excluded = self._document.get("exclude_modules")
        layers = self._document.get("layers_to_transform")
        layer_names = self._document.get("layers_pattern")
        layer_list = [layers] if type(layers) is int else layers
        if layers is None or layers == []:
            layer_list = None
        elif not isinstance(layer_list, list) or not all(type(index) is int for index in layer_list):
            self._bad("layers_to_transform", layers, "an integer or a list of integers")
            layer_list = None
        for field, value in (("layers_to_transform", layers), ("layers_pattern", layer_names)):
            if isinstance(wanted, str) and value is not None:
                self._bad(field, value, "unset where target_modules is text, or PEFT does not load it")
        if layer_names and layers is None:
            self._bad("layers_pattern", layer_names, "layers_to_transform beside it, or PEFT does not load it")
        # Text without a letter is no pattern; in a list it is one, which no path has.
        names = [layer_names] * bool(layer_names) if isinstance(layer_names, str) else layer_names
        is_all_linear = isinstance(wanted, str) and wanted.lower() == ALL_LINEAR
        return Targets(
            suffixes=None
            if wanted is None or isinstance(wanted, str)
            else frozenset(self._texts("target_modules", wanted)),
            regex=self._regex("target_modules", wanted) if not is_all_linear else None,
            all_linear=is_all_linear,
            by_model_type=wanted is None,
            exclude_suffixes=frozenset(() if isinstance(excluded, str) else self._texts("exclude_modules", excluded)),
            exclude_regex=self._regex("exclude_modules", excluded),
            layers=None if layer_list is None else frozenset(layer_list),
            layer_patterns=tuple(
                pattern
                for text in self._texts("layers_pattern", names)
                if (pattern := self._regex("layers_pattern", text)) is not None
            ),
        )

    def _value(
        self, name: str, default: Any, check: Callable[[Any], bool], expected: str, *, may_be_null: bool = True
    ) -> Any:
        value = self._document.get(name)
        if value is None and (may_be_null or name not in self._document):
            return default
        if not check(value):
            self._bad(name, value, expected)
            return default
        return value

    def _texts(self, name: str, value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._bad(name, value, "a list of texts")
        elif len(value) > MAX_LIST_ITEMS:
            self._bad(name, f"{len(value)} items", f"at most {MAX_LIST_ITEMS}")
        else:
            return tuple(value)
        return ()

    def _regex(self, name: str, value: Any) -> Pattern | None:
        if not isinstance(value, str):
            return None
        try:
            self._num_expressions += not is_name(value)
            if self._num_expressions > MAX_EXPRESSIONS and not is_name(value):
                raise PatternError(f"a config has at most {MAX_EXPRESSIONS} of them")
            pattern = Pattern(value, ends=name not in ("target_modules", "exclude_modules"))
            self._num_python_expressions += pattern.needs_python
            if self._num_python_expressions > MAX_PYTHON_EXPRESSIONS and pattern.needs_python:
                problem = "look-around, back-references, flags and possessive repeats"
                raise PatternError(f"a config has at most {MAX_PYTHON_EXPRESSIONS} expressions with {problem}")
            return pattern
        except PatternError as exc:
            self._bad(name, value, f"a regular expression that can be matched ({exc})", "UNSUPPORTED_PATTERN")
            return None

    def _patterns(self, name: str, check: Callable[[Any], bool], expected: str) -> PatternTable[Any]:
        value = self._document.get(name, {})
        if not isinstance(value, dict) or len(value) > MAX_LIST_ITEMS:
            self._bad(name, value, f"an object of at most {MAX_LIST_ITEMS} fields")
            return PatternTable()
        found: list[tuple[Pattern, Any]] = []
        for text, number in value.items():
            pattern = self._regex(f"{name}[{text!r}]", text)
            if not check(number):
                self._bad(f"{name}[{text!r}]", number, expected)
            elif pattern is not None:
                found.append((pattern, number))
        try:
            return PatternTable(found)
        except PatternError as exc:
            self._bad(name, f"{len(found)} patterns", f"patterns that can be looked up ({exc})", "UNSUPPORTED_PATTERN")
            return PatternTable()

    def _bad(self, name: str, value: Any, expected: str, code: str = "BAD_CONFIG_VALUE") -> None:
        self._usable = False
        self._violations.append(Violation.of(code, name, repr(value), expected, "its value cannot be used"))
