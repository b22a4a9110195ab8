"""A look at the certificate of a listener: whether it speaks TLS, and what its certificate says to a caller."""

import socket
import ssl
import time
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from hotslot.endpoints import Endpoint, dialled_endpoint

TIMEOUT_S = 3.0


class Shown(Enum):
    """Kind of what a listener shows."""

    TRUSTED = auto()
    REFUSED = auto()
    """A certificate that the caller does not take, or none where one of the caller's is asked for."""
    PLAINTEXT = auto()
    NOTHING = auto()
    """It cannot be reached, or is no TCP port."""


@dataclass(frozen=True, slots=True)
class ShownCertificate:
    """Outcome of a handshake."""

    kind: Shown
    problem: str = ""
    ends_s: float = 0.0
    """Unix time at which a trusted certificate ends."""


def look_at_certificate(
    endpoint: str, ca_file: Path | None, own: tuple[Path, Path] | None = None, name: str = ""
) -> ShownCertificate:
    """Shake hands as a caller that trusts this file, else the system; `name` is expected in place of the host.

    `own` are the caller's certificate and key. Raises InvalidEndpointError, and OSError for files that cannot be read.
    """
    target = dialled_endpoint(endpoint)
    if not isinstance(target, Endpoint):
        return ShownCertificate(Shown.NOTHING)
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file is not None else None)
    context.set_alpn_protocols(["h2"])
    if own is not None:
        context.load_cert_chain(*own)
    try:
        with (
            socket.create_connection((target.host, target.port), TIMEOUT_S) as connection,
            context.wrap_socket(connection, server_hostname=name or target.host) as secured,
        ):
            found = secured.getpeercert() or {}
    except ssl.SSLCertVerificationError as exc:
        return ShownCertificate(Shown.REFUSED, exc.verify_message)
    except (ssl.SSLError, ConnectionResetError, TimeoutError) as exc:
        return ShownCertificate(Shown.PLAINTEXT, str(exc))
    except OSError as exc:
        return ShownCertificate(Shown.NOTHING, exc.strerror or str(exc))
    return ShownCertificate(Shown.TRUSTED, ends_s=ssl.cert_time_to_seconds(str(found["notAfter"])))


def speaks_tls(endpoint: str) -> bool:
    """Tell whether a listener speaks TLS, whatever certificate it shows."""
    target = dialled_endpoint(endpoint)
    if not isinstance(target, Endpoint):
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((target.host, target.port), TIMEOUT_S) as connection,
            context.wrap_socket(connection, server_hostname=target.host),
        ):
            return True
    except OSError:
        return False


def authority_ends_s(ca_file: Path) -> float:
    """Unix time at which the last of a file's authorities ends; raises OSError for a file that has none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca_file)
    ends = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in context.get_ca_certs()]
    return max(ends, default=time.time())
