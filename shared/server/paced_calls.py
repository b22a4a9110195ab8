"""Calls of known callers at a pace: those beyond it are refused before anything is done for them.

A flood costs its server some processor time for each call, whatever becomes of it, and so delays all others. gRPC alone
takes a tenth of a millisecond for a call that its client gives up at once. So calls beyond the pace are refused before
they are read; each hears of that a second later, as it may call no earlier; and a connection over which more are tried
even so is closed, unless others call over it too.
"""

import asyncio
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import grpc
import structlog
from cachetools import LRUCache

from hotslot.errors import ExhaustedError, HotslotError, StreamStalledError
from hotslot.formats.principals import Principal, Scope
from hotslot.rpc.security import AUTHORIZATION
from shared.identity.authenticator import Authenticator, Credential, certified_names
from shared.identity.callers import Caller
from shared.identity.parties import address_of
from shared.server import late_refusals
from shared.server.call_messages import only_message
from shared.server.call_pace import MAX_CALLERS, CallPace
from shared.server.closed_connections import PeerAddress, close_connections, peer_of
from shared.server.counters import BOUND_REFUSALS, Counters
from shared.server.failed_calls import abort
from shared.server.late_refusals import LateRefusals, too_many

log = structlog.get_logger(__name__)

SETTING = "max_calls_per_s"
CONNECTIONS = "connections_of_floods"
"""Label of connections that were closed."""
FRUITLESS = 5
"""Calls that one counts for until its message has come, and again once it was given up, or found no room: it took work,
and nothing else bounds how many come."""
TRIES_REFILL = 0.1
"""Calls beyond the pace that a caller may try: as many at once as of the pace, and such a part of them each second."""
CUT_OFF_S = 5.0
"""Time for which a caller whose flood was cut off may begin no call; it goes on anew while it tries too often."""
AT_ONCE_S = 0.1
"""A call that is given up sooner costs its client nothing, so it may be one of a flood; later ones ran out of time."""
CLOSE_EVERY_S = 0.1
"""Least time between two looks at all sockets for those to close."""
CLOSED_FOR_S = 1.0
"""Time for which calls that come from a closed connection are taken for ones that had come before."""
MAX_EXPECTED = 16
"""Calls of one caller whose messages gRPC waits for by itself. Those that are given up first stay counted: then this
process waits, and hears of it."""
MAX_UNREAD = 256
"""Calls of one caller whose messages have not come yet; more are refused."""
MESSAGE_S = 600.0
"""Longest time for a call's only message: 4 MiB at 7 kB/s."""
TOLD_EVERY_S = 60.0
_SHARED = ""
"""In the place of a connection's caller where there are several, or one that calls for others."""
_CLOSED = "closed"
"""In the place of a connection's caller once it is being closed."""

_PRINCIPAL = "principal "
_FOR_OTHERS = frozenset({Scope.WORKER, Scope.GATEWAY})
CallMetadata = Iterable[tuple[str, str | bytes]]


class PacedCalls:
    """Pace of one server's callers. Lives on its event loop."""

    def __init__(self, calls_per_s: float, counters: Counters, authenticator: Authenticator | None) -> None:
        """0 is no bound, and so is it where callers are not known."""
        calls_per_s = calls_per_s if authenticator is not None else 0.0
        self._authenticator = authenticator
        self.port = 0
        """Port of the server, once it listens."""
        self._counters = counters
        # At once as many at least as a call counts for.
        self._pace = CallPace(calls_per_s, max(calls_per_s, FRUITLESS)) if calls_per_s else None
        self._tries = CallPace(TRIES_REFILL * calls_per_s, calls_per_s) if calls_per_s else None
        self._key = secrets.token_bytes(32)
        self._proofs: LRUCache[bytes, Credential] = LRUCache(MAX_CALLERS)
        """Proofs of callers by keyed hashes of their tokens; whose each is now is asked at each call."""
        self._on: LRUCache[str, str] = LRUCache(MAX_CALLERS)
        """Callers by their connections' peers."""
        self._refusals = LateRefusals()
        self._cut_off_until_s: LRUCache[str, float] = LRUCache(MAX_CALLERS)
        """Callers that flooded, and the time until which their connections are closed at their first call."""
        self._expected: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()
        self._closing: dict[PeerAddress, str] = {}
        self._closer: asyncio.Task[None] | None = None
        self._told_s: LRUCache[str, float] = LRUCache(256)
        self._error = too_many(calls_per_s, SETTING)

    @property
    def is_bounded(self) -> bool:
        """True where callers have a pace."""
        return self._pace is not None

    def caller(self, metadata: CallMetadata) -> str | None:
        """Caller of a call by a token that was known before, as it is counted; None where that is to be found out."""
        token = _token_of(metadata) if self._pace is not None else None
        if token is None or (proof := self._proofs.get(hashed := self._hash(token))) is None:
            return None
        assert self._authenticator is not None
        try:
            return _counted_as(self._authenticator.principal_of(proof))
        except HotslotError:
            # Revoked or expired: what comes with it is a stranger's, and costs its former owner nothing.
            del self._proofs[hashed]
            return None

    def refusal(self, caller: str) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Handler of a call that is one too many; None for one that may begin."""
        if self._may_begin(caller):
            return None

        async def refuse(_: Any, context: Any) -> None:
            await self._refuse(caller, context)

        # Of this shape alone no message is read before the handler runs.
        return grpc.stream_stream_rpc_method_handler(refuse)

    async def meet(self, context: Any) -> str:
        """Meet a call whose token is not known; returns its caller, as it is counted. One too many is refused.

        It counts for its principal, or its address where there is none.
        """
        if (caller := await self._found(context)) is None:
            caller = f"address {address_of(context.peer())}"
        if not self._may_begin(caller):
            await self._refuse(caller, context)
        return caller

    def expect(self, caller: str) -> bool:
        """Tell whether gRPC may wait for a call's message, which costs less; none of it is heard before that came."""
        if caller and self._expected[caller] >= MAX_EXPECTED:
            return False
        self._expected[caller] += 1
        return True

    def arrived(self, caller: str) -> None:
        """Hear that the message has come which gRPC waited for."""
        self._expected[caller] -= 1
        if not self._expected[caller]:
            del self._expected[caller]
        self.came(caller)

    def _may_begin(self, caller: str) -> bool:
        if not caller or self._pace is None:
            return True
        now_s = time.monotonic()
        return now_s >= self._cut_off_until_s.get(caller, 0.0) and self._pace.take(caller, now_s, FRUITLESS)

    async def message(self, caller: str, context: Any) -> bytes:
        """The message of a call that has one; no caller is waited for by many calls, nor for long."""
        if caller and self._unread[caller] >= MAX_UNREAD:
            await self._refuse(caller, context)
        self._unread[caller] += 1
        try:
            async with asyncio.timeout(MESSAGE_S):
                return await only_message(context)
        except TimeoutError:
            error = StreamStalledError(f"the message of this call did not come within {MESSAGE_S:g} s")
            self._counters.count_refusal(error)
            await abort(context, error)
        finally:
            self._unread[caller] -= 1
            if not self._unread[caller]:
                del self._unread[caller]

    def came(self, caller: str) -> None:
        """Hear that the message of a call has come."""
        if caller and self._pace is not None:
            self._pace.give_back(caller, FRUITLESS - 1)

    def known(self, context: Any, caller: Caller) -> None:
        """Hear of an allowed call's caller."""
        if self._pace is not None and self._on.setdefault(peer := context.peer(), name := _name_of(caller)) != name:
            self._on[peer] = _SHARED

    def ended(self, caller: Caller | None, error: HotslotError | None, given_up_after_s: float | None) -> None:
        """Hear of a call that is over; it may count for more than itself."""
        is_given_up = given_up_after_s is not None and given_up_after_s < AT_ONCE_S
        is_fruitless = is_given_up or isinstance(error, ExhaustedError)
        if is_fruitless and self._pace is not None and caller is not None and (name := _name_of(caller)):
            self._pace.charge(name, FRUITLESS - 1, time.monotonic())

    async def _found(self, context: Any) -> str | None:
        """The principal of a call, as it is counted; None where there is none, as the call itself will tell."""
        assert self._authenticator is not None
        token = _token_of(context.invocation_metadata() or ())
        try:
            proof = await self._authenticator.credential(token, certified_names(context))
            name = _counted_as(self._authenticator.principal_of(proof))
        except HotslotError:
            return None
        if token is not None:
            self._proofs[self._hash(token)] = proof
        return name

    async def _refuse(self, caller: str, context: Any) -> None:
        assert self._tries is not None
        now_s = time.monotonic()
        is_tried = self._tries.take(caller, now_s)
        if not is_tried and self._is_closed(caller, context.peer()):
            raise asyncio.CancelledError
        self._counters.add(BOUND_REFUSALS, SETTING)
        self._tell(caller)
        if is_tried:
            try:
                await self._refusals.wait(caller)
            finally:
                # Who waits makes no flood, and who waits in part does so in part.
                self._tries.give_back(caller, min(1.0, (time.monotonic() - now_s) / late_refusals.HEARS_AFTER_S))
        await abort(context, self._error)

    def _is_closed(self, caller: str, peer: str) -> bool:
        """Close the connection of a call; false for one that others call over, too."""
        known = self._on.get(peer, caller)
        if known == _CLOSED:
            return True  # Calls that had come before.
        if known != caller and caller.startswith(_PRINCIPAL):
            self._on[peer] = known = _SHARED
        # A stranger may be the one principal of its connection, who leaves the token out.
        if known == _SHARED or not self.port or (found := peer_of(peer)) is None:
            return False
        self._on[peer] = _CLOSED
        self._cut_off_until_s[caller] = time.monotonic() + CUT_OFF_S
        self._counters.add(BOUND_REFUSALS, CONNECTIONS)
        self._closing[found] = peer
        if self._closer is None or self._closer.done():
            self._closer = asyncio.create_task(self._close_all())
        return True

    async def _close_all(self) -> None:
        while self._closing:
            peers, self._closing = self._closing, {}
            try:
                await asyncio.to_thread(close_connections, peers.keys(), self.port)
            except OSError as exc:
                log.warning("connections_not_closed", connections=len(peers), why=str(exc))
            for peer in peers.values():
                # Another connection may come from the same port.
                asyncio.get_running_loop().call_later(CLOSED_FOR_S, self._on.pop, peer, None)
            await asyncio.sleep(CLOSE_EVERY_S)

    def _tell(self, caller: str) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s.get(caller, -TOLD_EVERY_S) >= TOLD_EVERY_S:
            self._told_s[caller] = now_s
            log.warning("calls_refused", caller=caller, why=self._error.message)

    def _hash(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode(), key=self._key, digest_size=16).digest()


def _token_of(metadata: CallMetadata) -> str | None:
    for key, value in metadata:
        if key == AUTHORIZATION and isinstance(value, str):
            return value
    return None


def _counted_as(who: Principal | Caller) -> str:
    """Name that somebody is counted by; empty for one that calls for others."""
    return "" if who.scopes & _FOR_OTHERS else f"{_PRINCIPAL}{who.name}"


def _name_of(caller: Caller) -> str:
    return "" if caller.via else _counted_as(caller)
