"""Security of channels: certificates that a caller trusts, what it shows of itself, and where a token may go.

Certificates and tokens live in files and may change at any time: open channels follow within `LOOK_EVERY_S`.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from hotslot.endpoints import dialled_endpoint, stays_here
from hotslot.errors import FieldViolation, InsecureTransportError, InvalidRequestError
from hotslot.rpc.tls_files import LOOK_EVERY_S, FileStamps, TlsPaths

AUTHORIZATION = "authorization"
BEARER = "Bearer "
MAX_TOKEN_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class ChannelSecurity:
    """Security of the channels of one caller. Without any field, calls are in plaintext and without a token."""

    ca_file: Path | None = None
    """Certificates that those of servers must lead to; calls use TLS."""
    cert_file: Path | None = None
    """This caller's certificate, for servers that ask for one; calls use TLS."""
    key_file: Path | None = None
    system_ca: bool = False
    """Use TLS, and trust what gRPC trusts by default, where there is no ca_file."""
    server_name: str = ""
    """Name that servers' certificates carry; empty means the host that is dialled."""
    worker_name: str = ""
    """The same for workers that placement names, which are often dialled by an address that no certificate has."""
    token: str = field(default="", repr=False)
    """Token that says who calls."""
    token_file: Path | None = None
    """File with the token; read again when it changes."""
    insecure: bool = False
    """Send the token in plaintext to other machines too."""

    @property
    def uses_tls(self) -> bool:
        """True when calls are encrypted."""
        return self.ca_file is not None or self.cert_file is not None or self.system_ca

    @property
    def has_token(self) -> bool:
        """True when calls carry a token."""
        return bool(self.token) or self.token_file is not None

    @property
    def tls_paths(self) -> TlsPaths:
        """Files of the certificates."""
        return TlsPaths(self.cert_file, self.key_file, self.ca_file)

    def for_workers(self) -> "ChannelSecurity":
        """The same for channels to workers."""
        return replace(self, server_name=self.worker_name) if self.worker_name else self


NO_SECURITY = ChannelSecurity()


def check_transport(endpoint: str, security: ChannelSecurity) -> None:
    """Raise InsecureTransportError where a token would go to another machine in plaintext."""
    if not security.has_token or security.uses_tls or security.insecure or stays_here(dialled_endpoint(endpoint)):
        return
    raise InsecureTransportError(
        f"a token is not sent to {endpoint} in plaintext: name the certificates to trust (HOTSLOT_TLS_CA_FILE), or, "
        "where the network is trusted, set HOTSLOT_INSECURE=true",
        endpoint,
    )


class BearerToken:
    """Token of a caller, as the metadata that carries it."""

    def __init__(self, security: ChannelSecurity) -> None:
        """Raises InvalidRequestError for a file without a token."""
        self._path = security.token_file
        self._pairs: tuple[tuple[str, str], ...] = ()
        if security.token:
            self._pairs = _pairs(security.token, "the token")
        elif self._path is not None:
            self._stamps = FileStamps((self._path,))
            self._pairs = _read(self._path)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The pair to send, none without a token. A file that is being written is passed over."""
        if self._path is not None and self._pairs and self._stamps.changed(LOOK_EVERY_S):
            try:
                stamps = self._stamps.look()
                self._pairs, self._stamps.taken = _read(self._path), stamps
            except InvalidRequestError:
                pass
        return self._pairs


def _read(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_TOKEN_BYTES + 1).decode("ascii", "replace").strip()
    except OSError as exc:
        raise InvalidRequestError([FieldViolation(str(path), exc.strerror or str(exc))]) from exc
    return _pairs(text, str(path))


def _pairs(token: str, where: str) -> tuple[tuple[str, str], ...]:
    if not token or len(token) > MAX_TOKEN_BYTES or not token.isascii() or not token.isprintable() or " " in token:
        # Never with the text itself.
        raise InvalidRequestError([FieldViolation(where, "expected one token: visible ASCII without blanks")])
    return ((AUTHORIZATION, BEARER + token),)
