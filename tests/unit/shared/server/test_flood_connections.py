"""Connections of floods by their callers: which are closed, and which addresses get no new ones for a moment."""

import errno
import time

import pytest

from shared.server import flood_connections
from shared.server.counters import BOUND_REFUSALS, Counters
from shared.server.flood_connections import ADDRESSES, CONNECTIONS, MANY_CALLERS, FloodConnections
from tests.support.waiting import until

PEER = "ipv4:10.0.0.1:50000"
LOUD, QUIET = "principal loud", "principal quiet"
UNUSED_PORT = 1


class Found:
    """Connections of a server, and what was counted of them."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.connections = FloodConnections(self.counters)
        self.connections.port = UNUSED_PORT

    def close(self, caller: str, peer: str = PEER, *, is_known: bool = True) -> bool:
        return self.connections.close(caller, peer, is_known=is_known)

    def count(self, label: str) -> int:
        return self.counters.snapshot().get((BOUND_REFUSALS, label), 0)


async def test_a_flood_s_connection_is_closed_once_and_its_address_refused() -> None:
    found = Found()
    found.connections.heard(PEER, LOUD)
    assert all(found.close(LOUD) for _ in range(5))
    assert (found.count(CONNECTIONS), found.count(ADDRESSES)) == (1, 1)


async def test_a_connection_of_several_callers_is_left_alone() -> None:
    found = Found()
    found.connections.heard(PEER, QUIET)
    assert not found.close(LOUD)
    assert not found.close(QUIET)
    assert not found.count(ADDRESSES)


async def test_an_allowed_call_that_comes_late_opens_no_closed_connection() -> None:
    found = Found()
    found.connections.heard(PEER, LOUD)
    assert found.close(LOUD)
    found.connections.heard(PEER, QUIET)
    assert found.close(LOUD), "its calls that wait are refused at the least cost"


async def test_a_port_that_another_caller_had_long_ago_makes_no_shared_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Found()
    found.connections.heard(PEER, QUIET)
    monkeypatch.setattr(flood_connections, "IDLE_S", -1.0)
    assert found.close(LOUD)


async def test_an_address_of_many_callers_gets_new_connections_whatever_one_of_them_does() -> None:
    found = Found()
    for number in range(MANY_CALLERS + 1):
        found.connections.heard(f"ipv4:10.0.0.1:{50_001 + number}", f"principal {number}")
    assert found.close(LOUD)
    assert (found.count(CONNECTIONS), found.count(ADDRESSES)) == (1, 0)
    assert found.close(LOUD, "ipv4:10.0.0.2:50000")
    assert found.count(ADDRESSES) == 1, "another address has one caller"


async def test_connections_of_one_caller_make_no_address_of_many() -> None:
    found = Found()
    for number in range(10 * MANY_CALLERS):
        found.connections.heard(f"ipv4:10.0.0.1:{50_001 + number}", LOUD)
    assert found.close(LOUD)
    assert found.count(ADDRESSES) == 1


async def test_hosts_of_one_ipv6_network_are_one_address() -> None:
    found = Found()
    for host in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"):
        assert found.close(LOUD, f"ipv6:%5B{host}%5D:50000")
    assert found.count(ADDRESSES) == 2


async def test_a_stranger_s_flood_ends_the_connection_of_a_principal_alone() -> None:
    found = Found()
    found.connections.heard(PEER, QUIET)
    assert found.close("address 10.0.0.1", is_known=False)
    assert not found.close("address unix", "unix:", is_known=False)


@pytest.mark.parametrize("has_principal", [True, False])
async def test_strangers_have_an_address_of_principals_refused_half_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch, has_principal: bool
) -> None:
    now_s = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(FloodConnections, "_let_in_later", lambda connections, after_s: None)
    found = Found()
    if has_principal:
        found.connections.heard("ipv4:10.0.0.1:40000", QUIET)
    refused_until_s: list[float] = []
    for number in range(100):  # one each 50 ms
        assert found.close("address 10.0.0.1", f"ipv4:10.0.0.1:{50_000 + number}", is_known=False)
        refused_until_s.append(found.connections._refused_until_s["10.0.0.1"])
        now_s += 0.05
    assert len(set(refused_until_s)) == (3 if has_principal else 100)
    if has_principal:
        assert sorted(set(refused_until_s)) == pytest.approx([1_001.0, 1_003.0, 1_005.0], abs=0.2)
    assert found.close(LOUD, "ipv4:10.0.0.1:60000")
    assert found.connections._refused_until_s["10.0.0.1"] == now_s + 1.0, "a principal is known, and may be taken away"


async def test_a_kernel_that_takes_no_filter_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(networks: list[str], port: int) -> None:
        asked.append(networks)
        raise OSError("it takes none")

    monkeypatch.setattr(flood_connections, "refuse_connections", refuse)
    found = Found()
    assert found.close(LOUD)
    await until(lambda: not found.connections.has_filters)
    assert found.close(LOUD, "ipv4:10.0.0.3:50000")
    assert (found.count(CONNECTIONS), found.count(ADDRESSES)) == (2, 1)
    assert asked == [["10.0.0.1"]]


async def test_an_address_is_let_in_again_though_descriptors_were_short_when_its_time_was_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    def refuse(networks: list[str], port: int) -> None:
        asked.append(networks)
        if len(asked) in (2, 3):
            raise OSError(errno.EMFILE, "a flood has them")

    monkeypatch.setattr(flood_connections, "refuse_connections", refuse)
    monkeypatch.setattr(flood_connections, "REFUSED_FOR_S", 0.05)
    found = Found()
    assert found.close(LOUD)
    await until(lambda: len(asked) == 4)
    assert asked == [["10.0.0.1"], [], [], []]
    assert found.connections.has_filters
    assert found.close(LOUD, "ipv4:10.0.0.3:50000")
    await until(lambda: ["10.0.0.3"] in asked)
