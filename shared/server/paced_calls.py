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
from contextvars import ContextVar
from typing import Any

import grpc
import structlog
from cachetools import LRUCache

from hotslot.errors import (
    DigestMismatchError,
    ExhaustedError,
    HotslotError,
    RangeError,
    StreamStalledError,
    UnauthenticatedError,
)
from shared.identity.authenticator import Authenticator, Credential, certified_names
from shared.identity.callers import Caller
from shared.server import late_refusals
from shared.server.call_messages import only_message
from shared.server.call_pace import MAX_CALLERS, CallPace, HeldWeight
from shared.server.counted_callers import PRINCIPAL, CallMetadata, counted_as, counted_name_of, stranger_of, token_of
from shared.server.counters import BOUND_REFUSALS, Counters
from shared.server.failed_calls import abort
from shared.server.flood_connections import FloodConnections
from shared.server.late_refusals import LateRefusals, too_many

log = structlog.get_logger(__name__)

SETTING = "max_calls_per_s"
FRUITLESS = 5
"""Calls that one counts for until its message has come, and again once it was given up, had a token that is none, or
brought an upload for nothing: it took work, and nothing else bounds how many come."""
ROOMLESS = 20
"""Calls that one counts for which found no room: it went all its way, and its caller may come again at once."""
ROOMLESS_FOR_S = 1.0
"""Time after such a call in which its caller's calls count for as many from their beginning, until they end well: else
many that are under way at once would have begun before the first of them is told."""
TRIES_REFILL = 0.1
"""Calls beyond the pace that a caller may try: as many at once as of the pace, and such a part of them each second."""
CUT_OFF_TRIES_PER_S = 2.0
"""Calls that a caller whose flood was cut off may try, before its next connection is closed, too."""
AT_ONCE_S = 0.1
"""A call that is given up sooner costs its client nothing, so it may be one of a flood; later ones ran out of time."""
MAX_EXPECTED = 16
"""Calls of one caller whose messages gRPC waits for by itself. Those that are given up first stay counted: then this
process waits, and hears of it."""
MAX_UNREAD = 256
"""Calls of one caller whose messages have not come yet; more are refused."""
MESSAGE_S = 600.0
"""Longest time for a call's only message: 4 MiB at 7 kB/s."""
TOLD_EVERY_S = 60.0

_FRUITLESS_ERRORS = (RangeError, DigestMismatchError, UnauthenticatedError)
"""Ends of uploads that took a file and its room for nothing, and of guesses."""
_HELD: ContextVar[HeldWeight | None] = ContextVar("held_of_pace", default=None)
"""Weight that the call of this context holds."""


class PacedCalls:
    """Pace of one server's callers. Lives on its event loop."""

    def __init__(self, calls_per_s: float, counters: Counters, authenticator: Authenticator | None) -> None:
        """0 is no bound, and so is it where callers are not known."""
        calls_per_s = calls_per_s if authenticator is not None else 0.0
        self._calls_per_s = calls_per_s
        self._authenticator = authenticator
        self._counters = counters
        self.connections = FloodConnections(counters)
        """Those that floods come over."""
        # At once as many at least as a call counts for.
        self._burst = max(calls_per_s, FRUITLESS)
        self._pace = CallPace(calls_per_s, self._burst) if calls_per_s else None
        self._tries = CallPace(TRIES_REFILL * calls_per_s, calls_per_s) if calls_per_s else None
        self._cut_off_weight = max(1.0, TRIES_REFILL * calls_per_s / CUT_OFF_TRIES_PER_S)
        self._key = secrets.token_bytes(32)
        self._proofs: LRUCache[bytes, Credential] = LRUCache(MAX_CALLERS)
        """Proofs of callers by keyed hashes of their tokens; whose each is now is asked at each call."""
        self._roomless_until_s: LRUCache[str, float] = LRUCache(MAX_CALLERS)
        self._refusals = LateRefusals()
        self._expected: Counter[str] = Counter()
        self._unread: Counter[str] = Counter()
        self._told_s: LRUCache[str, float] = LRUCache(256)
        self._error = too_many(calls_per_s, SETTING)

    def beside(self) -> "PacedCalls":
        """The same pace for another server of this process, which counts for itself."""
        return PacedCalls(self._calls_per_s, self._counters, self._authenticator)

    @property
    def is_bounded(self) -> bool:
        """True where callers have a pace."""
        return self._pace is not None

    def caller(self, metadata: CallMetadata) -> str | None:
        """Caller of a call by a token that was known before, as it is counted; None where that is to be found out."""
        token = token_of(metadata) if self._pace is not None else None
        if token is None or (proof := self._proofs.get(hashed := self._hash(token))) is None:
            return None
        assert self._authenticator is not None
        try:
            return counted_as(self._authenticator.principal_of(proof))
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
        if self.connections.is_closed(context.peer()):
            raise asyncio.CancelledError
        if (caller := await self._found(context)) is None:
            caller = stranger_of(context)
        await self.meet_stranger(caller, context)
        return caller

    async def meet_stranger(self, caller: str, context: Any) -> None:
        """Meet a call that counts for this caller; one too many is refused."""
        if not self._may_begin(caller):
            await self._refuse(caller, context)

    async def may_go_on(self, caller: str) -> None:
        """Wait until a caller's stream may bring another message."""
        while self._pace is not None and not self._pace.take(caller, time.monotonic()):
            self._counters.add(BOUND_REFUSALS, SETTING)
            await asyncio.sleep(late_refusals.HEARS_AFTER_S)

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
        is_roomless = now_s < self._roomless_until_s.get(caller, 0.0)
        # What counts for more than may come at once could never begin.
        held = min(ROOMLESS, self._burst) - FRUITLESS if is_roomless else 0
        if self.connections.is_cut_off(caller, now_s) or not self._pace.take(caller, now_s, FRUITLESS + held):
            return False
        _HELD.set(HeldWeight(caller, held, now_s + self._burst / self._calls_per_s) if held else None)
        return True

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

    def refused(self, error: HotslotError) -> None:
        """Count a refusal by another bound."""
        self._counters.count_refusal(error)

    def came(self, caller: str) -> None:
        """Hear that the message of a call has come."""
        if caller and self._pace is not None:
            self._pace.give_back(caller, FRUITLESS - 1)

    def known(self, context: Any, caller: Caller) -> None:
        """Hear of an allowed call's caller."""
        if self._pace is not None:
            self.connections.heard(context.peer(), counted_name_of(caller))

    def found_room(self) -> None:
        """Hear that the call of this context answers, so that it counts for one from now on."""
        held = _HELD.get()
        _HELD.set(None)
        if held is not None and self._pace is not None and time.monotonic() < held.paid_s:
            self._pace.give_back(held.caller, held.weight)

    def ended(
        self, caller: Caller | None, error: HotslotError | None, given_up_after_s: float | None, context: Any
    ) -> None:
        """Hear of a call that is over; it may count for more than itself."""
        is_given_up = given_up_after_s is not None and given_up_after_s < AT_ONCE_S
        is_fruitless = is_given_up or isinstance(error, _FRUITLESS_ERRORS)
        is_roomless = isinstance(error, ExhaustedError)
        extra: float = (ROOMLESS if is_roomless else FRUITLESS if is_fruitless else 1) - 1
        name = stranger_of(context) if caller is None else counted_name_of(caller)
        if self._pace is None or not name:
            return
        now_s = time.monotonic()
        if is_roomless:
            self._roomless_until_s[name] = now_s + ROOMLESS_FOR_S
        held = _HELD.get()
        if held is not None and held.caller == name:
            extra -= held.weight
            if extra < 0 and now_s < held.paid_s:
                self._pace.give_back(name, -extra)
        if extra > 0:
            self._pace.charge(name, extra, now_s)

    async def _found(self, context: Any) -> str | None:
        """The principal of a call, as it is counted; None where there is none, as the call itself will tell."""
        assert self._authenticator is not None
        token = token_of(context.invocation_metadata() or ())
        try:
            proof = await self._authenticator.credential(token, certified_names(context))
            name = counted_as(self._authenticator.principal_of(proof))
        except HotslotError:
            return None
        if token is not None:
            self._proofs[self._hash(token)] = proof
        return name

    async def _refuse(self, caller: str, context: Any) -> None:
        assert self._tries is not None
        now_s = time.monotonic()
        weight = self._cut_off_weight if self.connections.is_cut_off(caller, now_s) else 1.0
        is_tried = self._tries.take(caller, now_s, weight)
        if not is_tried and self.connections.close(caller, context.peer(), is_known=caller.startswith(PRINCIPAL)):
            raise asyncio.CancelledError
        self._counters.add(BOUND_REFUSALS, SETTING)
        self._tell(caller)
        if is_tried:
            try:
                await self._refusals.wait(caller)
            finally:
                # Who waits makes no flood, and who waits in part does so in part.
                part = min(1.0, (time.monotonic() - now_s) / late_refusals.HEARS_AFTER_S)
                self._tries.give_back(caller, weight * part)
        await abort(context, self._error)

    def _tell(self, caller: str) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s.get(caller, -TOLD_EVERY_S) >= TOLD_EVERY_S:
            self._told_s[caller] = now_s
            log.warning("calls_refused", caller=caller, why=self._error.message)

    def _hash(self, token: str) -> bytes:
        return hashlib.blake2b(token.encode(), key=self._key, digest_size=16).digest()
