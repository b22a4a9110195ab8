"""Signers of tests: keys and certificates, and folders that they sign with OpenSSF's library."""

import base64
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing

SIGNATURE = "model.sig"
DAY = timedelta(days=1)


class TestKey:
    """A key pair in a folder."""

    __test__ = False

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pub"
        self.private.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        self.public.write_bytes(
            self.key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def sign(self, folder: Path) -> None:
        """Sign a folder as it is."""
        config = signing.Config().use_elliptic_key_signer(private_key=self.private)
        _sign(config, folder)


def _sign(config: signing.Config, folder: Path) -> None:
    ignored = hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE])
    config.set_hashing_config(ignored).sign(folder, folder / SIGNATURE)


class TestAuthority:
    """An authority of signing certificates."""

    __test__ = False

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = _builder(self.subject, self.subject, self.key, now - 100 * DAY, now + 100 * DAY)
        self.certificate = builder.add_extension(x509.BasicConstraints(True, None), True).sign(
            self.key, hashes.SHA256()
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def signer(
        self,
        names: Iterable[x509.GeneralName],
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
        *,
        may_sign: bool = True,
    ) -> Callable[[Path], None]:
        """Function that signs a folder with a new certificate of this authority."""
        own = TestKey(self.folder, f"{self.name}-leaf")
        now = datetime.now(UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a signer")])
        builder = _builder(subject, self.subject, own.key, now + begins, now + ends)
        usage = x509.KeyUsage(may_sign, False, False, False, not may_sign, False, False, False, False)
        builder = builder.add_extension(usage, True)
        names = list(names)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        leaf = self.folder / f"{self.name}-leaf.crt"
        leaf.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        config = signing.Config().use_certificate_signer(
            private_key=own.private, signing_certificate=leaf, certificate_chain=[self.file]
        )
        return lambda folder: _sign(config, folder)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


def bundle_of(folder: Path) -> dict[str, Any]:
    """The signature of a folder, to be changed."""
    document: dict[str, Any] = json.loads((folder / SIGNATURE).read_text())
    return document


def statement_of(bundle: dict[str, Any]) -> dict[str, Any]:
    """What a bundle says that was signed."""
    document: dict[str, Any] = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return document


def resign(folder: Path, key: TestKey, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a signature says, and sign that with the key: as a signer would who means harm, or errs."""
    from model_signing._signing import sign_ec_key, sign_sigstore_pb

    bundle = bundle_of(folder)
    statement = statement_of(bundle)
    change(statement)
    payload = json.dumps(statement).encode()
    digest = sign_ec_key.get_ec_key_hash(key.key.public_key())
    signature = key.key.sign(sign_sigstore_pb.pae(payload), ec.ECDSA(digest))
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    (folder / SIGNATURE).write_text(json.dumps(bundle))


def policy_file(path: Path, tenants: dict[str, list[dict[str, Any]]]) -> Path:
    """A file of policies."""
    path.write_text(json.dumps({"tenants": {name: {"signers": signers} for name, signers in tenants.items()}}))
    return path
