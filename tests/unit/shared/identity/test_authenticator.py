"""Tokens and certificates of principals: verified once, refused once revoked, and never worth more than they are."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import InvalidRequestError, QuotaExceededError, TokenExpiredError, UnauthenticatedError
from hotslot.formats.principals import (
    CHECK_LENGTH,
    Principal,
    Scope,
    TokenRecord,
    encode_principals,
    is_secret_of,
    may_be_secret_of,
    new_token,
    parse_principals,
    split_token,
)
from shared.identity import authenticator as module
from shared.identity.authenticator import MAX_WAITING_OF_ID, MAX_WAITING_TOKENS, REVOCATION_S, Authenticator
from tests.support.principals import Roster


def other_end(token: str) -> str:
    return token[:-1] + ("A" if token[-1] != "A" else "B")


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    roster = Roster(tmp_path / "principals.json")
    roster.add("alice", [Scope.READ])
    return roster


@pytest.fixture
async def known(roster: Roster) -> AsyncIterator[Authenticator]:
    known = Authenticator(roster.path)
    yield known
    known.close()


async def test_a_token_is_verified_once_however_often_and_however_many_call(
    roster: Roster, known: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = []

    def counting(*args: object) -> bool:
        verified.append(args)
        return is_secret_of(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "is_secret_of", counting)
    header = f"Bearer {roster.tokens['alice']}"
    found = await asyncio.gather(*(known.principal(header) for _ in range(50)))
    assert {principal.name for principal in found} == {"alice"}
    began_s = time.perf_counter()
    for _ in range(1000):
        await known.principal(header)
    assert time.perf_counter() - began_s < 10, "each is verified anew"
    for _ in range(20):
        with pytest.raises(UnauthenticatedError):
            await known.principal(other_end(header))
    assert len(verified) == 1, "an invented secret is told without its hash"


async def test_a_wrong_secret_of_an_id_without_a_check_is_hashed_once(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "may_be_secret_of", lambda record, secret: True)
    verified = []

    def counting(*args: object) -> bool:
        verified.append(args)
        return is_secret_of(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "is_secret_of", counting)
    known = Authenticator(roster.path)
    for _ in range(20):
        with pytest.raises(UnauthenticatedError):
            await known.principal(f"Bearer {other_end(roster.tokens['alice'])}")
    known.close()
    assert len(verified) == 1


@pytest.mark.parametrize("guesses_of", ["one id", "many ids"])
async def test_tokens_that_wait_to_be_verified_are_bounded(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, guesses_of: str
) -> None:
    """Ids from before checks are as hard to tell as genuine tokens."""
    monkeypatch.setattr(module, "may_be_secret_of", lambda record, secret: True)
    gate = threading.Event()

    def hashing(record: TokenRecord, secret: str) -> bool:
        gate.wait()
        return f"{record.id}_{secret}" in {token.removeprefix("hs1_") for token in roster.tokens.values()}

    monkeypatch.setattr(module, "is_secret_of", hashing)
    hashes = [replace(roster.record("alice"), id=f"{number:016x}") for number in range(MAX_WAITING_TOKENS)]
    for number, record in enumerate(hashes):
        roster.principals[f"p{number}"] = Principal(f"p{number}", frozenset(), frozenset(), frozenset(), (record,))
    roster.write()
    known = Authenticator(roster.path)
    ids = [hashes[0].id if guesses_of == "one id" else record.id for record in hashes]
    tasks = [asyncio.create_task(known.principal(f"Bearer hs1_{each}_{n}")) for n, each in enumerate(ids)]
    await asyncio.sleep(0)
    genuine = asyncio.create_task(known.principal(f"Bearer {roster.tokens['alice']}"))
    await asyncio.sleep(0)
    gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, QuotaExceededError)]
    assert all(isinstance(each, UnauthenticatedError | QuotaExceededError) for each in outcomes)
    if guesses_of == "one id":
        assert len(refused) == MAX_WAITING_TOKENS - MAX_WAITING_OF_ID
        assert (await genuine).name == "alice", "guesses of one id take no place of another's"
    else:
        assert not refused
        with pytest.raises(QuotaExceededError):
            await genuine
    assert (await known.principal(f"Bearer {roster.tokens['alice']}")).name == "alice"
    assert not known._num_waiting
    known.close()


async def test_the_file_is_followed_and_a_broken_one_changes_nothing(roster: Roster, known: Authenticator) -> None:
    header = f"Bearer {roster.tokens['alice']}"
    await known.principal(header)
    roster.path.write_text("{")
    await asyncio.sleep(REVOCATION_S)
    assert (await known.principal(header)).name == "alice"
    roster.add("bob", [Scope.USE])
    roster.change("alice", expires_s=int(time.time()) - 1)
    await asyncio.sleep(REVOCATION_S)
    with pytest.raises(TokenExpiredError):
        await known.principal(header)
    assert (await known.principal(f"Bearer {roster.tokens['bob']}")).name == "bob"


async def test_a_certificate_stands_for_the_principal_that_lists_its_name_alone(tmp_path: Path) -> None:
    roster = Roster(tmp_path / "principals.json")
    roster.add("worker", [Scope.WORKER], ["*"], certificates=["spiffe://hotslot/worker", "worker.hotslot"])
    roster.add("alice", [Scope.READ])
    known = Authenticator(roster.path)

    class Call:
        def __init__(self, names: Mapping[str, Iterable[bytes]], *metadata: tuple[str, str]) -> None:
            self._names, self._metadata = names, metadata

        def auth_context(self) -> Mapping[str, Iterable[bytes]]:
            return self._names

        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return self._metadata

    method = "/hotslot.fleet.v1.FleetService/IssueEpoch"
    for names in ({"peer_uri": [b"spiffe://hotslot/worker"]}, {"peer_dns": [b"other", b"worker.hotslot"]}):
        assert (await known.standing(method, Call(names))).caller.name == "worker"
    for names in ({}, {"peer_dns": [b"hotslot"]}, {"x509_common_name": [b"worker.hotslot"]}):
        with pytest.raises(UnauthenticatedError):
            await known.standing(method, Call(names))
    # A token says more than the certificate that it came with.
    token = ("authorization", f"Bearer {roster.tokens['alice']}")
    resolve = "/hotslot.store.v1.AdapterStoreService/GetAdapter"
    assert (await known.standing(resolve, Call({"peer_dns": [b"worker.hotslot"]}, token))).caller.name == "alice"
    known.close()


_NAMES = st.text("abcdefghijklmnop-./", min_size=1, max_size=20)


@given(
    st.dictionaries(
        _NAMES,
        st.tuples(
            st.frozensets(st.sampled_from(["*", "acme", "default"])),
            st.frozensets(st.sampled_from(list(Scope))),
        ),
        max_size=4,
    )
)
def test_principals_survive_their_file(listed: dict[str, tuple[frozenset[str], frozenset[Scope]]]) -> None:
    principals = {name: Principal(name, tenants, scopes) for name, (tenants, scopes) in listed.items()}
    assert parse_principals(encode_principals(principals), "file") == principals


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_what_is_no_file_of_principals_is_refused_as_a_wrong_request(data: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        parse_principals(data, "file")


def test_a_token_is_random_and_its_record_holds_nothing_of_it() -> None:
    token, record = new_token(5)
    parts = split_token(token)
    assert parts is not None
    assert parts[0] == record.id
    assert len(parts[1]) == 43 + CHECK_LENGTH
    assert parts[1] not in record.hash
    assert record.hash not in repr(record)
    assert is_secret_of(record, parts[1])
    assert not is_secret_of(record, parts[1][:-1])
    assert may_be_secret_of(record, parts[1])
    for wrong in (parts[1][:-1], other_end(parts[1]), "A" + parts[1][1:], parts[1][:43], "\xe9" * 54, "x"):
        assert not may_be_secret_of(record, wrong)
    assert may_be_secret_of(replace(record, id="0011223344556677"), "x"), "one that was made without a check is hashed"
    assert new_token(5)[0] != token
