"""Login by device code, against a real issuer on loopback: the token comes once its user allows it, or an error."""

from collections.abc import Callable
from typing import Any

import pytest

from hotslot.clients.device_login import SLOW_DOWN_S, DeviceCode, device_token
from hotslot.errors import (
    HotslotError,
    InvalidRequestError,
    RequestDeadlineError,
    UnauthenticatedError,
    UnavailableError,
)
from tests.support.device_issuer import USER_CODE, DeviceIssuer
from tests.support.issuer import Key

KEY = Key("device")


class Time:
    """Time that only passes while the login waits."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits: list[float] = []

    def sleep(self, wait_s: float) -> None:
        self.waits.append(wait_s)
        self.now_s += wait_s

    def clock(self) -> float:
        return self.now_s


def login(issuer: DeviceIssuer, time: Time | None = None, name: str = "") -> tuple[str, list[DeviceCode]]:
    shown: list[DeviceCode] = []
    time = time or Time()
    token = device_token(name or issuer.url, "hotslot", "openid", shown.append, sleep=time.sleep, clock=time.clock)
    return token, shown


def test_the_token_comes_once_the_user_allows_it() -> None:
    time = Time()
    pending: dict[str, Any] = {"error": "authorization_pending"}
    with DeviceIssuer(KEY, [pending, {"error": "slow_down"}, pending, None]).running() as issuer:
        token, shown = login(issuer, time)
        assert token.count(".") == 2
        assert [code.user_code for code in shown] == [USER_CODE]
        assert time.waits == [1, 1, 1 + SLOW_DOWN_S, 1 + SLOW_DOWN_S]


FAILURES: dict[str, tuple[Callable[[DeviceIssuer], object], type[HotslotError]]] = {
    "the user refuses": (lambda issuer: issuer.answers.insert(0, {"error": "access_denied"}), UnauthenticatedError),
    "the code ends": (lambda issuer: issuer.answers.insert(0, {"error": "expired_token"}), RequestDeadlineError),
    "nobody comes": (lambda issuer: issuer.answers.pop(), RequestDeadlineError),
    "another error": (lambda issuer: issuer.answers.insert(0, {"error": "invalid_client"}), UnauthenticatedError),
    "an answer without a token": (lambda issuer: issuer.answers.insert(0, {"error": None}), UnavailableError),
    "no such login": (
        lambda issuer: setattr(issuer, "document", lambda document: {"issuer": document["issuer"]}),
        InvalidRequestError,
    ),
    "another issuer's document": (
        lambda issuer: setattr(issuer, "document", lambda document: {**document, "issuer": "https://other.test"}),
        InvalidRequestError,
    ),
    "an endpoint in plaintext": (
        lambda issuer: setattr(
            issuer, "document", lambda document: {**document, "token_endpoint": "http://other.test/token"}
        ),
        InvalidRequestError,
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_login_that_fails_says_why(kind: str) -> None:
    spoil, expected = FAILURES[kind]
    with DeviceIssuer(KEY).running() as issuer:
        spoil(issuer)
        with pytest.raises(expected) as caught:
            login(issuer)
        assert type(caught.value) is expected


@pytest.mark.parametrize("name", ["http://id.test", "id.test", "", "ftp://127.0.0.1", "https://", "http://[::1"])
def test_an_issuer_is_an_https_url(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        device_token(name, "hotslot", "openid", lambda code: None)


def test_an_issuer_that_does_not_answer_is_unavailable() -> None:
    with DeviceIssuer(KEY).running() as issuer:
        pass
    with pytest.raises(UnavailableError):
        login(issuer)
