"""The spec of a base model: the modules that adapters may target, with their shapes."""

import json
import re
import unicodedata
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.formats.base_details import BaseDetails
from hotslot.ids import DIGEST_HEX, DIGEST_PREFIX, Digest, digest_of, parse_digest

MAX_MODULES = 100_000

MAX_NAME_CHARS = 512

_IN_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.\d+\.")
_TOKEN_EMBEDDINGS = frozenset({
    "embed_in", "embed_tokens", "embedding", "embeddings", "tok_embeddings", "word_embeddings", "wte",
})  # fmt: skip
HEADS = ("lm_head", "embed_out")
"""transformers 5 calls the head of GPT-NeoX differently than its checkpoints do."""
ALL_LINEAR = "all-linear"
"""Word of PEFT for all linears but the head."""
END_NAMES = _TOKEN_EMBEDDINGS | frozenset(HEADS)
"""Names of token embeddings and heads, which have slots only where a worker's settings name them."""


def looks_like_a_digest(text: str) -> bool:
    """Tell if a text is, or is written to be taken for, a digest: such a one is never a base model's name."""
    plain = unicodedata.normalize("NFKC", text).strip().lower()
    return plain.startswith(DIGEST_PREFIX) or bool(DIGEST_HEX.fullmatch(plain))


class ModuleKind(StrEnum):
    """Kind of computation that a module does."""

    LINEAR = "linear"
    EMBEDDING = "embedding"


class Absence(StrEnum):
    """Reason why the loaded model lacks a module of the checkpoint, or has no linear there."""

    BEYOND = "beyond"
    EXPERT = "expert"
    ROUTER = "router"
    SHARED_KEYS = "shared_keys"
    OTHER_PART = "other_part"
    REPLACED = "replaced"


class LoadedModules(StrEnum):
    """Source of what is known about the loaded model's modules."""

    UNKNOWN = ""
    """Registered by a version that did not tell."""
    DERIVED = "derived"
    """By rules, from the checkpoint's names and its config."""
    OBSERVED = "observed"
    """From the model that a worker has loaded."""


@dataclass(frozen=True, slots=True)
class BaseModule:
    """One module: a linear `[out_features, in_features]` or an embedding of `in_features` rows."""

    path: str
    kind: ModuleKind
    in_features: int
    out_features: int
    values_digest: str = field(default="", compare=False)
    """Digest of its weight's and bias's values (`weight_values.py`), for the token embedding and the head; empty where
no store computed it. Not part of the spec's digest, which covers a sample of all values."""
    absence: Absence | None = field(default=None, compare=False)
    """Reason for which the loaded model lacks it, so that no adapter can target it; None where it has it, as far as is
    known. Not part of the spec's digest, which is that of the checkpoint."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def is_token_embedding(self) -> bool:
        """True if the module is called like the one that looks tokens up."""
        return self.name in _TOKEN_EMBEDDINGS

    @property
    def is_head_by_name(self) -> bool:
        """True if the module is called like the linear that computes logits."""
        return self.name in HEADS

    @property
    def is_in_layer(self) -> bool:
        """True if the module belongs to one of the repeated layers."""
        return bool(self.layer_list)

    @property
    def layer_list(self) -> str:
        """The path of the repeated layers that it belongs to, for example `model.layers`; empty outside of them."""
        match = _IN_LAYER.search(self.path)
        return self.path[: match.end() - 1].rpartition(".")[0] if match is not None else ""


@dataclass(frozen=True)
class BaseSpec:
    """Modules and shapes of a base model; two workers with the same digest can serve the same adapters."""

    name: str
    """Public name, for example `HuggingFaceTB/SmolLM2-135M-Instruct`; not part of the digest."""
    model_type: str
    weights_fingerprint: str
    """SHA-256 over every parameter's name, shape, type and a sample of its values."""
    modules: tuple[BaseModule, ...]
    """In layer order."""
    loaded: LoadedModules = field(default=LoadedModules.UNKNOWN, compare=False)
    """Knowledge of which of them the loaded model has; not part of the digest."""
    details: BaseDetails | None = field(default=None, compare=False)
    """No part of the digest either; None where it was registered without."""

    def canonical_json(self) -> bytes:
        """The bytes whose SHA-256 is the digest."""
        document: dict[str, Any] = {
            "format": "hotslot.base/1",
            "model_type": self.model_type,
            "modules": [[m.path, m.kind.value, m.in_features, m.out_features] for m in self.modules],
            "weights_fingerprint": self.weights_fingerprint,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @cached_property
    def digest(self) -> Digest:
        """Identity of the base model."""
        return digest_of(self.canonical_json())

    @cached_property
    def targets(self) -> tuple[BaseModule, ...]:
        """Everything that names of an adapter may mean, in layer order: the modules, and a head that is tied.

        Those with an absence are among them, so that an adapter on one hears why it cannot be served.
        """
        head = self.tied_head
        return self.modules if head is None else (*self.modules, head)

    def by_path(self) -> dict[str, BaseModule]:
        """The targets by path."""
        return {module.path: module for module in self.targets}

    @cached_property
    def token_embedding(self) -> BaseModule | None:
        """The module that looks tokens up; None where names do not tell which one it is."""
        embeddings = (m for m in self.modules if m.kind is ModuleKind.EMBEDDING and m.absence is None)
        found = [module for module in embeddings if module.is_token_embedding]
        return found[0] if len(found) == 1 else None

    @cached_property
    def head(self) -> BaseModule | None:
        """The linear that computes logits, with a weight of its own or tied; None where it cannot be told."""
        embedding = self.token_embedding
        num_tokens = embedding.in_features if embedding is not None else 0
        linears = (m for m in self.modules if m.kind is ModuleKind.LINEAR and m.absence is None)
        outside = [module for module in linears if not module.is_in_layer]
        named = next((module for module in outside if module.is_head_by_name), None)
        own = named or next((module for module in outside if module.out_features == num_tokens), None)
        if own is not None or embedding is None:
            return own
        return BaseModule("lm_head", ModuleKind.LINEAR, embedding.out_features, num_tokens, embedding.values_digest)

    @cached_property
    def tied_head(self) -> BaseModule | None:
        """The head where it shares the token embedding's weight.

        A checkpoint stores a shared weight once, as the embedding's, so such a head is known by the absence of its
        weight. It is derived and not among `modules`, so that it is no part of the digest.
        """
        head = self.head
        return head if head not in self.modules else None


def check_spec(spec: BaseSpec) -> None:
    """Check what the types cannot; raises InvalidRequestError with every field at fault."""
    problems: list[FieldViolation] = []
    if not spec.name:
        problems.append(FieldViolation("name", "must not be empty"))
    if len(spec.name) > MAX_NAME_CHARS:
        problems.append(FieldViolation("name", f"found {len(spec.name)} characters, at most {MAX_NAME_CHARS}"))
    if looks_like_a_digest(spec.name):
        problem = f"found {spec.name[:80]!r}, which looks like a digest: give the base model a name of its own"
        problems.append(FieldViolation("name", problem))
    elif not spec.name.isprintable() or spec.name != spec.name.strip():
        problem = f"found {spec.name[:80]!r}, expected printable characters without blanks around them"
        problems.append(FieldViolation("name", problem))
    if not spec.model_type:
        problems.append(FieldViolation("model_type", "must not be empty"))
    if not spec.modules:
        problems.append(FieldViolation("modules", "must not be empty"))
    if len(spec.modules) > MAX_MODULES:
        problems.append(FieldViolation("modules", f"found {len(spec.modules)}, at most {MAX_MODULES}"))
    seen: set[str] = set()
    for index, module in enumerate(spec.modules):
        if not module.path or module.path in seen:
            problems.append(FieldViolation(f"modules[{index}].path", f"{module.path!r} is empty or stands twice"))
        seen.add(module.path)
        if module.in_features <= 0 or module.out_features <= 0:
            problems.append(FieldViolation(f"modules[{index}]", f"{module.path!r} has a size that is not positive"))
        if module.values_digest:
            try:
                parse_digest(module.values_digest, field=f"modules[{index}].values_digest")
            except InvalidRequestError as exc:
                problems.extend(exc.fields)
    if problems:
        raise InvalidRequestError(problems)
