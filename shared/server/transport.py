"""Transport of a server: its certificates, read again when they change, and the plaintext that may leave a machine."""

import ssl
from collections.abc import Callable
from typing import cast

import grpc
import structlog

from hotslot.endpoints import dialled_endpoint, listen_endpoint, stays_here
from hotslot.errors import FieldViolation, InsecureTransportError, InvalidRequestError
from hotslot.rpc.tls_files import TlsFiles
from shared.transport_settings import Transport

log = structlog.get_logger(__name__)

PER_HANDSHAKE_S = 0.0
"""Files are looked at for each connection, which is when they are used."""


def check_listener(address: str, transport: Transport) -> None:
    """Raise InsecureTransportError for plaintext that would leave the machine unasked; warn of what was asked for."""
    if transport.client_ca_file is not None and not transport.uses_tls:
        problem = (
            "certificates of clients are asked for on a listener without one of its own: set HOTSLOT_TLS_CERT_FILE"
        )
        raise InvalidRequestError([FieldViolation("tls_client_ca_file", problem)])
    if transport.uses_tls or stays_here(listen_endpoint(address)):
        return
    if not transport.insecure:
        raise InsecureTransportError(
            f"{address} would be served in plaintext to other machines: give it a certificate (HOTSLOT_TLS_CERT_FILE, "
            "HOTSLOT_TLS_KEY_FILE), listen on 127.0.0.1, or, where the network is trusted, set HOTSLOT_INSECURE=true",
            address,
        )
    log.warning("plaintext_listener", address=address, why="HOTSLOT_INSECURE is true: whoever is on the way can read")


def check_dialled(endpoint: str, *, uses_tls: bool, insecure: bool) -> None:
    """Raise InsecureTransportError where a service would call another machine in plaintext unasked."""
    if uses_tls or insecure or stays_here(dialled_endpoint(endpoint)):
        return
    raise InsecureTransportError(
        f"{endpoint} would be called in plaintext: name the certificates to trust (HOTSLOT_TLS_CA_FILE), or, where the "
        "network is trusted, set HOTSLOT_INSECURE=true",
        endpoint,
    )


def server_credentials(transport: Transport) -> grpc.ServerCredentials | None:
    """Credentials that follow their files; None for plaintext. gRPC asks for TLS 1.2 or newer.

    Raises InvalidRequestError for files that cannot be used.
    """
    if not transport.uses_tls:
        return None
    files = TlsFiles(transport.paths)

    def configuration() -> grpc.ServerCertificateConfiguration:
        material = files.material
        assert material.key is not None
        assert material.cert is not None
        return grpc.ssl_server_certificate_configuration([(material.key, material.cert)], material.ca)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        return configuration() if files.refresh(PER_HANDSHAKE_S) else None

    fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], changed)  # its stub leaves out None: no change
    return grpc.dynamic_ssl_server_credentials(configuration(), fetch, transport.client_ca_file is not None)


def http_context(transport: Transport) -> ssl.SSLContext | None:
    """The same for HTTP: each handshake takes the context of the files as they are then."""
    if not transport.uses_tls:
        return None
    files = TlsFiles(transport.paths)
    current = [_context(transport)]

    def follow(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if files.refresh(PER_HANDSHAKE_S):
            current[0] = _context(transport)
        connection.context = current[0]

    outer = _context(transport)
    outer.sni_callback = follow
    return outer


def _context(transport: Transport) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    assert transport.cert_file is not None
    context.load_cert_chain(transport.cert_file, transport.key_file)
    if transport.client_ca_file is not None:
        context.load_verify_locations(transport.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
