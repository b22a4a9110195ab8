"""Closing of single connections of a gRPC server, which gRPC's interface for Python does not offer.

The kernel is told that a socket is over; gRPC sees its end as it sees that of a client that has left.
"""

import ctypes
import errno
import os
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import cache
from urllib.parse import unquote

MOST_UNREAD_BYTES = 8 * 2**20
"""Bytes of a closed connection that are thrown away at most: beyond a socket's widest buffer."""
_READ_BYTES = 2**18
_DESCRIPTORS = "/dev/fd"
_ADDRESS_BYTES = 128
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Failures that pass: a flood may have taken what sockets are looked at with."""
PeerAddress = tuple[str, int]
"""Host and port."""


def peer_of(text: str) -> PeerAddress | None:
    """Host and port of a peer as gRPC names it: `ipv4:127.0.0.1:50000`, `ipv6:%5B::1%5D:50000`; None for others."""
    kind, _, rest = unquote(text).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return host.strip("[]").partition("%")[0], int(port)


def close_connections(peers: Collection[PeerAddress], port: int) -> int:
    """End the connections of a server on this port with these peers; returns how many there were.

    What they brought and nobody has read yet is thrown away: of a flood that is hundreds of calls.
    """
    num_closed, ports = 0, {from_port for _, from_port in peers}
    for held in _own_sockets(port, lambda descriptor: _port_of_peer(descriptor) in ports):
        with suppress(OSError):
            host, from_port = held.getpeername()[:2]
            if (host, from_port) in peers or (host.removeprefix("::ffff:"), from_port) in peers:
                held.shutdown(socket.SHUT_RDWR)
                num_closed += 1
                _throw_away(held)
    return num_closed


def own_listeners(port: int) -> Iterator[socket.socket]:
    """Listening sockets of a server on this port; each is for one turn of the loop.

    Raises OSError where they cannot be looked at, so that none is passed over.
    """
    return _own_sockets(port, _listens)


def _own_sockets(port: int, is_wanted: Callable[[int], bool]) -> Iterator[socket.socket]:
    for descriptor in [int(entry.name) for entry in os.scandir(_DESCRIPTORS)]:
        if not is_wanted(descriptor):
            continue
        try:
            # Held by a number of its own, so that the one that is looked at is the one that is closed.
            number = os.dup(descriptor)
        except OSError as exc:
            if exc.errno in NO_ROOM:
                raise
            continue
        try:
            held = socket.socket(fileno=number)
        except OSError as exc:  # the descriptor has become another file's just now
            os.close(number)
            if exc.errno in NO_ROOM:
                raise
            continue
        with held:
            if _is_on(held, port):
                yield held


def _is_on(held: socket.socket, port: int) -> bool:
    with suppress(OSError):
        return held.family in (socket.AF_INET, socket.AF_INET6) and held.getsockname()[1] == port
    return False


def _throw_away(held: socket.socket) -> None:
    for _ in range(MOST_UNREAD_BYTES // _READ_BYTES):
        if not held.recv(_READ_BYTES, socket.MSG_DONTWAIT):
            return


@cache
def _system() -> ctypes.PyDLL:
    """The C library, whose calls keep the interpreter's lock.

    Thousands of descriptors are looked at on an event loop. Each of Python's own calls would give the lock up, and the
    thread that has it next may keep it for milliseconds.
    """
    return ctypes.PyDLL(None)


def _port_of_peer(descriptor: int) -> int | None:
    """Port at a connection's other end, at the same place of all kinds of addresses; None for what is no connection."""
    address, size = ctypes.create_string_buffer(_ADDRESS_BYTES), ctypes.c_uint(_ADDRESS_BYTES)
    if _system().getpeername(descriptor, address, ctypes.byref(size)):
        return None
    return int.from_bytes(address.raw[2:4], "big")


def _listens(descriptor: int) -> bool:
    found, size = ctypes.c_int(0), ctypes.c_uint(ctypes.sizeof(ctypes.c_int))
    told = ctypes.byref(found), ctypes.byref(size)
    failed = _system().getsockopt(descriptor, socket.SOL_SOCKET, socket.SO_ACCEPTCONN, *told)
    return not failed and bool(found.value)
