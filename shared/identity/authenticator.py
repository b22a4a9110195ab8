"""Authentication of calls: tokens against a file of hashes, certificates against the names that it lists, JSON Web
Tokens against the keys of their issuers.

A token is verified once, on a thread, and then known by a keyed hash; each call looks up its record, so that one which
is revoked, or past its time, is refused within `REVOCATION_S` of the change of the file.
"""

import asyncio
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog
from cachetools import LRUCache

from hotslot.errors import (
    QuotaExceededError,
    TenantForbiddenError,
    TokenExpiredError,
    TokenRevokedError,
    UnauthenticatedError,
)
from hotslot.formats.principals import (
    Principal,
    Principals,
    TokenRecord,
    is_secret_of,
    may_be_secret_of,
    read_principals,
    split_token,
)
from hotslot.rpc.metadata import single_values
from hotslot.rpc.security import AUTHORIZATION, BEARER, MAX_TOKEN_BYTES
from hotslot.rpc.tls_files import LOOK_EVERY_S
from shared.followed_file import FollowedFile
from shared.identity.callers import OF_CALLERS, Caller, caller_of
from shared.identity.running_calls import RunningCalls
from shared.identity.web_tokens import WebToken, WebTokens, is_web_token

log = structlog.get_logger(__name__)

REVOCATION_S = 2 * LOOK_EVERY_S
"""Longest time from a change of the file until calls go by it."""
MAX_KNOWN_TOKENS = 8192
MAX_KNOWN_WEB_TOKENS = 2048
MAX_WAITING_TOKENS = 64
"""Tokens that wait to be verified; more are refused for a moment."""
MAX_WAITING_OF_ID = 2
"""Those of one id, whose genuine token waits once however often it is sent: guesses of it take no other's place."""


@dataclass(frozen=True, slots=True)
class FileToken:
    """A genuine token of the file of principals."""

    id: str
    hash: str = field(repr=False)
    """Hash that it was verified against."""


@dataclass(frozen=True, slots=True)
class CertificateName:
    """A name in the certificate of a caller, whose chain was verified."""

    name: str


Credential = FileToken | CertificateName | WebToken
"""Proof of who calls, once it was verified; it may have ended since."""


@dataclass(frozen=True, slots=True)
class Standing:
    """An allowed call, and all that it takes to tell later if it still is one."""

    caller: Caller
    credential: Credential
    method: str
    metadata: Mapping[str, str] = field(repr=False)


class Authenticator:
    """Knows principals by files that may change; belongs to one event loop. Close it."""

    def __init__(
        self, path: Path | None, clock: Callable[[], float] = time.time, *, issuers_path: Path | None = None
    ) -> None:
        """Have the file of principals, that of issuers, or both. Raises InvalidRequestError for what cannot be used."""
        self._clock = clock
        self._principals = FollowedFile[Principals](path, read_principals, {})
        self._verified: LRUCache[bytes, str] = LRUCache(MAX_KNOWN_TOKENS)
        """Ids of tokens, empty for what is none of ours, by keyed hash."""
        self._verifying: dict[bytes, asyncio.Future[bool]] = {}
        self._num_waiting: Counter[str] = Counter()
        """Tokens that wait to be verified, by their ids."""
        self._web_tokens: LRUCache[bytes, WebToken] = LRUCache(MAX_KNOWN_WEB_TOKENS)
        self._key = secrets.token_bytes(32)
        self._thread = ThreadPoolExecutor(1, "tokens")
        self._index()
        self._web = WebTokens(issuers_path, clock)
        self.running = RunningCalls()
        """Calls of principals, which end when their callers may no longer make them."""

    def begin(self) -> None:
        """Begin to read the keys of issuers, so that the first token need not wait for them."""
        self._web.begin()

    def close(self) -> None:
        """End the threads that verify, and look at running calls no more."""
        self.running.close()
        self._web.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def standing(self, method: str, context: Any) -> Standing:
        """The caller of an RPC, which may make it. Raises what `credential`, `principal_of` and `caller_of` raise."""
        metadata = single_values(context.invocation_metadata() or (), OF_CALLERS)
        credential = await self.credential(metadata.get(AUTHORIZATION), certified_names(context))
        caller = caller_of(method, self.principal_of(credential), metadata)
        return Standing(replace(caller, expires_s=self.expires_s(credential)), credential, method, metadata)

    def check(self, standing: Standing) -> None:
        """Raise for a call that was allowed and is no more, what `standing` would raise now."""
        caller = caller_of(standing.method, self.principal_of(standing.credential), standing.metadata)
        if caller.tenant != standing.caller.tenant:
            raise TenantForbiddenError(f"tenant {standing.caller.tenant!r} is none of {caller.name}'s any more")

    async def principal(self, authorization: str | None, certified: Iterable[str] = ()) -> Principal:
        """The principal of a token, or of a certificate's names where there is no token. Raises as both parts."""
        return self.principal_of(await self.credential(authorization, certified))

    async def credential(self, authorization: str | None, certified: Iterable[str] = ()) -> Credential:
        """The proof of who calls: a genuine token, or one of a certificate's names where there is no token.

        Raises UnauthenticatedError, QuotaExceededError while too many tokens wait to be verified, and UnavailableError
        where an issuer's keys cannot be had.
        """
        self._follow()
        if authorization is not None:
            return await self._by_token(authorization)
        for name in certified:
            if name in self._by_certificate:
                return CertificateName(name)
        raise UnauthenticatedError(
            "the call says not who makes it: send a token as `authorization: Bearer …` (HOTSLOT_TOKEN_FILE), or a "
            "certificate with a name that the server knows"
        )

    def principal_of(self, credential: Credential) -> Principal:
        """The principal of a proof as it is now.

        Raises UnauthenticatedError and its kinds for one that has ended, and UnavailableError where an issuer's keys
        are too old to tell.
        """
        self._follow()
        if isinstance(credential, WebToken):
            return self._web.principal(credential)
        if isinstance(credential, CertificateName):
            found = self._by_certificate.get(credential.name)
            if found is None:
                raise UnauthenticatedError("the certificate's name is not known here any more")
            return self._principals.content[found]
        principal, record = self._by_id.get(credential.id, ("", None))
        if record is None or record.hash != credential.hash:
            raise UnauthenticatedError("the token is not known here any more")
        if record.revoked_s:
            raise TokenRevokedError(f"the token {record.id} was revoked; ask for a new one")
        if record.expires_s and self._clock() >= record.expires_s:
            raise TokenExpiredError(f"the token {record.id} has expired; ask for a new one")
        return self._principals.content[principal]

    def expires_s(self, credential: Credential) -> float:
        """Unix time at which a proof ends by itself; 0 where nothing says so."""
        if isinstance(credential, WebToken):
            return self._web.expires_s(credential)
        _, record = self._by_id.get(credential.id, ("", None)) if isinstance(credential, FileToken) else ("", None)
        return float(record.expires_s) if record is not None else 0.0

    async def _by_token(self, authorization: str) -> Credential:
        kind, _, token = authorization.partition(" ")
        is_bearer = kind.lower() == BEARER.strip().lower() and len(token) <= MAX_TOKEN_BYTES
        if is_bearer and is_web_token(token):
            return await self._by_web_token(token)
        parts = split_token(token) if is_bearer else None
        if parts is None:
            raise UnauthenticatedError(
                "malformed authorization: expected Bearer and a token, hs1_<id>_<secret> or a JSON Web Token"
            )
        known = self._by_id.get(parts[0])
        if known is None or not await self._is_genuine(known[1], token, parts[1]):
            raise UnauthenticatedError("the token is not known here")
        return FileToken(known[1].id, known[1].hash)

    async def _by_web_token(self, token: str) -> WebToken:
        key = hashlib.blake2b(token.encode(), key=self._key, digest_size=32).digest()
        if (found := self._web_tokens.get(key)) is None:
            found = self._web_tokens[key] = await self._web.verified(token)
        else:
            await self._web.ready(found)
        return found

    async def _is_genuine(self, record: TokenRecord, token: str, secret: str) -> bool:
        # The record's hash is part of it: an id whose secret was changed is verified anew.
        key = hashlib.blake2b(token.encode() + record.hash.encode(), key=self._key, digest_size=32).digest()
        if (found := self._verified.get(key)) is not None:
            return found == record.id
        if not may_be_secret_of(record, secret):
            return False
        waiting = self._verifying.get(key)
        if waiting is None:
            if len(self._verifying) >= MAX_WAITING_TOKENS or self._num_waiting[record.id] >= MAX_WAITING_OF_ID:
                message = "too many tokens are being verified; try again shortly"
                raise QuotaExceededError(message, subject="tokens", retry_after_s=1.0)
            loop = asyncio.get_running_loop()
            self._num_waiting[record.id] += 1
            waiting = self._verifying[key] = loop.run_in_executor(self._thread, is_secret_of, record, secret)
            waiting.add_done_callback(lambda done: self._settle(key, record.id, done))
        return await asyncio.shield(waiting)

    def _settle(self, key: bytes, token_id: str, done: "asyncio.Future[bool]") -> None:
        del self._verifying[key]
        self._num_waiting[token_id] -= 1
        if not self._num_waiting[token_id]:
            del self._num_waiting[token_id]
        if not done.cancelled() and done.exception() is None:
            self._verified[key] = token_id if done.result() else ""

    def _follow(self) -> None:
        """Go by the file as it is now; one that cannot be read, or is being written, changes nothing."""
        if self._principals.refresh():
            self._index()

    def _index(self) -> None:
        principals = self._principals.content
        self._by_id = {record.id: (name, record) for name, each in principals.items() for record in each.tokens}
        self._by_certificate = {shown: name for name, each in principals.items() for shown in each.certificates}


def certified_names(context: Any) -> list[str]:
    """Names that the caller's certificate has, once its chain was verified."""
    found = context.auth_context()
    return [name.decode("utf-8", "replace") for kind in ("peer_uri", "peer_dns") for name in found.get(kind, ())]


@asynccontextmanager
async def opened_authenticator(
    path: Path | None, issuers_path: Path | None = None
) -> AsyncIterator[Authenticator | None]:
    """The authenticator of files, until the block is left; None where there is no file to know callers by."""
    if path is None and issuers_path is None:
        yield None
        return
    authenticator = Authenticator(path, issuers_path=issuers_path)
    try:
        authenticator.begin()
        yield authenticator
    finally:
        authenticator.close()
