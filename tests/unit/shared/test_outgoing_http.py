"""Outgoing HTTP: an address is judged where it is dialled, in every way to write one down."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.outgoing_http import (
    Address,
    CheckedBackend,
    OutgoingClient,
    PrivateAddressError,
    is_reachable,
    networks_of,
    resolved,
)

PRIVATE = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
    "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
]  # fmt: skip
"""Networks that no request may reach unasked: IANA's special-purpose registry."""
private_ipv4 = st.one_of([st.ip_addresses(v=4, network=name) for name in PRIVATE]).map(lambda a: IPv4Address(int(a)))


def carried(address: IPv4Address) -> list[IPv6Address]:
    """The same IPv4 address as IPv6 writes it: mapped, compatible, by NAT64, 6to4."""
    value = int(address)
    return [
        IPv6Address((0xFFFF << 32) | value),
        IPv6Address(value),
        IPv6Address((0x64FF9B << 96) | value),
        IPv6Address((0x2002 << 112) | (value << 80)),
    ]


@given(private_ipv4)
def test_private_addresses_are_not_reached_however_they_are_carried(address: IPv4Address) -> None:
    forms: list[Address] = [address, *carried(address)]
    assert not any(is_reachable(form) for form in forms)


@pytest.mark.parametrize(
    "text", ["::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
             "2001:0:7f00:1::80ff:fffe", "64:ff9b:1::a00:1"],
)  # fmt: skip
def test_private_addresses_of_ipv6_are_not_reached(text: str) -> None:
    assert not is_reachable(ip_address(text))


@pytest.mark.parametrize("text", ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", "2606:4700::1111"])
def test_public_addresses_are_reached(text: str) -> None:
    assert is_reachable(ip_address(text))


def test_a_network_that_is_allowed_is_reached_and_no_other() -> None:
    allowed = networks_of(["10.1.0.0/16", "fd00:1::/32"])
    found = [is_reachable(ip_address(text), allowed) for text in ("10.1.2.3", "10.2.0.1", "fd00:1::5", "fd00:2::5")]
    assert found == [True, False, True, False]
    assert is_reachable(ip_address("::ffff:10.1.2.3"), allowed)


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.headers["Host"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def loopback_server() -> Iterator[tuple[int, list[str]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_port, server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


FORMS = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "localhost", "localhost.", "127.0.0.1.",
    "[::ffff:127.0.0.1]", "[::1]", "[::ffff:7f00:1]", "0", "0.0.0.0", "[::]", "user@127.0.0.1",
    "hub.example@localhost",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_this_machine_is_not_reached_in_any_form(form: str) -> None:
    with loopback_server() as (port, asked), OutgoingClient(CheckedBackend(), 5.0) as client:
        with pytest.raises((PrivateAddressError, httpx2.ConnectError, httpx2.InvalidURL)):
            client.get(f"http://{form}:{port}/")
        assert asked == []


@pytest.mark.parametrize("form", ["127.0.0.1", "127.1", "2130706433", "localhost", "[::ffff:127.0.0.1]"])
def test_the_forms_would_reach_it_where_it_is_allowed(form: str) -> None:
    backend = CheckedBackend([ip_network("127.0.0.0/8")])
    with loopback_server() as (port, asked), OutgoingClient(backend, 5.0) as client:
        assert client.get(f"http://{form}:{port}/").status_code == 200
        assert len(asked) == 1


def test_the_address_that_was_judged_is_the_one_that_is_dialled() -> None:
    answers: list[Sequence[Address]] = [[ip_address("127.0.0.1")], [ip_address("127.0.0.2")]]
    backend = CheckedBackend([ip_network("127.0.0.1/32")], resolve=lambda host, port: answers.pop(0))
    with loopback_server() as (port, asked), OutgoingClient(backend, 5.0) as client:
        url = f"http://hub.example:{port}/"
        assert client.get(url, headers={"Connection": "close"}).status_code == 200
        with pytest.raises(PrivateAddressError):  # by then the name stands for another machine
            client.get(url)
        assert asked == [f"hub.example:{port}"]


def test_a_private_address_among_public_ones_is_left_out() -> None:
    tried: list[Address] = []

    def resolve(host: str, port: int) -> Sequence[Address]:
        tried.append(ip_address("127.0.0.1"))
        return [ip_address("10.0.0.1"), ip_address("127.0.0.1")]

    backend = CheckedBackend([ip_network("127.0.0.0/8")], resolve=resolve)
    with loopback_server() as (port, _), OutgoingClient(backend, 5.0) as client:
        assert client.get(f"http://hub.example:{port}/").status_code == 200
    assert tried


def test_an_address_that_is_written_down_is_reached_under_that_name_alone() -> None:
    backend = CheckedBackend(literal_hosts=["127.0.0.1", "localhost"])
    with loopback_server() as (port, asked), OutgoingClient(backend, 5.0) as client:
        assert client.get(f"http://127.0.0.1:{port}/").status_code == 200
        with pytest.raises(PrivateAddressError):
            client.get(f"http://localhost:{port}/")
        assert len(asked) == 1


def test_a_name_without_an_address_is_a_failed_connection() -> None:
    def nowhere(host: str, port: int) -> Sequence[Address]:
        raise socket.gaierror(-2, "Name or service not known")

    with OutgoingClient(CheckedBackend(resolve=nowhere), 5.0) as client, pytest.raises(httpx2.ConnectError):
        client.get("http://hub.example/")
    assert ip_address("127.0.0.1") in resolved("127.0.0.1", 80)
