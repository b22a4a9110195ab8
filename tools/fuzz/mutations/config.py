"""Changes to adapter_config.json that know its fields and what stands in them."""

import json
from random import Random
from typing import Any

from store_service.admission.config_fields import FIELDS
from store_service.admission.mlx_config import MLX_FIELDS
from tools.fuzz.mutations.text import mutate_bytes, mutate_text

_ATOMS = (
    "q_proj", "v_proj", "down_proj", "lm_head", "mlp", "self_attn", "layers", "model", "0", "1", ".", ".*", r"\.", "*",
    "+", "?", "{2}", "{1,}", "{,2}", "{0}", "{1001}", "*?", "*+", "|", "(q|v)_proj", "(?:k|o)", "(", ")", "[", "]",
    "[0-1]", "[^.]+", r"[\w.]+", "[]q]", "[^]]", "[[", "[a&&b]", "[a--b]", "^", "$", r"\b", r"\B", r"\d", r"\d+",
    r"\D", r"\w+", r"\W", r"\s", r"\S+", r"\A", r"\Z", r"\z", r"\1", r"\x71", r"\161", r"\07", r"\u0071", r"\_",
    r"\-", r"\/", r"\v", r"\a", r"\Q", r"\pL", r"\N{LATIN SMALL LETTER Q}", "(?P<n>q)", "(?P=n)", "(?i)", "(?#c)",
    "(?!x)", "(?>q)", "é", "\x00", " ", "\n", "_proj", "q", "all-linear", "{", "}", "-", "{2,1}", "(?:)", "()", "a{2}b",
)  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 4, 8, 16, 256, -1, 2**31 - 1, 2**31, 2**53 + 1, 10**18, 10**19, 0.5, 1.5, -2.5, 1e-300, 1e29,
            1e30, 1e308, -0.0, 5e-324)  # fmt: skip
_ODD: tuple[Any, ...] = (None, True, False, "", "x", "none", [], {}, [1], ["a"], {"a": 1}, [[]], "\x00", "é" * 40)
_WORDS = (
    "LORA", "LOHA", "CAUSAL_LM", "SEQ_CLS", "gaussian", "pissa", "pissa_niter_16", "eva", "orthogonal", "olora",
    "loftq", "none", "all", "lora_only", "all-linear", "ALL-LINEAR", "layers", "h", "acme/tiny",
)  # fmt: skip
_NAMES = (*FIELDS, *MLX_FIELDS, "unknown", "", "é", "trust_remote_code", "parent_library")
_SHAPING = (
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "lora_parameters",
)  # fmt: skip


def pattern(rng: Random) -> str:
    """A regular expression, or something like one."""
    return "".join(rng.choice(_ATOMS) for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 6))))


def mutate_config(data: bytes, rng: Random) -> bytes:
    """The config with a few fields changed; sometimes with its text or bytes changed instead."""
    how = rng.random()
    if how < 0.04:
        return mutate_bytes(data, rng)
    if how < 0.15:
        return mutate_text(data, rng)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or rng.random() < 0.02:
        document = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change(document, rng)
    return json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _change(document: dict[str, Any], rng: Random) -> None:
    name = rng.choice(_SHAPING) if rng.random() < 0.6 else rng.choice(_NAMES)
    if document and rng.random() < 0.15:
        document.pop(rng.choice(list(document)))
    elif document and rng.random() < 0.05:
        source = rng.choice(list(document))
        document[name] = document[source]
    elif rng.random() < 0.12:
        document[name] = rng.choice(_ODD)
    else:
        document[name] = _likely(name, rng)


def _likely(name: str, rng: Random) -> Any:
    """A value of about the form that the field has."""
    match name:
        case "r":
            return rng.choice((1, 2, 4, 4, 8, rng.choice(_NUMBERS)))
        case "lora_alpha":
            return rng.choice((8, 16, 7.5, rng.choice(_NUMBERS)))
        case "rank_pattern" | "alpha_pattern":
            return {pattern(rng): rng.choice((1, 2, 4, 8, rng.choice(_NUMBERS))) for _ in range(rng.randrange(1, 4))}
        case "target_modules" | "exclude_modules" | "layers_pattern":
            if rng.random() < 0.5:
                return pattern(rng)
            return [pattern(rng) for _ in range(rng.randrange(4))]
        case "layers_to_transform":
            return rng.choice((0, 1, [0], [1], [0, 1], [], [True], [0.0], -1, "0", [10**18]))
        case "lora_parameters":
            names = ("rank", "scale", "dropout", "keys", "alpha", "extra")
            return {key: rng.choice((4, 2.0, *_NUMBERS, *_ODD)) for key in names if rng.random() < 0.5}
        case _:
            return rng.choice((rng.choice(_WORDS), rng.choice(_NUMBERS), rng.choice(_ODD), True, False))
