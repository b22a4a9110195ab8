"""Signature policies: the signers that each tenant's adapters must be signed by, from one JSON file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError
from hotslot.formats.strict_json import parse_object
from hotslot.ids import TenantId, parse_tenant

EVERY_TENANT = "*"
MAX_FILE_BYTES = 1024 * 1024
MAX_NAME_CHARS = 128


@dataclass(frozen=True, slots=True)
class KeySigner:
    """A signer known by its public key."""

    name: str
    key: Path
    """PEM file with an elliptic curve's public key."""


@dataclass(frozen=True, slots=True)
class CertificateSigner:
    """Signers known by names in certificates that lead to one authority."""

    name: str
    authority: Path
    """PEM file with the certificates that are trusted."""
    identities: frozenset[str]
    """Mail addresses, URIs or DNS names, one of which the signer's certificate has among its alternative names."""


Signer = KeySigner | CertificateSigner


@dataclass(frozen=True, slots=True)
class SignaturePolicies:
    """Signers by tenant; a tenant without any publishes unsigned adapters."""

    by_tenant: Mapping[str, tuple[Signer, ...]]

    def of(self, tenant: TenantId) -> tuple[Signer, ...] | None:
        """The signers of a tenant, one of whom must have signed; None where no signature is asked for."""
        return self.by_tenant.get(tenant, self.by_tenant.get(EVERY_TENANT))


NO_POLICIES = SignaturePolicies({})


def read_policies(path: Path) -> SignaturePolicies:
    """Policies of a file, whose paths are relative to its folder; raises InvalidRequestError."""
    try:
        data = path.read_bytes()
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        document = parse_object(data)
        unknown = set(document) - {"tenants"}
        if unknown or not isinstance(document.get("tenants"), dict):
            raise ValueError(f"unknown {sorted(unknown)}, or no tenants")
        return SignaturePolicies(
            {
                name if name == EVERY_TENANT else parse_tenant(name): _signers(name, value, path.parent)
                for name, value in document["tenants"].items()
            }
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, HotslotError) as exc:
        problem = f"expected signature policies as docs/how-to/signed-adapters.md has them: {exc}"
        raise InvalidRequestError([FieldViolation(str(path), problem)]) from exc


def _signers(tenant: str, value: Any, folder: Path) -> tuple[Signer, ...]:
    if not isinstance(value, dict) or set(value) != {"signers"} or not isinstance(value["signers"], list):
        raise ValueError(f"{tenant}: expected a list named signers and nothing else")
    return tuple(_signer(tenant, each, folder) for each in value["signers"])


def _signer(tenant: str, value: dict[str, Any], folder: Path) -> Signer:
    name = _text(tenant, value, "name")
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise ValueError(f"{tenant}: {name[:40]!r} is no name of at most {MAX_NAME_CHARS} characters")
    if set(value) == {"name", "key"}:
        return KeySigner(name, _file(folder, _text(tenant, value, "key")))
    if set(value) == {"name", "authority", "identities"}:
        identities = value["identities"]
        if not isinstance(identities, list) or not identities or not all(isinstance(i, str) and i for i in identities):
            raise ValueError(f"{tenant}: {name} has no list of identities")
        return CertificateSigner(name, _file(folder, _text(tenant, value, "authority")), frozenset(identities))
    raise ValueError(f"{tenant}: {name}: expected name and key, or name, authority and identities")


def _text(tenant: str, value: dict[str, Any], field: str) -> str:
    found = value[field]
    if not isinstance(found, str) or not found:
        raise ValueError(f"{tenant}: {field} is no text")
    return found


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    return path
