"""Closing of single connections of a gRPC server, which gRPC's interface for Python does not offer.

The kernel is told that a socket is over; gRPC sees its end as it sees that of a client that has left.
"""

import errno
import os
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

_DESCRIPTORS = Path("/dev/fd")
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
    """End the connections of a server on this port with these peers; returns how many there were."""
    num_closed = 0
    for held in own_sockets(port):
        with suppress(OSError):
            host, from_port = held.getpeername()[:2]
            if (host, from_port) in peers or (host.removeprefix("::ffff:"), from_port) in peers:
                held.shutdown(socket.SHUT_RDWR)
                num_closed += 1
    return num_closed


def own_sockets(port: int) -> Iterator[socket.socket]:
    """Sockets of a server on this port, those that listen among them; each is for one turn of the loop.

    Raises OSError where they cannot be looked at, so that none is passed over.
    """
    for descriptor in _sockets():
        try:
            # Held by a number of its own, so that the one that is looked at is the one that is closed.
            held = socket.socket(fileno=os.dup(descriptor))
        except OSError as exc:
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


def _sockets() -> Iterator[int]:
    for entry in _DESCRIPTORS.iterdir():
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                yield int(entry.name)
