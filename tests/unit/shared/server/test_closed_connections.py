"""A connection is closed at once, with all that it brought and nobody has read."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from shared.server.closed_connections import close_connections
from shared.server.counters import Counters
from shared.server.flood_connections import FloodConnections


@contextmanager
def connected(host: str, num_others: int = 0) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection, the client's first, beside others of the same server."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::"))
        target = ("127.0.0.1" if host == "::" else host, server.getsockname()[1])
        for _ in range(num_others):
            stack.enter_context(socket.create_connection(target, 5))
            stack.enter_context(server.accept()[0])
        client = stack.enter_context(socket.create_connection(target, 5))
        yield client, stack.enter_context(server.accept()[0])


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "::1"])
def test_what_a_closed_connection_brought_is_read_by_nobody(host: str) -> None:
    with connected(host, num_others=3) as (client, taken):
        client.sendall(b"calls of a flood" * 4_096)
        port = taken.getsockname()[1]
        assert close_connections({client.getsockname()[:2]}, port) == 1
        assert client.recv(1) == b""
        assert taken.recv(1) == b""


def test_a_connection_of_another_server_to_the_same_peer_stays() -> None:
    with connected("127.0.0.1") as (client, taken), connected("127.0.0.1") as (other, other_taken):
        assert close_connections({client.getsockname()[:2]}, other_taken.getsockname()[1]) == 0
        client.sendall(b"still here")
        assert taken.recv(100) == b"still here"
        other.sendall(b"still here")
        assert other_taken.recv(100) == b"still here"


async def test_a_flood_s_connection_is_closed_before_another_call_of_it_is_looked_at() -> None:
    with connected("127.0.0.1") as (client, taken):
        connections = FloodConnections(Counters())
        connections.port = taken.getsockname()[1]
        host, port = client.getsockname()
        client.settimeout(0)
        assert connections.close("principal loud", f"ipv4:{host}:{port}", is_known=True)
        assert client.recv(1) == b""
