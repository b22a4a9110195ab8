"""Manifests: the validated description of a version, and the names inside its weights blob.

A version's digest is the SHA-256 of its manifest's canonical JSON, which names the weights blob by digest: equal
content has equal digests on any machine. The weights blob is a safetensors file whose tensors stand in the
manifest's module order, `<path>.lora_A` `[rank, in_features]` before `<path>.lora_B` `[out_features, rank]` and, where
the module has one, `<path>.lora_B.bias` `[out_features]`, so that a receiver can decode layer by layer while it
downloads. An embedding's input counts as one-hot: its `in_features` are the rows that it looks up.

There are four formats. The second says of each module whether it has a bias, and is written only where one has; the
third has the tokens that end an adapter's answers, and is written only where there are some; the fourth has who signed
the checkpoint, and is written only where a signature was asked for. So the digests of all other versions are what they
were before there was any of it.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from hotslot.errors import DigestMismatchError, InvalidAdapterError, Violation
from hotslot.ids import Digest, digest_of

MANIFEST_FORMAT = "hotslot.manifest/1"
MANIFEST_FORMAT_WITH_BIASES = "hotslot.manifest/2"
MANIFEST_FORMAT_WITH_END_TOKENS = "hotslot.manifest/3"
MANIFEST_FORMAT_WITH_SIGNER = "hotslot.manifest/4"
WEIGHTS_FORMAT = "hotslot.weights/1"
WEIGHTS_FORMAT_WITH_BIASES = "hotslot.weights/2"
LORA_A = ".lora_A"
LORA_B = ".lora_B"
LORA_B_BIAS = ".lora_B.bias"
DTYPE_SIZES_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

_FORMATS = (MANIFEST_FORMAT, MANIFEST_FORMAT_WITH_BIASES, MANIFEST_FORMAT_WITH_END_TOKENS, MANIFEST_FORMAT_WITH_SIGNER)
_FORMATS_TEXT = " or ".join(_FORMATS)


@dataclass(frozen=True, slots=True)
class AdapterModule:
    """One targeted module: `y += scaling * (B (A x) + bias)` with `A [rank, in]`, `B [out, rank]` and `bias [out]`.

    As PEFT 0.21 (tuners/lora/layer.py): `Linear.forward`, where the bias is B's own, and `Embedding.forward`.
    """

    path: str
    rank: int
    scaling: float
    """alpha / rank, or alpha / sqrt(rank) for rsLoRA (PEFT, tuners/lora/layer.py, `update_layer`)."""
    has_bias: bool = False


@dataclass(frozen=True)
class Manifest:
    """A version's immutable description."""

    base_model_digest: Digest
    weights_digest: Digest
    weights_size_bytes: int
    dtype: str
    """Element type of all tensors in the weights blob, as safetensors writes it: F32, F16 or BF16."""
    modules: tuple[AdapterModule, ...]
    """In the base model's layer order."""
    end_token_ids: tuple[int, ...] = ()
    """Tokens that end the adapter's answers, beside those that end the base's; ascending."""
    signer: str = ""
    """Signer of the checkpoint, by the policy that asked for a signature: key:NAME or certificate:IDENTITY."""

    @property
    def max_rank(self) -> int:
        """The largest rank of any module."""
        return max(module.rank for module in self.modules)

    @property
    def ranks_in_slots(self) -> int:
        """The most ranks that a module takes in slots, where a bias is one more."""
        return max(module.rank + module.has_bias for module in self.modules)

    @property
    def has_biases(self) -> bool:
        """True if any module has a bias."""
        return any(module.has_bias for module in self.modules)

    def __hash__(self) -> int:
        # Not over hundreds of modules: the weights tell manifests apart well enough.
        return hash(self.weights_digest)

    def canonical_json(self) -> bytes:
        """The bytes whose SHA-256 is the version's digest. Floats are written as their shortest exact form."""
        has_biases = self.has_biases
        document: dict[str, Any] = {
            "base_model_digest": self.base_model_digest,
            "dtype": self.dtype,
            "format": MANIFEST_FORMAT_WITH_BIASES if has_biases else MANIFEST_FORMAT,
            "modules": [
                [m.path, m.rank, float(m.scaling), *([m.has_bias] if has_biases else [])] for m in self.modules
            ],
            "weights_digest": self.weights_digest,
            "weights_size_bytes": self.weights_size_bytes,
        }
        if self.end_token_ids:
            document |= {"format": MANIFEST_FORMAT_WITH_END_TOKENS, "end_token_ids": list(self.end_token_ids)}
        if self.signer:
            document |= {"format": MANIFEST_FORMAT_WITH_SIGNER, "signer": self.signer}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()

    @property
    def digest(self) -> Digest:
        """Identity of the version."""
        return digest_of(self.canonical_json())


def parse_manifest(data: bytes, expected: Digest) -> Manifest:
    """Read canonical bytes, verified against the digest they came under.

    Raises DigestMismatchError when the bytes are not those of the digest, and InvalidAdapterError when they are no
    manifest that this version of hotslot understands.
    """
    found = digest_of(data)
    if found != expected:
        raise DigestMismatchError("manifest", found, expected)
    try:
        document = json.loads(data)
        if document["format"] not in _FORMATS:
            raise ValueError(f"format {document['format']!r}, expected {_FORMATS_TEXT}")
        manifest = Manifest(
            base_model_digest=Digest(document["base_model_digest"]),
            weights_digest=Digest(document["weights_digest"]),
            weights_size_bytes=int(document["weights_size_bytes"]),
            dtype=str(document["dtype"]),
            modules=tuple(
                AdapterModule(str(path), int(rank), float(scaling), *map(bool, has_bias))
                for path, rank, scaling, *has_bias in document["modules"]
            ),
            end_token_ids=tuple(map(int, document.get("end_token_ids", ()))),
            signer=str(document.get("signer", "")),
        )
        if manifest.dtype not in DTYPE_SIZES_BYTES or not manifest.modules:
            raise ValueError(f"dtype {manifest.dtype!r} with {len(manifest.modules)} modules")
        if any(m.rank < 1 or not math.isfinite(m.scaling) for m in manifest.modules):
            raise ValueError("a module's rank is below 1 or its scaling is not finite")
    except (KeyError, TypeError, ValueError) as exc:
        raise InvalidAdapterError(
            [
                Violation(
                    code="MANIFEST_UNREADABLE",
                    subject=str(expected),
                    found=str(exc),
                    expected=_FORMATS_TEXT,
                    message=f"manifest {expected} cannot be read: {exc}; store and worker are of different versions",
                )
            ]
        ) from exc
    return manifest
