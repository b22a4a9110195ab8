"""Connections over which floods come: they are closed, and the kernel takes no new ones from there for a moment."""

import asyncio
import time
from collections.abc import Collection

import structlog
from cachetools import LRUCache

from shared.identity.parties import address_of
from shared.server.call_pace import MAX_CALLERS
from shared.server.closed_connections import NO_ROOM, PeerAddress, close_connections, peer_of
from shared.server.connection_bounds import IDLE_S
from shared.server.counters import BOUND_REFUSALS, Counters
from shared.server.refused_addresses import MAX_ADDRESSES, refuse_connections

log = structlog.get_logger(__name__)

CONNECTIONS = "connections_of_floods"
"""Label of connections that were closed."""
ADDRESSES = "addresses_of_floods"
"""Label of addresses whose new connections were refused."""
CUT_OFF_S = 5.0
"""Time for which a caller whose flood was cut off may begin no call; it goes on anew while it tries too often."""
CLOSE_EVERY_S = 0.1
"""Least time between two looks at all sockets for those to close."""
CLOSED_FOR_S = 1.0
"""Time for which calls that come from a closed connection are taken for ones that had come before."""
REFUSED_FOR_S = 1.0
"""Time in which no new connection comes from a closed one's address: calls that had come before are worked off, so that
the first call of the next connection is looked at when it comes. Clients' kernels try again after a second."""

MANY_CALLERS = 8
"""Callers of one address; with more it is a proxy's, or a network's, and others' new connections are worth more."""

_SHARED = ""
"""In the place of a connection's caller where there are several, or one that calls for others."""
_CLOSED = "closed"
"""In the place of a connection's caller once it is being closed."""


class _Heard:
    """A caller that was heard over a connection, and when."""

    __slots__ = ("caller", "seen_s")

    def __init__(self, caller: str, seen_s: float) -> None:
        self.caller, self.seen_s = caller, seen_s


class FloodConnections:
    """Connections of one server by their callers. Lives on its event loop."""

    def __init__(self, counters: Counters) -> None:
        self.port = 0
        """Port of the server, once it listens; before, and on a socket without one, nothing is closed."""
        self._counters = counters
        self._on: LRUCache[str, _Heard] = LRUCache(MAX_CALLERS)
        """Callers by their connections' peers."""
        self._callers_of: LRUCache[str, dict[str, float]] = LRUCache(MAX_CALLERS)
        """Callers of each address, the latest last, and the time of a connection's first call."""
        self._cut_off_until_s: LRUCache[str, float] = LRUCache(MAX_CALLERS)
        """Callers that flooded, and the time until which their connections are closed at their first call."""
        self._let_in_until_s: LRUCache[str, float] = LRUCache(MAX_CALLERS)
        """Addresses that were refused, and the time until which no stranger has them refused again."""
        self._closing: dict[PeerAddress, str] = {}
        self._refused_until_s: dict[str, float] = {}
        self._is_filter_due = False
        self._is_filter_failed = False
        """The filter could not be changed for the moment, and may still refuse who is to be let in."""
        self.has_filters = True
        """False once the kernel has taken none."""
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._looked_s = -CLOSE_EVERY_S
        """Time at which connections were closed last."""

    def heard(self, peer: str, caller: str) -> None:
        """Hear of an allowed call; the empty caller is one that calls for others."""
        now_s = time.monotonic()
        found = self._on.get(peer)
        # Without a call for so long a connection has ended, and its port is another's.
        if found is None or now_s - found.seen_s > IDLE_S:
            self._on[peer] = _Heard(caller, now_s)
            self._note(peer, caller, now_s)
            return
        found.seen_s = now_s
        if found.caller not in (caller, _CLOSED):
            found.caller = _SHARED
            self._note(peer, caller, now_s)

    def is_cut_off(self, caller: str, now_s: float) -> bool:
        """Tell whether a caller that flooded may not begin calls yet."""
        return now_s < self._cut_off_until_s.get(caller, 0.0)

    def is_closed(self, peer: str) -> bool:
        """Tell whether a call had come over a connection before that was closed."""
        found = self._on.get(peer)
        return found is not None and found.caller == _CLOSED and time.monotonic() - found.seen_s <= CLOSED_FOR_S

    def close(self, caller: str, peer: str, *, is_known: bool) -> bool:
        """Close the connection of a flood's call; false for one that others call over, too."""
        now_s = time.monotonic()
        found = self._on.get(peer)
        if found is None or now_s - found.seen_s > IDLE_S:
            found = _Heard(caller, now_s)
        if found.caller == _CLOSED:
            return True  # Calls that had come before.
        if found.caller != caller and is_known:
            found.caller = _SHARED
        # A stranger may be the one principal of its connection, who leaves the token out.
        if found.caller == _SHARED or not self.port or (address := peer_of(peer)) is None:
            return False
        self._on[peer] = _Heard(_CLOSED, now_s)
        self._cut_off_until_s[caller] = now_s + CUT_OFF_S
        self._counters.add(BOUND_REFUSALS, CONNECTIONS)
        self._closing[address] = peer
        if self.has_filters and self._may_refuse(network := address_of(peer), now_s, is_known=is_known):
            self._refuse(network, now_s)
        self._work()
        return True

    def _note(self, peer: str, caller: str, now_s: float) -> None:
        callers = self._callers_of.setdefault(address_of(peer), {})
        callers.pop(caller, None)
        callers[caller] = now_s
        if len(callers) > MANY_CALLERS + 1:
            del callers[next(iter(callers))]

    def _may_refuse(self, network: str, now_s: float, *, is_known: bool) -> bool:
        callers = self._callers_of.get(network, {})
        num_callers = sum(now_s - heard_s <= IDLE_S for heard_s in callers.values())
        # Whoever has no token keeps no principal of the address out: what comes again after a second finds it let in.
        is_own = is_known or not num_callers
        return num_callers <= MANY_CALLERS and (is_own or now_s >= self._let_in_until_s.get(network, 0.0))

    def _refuse(self, network: str, now_s: float) -> None:
        if network not in self._refused_until_s:
            self._counters.add(BOUND_REFUSALS, ADDRESSES)
            if len(self._refused_until_s) >= MAX_ADDRESSES:
                del self._refused_until_s[next(iter(self._refused_until_s))]
        self._refused_until_s[network] = now_s + REFUSED_FOR_S
        self._let_in_until_s[network] = now_s + 2 * REFUSED_FOR_S
        self._is_filter_due = True
        self._let_in_later(REFUSED_FOR_S)

    def _let_in_later(self, after_s: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(after_s, self._let_in)

    def _let_in(self) -> None:
        self._timer, now_s = None, time.monotonic()
        kept = {network: until_s for network, until_s in self._refused_until_s.items() if until_s > now_s}
        if kept:
            self._let_in_later(max(0.01, min(kept.values()) - now_s))
        if len(kept) != len(self._refused_until_s) or self._is_filter_failed:
            self._refused_until_s, self._is_filter_due = kept, True
            self._work()

    def _work(self) -> None:
        """Close what is to be closed, at once where no other look was taken just now.

        On the event loop, whose calls of the flood would otherwise keep the interpreter from a thread that closes it.
        """
        if self._looking is None:
            wait_s = self._looked_s + CLOSE_EVERY_S - time.monotonic()
            if wait_s > 0:
                self._looking = asyncio.get_running_loop().call_later(wait_s, self._look)
            else:
                self._look()

    def _look(self) -> None:
        self._looking = None
        peers, self._closing = self._closing, {}
        networks = list(self._refused_until_s) if self._is_filter_due and self.has_filters else None
        self._is_filter_due = False
        failure = _change(peers.keys(), networks, self.port)
        if networks is not None:
            self._see(failure)
        for peer in peers.values():
            # Another connection may come from the same port.
            asyncio.get_running_loop().call_later(CLOSED_FOR_S, self._on.pop, peer, None)
        if peers:
            # An address that was let in again may be the next to close, and is not waited for.
            self._looked_s = time.monotonic()

    def _see(self, failure: OSError | None) -> None:
        """Take in how a change of the filter went; one that failed for the moment is made again in a while."""
        self._is_filter_failed = failure is not None and failure.errno in NO_ROOM
        if self._is_filter_failed:
            self._let_in_later(REFUSED_FOR_S)
        elif failure is not None:
            self.has_filters = False


def _change(peers: Collection[PeerAddress], networks: list[str] | None, port: int) -> OSError | None:
    """Refuse these networks alone, and close connections; returns why the filter was not changed."""
    failure: OSError | None = None
    try:
        if networks is not None:
            refuse_connections(networks, port)
    except OSError as exc:
        failure = exc
        log.warning("connections_not_refused", why=str(exc))
    try:
        if peers:
            close_connections(peers, port)
    except OSError as exc:
        log.warning("connections_not_closed", connections=len(peers), why=str(exc))
    return failure
