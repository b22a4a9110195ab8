"""A listener's filter drops the beginnings of connections from some addresses, and nothing else."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from shared.server.refused_addresses import MAX_ADDRESSES, program_for, refuse_connections

QUICK_S = 0.4
MANY = [f"10.0.0.{number}" for number in range(MAX_ADDRESSES)]
MANY_NETWORKS = [f"2001:db8:{number:x}::" for number in range(MAX_ADDRESSES)]
LONGEST_JUMP = 255


@contextmanager
def listening(host: str) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as server:
        yield server


def connects(source: str, target: str, port: int) -> bool:
    try:
        with socket.create_connection((target, port), QUICK_S, (source, 0)):
            return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
def test_addresses_are_refused_and_let_in_again(host: str) -> None:
    with listening(host) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 5, ("127.0.0.2", 0)) as stands:
            taken, _ = server.accept()
            assert refuse_connections([*MANY[1:], "127.0.0.2"], port) == 1
            assert not connects("127.0.0.2", "127.0.0.1", port)
            assert connects("127.0.0.3", "127.0.0.1", port)
            stands.sendall(b"still here")
            assert taken.recv(100) == b"still here"
            taken.close()
        refuse_connections([], port)
        assert connects("127.0.0.2", "127.0.0.1", port)


def test_connections_that_were_taken_under_a_filter_are_left_alone() -> None:
    with listening("127.0.0.1") as server:
        port = server.getsockname()[1]
        refuse_connections(["127.0.0.9"], port)
        with socket.create_connection(("127.0.0.1", port), 5, ("127.0.0.2", 0)) as stands:
            taken, _ = server.accept()
            refuse_connections(["127.0.0.2"], port)
            stands.sendall(b"still here")
            assert taken.recv(100) == b"still here"
            taken.close()


@pytest.mark.parametrize(("network", "enters"), [("::", False), ("2001:db8::", True), ("127.0.0.1", True)])
def test_networks_of_ipv6_are_refused_by_their_64_bits(network: str, enters: bool) -> None:
    with listening("::1") as server:
        port = server.getsockname()[1]
        refuse_connections([*MANY_NETWORKS[2:], network], port)
        assert connects("::1", "::1", port) is enters


def test_a_listener_is_never_passed_over_for_want_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(descriptor: int) -> int:
        raise OSError(errno.EMFILE, "a flood has them")

    with listening("127.0.0.1") as server:
        port = server.getsockname()[1]
        refuse_connections(["127.0.0.2"], port)
        with monkeypatch.context() as short:
            short.setattr(os, "dup", none_left)
            with pytest.raises(OSError, match="a flood has them"):
                refuse_connections([], port)
        assert refuse_connections([], port) == 1
        assert connects("127.0.0.2", "127.0.0.1", port)


def test_a_filter_of_another_port_stays() -> None:
    with listening("127.0.0.1") as one, listening("127.0.0.1") as other:
        refuse_connections(["127.0.0.2"], one.getsockname()[1])
        refuse_connections([], other.getsockname()[1])
        assert not connects("127.0.0.2", "127.0.0.1", one.getsockname()[1])


@pytest.mark.parametrize("networks", [MANY, MANY_NETWORKS, MANY[::2] + MANY_NETWORKS[::2]])
def test_a_filter_of_the_most_addresses_has_no_jump_that_is_too_long(networks: list[str]) -> None:
    program = program_for(networks)
    assert all(max(held, not_held) <= LONGEST_JUMP for _, held, not_held, _ in program)
    for place, (_, held, not_held, _) in enumerate(program):
        assert place + max(held, not_held) + 1 <= len(program) or program[place][0] == 0x06
