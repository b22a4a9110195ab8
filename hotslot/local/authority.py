"""A private certificate authority in a folder, for deployments on one machine: it signs what its processes show."""

import datetime
import io
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hotslot.content_files import PRIVATE, write_file
from hotslot.local.identity_files import LOCAL_HOSTS

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 825
"""Longest life that all systems take for a certificate."""
BACKDATED = datetime.timedelta(minutes=5)
"""For clocks that go wrong a little."""


@dataclass(frozen=True, slots=True)
class Issued:
    """Files of one certificate."""

    cert_file: Path
    key_file: Path


class Authority:
    """Signs certificates with the key in its folder, which only its owner can read."""

    def __init__(self, folder: Path, name: str = "hotslot") -> None:
        """Open it, or make it where there is none. Raises OSError, and ValueError for files that are none of its."""
        self.folder = folder
        self.ca_file = folder / "ca.crt"
        key_file = folder / "ca.key"
        if not (self.ca_file.exists() and key_file.exists()):
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
            builder = _builder(subject, subject, key, AUTHORITY_DAYS)
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            # Two authorities of one name, as in a bundle while they change, are told apart by their keys.
            own_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
            builder = builder.add_extension(own_key, critical=False)
            write_file(key_file, io.BytesIO(_key_pem(key)), mode=PRIVATE)
            write_file(self.ca_file, io.BytesIO(_cert_pem(builder.sign(key, hashes.SHA256()))))
        key_found = serialization.load_pem_private_key(key_file.read_bytes(), None)
        assert isinstance(key_found, ec.EllipticCurvePrivateKey)
        self._key = key_found
        self._cert = x509.load_pem_x509_certificate(self.ca_file.read_bytes())

    def issue(
        self,
        name: str,
        hosts: Sequence[str] = LOCAL_HOSTS,
        uris: Sequence[str] = (),
        *,
        folder: Path | None = None,
        days: float = CERTIFICATE_DAYS,
    ) -> Issued:
        """Write a new certificate and its key as name.crt and name.key, in place of earlier ones."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._cert.subject, key, days)
        names = [*map(_general_name, hosts), *map(x509.UniformResourceIdentifier, uris)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(signed_by, critical=False)
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        target = folder or self.folder
        issued = Issued(target / f"{name}.crt", target / f"{name}.key")
        write_file(issued.key_file, io.BytesIO(_key_pem(key)), mode=PRIVATE)
        write_file(issued.cert_file, io.BytesIO(_cert_pem(builder.sign(self._key, hashes.SHA256()))))
        return issued

    def has_signed(self, cert_file: Path) -> bool:
        """Tell whether a certificate is one of its own; raises no error."""
        try:
            x509.load_pem_x509_certificate(cert_file.read_bytes()).verify_directly_issued_by(self._cert)
        except (OSError, ValueError, TypeError, InvalidSignature):
            return False
        return True


def expires_within(cert_file: Path, left: datetime.timedelta) -> bool:
    """Tell whether a certificate ends soon, or is none; raises no error."""
    try:
        cert = x509.load_pem_x509_certificate(cert_file.read_bytes())
    except (OSError, ValueError):
        return True
    return cert.not_valid_after_utc < datetime.datetime.now(datetime.UTC) + left


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, none)


def _cert_pem(cert: x509.Certificate) -> bytes:
    return cert.public_bytes(serialization.Encoding.PEM)
