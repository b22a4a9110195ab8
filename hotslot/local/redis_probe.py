"""A look at a Redis that a URL names, within a few seconds, by hand: the client does without Redis's library."""

import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from hotslot.local.findings import Finding, fail, ok
from hotslot.redis_url import SENTINEL_SCHEMES, SentinelUrl, read_sentinel_url
from hotslot.secret_urls import masked_url


@dataclass(frozen=True, slots=True)
class RedisAccess:
    """Files beside a URL, by which the services sign in and trust."""

    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def password(self) -> str:
        """Password of the file; empty without one. Raises OSError, and ValueError for one that is none."""
        if self.password_file is None:
            return ""
        return self.password_file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")

    @property
    def parameters(self) -> dict[str, str]:
        """Parameters of a URL that say the same of certificates."""
        named = {"ssl_ca_certs": self.ca_file, "ssl_certfile": self.cert_file, "ssl_keyfile": self.key_file}
        return {name: str(path) for name, path in named.items() if path is not None}


def redis_access(environment: Mapping[str, str]) -> RedisAccess:
    """The files that the services' own variables name."""
    names = ("PASSWORD_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE")
    found = [environment.get(f"HOTSLOT_REDIS_{name}") for name in names]
    return RedisAccess(*(Path(value) if value else None for value in found))


TIMEOUT_S = 4.0
"""Longest time for all of it."""
DEFAULT_PORT = 6379
CHECK = "redis"


def look_at_redis(url: str, timeout_s: float = TIMEOUT_S, access: RedisAccess | None = None) -> Finding:
    """Connect, sign in where the URL or a file says how, and ask for a sign of life."""
    shown = masked_url(url)
    try:
        answer = _ping(url, time.monotonic() + timeout_s, access or RedisAccess())
    except (OSError, ValueError) as exc:
        # A certificate that does not fit is an OSError too; its text has the reason.
        problem = "time is up" if isinstance(exc, TimeoutError) else str(exc) or type(exc).__name__
        return fail(CHECK, f"{shown} does not answer: {problem}", "start it, or name another with --redis-url")
    if answer == "+PONG":
        return ok(CHECK, f"{shown} answers")
    if answer.startswith(("-NOAUTH", "-WRONGPASS", "-NOPERM")):
        # ACLs may leave PING out and all else in.
        if answer.startswith("-NOPERM"):
            return ok(CHECK, f"{shown} answers")
        advice = "name them in the URL, or the password's file in HOTSLOT_REDIS_PASSWORD_FILE"
        return fail(CHECK, f"{shown} refuses this user or password ({answer[1:60]})", advice)
    if answer.startswith(("-LOADING", "-MASTERDOWN")):
        return fail(CHECK, f"{shown} is not ready ({answer[1:60]})", "try again when it is")
    return fail(CHECK, f"{shown} is no Redis: it answered {answer[:40]!r}", "name the port of a Redis")


def _ping(url: str, deadline_s: float, access: RedisAccess) -> str:
    """First line of the answer to PING, or of that to AUTH where it refuses."""
    parts = urlsplit(url)
    if parts.scheme in SENTINEL_SCHEMES:
        found = read_sentinel_url(url)
        return _ping(found.node_url(_primary(found, deadline_s, access)), deadline_s, access)
    parameters = access.parameters | dict(parse_qsl(parts.query))
    with ExitStack() as stack:
        if parts.scheme == "unix":
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(_left_s(deadline_s))
            connection.connect(unquote(parts.path))
        else:
            address = (parts.hostname or "localhost", parts.port or DEFAULT_PORT)
            connection = _connected(
                stack, address, parameters if parts.scheme.startswith("rediss") else None, deadline_s
            )
        user = unquote(parts.username or "") or parameters.get("username", "")
        password = unquote(parts.password or "") or parameters.get("password", "") or access.password
        if password:
            answer = _ask(connection, deadline_s, "AUTH", *([user] if user else []), password)
            if not answer.startswith("+OK"):
                return answer
        return _ask(connection, deadline_s, "PING")


def _primary(url: SentinelUrl, deadline_s: float, access: RedisAccess) -> str:
    """host:port of the primary, from the first sentinel that knows it; raises OSError where none does."""
    parameters = access.parameters | dict(parse_qsl(urlsplit(url.rest).query))
    user, password = parameters.get("sentinel_username", ""), parameters.get("sentinel_password", "")
    problem = ""
    for address in url.hosts:
        try:
            with ExitStack() as stack:
                connection = _connected(stack, address, parameters if url.uses_tls else None, deadline_s)
                if password:
                    _ask(connection, deadline_s, "AUTH", *([user] if user else []), password)
                lines = _ask_all(connection, deadline_s, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", url.service)
        except OSError as exc:
            problem = str(exc) or type(exc).__name__
            continue
        if len(lines) >= 5 and lines[0] == "*2":
            return f"[{lines[2]}]:{lines[4]}" if ":" in lines[2] else f"{lines[2]}:{lines[4]}"
        problem = f"a sentinel answers {lines[0][:60]!r}"
    raise OSError(f"no sentinel knows a primary of {url.service}: {problem}")


def _connected(
    stack: ExitStack, address: tuple[str, int], tls: Mapping[str, str] | None, deadline_s: float
) -> socket.socket:
    """A connection, over TLS as the parameters want it where there are some."""
    connection = stack.enter_context(socket.create_connection(address, _left_s(deadline_s)))
    if tls is None:
        return connection
    return stack.enter_context(_tls(tls).wrap_socket(connection, server_hostname=address[0]))


def _tls(parameters: Mapping[str, str]) -> ssl.SSLContext:
    """TLS as the URL's parameters want it; without any, certificates are checked."""
    context = ssl.create_default_context(cafile=parameters.get("ssl_ca_certs"), capath=parameters.get("ssl_ca_path"))
    if parameters.get("ssl_check_hostname", "").lower() in ("false", "0", "no"):
        context.check_hostname = False
    if parameters.get("ssl_cert_reqs") == "none":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate := parameters.get("ssl_certfile"):
        context.load_cert_chain(certificate, parameters.get("ssl_keyfile"))
    return context


def _ask(connection: socket.socket, deadline_s: float, *words: str) -> str:
    return _ask_all(connection, deadline_s, *words)[0]


def _ask_all(connection: socket.socket, deadline_s: float, *words: str) -> list[str]:
    """Lines of the first packet of an answer."""
    request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
    connection.settimeout(_left_s(deadline_s))
    connection.sendall(request.encode())
    connection.settimeout(_left_s(deadline_s))
    return connection.recv(4096).decode(errors="replace").split("\r\n")


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
