"""Login by OpenID Connect's device code (RFC 8628): a user opens a page elsewhere, and a token is asked for meanwhile.

Plain HTTP over httpx2; the addresses are those that the issuer's own document names, and stay with it and TLS.
"""

import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from hotslot.endpoints import parse_endpoint
from hotslot.errors import (
    FieldViolation,
    HotslotError,
    InvalidRequestError,
    RequestDeadlineError,
    UnauthenticatedError,
    UnavailableError,
)

DOCUMENT = "/.well-known/openid-configuration"
GRANT = "urn:ietf:params:oauth:grant-type:device_code"
CALL_S = 20.0
MAX_ANSWER_BYTES = 256 * 1024
DEFAULT_INTERVAL_S = 5.0
SLOW_DOWN_S = 5.0
"""Added to the interval when the issuer asks for it."""
MAX_WAIT_S = 1800.0
"""Longest wait for a user, whatever the issuer allows."""


@dataclass(frozen=True, slots=True)
class DeviceCode:
    """The page and code with which a user allows the login."""

    page: str
    user_code: str
    complete_page: str
    """The page with the code in it; empty where the issuer has none."""


def device_token(
    issuer: str,
    client_id: str,
    scopes: str,
    show: Callable[[DeviceCode], None],
    *,
    ca_file: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """The access token that an issuer gives once its user allows it, by what `show` tells.

    Raises InvalidRequestError for an issuer that is no https URL or has no such login, UnauthenticatedError for a user
    who refuses, RequestDeadlineError for one who does not come, and UnavailableError.
    """
    _check_url("--issuer", issuer)
    with httpx2.Client(
        verify=ssl.create_default_context(cafile=ca_file),
        follow_redirects=False,
        timeout=CALL_S,
        trust_env=urlsplit(issuer).scheme == "https",
    ) as http:
        document = _answer(http, "GET", f"{issuer.rstrip('/')}{DOCUMENT}", None)
        if document.get("issuer") != issuer:
            problem = f"its document is of issuer {str(document.get('issuer'))[:120]!r}: name that, as it is there"
            raise InvalidRequestError([FieldViolation("--issuer", problem)])
        begin_at, token_at = (_endpoint(document, name) for name in ("device_authorization_endpoint", "token_endpoint"))
        begun = _answer(http, "POST", begin_at, {"client_id": client_id, "scope": scopes})
        show(
            DeviceCode(
                _text(begun, "verification_uri"),
                _text(begun, "user_code"),
                str(begun.get("verification_uri_complete", "")),
            )
        )
        interval_s = _number(begun, "interval", DEFAULT_INTERVAL_S)
        ends_s = clock() + min(_number(begun, "expires_in", MAX_WAIT_S), MAX_WAIT_S)
        wanted = {"grant_type": GRANT, "device_code": _text(begun, "device_code"), "client_id": client_id}
        while clock() < ends_s:
            sleep(interval_s)
            answer = _answer(http, "POST", token_at, wanted, refusals=True)
            match answer.get("error"):
                case None:
                    return _text(answer, "access_token")
                case "authorization_pending":
                    continue
                case "slow_down":
                    interval_s += SLOW_DOWN_S
                case "expired_token":
                    break
                case "access_denied":
                    raise UnauthenticatedError("the login was refused on the issuer's page")
                case other:
                    raise UnauthenticatedError(f"the issuer refused the login: {str(other)[:120]!r}")
    raise RequestDeadlineError("nobody allowed the login on the issuer's page in time; begin again")


def _answer(
    http: httpx2.Client, method: str, url: str, data: Mapping[str, str] | None, *, refusals: bool = False
) -> Mapping[str, Any]:
    """An object that the issuer answers with; a refusal is one, too, where it is waited for."""
    status = 0
    try:
        with http.stream(method, url, data=data, headers={"Accept": "application/json"}) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    raise _unavailable(url, f"its answer has more than {MAX_ANSWER_BYTES} bytes")
            status = response.status_code
        document = httpx2.Response(200, content=bytes(body)).json()
    except httpx2.HTTPError as exc:
        raise _unavailable(url, f"{type(exc).__name__}: {exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise _unavailable(url, f"HTTP {status}, and no JSON") from exc
    if not isinstance(document, dict):
        raise _unavailable(url, f"HTTP {status}, and no object")
    if status == httpx2.codes.OK or (refusals and status == httpx2.codes.BAD_REQUEST and "error" in document):
        return document
    raise _unavailable(url, f"HTTP {status} {str(document.get('error', ''))[:120]}")


def _endpoint(document: Mapping[str, Any], name: str) -> str:
    if not isinstance(document.get(name), str):
        problem = f"its document has no {name}: it has no login by device code"
        raise InvalidRequestError([FieldViolation("--issuer", problem)])
    _check_url(name, document[name])
    return str(document[name])


def _check_url(what: str, url: str) -> None:
    """Raise InvalidRequestError for what would be sent to another machine in plaintext."""
    try:
        parts = urlsplit(url)
        is_here = parts.scheme == "http" and parse_endpoint(f"{parts.netloc}{'' if parts.port else ':80'}").is_loopback
    except (ValueError, HotslotError):
        parts, is_here = urlsplit(""), False
    if not is_here and (parts.scheme != "https" or not parts.hostname):
        raise InvalidRequestError([FieldViolation(what, f"found {url[:120]!r}, expected an https URL")])


def _text(document: Mapping[str, Any], name: str) -> str:
    found = document.get(name)
    if not isinstance(found, str) or not found.isprintable() or not found:
        raise UnavailableError(f"the issuer's answer has no {name}")
    return found


def _number(document: Mapping[str, Any], name: str, default: float) -> float:
    found = document.get(name, default)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= 86_400:
        return default
    return float(found)


def _unavailable(url: str, problem: str) -> UnavailableError:
    return UnavailableError(f"{urlsplit(url)._replace(query='', fragment='').geturl()} cannot be used: {problem}")
