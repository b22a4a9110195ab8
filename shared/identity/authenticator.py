"""Authentication of calls: tokens against a file of hashes, certificates against the names that it lists.

A token is verified once, on a thread, and then known by a keyed hash; each call looks up its record, so that one which
is revoked, or past its time, is refused within `REVOCATION_S` of the change of the file.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from cachetools import LRUCache

from hotslot.errors import (
    InvalidRequestError,
    QuotaExceededError,
    TokenExpiredError,
    TokenRevokedError,
    UnauthenticatedError,
)
from hotslot.formats.principals import (
    Principal,
    Principals,
    TokenRecord,
    is_secret_of,
    read_principals,
    split_token,
)
from hotslot.rpc.metadata import single_values
from hotslot.rpc.security import AUTHORIZATION, BEARER, MAX_TOKEN_BYTES
from hotslot.rpc.tls_files import LOOK_EVERY_S, FileStamps
from shared.identity.callers import OF_CALLERS, Caller, caller_of

log = structlog.get_logger(__name__)

REVOCATION_S = 2 * LOOK_EVERY_S
"""Longest time from a change of the file until calls go by it."""
MAX_KNOWN_TOKENS = 8192
MAX_WAITING_TOKENS = 64
"""Tokens that wait to be verified; more are refused for a moment."""


class Authenticator:
    """Knows principals by a file that may change; belongs to one event loop. Close it."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Raises InvalidRequestError for a file that cannot be used."""
        self._path = path
        self._clock = clock
        self._stamps = FileStamps((path,))
        self._verified: LRUCache[bytes, str] = LRUCache(MAX_KNOWN_TOKENS)
        """Ids of tokens, empty for what is none of ours, by keyed hash."""
        self._verifying: dict[bytes, asyncio.Future[bool]] = {}
        self._key = secrets.token_bytes(32)
        self._thread = ThreadPoolExecutor(1, "tokens")
        self._index(read_principals(path))

    def close(self) -> None:
        """End the thread that verifies."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def caller(self, method: str, context: Any) -> Caller:
        """The caller of an RPC, which may make it. Raises what `principal` and `caller_of` raise."""
        metadata = single_values(context.invocation_metadata() or (), OF_CALLERS)
        principal = await self.principal(metadata.get(AUTHORIZATION), _certified_names(context))
        return caller_of(method, principal, metadata)

    async def principal(self, authorization: str | None, certified: Iterable[str] = ()) -> Principal:
        """The principal of a token, or of a certificate's names where there is no token.

        Raises UnauthenticatedError, its kinds, and QuotaExceededError while too many tokens wait to be verified.
        """
        self._follow()
        if authorization is not None:
            return await self._by_token(authorization)
        for name in certified:
            if (found := self._by_certificate.get(name)) is not None:
                return self._principals[found]
        raise UnauthenticatedError(
            "the call says not who makes it: send a token as `authorization: Bearer …` (HOTSLOT_TOKEN_FILE), or a "
            "certificate with a name that the server knows"
        )

    async def _by_token(self, authorization: str) -> Principal:
        kind, _, token = authorization.partition(" ")
        is_bearer = kind.lower() == BEARER.strip().lower() and len(token) <= MAX_TOKEN_BYTES
        parts = split_token(token) if is_bearer else None
        if parts is None:
            raise UnauthenticatedError("malformed authorization: expected Bearer and a token, hs1_<id>_<secret>")
        known = self._by_id.get(parts[0])
        if known is None or not await self._is_genuine(known[1], token, parts[1]):
            raise UnauthenticatedError("the token is not known here")
        principal, record = known
        if record.revoked_s:
            raise TokenRevokedError(f"the token {record.id} was revoked; ask for a new one")
        if record.expires_s and self._clock() >= record.expires_s:
            raise TokenExpiredError(f"the token {record.id} has expired; ask for a new one")
        return self._principals[principal]

    async def _is_genuine(self, record: TokenRecord, token: str, secret: str) -> bool:
        # The record's hash is part of it: an id whose secret was changed is verified anew.
        key = hashlib.blake2b(token.encode() + record.hash.encode(), key=self._key, digest_size=32).digest()
        if (found := self._verified.get(key)) is not None:
            return found == record.id
        waiting = self._verifying.get(key)
        if waiting is None:
            if len(self._verifying) >= MAX_WAITING_TOKENS:
                message = "too many tokens are being verified; try again shortly"
                raise QuotaExceededError(message, subject="tokens", retry_after_s=1.0)
            loop = asyncio.get_running_loop()
            waiting = self._verifying[key] = loop.run_in_executor(self._thread, is_secret_of, record, secret)
            waiting.add_done_callback(lambda done: self._settle(key, record.id, done))
        return await asyncio.shield(waiting)

    def _settle(self, key: bytes, token_id: str, done: "asyncio.Future[bool]") -> None:
        del self._verifying[key]
        if not done.cancelled() and done.exception() is None:
            self._verified[key] = token_id if done.result() else ""

    def _follow(self) -> None:
        """Go by the file as it is now; one that cannot be read, or is being written, changes nothing."""
        if not self._stamps.changed():
            return
        stamps = self._stamps.look()
        try:
            self._index(read_principals(self._path))
        except InvalidRequestError as exc:
            log.warning("principals_not_read", path=str(self._path), why=exc.message)
        self._stamps.taken = stamps

    def _index(self, principals: Principals) -> None:
        self._principals = principals
        self._by_id = {record.id: (name, record) for name, each in principals.items() for record in each.tokens}
        self._by_certificate = {shown: name for name, each in principals.items() for shown in each.certificates}


def _certified_names(context: Any) -> list[str]:
    """Names that the caller's certificate has, once its chain was verified."""
    found = context.auth_context()
    return [name.decode("utf-8", "replace") for kind in ("peer_uri", "peer_dns") for name in found.get(kind, ())]


@asynccontextmanager
async def opened_authenticator(path: Path | None) -> AsyncIterator[Authenticator | None]:
    """The authenticator of a file, until the block is left; None where there is no file to know callers by."""
    authenticator = Authenticator(path) if path is not None else None
    try:
        yield authenticator
    finally:
        if authenticator is not None:
            authenticator.close()
