"""Identity of a deployment: made once, mended where it must be, and changed so that no party meets a stranger."""

import datetime
import ssl
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509

from hotslot.errors import PreconditionError
from hotslot.formats.principals import Principal, Scope, is_secret_of, read_principals, revoked, split_token
from hotslot.formats.principals_file import change_principals
from hotslot.local import identity_keeper
from hotslot.local.authority import Authority
from hotslot.local.identity_files import LOCAL_HOSTS, WORKER_NAME, IdentityFiles, Renewal, identity_files
from hotslot.local.identity_keeper import SETTLE_S, IdentityKeeper

HOSTS = {"store": LOCAL_HOSTS, "worker-1": (*LOCAL_HOSTS, WORKER_NAME)}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def files(tmp_path: Path) -> IdentityFiles:
    return identity_files(tmp_path / "data")


def prepared(files: IdentityFiles, clock: Clock | None = None) -> IdentityKeeper:
    keeper = IdentityKeeper(files, HOSTS, clock or Clock())
    keeper.prepare()
    return keeper


def contents(files: IdentityFiles) -> Mapping[str, bytes]:
    found = (path for path in files.folder.rglob("*") if path.is_file())
    return {str(path.relative_to(files.folder)): path.read_bytes() for path in found}


def is_trusted(cert_file: Path | bytes, trusted: bytes) -> bool:
    cert = x509.load_pem_x509_certificate(cert_file if isinstance(cert_file, bytes) else cert_file.read_bytes())
    for authority in x509.load_pem_x509_certificates(trusted):
        try:
            cert.verify_directly_issued_by(authority)
        except Exception:  # noqa: BLE001 (any reason is a refusal)
            continue
        return True
    return False


def takes(files: IdentityFiles, name: str) -> bool:
    """Tell whether a server that reads the principals takes a token of this principal."""
    parts = split_token(files.token_file(name).read_text().strip())
    assert parts is not None
    records = {record.id: record for record in read_principals(files.principals_file)[name].tokens}
    record = records.get(parts[0])
    return record is not None and not record.revoked_s and is_secret_of(record, parts[1])


def test_a_first_start_makes_everything_for_its_owner_alone_and_the_next_one_keeps_it(files: IdentityFiles) -> None:
    prepared(files)
    assert stat.S_IMODE(files.folder.stat().st_mode) == 0o700
    for path in files.folder.rglob("*"):
        if path.suffix in (".key", ".token", ".json", ".secret"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for process, hosts in HOSTS.items():
        cert = x509.load_pem_x509_certificate(files.cert_file(process).read_bytes())
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert (WORKER_NAME in names.get_values_for_type(x509.DNSName)) == (WORKER_NAME in hosts)
        assert is_trusted(files.cert_file(process), files.trusted_file.read_bytes())
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files.cert_file(process), files.key_file(process))
    principals = read_principals(files.principals_file)
    assert {name: one.scopes for name, one in principals.items()} == {
        "user": {Scope.READ, Scope.USE, Scope.PUBLISH, Scope.ADMIN, Scope.OPERATOR},
        "worker": {Scope.WORKER},
        "gateway": {Scope.GATEWAY},
    }
    assert all(takes(files, name) for name in principals)
    assert len(files.pool_secret_file.read_text().strip()) == 64
    before = contents(files)
    prepared(files)
    assert contents(files) == before


def a_byte_of(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


WRONGED: Mapping[str, Callable[[IdentityFiles, Path], object]] = {
    "no certificate": lambda files, other: files.cert_file("store").unlink(),
    "no key": lambda files, other: files.key_file("store").unlink(),
    "a damaged certificate": lambda files, other: a_byte_of(files.cert_file("store")),
    "an empty key": lambda files, other: files.key_file("store").write_text(""),
    "another's key": lambda files, other: files.key_file("store").write_bytes(files.key_file("worker-1").read_bytes()),
    "another authority's": lambda files, other: Authority(other).issue("store", folder=files.folder),
    "one that ends in a week": lambda files, other: Authority(files.authority_folder(1)).issue(
        "store", folder=files.folder, days=7
    ),
    "one that has ended": lambda files, other: Authority(files.authority_folder(1)).issue(
        "store", folder=files.folder, days=0.0001
    ),
}


@pytest.mark.parametrize("kind", WRONGED)
def test_a_start_makes_a_certificate_anew_that_cannot_be_used_and_leaves_the_others(
    kind: str, files: IdentityFiles, tmp_path: Path
) -> None:
    prepared(files)
    before = contents(files)
    WRONGED[kind](files, tmp_path / "other")
    prepared(files)
    after = contents(files)
    assert {name for name in before if before[name] != after[name]} == {"store.crt", "store.key"}
    assert is_trusted(files.cert_file("store"), files.trusted_file.read_bytes())


def test_a_deployment_of_more_workers_gets_certificates_for_them_from_the_same_authority(files: IdentityFiles) -> None:
    prepared(files)
    trusted = files.trusted_file.read_bytes()
    IdentityKeeper(files, {**HOSTS, "worker-2": LOCAL_HOSTS}, Clock()).prepare()
    assert files.trusted_file.read_bytes() == trusted
    assert is_trusted(files.cert_file("worker-2"), trusted)


def revoke(files: IdentityFiles) -> None:
    token_id = read_principals(files.principals_file)["user"].tokens[0].id
    change_principals(files.principals_file, lambda now: revoked(now, token_id, 1))


def expire(files: IdentityFiles) -> None:
    def change(now: Mapping[str, Principal]) -> Mapping[str, Principal]:
        records = tuple(replace(record, expires_s=int(time.time()) - 1) for record in now["user"].tokens)
        return {**now, "user": replace(now["user"], tokens=records)}

    change_principals(files.principals_file, change)


@pytest.mark.parametrize(
    "wrong",
    [
        revoke,
        expire,
        lambda files: files.token_file("user").unlink(),
        lambda files: files.token_file("user").write_text("hs1_nobody_x"),
        lambda files: files.token_file("user").write_bytes(b"\xff"),
        lambda files: files.token_file("user").write_text(files.token_file("user").read_text()[:-3] + "x"),
        lambda files: files.principals_file.unlink(),
    ],
)
def test_a_start_gives_the_user_a_token_that_is_taken_and_keeps_the_principals_of_others(
    wrong: Callable[[IdentityFiles], object], files: IdentityFiles
) -> None:
    prepared(files)
    alice = Principal("alice", frozenset({"acme"}), frozenset({Scope.READ}))
    wrong(files)
    change_principals(files.principals_file, lambda now: {**now, "alice": alice})
    prepared(files)
    assert all(takes(files, name) for name in ("user", "worker", "gateway"))
    assert read_principals(files.principals_file)["alice"] == alice


def test_a_change_of_the_authority_never_has_two_parties_that_do_not_trust_each_other(files: IdentityFiles) -> None:
    clock = Clock()
    keeper = prepared(files, clock)
    states = [contents(files)]
    files.request_file.write_text(Renewal.AUTHORITY)
    done = []
    for _ in range(200):
        clock.now_s += SETTLE_S / 10
        done.append(keeper.look())
        found = contents(files)
        if found != states[-1]:
            states.append(found)
    assert [one for one in done if one is not None] == [Renewal.AUTHORITY]
    assert not files.request_file.exists()
    names = [f"{process}.crt" for process in HOSTS]
    for before, after in pairwise(states):
        for name in names:
            # Someone may have read the files a moment ago, and meet one who reads them now.
            assert is_trusted(after[name], before["trusted.crt"])
            assert is_trusted(before[name], after["trusted.crt"])
    assert not is_trusted(states[0]["store.crt"], states[-1]["trusted.crt"]), "the old one is trusted no longer"
    assert [path.name for path in files.folder.glob("authority-*")] == ["authority-2"]
    assert contents(files)["user.token"] == states[0]["user.token"]


def test_a_step_waits_until_all_go_by_the_one_before(files: IdentityFiles) -> None:
    clock = Clock()
    keeper = prepared(files, clock)
    files.request_file.write_text(Renewal.AUTHORITY)
    clock.now_s = 1.0
    keeper.look()
    both = contents(files)
    clock.now_s += SETTLE_S - 0.1
    assert keeper.look() is None
    assert contents(files) == both
    clock.now_s += 1.0
    keeper.look()
    assert contents(files)["store.crt"] != both["store.crt"]


def test_a_start_ends_a_change_that_an_earlier_run_had_begun(files: IdentityFiles) -> None:
    for num_steps in (1, 2):
        clock = Clock()
        keeper = prepared(files, clock)
        files.request_file.write_text(Renewal.AUTHORITY)
        for _ in range(num_steps):
            clock.now_s += SETTLE_S + 1
            keeper.look()
        files.request_file.unlink()
        prepared(files)
        trusted = files.trusted_file.read_bytes()
        assert len(x509.load_pem_x509_certificates(trusted)) == 1
        assert all(is_trusted(files.cert_file(process), trusted) for process in HOSTS)
        assert len(list(files.folder.glob("authority-*"))) == 1


def test_a_change_that_fails_begins_anew_and_never_loses_trust_in_what_is_used(files: IdentityFiles) -> None:
    clock = Clock()
    keeper = prepared(files, clock)
    files.request_file.write_text(Renewal.AUTHORITY)
    clock.now_s += 1
    keeper.look()
    in_the_way = files.cert_file("worker-1")
    kept = in_the_way.read_bytes()
    in_the_way.unlink()
    in_the_way.mkdir()
    clock.now_s += SETTLE_S + 1
    with pytest.raises(OSError, match="worker-1"):
        keeper.look()
    in_the_way.rmdir()
    in_the_way.write_bytes(kept)
    done = None
    for _ in range(20):
        clock.now_s += SETTLE_S
        done = keeper.look()
        trusted = files.trusted_file.read_bytes()
        assert all(is_trusted(files.cert_file(process), trusted) for process in HOSTS)
        if done is not None:
            break
    assert done is Renewal.AUTHORITY


@pytest.mark.parametrize("runs", [True, False])
def test_certificates_are_renewed_when_they_are_asked_for_and_before_they_end(runs: bool, files: IdentityFiles) -> None:
    clock = Clock()
    keeper = prepared(files, clock)
    trusted = files.trusted_file.read_bytes()

    def renewed(num_days: float) -> bool:
        """Let time pass; True where the store has another certificate then."""
        before = files.cert_file("store").read_bytes()
        Authority(files.authority_folder(1)).issue("store", folder=files.folder, days=num_days)
        short = files.cert_file("store").read_bytes()
        assert short != before
        if runs:
            clock.now_s += identity_keeper.EXPIRY_EVERY_S + 1
            keeper.look()
        else:
            prepared(files)
        return files.cert_file("store").read_bytes() != short

    assert renewed(29)
    assert not renewed(31)
    files.request_file.write_text(Renewal.CERTIFICATES)
    assert renewed(31), "it was asked for"
    assert not files.request_file.exists()
    assert files.trusted_file.read_bytes() == trusted


def test_an_authority_that_ends_soon_is_changed(files: IdentityFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(files)
    before = files.trusted_file.read_bytes()
    monkeypatch.setattr(identity_keeper, "AUTHORITY_RENEWED_BEFORE", datetime.timedelta(days=4000))
    clock = Clock()
    keeper = prepared(files, clock)
    at_start = files.trusted_file.read_bytes()
    assert at_start != before
    clock.now_s += identity_keeper.EXPIRY_EVERY_S + 1
    keeper.look()
    assert len(x509.load_pem_x509_certificates(files.trusted_file.read_bytes())) == 2, "in steps while it runs"


def test_an_authority_that_cannot_be_used_is_named_and_not_replaced_unasked(files: IdentityFiles) -> None:
    prepared(files)
    key_file = files.authority_folder(1) / "ca.key"
    key_file.write_text("no key")
    with pytest.raises(PreconditionError, match="authority-1 has no authority that can be used"):
        prepared(files)
    assert key_file.read_text() == "no key"
