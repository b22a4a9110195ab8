"""Ports for servers that are started or restarted later."""

import socket

import pytest

from hotslot.local import child_processes
from hotslot.local.child_processes import free_ports


def test_ports_are_different_free_and_never_those_of_outgoing_connections() -> None:
    ports = free_ports(200)
    assert len(set(ports)) == 200
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = [socket.create_connection(server.getsockname()) for _ in range(50)]
        outgoing = {connection.getsockname()[1] for connection in given}
        for connection in given:
            connection.close()
    assert max(ports) < min(outgoing)
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_a_port_that_is_listened_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_ports(2)
    monkeypatch.setattr(child_processes, "_ports_for_servers", lambda: sorted([taken, free]))
    with socket.create_server(("127.0.0.1", taken)):
        assert free_ports(1) == [free]
        with pytest.raises(OSError, match="fewer than 2 ports"):
            free_ports(2)
