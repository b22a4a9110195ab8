"""Settings of certificates, for servers and for callers; a worker is both, with one certificate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from hotslot.endpoints import listen_endpoint
from hotslot.errors import InvalidEndpointError
from hotslot.rpc.security import ChannelSecurity
from hotslot.rpc.tls_files import TlsPaths
from shared.settings import Settings

MAX_CONNECTIONS = 4_096
"""Connections of one gRPC listener, where its setting says nothing else."""
MAX_CALLS_PER_S = 500.0
"""Calls of one principal in a second, where the setting says nothing else."""


@dataclass(frozen=True, slots=True)
class Transport:
    """Transport of one listener; without a certificate it speaks plaintext."""

    cert_file: Path | None = None
    key_file: Path | None = None
    client_ca_file: Path | None = None
    """Certificates that those of clients must lead to; with it each client must show one."""
    insecure: bool = False
    """Plaintext may leave the machine."""
    health_address: str = ""
    """Further address for the health service alone, in plaintext, for probes that have no certificate."""
    max_connections: int = MAX_CONNECTIONS
    """Connections at the same time; more are closed."""
    max_calls_per_s: float = 0.0
    """Calls of one known caller in a second; 0 is no bound."""

    @property
    def uses_tls(self) -> bool:
        """True when connections are encrypted."""
        return self.cert_file is not None or self.key_file is not None

    @property
    def paths(self) -> TlsPaths:
        """Files of the certificates."""
        return TlsPaths(self.cert_file, self.key_file, self.client_ca_file)


def _listen_or_none(text: str) -> str:
    try:
        return str(listen_endpoint(text)) if text else ""
    except InvalidEndpointError as exc:
        raise ValueError(exc.problem) from exc


OptionalListenAddress = Annotated[str, AfterValidator(_listen_or_none)]
"""host:port to listen on; empty where nothing listens."""


class OwnCertificate(Settings):
    """Certificate of a process. Files are read again when they change, without a restart."""

    tls_cert_file: Path | None = None
    """PEM file with this process's certificate, and those that lead from it to a trusted one. gRPC listens with TLS
    then, and calls to servers that ask for a certificate show it."""
    tls_key_file: Path | None = None
    """PEM file with the key of tls_cert_file."""
    insecure: bool = False
    """Let plaintext leave this machine: serve, and call, other addresses than loopback without TLS. For networks where
    nobody else is."""


class ServerTransport(OwnCertificate):
    """Transport of a gRPC server."""

    tls_client_ca_file: Path | None = None
    """PEM file with the certificates that those of clients must lead to; with it each client must show one."""
    principals_file: Path | None = None
    """JSON file of the principals who may call, with hashes of their tokens (`hotslot token`); read again when it
    changes. Without it, and without issuers_file, each caller is believed, and so is the tenant that it names."""
    issuers_file: Path | None = None
    """JSON file of the issuers whose JSON Web Tokens are taken, with the places of their public keys; read again when
    it changes. docs/security.md has its form."""
    health_listen: OptionalListenAddress = ""
    """Further host:port for the health service alone, in plaintext and without certificates, for probes."""

    max_connections: int = Field(default=MAX_CONNECTIONS, ge=1)
    """Most connections at the same time; more are closed at once."""
    max_calls_per_s: float = Field(default=MAX_CALLS_PER_S, ge=0)
    """Most calls a second of one principal, where callers are known; those of a second may come at once. More are
    refused, and hear of it a second later; a flood that does not wait for that is cut off. A call that is given
    up before its first answer, or finds no room, counts as five. Services that call for others have no such bound; 0 is
    none for all."""

    def transport(self) -> Transport:
        """Transport of the process's listener."""
        return Transport(
            self.tls_cert_file,
            self.tls_key_file,
            self.tls_client_ca_file,
            self.insecure,
            self.health_listen,
            self.max_connections,
            self.max_calls_per_s,
        )


class CallerTransport(OwnCertificate):
    """Transport of calls to other services."""

    tls_ca_file: Path | None = None
    """PEM file with the certificates that those of the called store and workers must lead to; calls use TLS then."""
    tls_worker_name: str = ""
    """Name that workers' certificates carry where that is not the host under which they advertise themselves, as for
    addresses of pods."""
    token_file: Path | None = None
    """File with the token that says to store and workers who this process is."""

    def channel_security(self) -> ChannelSecurity:
        """Security of calls to the store."""
        if self.tls_ca_file is None:
            # A certificate that is for the listener alone turns no call into TLS.
            return ChannelSecurity(token_file=self.token_file, insecure=self.insecure)
        return ChannelSecurity(
            self.tls_ca_file,
            self.tls_cert_file,
            self.tls_key_file,
            worker_name=self.tls_worker_name,
            token_file=self.token_file,
            insecure=self.insecure,
        )


class RedisTransport(Settings):
    """Connection to Redis, and belief in what lies there."""

    redis_password_file: Path | None = None
    """File with the password of redis_url's user, any characters, without one in the URL; read for each connection."""
    pool_secret_file: Path | None = None
    """File with the secret that store and workers share, 32 characters or more: workers sign what they write into
    Redis, and nothing else there is believed. Further lines are accepted too, for its rotation; read again when it
    changes. None means that whatever writes to Redis is believed."""
    redis_unsigned: bool = False
    """Believe unsigned records in Redis beside signed ones: while a fleet is being given its secret."""

    redis_ca_file: Path | None = None
    """PEM file with the certificates that Redis's must lead to, in place of those that the system trusts."""
    redis_cert_file: Path | None = None
    """PEM file with this process's certificate, for a Redis that asks for one."""
    redis_key_file: Path | None = None
    """PEM file with the key of redis_cert_file."""
