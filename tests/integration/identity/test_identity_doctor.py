"""`hotslot doctor` on identity: all is well, then each credential is broken once and its line says so."""

import base64
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hotslot.cli.app import run
from hotslot.cli.identity_checks import _claimed_end_s
from hotslot.formats.principals_file import change_principals
from hotslot.local.authority import Authority
from hotslot.local.child_processes import free_ports
from hotslot.local.children import Child, ChildSpec
from tests.support.secured_up import Secured
from tests.support.stubbed_up import STUB

pytestmark = pytest.mark.integration

Found = list[tuple[str, str, str]]


@pytest.fixture
def doctor(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Found]]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOTSLOT_GATEWAY", secured.ready["gateway"])

    def examine(*arguments: str, **variables: str) -> tuple[int, Found]:
        for name, value in variables.items():
            monkeypatch.setenv(f"HOTSLOT_{name}", value)
        capsys.readouterr()
        code = run(["doctor", "--json", "--data-dir", str(secured.folder / "data"), *arguments])
        out, err = capsys.readouterr()
        assert err == ""
        assert secured.token not in out
        for name in variables:
            monkeypatch.delenv(f"HOTSLOT_{name}")
        return code, [(one["check"], one["level"], one["found"]) for one in json.loads(out)["checks"]]

    return examine


def said(found: Found, check: str) -> tuple[str, str]:
    """Worst finding of a check."""
    order = ("fail", "warn", "ok")
    return min(((level, text) for name, level, text in found if name == check), key=lambda one: order.index(one[0]))


def test_a_deployment_as_up_makes_it_is_well(doctor: Callable[..., tuple[int, Found]], secured: Secured) -> None:
    code, found = doctor()
    assert code == 0, found
    assert {level for name, level, _ in found if name != "hub"} == {"ok"}, found
    assert [text.rpartition(" ")[0] for name, _, text in found if name == "transport"] == [
        f"the certificate of the store at {secured.ready['store']} is good until",
        f"the certificate of the worker at {secured.ready['workers'][0]} is good until",
    ]
    assert said(found, "token") == ("ok", "the store takes it")
    assert {"authority", "identity", "clocks"} <= {name for name, _, _ in found}


def test_each_wrong_credential_has_its_line(
    doctor: Callable[..., tuple[int, Found]], secured: Secured, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    issued = other.issue("me", folder=tmp_path)
    ca, token = str(secured.files.trusted_file), str(secured.files.token_file("user"))
    forged = tmp_path / "forged"
    forged.write_text(secured.token[:-2] + "xx")
    forged.chmod(0o600)
    open_token = tmp_path / "open"
    open_token.write_text(secured.token)
    open_token.chmod(0o644)
    name = {"TLS_WORKER_NAME": "worker.hotslot"}
    strange = {"TLS_CA_FILE": str(other.ca_file), "TOKEN_FILE": token, **name}
    misnamed = {"TLS_CA_FILE": ca, "TOKEN_FILE": token, "TLS_WORKER_NAME": "w.else"}
    for variables, check, level, part in (
        (strange, "transport", "fail", "is refused: unable to get"),
        (strange, "store", "fail", "does not answer as a store"),
        (misnamed, "transport", "fail", "not valid for 'w.else'"),
        ({"TOKEN_FILE": token}, "transport", "fail", "speaks TLS, and no authority is named"),
        ({"TLS_CA_FILE": ca, "TOKEN_FILE": str(forged), **name}, "token", "fail", "the token is not known here"),
        ({"TLS_CA_FILE": ca, **name}, "token", "fail", "says not who makes it"),
        ({"TLS_CA_FILE": ca, "TOKEN_FILE": str(open_token), **name}, "credentials", "warn", "may be read by others"),
        ({"TLS_CA_FILE": ca, "TOKEN_FILE": str(tmp_path / "no"), **name}, "credentials", "fail", "No such file"),
        ({"TLS_CA_FILE": str(forged), "TOKEN_FILE": token}, "credentials", "fail", "expected PEM"),
        (
            {"TLS_CA_FILE": ca, "TLS_CERT_FILE": str(issued.cert_file), "TLS_KEY_FILE": ca, "TOKEN_FILE": token},
            "credentials", "fail", "a key that is the certificate's",
        ),
    ):  # fmt: skip
        code, found = doctor(**variables)
        assert (code == 1) == (level == "fail"), (variables, found)
        worst, text = said(found, check)
        assert (worst, part in text) == (level, True), (variables, text)
        assert "disk" in {one for one, _, _ in found}, "it goes on"


@pytest.mark.parametrize(
    ("left_s", "level", "part"),
    [(86_400, "warn", "ends on"), (30 * 86_400, "ok", "is good until"), (1, "fail", "expired")],
)
def test_the_end_of_a_token_is_told_before_it_comes(
    left_s: int, level: str, part: str, doctor: Callable[..., tuple[int, Found]], secured: Secured, tmp_path: Path
) -> None:
    path = tmp_path / "short.token"
    line = ["token", "create", "short", "--file", str(secured.files.principals_file), "--tenant", "default"]
    assert run([*line, "--expires", f"{left_s}s", "--out", str(path)]) == 0
    time.sleep(2.5)  # Servers look at the file once a second.
    try:
        _, found = doctor(
            TLS_CA_FILE=str(secured.files.trusted_file), TLS_WORKER_NAME="worker.hotslot", TOKEN_FILE=str(path)
        )
    finally:
        change_principals(secured.files.principals_file, lambda now: {k: v for k, v in now.items() if k != "short"})
    worst, text = said(found, "token")
    assert (worst, part in text) == (level, True), text


def test_rights_of_what_up_keeps_are_looked_at(doctor: Callable[..., tuple[int, Found]], secured: Secured) -> None:
    key_file = secured.files.key_file("store")
    for path, mode, part in (
        (key_file, 0o640, "may be read by others"),
        (secured.files.folder, 0o755, "open to others"),
    ):
        before = path.stat().st_mode & 0o777
        path.chmod(mode)
        try:
            code, found = doctor()
            assert (code, said(found, "identity")[0]) == (0, "warn")
            assert part in said(found, "identity")[1]
        finally:
            path.chmod(before)


def test_a_listener_in_plaintext_is_told_from_one_that_is_not_there(
    doctor: Callable[..., tuple[int, Found]], secured: Secured, tmp_path: Path
) -> None:
    credentials = {"TLS_CA_FILE": str(secured.files.trusted_file), "TLS_WORKER_NAME": "worker.hotslot"}
    closed, endpoint = (f"127.0.0.1:{port}" for port in free_ports(2))
    bare = Child(ChildSpec("bare", STUB, endpoint, {"HOTSLOT_LISTEN": endpoint}, tmp_path / "bare.log"))
    try:
        bare.wait_ready(120)
        _, found = doctor("--store", endpoint, **credentials)
        level, text = said(found, "transport")
        assert (level, f"the store at {endpoint} does not answer by TLS" in text) == ("fail", True), text
    finally:
        bare.kill()
    _, found = doctor("--store", closed, **credentials)
    assert not [text for name, _, text in found if name == "transport" and closed in text]


def test_the_end_that_a_json_web_token_claims_is_read_and_what_is_none_has_none() -> None:
    def token(claims: object) -> str:
        return ".".join(
            base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b"{}", json.dumps(claims).encode(), b"s")
        )

    assert _claimed_end_s(token({"exp": 17})) == 17
    for text in ("", "a", "a.b.c", "....", token([]), token({}), token({"exp": "x"}), os.urandom(30).hex()):
        assert _claimed_end_s(text) == 0
