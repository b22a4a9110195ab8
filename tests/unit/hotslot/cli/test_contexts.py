"""Contexts: kept in a private file, chosen by option, variable or file, and overruled by what is named."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.cli import listing_commands
from hotslot.cli.app import run
from hotslot.cli.options import channel_options
from hotslot.contexts import (
    Contexts,
    SavedContext,
    change_contexts,
    chosen_context,
    contexts_path,
    read_contexts,
)
from hotslot.errors import InvalidRequestError
from hotslot.local.authority import Authority

CLOSED = "127.0.0.1:1"
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("HOTSLOT_STORE", "HOTSLOT_WORKER", "HOTSLOT_TENANT", "HOTSLOT_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hotslot" / "contexts.json"


def said(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    return run(line.split()), *capsys.readouterr()


def shown(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, tuple[str, str]]:
    """Settings of a command and where each is from."""
    code, out, err = said(" ".join(["context show --json", *more]), capsys)
    assert code == 0, err
    return {one["name"]: (one["value"], one["from"]) for one in json.loads(out)["settings"]}


def test_an_option_goes_before_the_environment_that_before_the_context_and_that_before_the_default(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(capsys)["store"] == ("127.0.0.1:7400", "default")
    assert said("context set prod --store prod:7400 --tenant acme", capsys)[0] == 0
    assert shown(capsys)["store"] == ("127.0.0.1:7400", "default"), "it is not in use yet"
    assert said("context use prod", capsys)[:2] == (0, "commands use prod\n")
    assert shown(capsys)["store"] == ("prod:7400", "context prod")
    assert shown(capsys)["worker"] == ("127.0.0.1:7500", "default")
    monkeypatch.setenv("HOTSLOT_STORE", "env:7400")
    assert shown(capsys)["store"] == ("env:7400", "environment HOTSLOT_STORE")
    assert shown(capsys)["tenant"] == ("acme", "context prod")
    assert shown(capsys, "--store", "flag:7400")["store"] == ("flag:7400", "option --store")


def test_a_context_is_named_by_option_then_variable_then_file(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        assert said(f"context set {name} --tenant tenant-{name}", capsys)[0] == 0
    assert said("context use a", capsys)[0] == 0
    assert shown(capsys)["tenant"][0] == "tenant-a"
    monkeypatch.setenv("HOTSLOT_CONTEXT", "b")
    assert shown(capsys)["tenant"][0] == "tenant-b"
    assert shown(capsys, "--context", "c")["tenant"][0] == "tenant-c"
    assert chosen_context(os.environ)[0] == "b"
    assert chosen_context(os.environ, "c") == ("c", SavedContext(tenant="tenant-c"))


@pytest.mark.parametrize("line", ["ls --context closed", "--context closed ls", "--context=closed policy ls"])
def test_every_command_that_calls_anyone_goes_where_the_context_says(
    line: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(f"context set closed --store {CLOSED}", capsys)[0] == 0
    code, _, err = said(line, capsys)
    assert (code, f"the store at {CLOSED}" in err) == (7, True), err


def test_the_file_is_its_owners_alone_and_keeps_what_it_does_not_know(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"contexts": {"prod": {"store": "a:1", "later_secret": "/secret"}}, "later": [1]}))
    path.chmod(0o644)
    assert said("context set prod --tenant acme", capsys)[0] == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "contexts": {"prod": {"store": "a:1", "tenant": "acme", "later_secret": "/secret"}},
        "later": [1],
    }
    code, out, _ = said("context show prod", capsys)
    assert (code, "/secret" in out, "***" in out) == (0, False, True)
    assert "/secret" not in said("context ls --json", capsys)[1]


def test_an_empty_value_takes_a_field_away_and_rm_takes_the_context(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in ("set a --store x:1 --worker y:1", "use a", "set a --store="):
        assert said(f"context {line}", capsys)[0] == 0
    assert read_contexts(path) == Contexts("a", {"a": SavedContext(worker="y:1")})
    code, out, err = said("context rm a nope", capsys)
    assert (code, out) == (2, "removed the context a\n")
    assert "no context 'nope'" in err
    assert read_contexts(path) == Contexts()
    assert shown(capsys)["worker"][1] == "default"


WRONG_FILES = [
    (b"{", "it is no JSON"),
    (b"[]", "expected an object"),
    (b'{"current": 1}', "a text under `current`"),
    (b'{"contexts": []}', "an object under `contexts`"),
    (b'{"contexts": {"a": 1}}', "context 'a': expected an object"),
    (b'{"contexts": {"a": {"store": 1}}}', "context 'a': expected an object with texts"),
    (b'{"contexts": {"a": {"store": "nowhere"}}}', "context 'a': store: found 'nowhere', expected host:port"),
    (b'{"contexts": {"a": {"tenant": "A B"}}}', "context 'a'"),
    (b"\xff", "it is no JSON"),
]


@pytest.mark.parametrize(("content", "part"), WRONG_FILES)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    content: bytes, part: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    for line in ("ls", "context ls", "context use a", "ls --json"):
        code, out, err = said(line, capsys)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert str(path) in err
        assert part in err
    assert path.read_bytes() == content


def test_a_current_context_that_is_gone_is_said_and_another_can_be_used(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.parent.mkdir()
    path.write_text('{"current": "gone", "contexts": {"b": {}}}')
    code, _, err = said("ls", capsys)
    assert (code, "no context 'gone': there are b" in err) == (2, True)
    assert said("context use b", capsys)[0] == 0
    assert read_contexts(path).current == "b"


def test_changes_at_the_same_time_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: change_contexts(path, lambda now: now.having(f"c{i}", SavedContext())), range(24)))
    assert len(read_contexts(path).named) == 24
    assert not path.with_name(f".{path.name}.new").exists()


@given(names=st.lists(NAMES, unique=True, max_size=4), current=st.integers(0, 3))
def test_what_is_written_is_read_back(names: list[str], current: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("contexts") / "contexts.json"
    named = {
        name: SavedContext(f"h{i}:1", "", f"t{i}", token_file=f"/t{i}", more={"more": i})
        for i, name in enumerate(names)
    }
    wanted = Contexts(names[current % len(names)] if names else "", named)
    change_contexts(file, lambda now: wanted)
    assert read_contexts(file) == wanted


def test_the_file_is_where_xdg_says_and_no_relative_path_counts() -> None:
    assert contexts_path({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == Path("/x/hotslot/contexts.json")
    assert contexts_path({"XDG_CONFIG_HOME": "x", "HOME": "/h"}) == Path("/h/.config/hotslot/contexts.json")
    with pytest.raises(InvalidRequestError, match="no context 'nope'"):
        chosen_context({"XDG_CONFIG_HOME": "/nonexistent"}, "nope")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files of credentials, by the option that names them, and some that are none."""
    authority = Authority(tmp_path / "authority")
    issued = authority.issue("me", folder=tmp_path)
    made = {"ca": authority.ca_file, "cert": issued.cert_file, "key": issued.key_file, "token": tmp_path / "token"}
    made["token"].write_text("hs1_id_secret\n")
    made["empty"] = tmp_path / "empty"
    made["empty"].touch()
    return made


def test_credentials_are_kept_by_their_places_and_change_one_by_one(
    path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files["ca"].parent)
    line = f"context set prod --store prod:7400 --ca-file ca.crt --token-file {files['token']} --worker-name w.prod"
    assert said(line, capsys)[0] == 0
    line = f"context set prod --cert-file {files['cert']} --key-file {files['key']} --tenant acme --json"
    code, out, _ = said(line, capsys)
    expected = {
        "store": "prod:7400", "worker": "", "tenant": "acme", "ca_file": str(files["ca"]),
        "cert_file": str(files["cert"]), "key_file": str(files["key"]), "token_file": str(files["token"]),
        "worker_name": "w.prod",
    }  # fmt: skip
    assert (code, json.loads(out)) == (0, {"name": "prod", **expected})
    assert json.loads(path.read_text())["contexts"]["prod"] == {k: v for k, v in expected.items() if v}
    assert "secret" not in path.read_text()
    assert said("context set prod --token-file= --cert-file= --key-file=", capsys)[0] == 0
    assert set(json.loads(path.read_text())["contexts"]["prod"]) == {
        "store", "tenant", "ca_file", "worker_name",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("--ca-file nowhere.crt", "nowhere.crt"),
        ("--ca-file {empty}", "empty"),
        ("--ca-file {key}", "me.key"),
        ("--token-file nowhere", "nowhere"),
        ("--token-file {empty}", "expected one token"),
        ("--cert-file {cert}", "go together"),
        ("--cert-file {key} --key-file {key}", "me.key"),
        ("--cert-file {ca} --key-file {key}", "ca.crt"),
        ("--worker-name x --key-file {key}", "go together"),
    ],
)
def test_credentials_that_no_call_could_use_are_refused_when_they_are_set(
    line: str, part: str, path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(f"context set prod {line.format(**files)}", capsys)
    assert (code, out, part in err) == (2, "", True), err
    assert "hs1_id" not in err
    assert read_contexts(path) == Contexts()


def test_doctor_goes_on_with_a_file_of_contexts_that_cannot_be_read(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOTSLOT_DATA_DIR", str(tmp_path / "data"))
    path.parent.mkdir()
    for content, part in WRONG_FILES:
        path.write_bytes(content)
        code, out, err = said(f"doctor --json --store {CLOSED} --worker {CLOSED} --gateway http://{CLOSED}", capsys)
        assert (code, err) == (1, ""), err
        checks = {one["check"]: one for one in json.loads(out)["checks"]}
        assert checks["contexts"]["level"] == "fail"
        assert part in checks["contexts"]["found"]
        assert checks["contexts"]["advice"].startswith("mend it, or move it away")
        assert {"store", "worker", "disk"} <= set(checks), "the others are looked at all the same"


def test_of_two_contexts_with_one_store_the_one_that_is_named_has_its_token_used(
    path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        token = files["token"].with_name(name)
        token.write_text(name)
        assert said(f"context set {name} --store {CLOSED} --token-file {token}", capsys)[0] == 0
    assert said("context use first", capsys)[0] == 0
    used: list[Path | None] = []

    def note(**named: object) -> NoReturn:
        used.append(channel_options("", CLOSED).security.token_file)
        raise InvalidRequestError([], "noted")

    monkeypatch.setattr(listing_commands, "open_client", note)
    for line in ("ls", "ls --context second", "--context second ls", "ls"):
        assert said(line, capsys)[0] == 2
    monkeypatch.setenv("HOTSLOT_CONTEXT", "second")
    assert said("ls", capsys)[0] == 2
    assert [one.name for one in used if one is not None] == ["first", "second", "second", "first", "second"]
