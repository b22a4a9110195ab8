"""Reads one signature file: the bundle is checked by OpenSSF's library, and who signed by a tenant's signers.

What the library leaves open is decided here. It judges a certificate as of the moment that it began, so that one which
has ended is good for ever; a bundle says nothing that could be believed about when it was made, so that a certificate
is judged as of now. And it takes any certificate of an authority, where a policy names identities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from hotslot.formats.strict_json import StrictJsonError, parse_object
from hotslot.ids import DIGEST_HEX
from store_service.signatures.policy import CertificateSigner, KeySigner, Signer

MAX_BUNDLE_BYTES = 4 * 1024 * 1024
MAX_CERTIFICATES = 8


class BundleError(Exception):
    """A signature that is not taken, with the code of its violation."""

    def __init__(self, code: str, problem: str) -> None:
        super().__init__(problem)
        self.code = code


@dataclass(frozen=True, slots=True)
class SignedFiles:
    """Files of one signature: their digests by name, and who signed them."""

    digests: Mapping[str, str]
    signer: str


def read_bundle(path: Path, signers: Sequence[Signer]) -> SignedFiles:
    """The files that a bundle signs, by one of the signers; raises BundleError."""
    material = _material(path)
    problems: list[BundleError] = []
    for signer in signers:
        try:
            if isinstance(signer, KeySigner) and "publicKey" in material:
                return _signed_by_key(path, signer)
            if isinstance(signer, CertificateSigner) and "x509CertificateChain" in material:
                return _signed_by_certificate(path, signer)
        except BundleError as exc:
            problems.append(exc)
    # Of several refusals the one that came furthest tells most.
    for code in ("SIGNATURE_EXPIRED", "SIGNER_NOT_ALLOWED", "SIGNED_FILES_DIFFER", "SIGNATURE_INVALID"):
        for problem in problems:
            if problem.code == code:
                raise problem
    raise BundleError("SIGNER_NOT_ALLOWED", "it is by a method that no allowed signer uses")


def _material(path: Path) -> dict[str, Any]:
    """The part of a bundle that says how to verify it."""
    with path.open("rb") as file:
        data = file.read(MAX_BUNDLE_BYTES + 1)
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError("SIGNATURE_INVALID", f"it has more than {MAX_BUNDLE_BYTES} bytes")
    try:
        material = parse_object(data).get("verificationMaterial")
    except StrictJsonError as exc:
        raise BundleError("SIGNATURE_INVALID", f"it is no bundle: {exc}") from exc
    if not isinstance(material, dict):
        raise BundleError("SIGNATURE_INVALID", "it is no bundle of model signing")
    key, chain = material.get("publicKey"), material.get("x509CertificateChain")
    if isinstance(key, dict) and chain is None and isinstance(key.get("hint"), str) and key["hint"]:
        return material
    certificates = chain.get("certificates") if isinstance(chain, dict) and key is None else None
    if isinstance(certificates, list) and 0 < len(certificates) <= MAX_CERTIFICATES:
        return material
    raise BundleError("SIGNATURE_INVALID", "it is signed neither with a key nor with certificates; sign it so again")


def _signed_by_key(path: Path, signer: KeySigner) -> SignedFiles:
    from model_signing._signing import sign_ec_key

    return SignedFiles(_verified(path, lambda: sign_ec_key.Verifier(signer.key)), f"key:{signer.name}")


def _signed_by_certificate(path: Path, signer: CertificateSigner) -> SignedFiles:
    from model_signing._signing import sign_certificate

    digests = _verified(path, lambda: sign_certificate.Verifier([signer.authority]))
    return SignedFiles(digests, f"certificate:{_identity(path, signer)}")


def _verified(path: Path, verifier: Any) -> Mapping[str, str]:
    """Digests that the library finds signed; raises BundleError for all that it refuses."""
    from cryptography.exceptions import InvalidSignature
    from model_signing._signing import sign_sigstore_pb
    from OpenSSL import crypto

    try:
        manifest = verifier().verify(sign_sigstore_pb.Signature.read(path))
        method = manifest.serialization_type
        found = [(each.identifier, each.digest) for each in manifest.resource_descriptors()]
    except InvalidSignature as exc:
        raise BundleError("SIGNATURE_INVALID", "the signature is not by the signer's key") from exc
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as exc:
        raise BundleError("SIGNATURE_INVALID", f"it cannot be verified: {str(exc)[:200]}") from exc
    except (crypto.X509StoreContextError, crypto.Error) as exc:
        raise BundleError("SIGNER_NOT_ALLOWED", f"its certificate leads to no trusted one: {str(exc)[:200]}") from exc
    if method.get("method") != "files" or method.get("hash_type") != "sha256":
        raise BundleError("SIGNATURE_INVALID", "it signs no SHA-256 of whole files; sign with the default settings")
    return {name: _checked(name, digest.digest_hex) for name, digest in found}


def _checked(name: str, digest: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not DIGEST_HEX.fullmatch(digest):
        raise BundleError("SIGNATURE_INVALID", f"it names {name[:80]!r}, which is no file of the folder")
    return digest


def _identity(path: Path, signer: CertificateSigner) -> str:
    """The allowed identity in a bundle's certificate, which leads to the authority as of now; raises BundleError."""
    from cryptography import x509
    from model_signing._signing import sign_sigstore_pb
    from OpenSSL import crypto

    signature = sign_sigstore_pb.Signature.read(path)
    chain = signature.bundle.verification_material.x509_certificate_chain
    assert chain is not None, "the library has verified it"
    own, *between = (x509.load_der_x509_certificate(each.raw_bytes) for each in chain.certificates)
    store = crypto.X509Store()
    for trusted in x509.load_pem_x509_certificates(signer.authority.read_bytes()):
        store.add_cert(crypto.X509.from_cryptography(trusted))
    store.set_time(datetime.now(UTC))
    certificates = [crypto.X509.from_cryptography(each) for each in between]
    try:
        crypto.X509StoreContext(store, crypto.X509.from_cryptography(own), certificates).verify_certificate()
    except crypto.X509StoreContextError as exc:
        problem = f"its certificate is not valid now: {str(exc)[:200]}"
        raise BundleError("SIGNATURE_EXPIRED", problem) from exc
    try:
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as exc:
        raise BundleError("SIGNER_NOT_ALLOWED", "its certificate has no alternative name") from exc
    kinds = (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName)
    found = {name for kind in kinds for name in names.get_values_for_type(kind)}
    allowed = sorted(found & signer.identities)
    if not allowed:
        shown = ", ".join(sorted(found))[:200]
        raise BundleError("SIGNER_NOT_ALLOWED", f"{shown!r} may not sign here")
    return allowed[0]
