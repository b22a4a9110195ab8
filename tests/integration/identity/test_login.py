"""`hotslot login`, `whoami`, `logout` and `share`, against a store that knows its callers by file and by issuer."""

import io
import json
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hotslot.cli.app import run
from hotslot.clients.blocking import BlockingStoreClient
from hotslot.formats.principals import CLIENT_SCOPES, Scope
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.security import ChannelSecurity
from shared.identity.authenticator import REVOCATION_S
from tests.support.checkpoints import adapter, base_spec
from tests.support.device_issuer import USER_CODE, DeviceIssuer
from tests.support.issuer import Key, write_issuers
from tests.support.principals import Roster
from tests.support.stack import Stack

pytestmark = pytest.mark.integration

KEY = Key("login")


@dataclass
class Shell:
    """A user's commands, with files of their own."""

    issuer: DeviceIssuer
    roster: Roster
    config: Path
    endpoint: str
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str, typed: str = "") -> tuple[int, str, str]:
        """Exit code and what was written."""
        self.monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        self.capsys.readouterr()
        code = run(arguments)
        out, err = self.capsys.readouterr()
        return code, out, err

    def json(self, *arguments: str, typed: str = "") -> Any:
        code, out, err = self.run(*arguments, "--json", typed=typed)
        assert code == 0, err
        return json.loads(out)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    config = tmp_path / "config"
    for name in ("HOTSLOT_TOKEN", "HOTSLOT_TOKEN_FILE", "HOTSLOT_STORE", "HOTSLOT_TENANT", "HOTSLOT_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    roster = Roster(tmp_path / "principals.json")
    roster.add("alice", CLIENT_SCOPES, ["acme"])
    roster.add("bob", CLIENT_SCOPES, ["umbrella"])
    with DeviceIssuer(KEY, claims={"scope": "read"}).running() as issuer, Stack(tmp_path) as stack:
        issuers = write_issuers(tmp_path / "issuers.json", issuer.keys_url, issuer=issuer.url)
        store = stack.start_store(principals_file=str(roster.path), issuers_file=str(issuers))
        shell = Shell(issuer, roster, config, store.spec.endpoint, monkeypatch, capsys)
        for name in ("work", "other"):
            assert shell.run("context", "set", name, "--store", store.spec.endpoint)[0] == 0
        assert shell.run("context", "use", "work")[0] == 0
        yield shell


def test_a_typed_token_is_kept_for_the_context_until_logout(shell: Shell) -> None:
    token = shell.roster.tokens["alice"]
    assert shell.run("whoami")[0] == 5
    told = shell.json("login", typed=token + "\n")
    assert (told["context"], told["caller"]["principal"], told["caller"]["tenant"]) == ("work", "alice", "acme")
    path = Path(told["token_file"])
    assert path.is_relative_to(shell.config)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().strip() == token
    known = shell.json("whoami")
    assert (known["principal"], known["tenants"]) == ("alice", ["acme"])
    assert known["scopes"] == ["read", "use", "publish", "admin"]
    assert shell.run("--context", "other", "whoami")[0] == 5
    assert shell.json("logout") == {"context": "work", "removed": str(path)}
    assert not path.exists()
    assert shell.run("whoami")[0] == 5
    assert token not in (shell.config / "hotslot" / "contexts.json").read_text()


def test_a_token_that_the_store_refuses_is_not_kept(shell: Shell) -> None:
    shell.json("login", typed=shell.roster.tokens["alice"])
    for typed in ("hs1_0000000000000000_nothing\n", "\n", "two words\n", "x" * 20_000):
        code, out, err = shell.run("login", typed=typed)
        assert code in (2, 5), err
        assert not typed.strip() or typed.strip() not in out + err
    assert shell.json("whoami")["principal"] == "alice"


def test_a_login_on_an_issuers_page(shell: Shell) -> None:
    code, out, err = shell.run("login", "--issuer", shell.issuer.url)
    assert code == 0, err
    assert USER_CODE in err
    assert "corp:alice" in out
    known = shell.json("whoami")
    assert (known["principal"], known["scopes"]) == ("corp:alice", ["read"])
    assert known["expire_time"]


def test_without_a_context_the_command_says_what_to_do(shell: Shell) -> None:
    assert shell.run("context", "use", "--none")[0] == 0
    code, _, err = shell.run("login", typed="x")
    assert code == 2
    assert "hotslot context set" in err


def test_an_adapter_is_shared_from_the_command_line(shell: Shell, tmp_path: Path) -> None:
    shell.json("login", typed=shell.roster.tokens["alice"])
    shell.json("login", "--context", "other", typed=shell.roster.tokens["bob"])
    assert shell.run("share", "ls")[2].startswith("nothing is shared")
    assert shell.run("share", "bot")[0] == 2
    assert shell.run("share", "bot", "--with", "umbrella")[0] == 3
    operator = ChannelSecurity(token=shell.roster.add("operator", [Scope.OPERATOR], []))
    time.sleep(REVOCATION_S)
    with BlockingStoreClient(shell.endpoint, ChannelOptions(security=operator)) as store:
        store.register_base_model(base_spec())
    adapter(spec=base_spec()).write(tmp_path / "bot")
    code, _, err = shell.run("push", str(tmp_path / "bot"), "bot", "--base", base_spec().name)
    assert code == 0, err
    bob = ("--context", "other")
    assert shell.run("show", "acme~bot", *bob)[0] == 3
    assert shell.json("share", "bot", "--with", "umbrella,third")["share"]["tenants"] == ["third", "umbrella"]
    assert "umbrella" in shell.run("share", "ls")[1]
    assert shell.json("show", "acme~bot", *bob)["adapter"]["name"] == "acme~bot"
    assert [one["name"] for one in shell.json("share", "ls", *bob)["shared_with_me"]] == ["acme~bot"]
    assert shell.run("pull", "acme~bot", str(tmp_path / "pulled"), *bob)[0] == 0
    for command in (("tag", "acme~bot", "mine"), ("rm", "acme~bot", "--yes"), ("share", "acme~bot", "--with-all")):
        assert shell.run(*command, *bob)[0] != 0, command
    assert shell.json("share", "bot", "--with", "umbrella", "--revoke")["share"]["tenants"] == ["third"]
    assert shell.run("show", "acme~bot", *bob)[0] == 3
    assert shell.run("share", "bot", "--with-all")[0] == 0
    assert shell.run("show", "acme~bot", *bob)[0] == 0
    assert shell.json("share", "bot", "--revoke")["share"] == {
        "adapter": "bot",
        "tenants": [],
        "all_tenants": False,
        "update_time": None,
    }
    assert shell.run("show", "acme~bot", *bob)[0] == 3
