"""Tokens and certificates of principals: verified once, refused once revoked, and never worth more than they are."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.errors import InvalidRequestError, QuotaExceededError, TokenExpiredError, UnauthenticatedError
from hotslot.formats.principals import (
    Principal,
    Scope,
    encode_principals,
    is_secret_of,
    new_token,
    parse_principals,
    split_token,
)
from shared.identity import authenticator as module
from shared.identity.authenticator import MAX_WAITING_TOKENS, REVOCATION_S, Authenticator
from tests.support.principals import Roster


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
    wrong = header[:-1] + ("A" if header[-1] != "A" else "B")
    for _ in range(20):
        with pytest.raises(UnauthenticatedError):
            await known.principal(wrong)
    assert len(verified) == 2


async def test_tokens_that_wait_to_be_verified_are_bounded(roster: Roster, known: Authenticator) -> None:
    token = roster.tokens["alice"]
    wrong = [f"Bearer {token[:-6]}{number:06d}" for number in range(MAX_WAITING_TOKENS + 20)]
    tasks = [asyncio.create_task(known.principal(each)) for each in wrong]
    await asyncio.sleep(0)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, QuotaExceededError)]
    assert len(refused) == 20
    assert all(isinstance(each, UnauthenticatedError | QuotaExceededError) for each in outcomes)
    assert (await known.principal(f"Bearer {token}")).name == "alice"


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
    assert len(parts[1]) == 43
    assert parts[1] not in record.hash
    assert record.hash not in repr(record)
    assert is_secret_of(record, parts[1])
    assert not is_secret_of(record, parts[1][:-1])
    assert new_token(5)[0] != token
