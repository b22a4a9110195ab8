"""Endpoints: what is taken, as what, and what is refused, for every use of one."""

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotslot.endpoints import (
    Endpoint,
    Target,
    advertised_endpoint,
    dialled_endpoint,
    listen_endpoint,
    local,
    parse_endpoint,
    reachable,
)
from hotslot.errors import InvalidEndpointError

PORTS = st.integers(1, 65_535)
IPV6 = st.builds(ipaddress.IPv6Address, st.integers(0, 2**128 - 1))
IPV4 = st.builds(ipaddress.IPv4Address, st.integers(0, 2**32 - 1))

TAKEN = [
    ("host:7400", Endpoint("host", 7400)),
    ("hotslot-store.default.svc.cluster.local.:7400", Endpoint("hotslot-store.default.svc.cluster.local.", 7400)),
    ("worker_a:7500", Endpoint("worker_a", 7500)),
    ("127.0.0.1:1", Endpoint("127.0.0.1", 1)),
    ("10.0.0.1:65535", Endpoint("10.0.0.1", 65_535)),
    ("[10.0.0.1]:7500", Endpoint("10.0.0.1", 7500)),
    ("[::1]:7400", Endpoint("::1", 7400)),
    ("[FD00:0:0::1]:7400", Endpoint("fd00::1", 7400)),
    ("[fe80::1%eth0]:7400", Endpoint("fe80::1%eth0", 7400)),
    ("[fe80::1%25eth0]:7400", Endpoint("fe80::1%eth0", 7400)),
    ("[::ffff:10.0.0.1]:7400", Endpoint("::ffff:a00:1", 7400)),
    ("unix:7400", Endpoint("unix", 7400)),
]
NONSENSE = [
    "",
    ":",
    ":7400",
    "nonsense",
    "host:",
    "host:99999",
    "host:65536",
    "host:-1",
    "host:+1",
    "host: 1",
    "host:1 ",
    "host:1\n",
    "host:٧",
    "host:http",
    "::1",
    "::1:7660",
    "fd00::1:7500",
    "1:2:3:4:5:6:7:8:7500",
    "[::1]",
    "[::1]7400",
    "[::1",
    "[]:7400",
    "[host]:7400",
    "[::1%]:7400",
    "[::1%a b]:7400",
    "[10.0.0.1%eth0]:7400",
    "[[::1]]:7400",
    "256.1.1.1:7400",
    "1.2.3:7400",
    "0:7400",
    "*:7400",
    "ho st:7400",
    "-host:7400",
    "host..name:7400",
    "hösst:7400",
    f"{'a' * 64}:7400",
    f"{'a.' * 130}b:7400",
    "http://host:7400",
    "grpc://host:7400",
    "user:pass@host:7400",
    "host:7400/path",
    "host\x00:7400",
]


@pytest.mark.parametrize(("text", "endpoint"), TAKEN)
def test_an_endpoint_is_taken_for_every_use(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert dialled_endpoint(text) == listen_endpoint(text) == endpoint
    if "%" not in text:
        assert advertised_endpoint(text) == endpoint


@pytest.mark.parametrize("text", NONSENSE)
@pytest.mark.parametrize("parse", [parse_endpoint, listen_endpoint, dialled_endpoint, advertised_endpoint])
def test_nonsense_is_refused_for_every_use(parse: type, text: str) -> None:
    with pytest.raises(InvalidEndpointError) as refused:
        parse(text)
    assert len(refused.value.message) < 400
    assert refused.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "found 'nonsense', expected host:port"),
        ("fd00::1:7500", "found 'fd00::1:7500': an IPv6 address needs brackets: [fd00::1]:7400"),
        ("host:99999", "found 'host:99999', expected a port from 1 to 65535 after the last colon, found '99999'"),
        ("http://host:1", "found 'http://host:1', expected host:port without http://"),
        ("user:secret@host:1", "found text with an @: an IPv6 address needs brackets: [fd00::1]:7400"),
    ],
)
def test_a_refusal_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(InvalidEndpointError) as refused:
        parse_endpoint(text)
    assert refused.value.message == said


@pytest.mark.parametrize("text", ["host:0", "[::1]:0", "10.0.0.1:0"])
def test_port_0_is_for_listening_only(text: str) -> None:
    assert listen_endpoint(text).target == text
    for parse in (dialled_endpoint, advertised_endpoint):
        with pytest.raises(InvalidEndpointError, match="port 0"):
            parse(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "[0:0:0:0:0:0:0:0]", "[::ffff:0.0.0.0]", "[0.0.0.0]"])
def test_a_wildcard_is_listened_on_and_never_advertised(host: str) -> None:
    listened = listen_endpoint(f"{host}:7500")
    assert isinstance(listened, Endpoint)
    assert listened.is_wildcard
    with pytest.raises(InvalidEndpointError, match="wildcard"):
        advertised_endpoint(f"{host}:7500")


@pytest.mark.parametrize("text", ["[fe80::1%eth0]:7500", "[ff02::1]:7500", "224.0.0.1:7500", "255.255.255.255:7500"])
def test_what_other_machines_cannot_dial_is_not_advertised(text: str) -> None:
    with pytest.raises(InvalidEndpointError):
        advertised_endpoint(text)


TARGETS = [
    "dns:///host:7400",
    "dns:host:7400",
    "dns://8.8.8.8/host:7400",
    "dns:///[::1]:7400",
    "ipv4:10.0.0.1:7400",
    "ipv4:10.0.0.1:7400,10.0.0.2:7400",
    "ipv6:[::1]:7400,[::2]:7400",
]
SOCKETS = ["unix:/run/hotslot.sock", "unix:///run/hotslot.sock", "unix:hotslot.sock", "unix-abstract:hotslot"]


@pytest.mark.parametrize("text", [*TARGETS, *SOCKETS])
def test_what_grpc_resolves_is_dialled_and_never_advertised(text: str) -> None:
    assert dialled_endpoint(text) == Target(text)
    with pytest.raises(InvalidEndpointError, match="expected host:port"):
        advertised_endpoint(text)


def test_sockets_are_listened_on_and_other_targets_are_not() -> None:
    for text in SOCKETS:
        assert listen_endpoint(text) == Target(text)
    for text in TARGETS:
        with pytest.raises(InvalidEndpointError, match="nothing to listen on"):
            listen_endpoint(text)


@pytest.mark.parametrize(
    "text",
    [
        "dns:///nonsense",
        "dns:///host:0",
        "dns:////host:1",
        "dns:",
        "ipv4:host:1",
        "ipv4:10.0.0.1",
        "ipv4:[::1]:1",
        "ipv6:10.0.0.1:1",
        "unix:",
        "unix:///",
        "unix://host/path",
        "unix:/a b",
        "xds:///host",
    ],
)
def test_a_target_is_checked_as_well(text: str) -> None:
    with pytest.raises(InvalidEndpointError):
        dialled_endpoint(text)


def test_a_host_named_like_a_resolver_is_dialled_as_a_host() -> None:
    assert dialled_endpoint("dns:7400").target == "dns:///dns:7400"
    assert dialled_endpoint("host:7400").target == "host:7400"


@given(st.one_of(IPV4, IPV6), PORTS)
def test_any_address_comes_back_from_its_text(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    endpoint = parse_endpoint(f"[{address}]:{port}")
    assert (endpoint.address, endpoint.port) == (address, port)
    assert parse_endpoint(str(endpoint)) == endpoint


@given(IPV6, PORTS)
def test_an_ipv6_address_without_brackets_is_never_guessed_at(address: ipaddress.IPv6Address, port: int) -> None:
    for text in (f"{address}:{port}", str(address), f"{address.exploded}:{port}"):
        for parse in (listen_endpoint, dialled_endpoint, advertised_endpoint):
            with pytest.raises(InvalidEndpointError, match="brackets"):
                parse(text)


@given(st.text(max_size=40) | st.text(string.ascii_letters + string.digits + ".:[]%-_/,", max_size=40))
def test_any_text_is_an_endpoint_or_a_typed_error(text: str) -> None:
    for parse in (listen_endpoint, dialled_endpoint, advertised_endpoint):
        try:
            found = parse(text)
        except InvalidEndpointError:
            continue
        assert parse(str(found)) == found


@pytest.mark.parametrize(
    ("listen", "told"),
    [
        ("0.0.0.0:0", "pod-1:7500"),
        ("[::]:7500", "pod-1:7500"),
        ("127.0.0.1:0", "127.0.0.1:7500"),
        ("[fd00::1]:0", "[fd00::1]:7500"),
        ("host:0", "host:7500"),
    ],
)
def test_others_are_told_an_address_that_they_can_dial(listen: str, told: str) -> None:
    assert str(reachable(listen, 7500, "pod-1")) == told


def test_a_socket_needs_an_address_for_others() -> None:
    with pytest.raises(InvalidEndpointError, match="set advertise"):
        reachable("unix:/run/hotslot.sock", 1, "pod-1")


@pytest.mark.parametrize(
    ("listen", "here"),
    [
        ("0.0.0.0:7400", "127.0.0.1:7400"),
        ("[::]:7400", "localhost:7400"),
        ("[::1]:7400", "[::1]:7400"),
        ("10.0.0.1:7400", "10.0.0.1:7400"),
        ("unix:/run/hotslot.sock", "unix:/run/hotslot.sock"),
    ],
)
def test_a_machine_reaches_its_own_server(listen: str, here: str) -> None:
    assert str(local(listen)) == here
