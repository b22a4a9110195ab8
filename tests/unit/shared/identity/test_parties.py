"""A call's party is what its caller cannot invent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.formats.principals import Scope
from hotslot.ids import TenantId
from shared.identity.callers import Caller
from shared.identity.parties import party_of

ACME = TenantId("acme")
PEER = "ipv4:10.1.2.3:50000"
TENANTS = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True).map(TenantId)


def caller(*tenants: str, scopes: frozenset[Scope] = frozenset({Scope.USE}), via: str = "") -> Caller:
    return Caller("alice", ACME, scopes, frozenset(tenants), via)


@given(TENANTS, TENANTS, st.integers(1, 65535), st.text(max_size=20))
def test_invented_tenants_ports_and_marks_of_an_address_are_one_party(
    first: TenantId, second: TenantId, port: int, told: str
) -> None:
    assert party_of(None, first, PEER) == party_of(None, second, f"ipv4:10.1.2.3:{port}", told)
    assert party_of(None, first, PEER) != party_of(None, first, "ipv4:10.1.2.4:50000")


@given(TENANTS, TENANTS, st.text(max_size=20))
def test_invented_tenants_of_a_principal_of_all_tenants_are_one_party(
    first: TenantId, second: TenantId, told: str
) -> None:
    assert party_of(caller("*"), first, PEER) == party_of(caller("*"), second, "ipv4:1.1.1.1:1", told)


def test_all_principals_of_a_tenant_are_one_party_and_its_tenants_are_several() -> None:
    other = Caller("bob", ACME, frozenset({Scope.USE}), frozenset({"acme"}))
    assert party_of(caller("acme", "zeta"), ACME, PEER) == party_of(other, ACME, "ipv4:1.1.1.1:1") == "tenant acme"
    assert party_of(caller("acme", "zeta"), TenantId("zeta"), PEER) == "tenant zeta"


def test_a_worker_and_a_gateway_call_for_others() -> None:
    worker = caller("*", scopes=frozenset({Scope.WORKER}))
    assert party_of(worker, ACME, PEER, "principal root") == "principal root"
    assert party_of(worker, ACME, PEER) == party_of(worker, ACME, PEER, "x" * 257) == "tenant acme"
    assert party_of(caller("*", via="gateway"), ACME, PEER) == "tenant acme"
    assert party_of(caller("acme"), ACME, PEER, "principal root") == "tenant acme"


@pytest.mark.parametrize(
    ("peer", "same"),
    [
        ("ipv6:%5B2001:db8:1:2::1%5D:50000", "ipv6:[2001:db8:1:2:ffff::9]:1"),
        ("ipv6:%5B::ffff:10.1.2.3%5D:1", PEER),
        ("unix:/a", "unix:/b"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "ipv6:[fe80::2]:3"),
    ],
)
def test_hosts_of_one_network_are_one_party(peer: str, same: str) -> None:
    assert party_of(None, ACME, peer) == party_of(None, ACME, same)


def test_another_network_is_another_party() -> None:
    assert party_of(None, ACME, "ipv6:[2001:db8:1:2::1]:1") != party_of(None, ACME, "ipv6:[2001:db8:1:3::1]:1")
