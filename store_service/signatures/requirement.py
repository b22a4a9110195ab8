"""Requirement of a signature before a checkpoint is judged: only files that an allowed signer signed go on."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import structlog

from hotslot.errors import FieldViolation, InvalidRequestError, SignatureRefusedError, StoreUnavailableError, Violation
from hotslot.formats.companions import COMPANION_FILES, companions_of
from hotslot.formats.file_names import CHECKPOINT_FILES, SHARD, SIGNATURE_FILE
from hotslot.ids import TenantId
from store_service.admission.admit import PICKLE_FILES, Checkpoint
from store_service.signatures.bundle import BundleError, SignedFiles, read_bundle
from store_service.signatures.policy import NO_POLICIES, SignaturePolicies, read_policies

log = structlog.get_logger(__name__)

MAX_NAMED = 16
"""Most files that a refusal names."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A checkpoint whose files are as an allowed signer signed them, or of a tenant that asks for no signature."""

    checkpoint: Checkpoint
    signer: str = ""


class SignatureRequirement:
    """Checks signatures by a file of policies, which is read for each checkpoint, so that a change holds at once."""

    def __init__(self, policy_file: Path | None) -> None:
        self._policy_file = policy_file

    def policies(self) -> SignaturePolicies:
        """Policies of now; raises InvalidRequestError."""
        return read_policies(self._policy_file) if self._policy_file is not None else NO_POLICIES

    def open(self) -> None:
        """Read the policies and load the library; raises InvalidRequestError where either cannot be."""
        if self._policy_file is None:
            return
        self.policies()
        try:
            import_module("model_signing.verifying")
        except ImportError as exc:
            problem = f"signatures need the extra hotslot[signatures]: {exc}"
            raise InvalidRequestError([FieldViolation("signature_policy_file", problem)]) from exc

    def require(self, tenant: TenantId, checkpoint: Checkpoint) -> Signed:
        """The part of a checkpoint that is signed as the tenant's policy asks; blocks.

        Raises SignatureRefusedError with every violation, and StoreUnavailableError while the policies cannot be read:
        nothing is admitted unchecked then.
        """
        try:
            signers = self.policies().of(tenant)
        except InvalidRequestError as exc:
            log.error("signature_policies_unreadable", why=exc.message)
            raise StoreUnavailableError("the store's signature policies cannot be read; its operator sees why") from exc
        if signers is None:
            return Signed(checkpoint)
        signature = checkpoint.files.get(SIGNATURE_FILE)
        if signature is None:
            problem = f"adapters of {tenant} must be signed, and there is no {SIGNATURE_FILE} beside the weights"
            raise _refused([Violation.of("SIGNATURE_MISSING", SIGNATURE_FILE, "no such file", "a signature", problem)])
        try:
            signed = read_bundle(signature, signers)
        except BundleError as exc:
            expected = "a signature by an allowed signer"
            raise _refused([Violation.of(exc.code, SIGNATURE_FILE, "a signature", expected, str(exc))]) from exc
        return Signed(_signed_part(checkpoint, signed), signed.signer)


def _signed_part(checkpoint: Checkpoint, signed: SignedFiles) -> Checkpoint:
    """The checkpoint with signed files alone: a summary of what lies beside the weights was made after they were."""
    used = {name: path for name, path in checkpoint.files.items() if _is_used(name)}
    found = {name: _sha256(path) for name, path in used.items()}
    if (held := checkpoint.held) is not None:
        found[held.name] = hashlib.sha256(held.data).hexdigest()
    differences = list(_differences(found, signed.digests))
    if differences:
        raise _refused(differences[:MAX_NAMED])
    pickles = {name: path for name, path in checkpoint.files.items() if name in PICKLE_FILES}
    companions = companions_of({name: path for name, path in used.items() if name in COMPANION_FILES})
    return Checkpoint(used | pickles, companions, held)


def _is_used(name: str) -> bool:
    return name in (*CHECKPOINT_FILES, *COMPANION_FILES) or SHARD.fullmatch(name) is not None


def _differences(own: Mapping[str, str], digests: Mapping[str, str]) -> Iterator[Violation]:
    for name in sorted({*own, *_used_names(digests)}):
        found = own.get(name, "no such file")
        expected = digests.get(name, "no file that is signed")
        if found != expected:
            problem = "the signature is for other files: sign the folder as it is pushed"
            yield Violation.of("SIGNED_FILES_DIFFER", name, found, expected, problem)


def _used_names(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if _is_used(name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refused(violations: list[Violation]) -> SignatureRefusedError:
    return SignatureRefusedError(violations)
