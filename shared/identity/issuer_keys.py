"""Keys of a trusted issuer, read again from time to time, and at once for a key that is not known, within bounds.

A reading is shared by all that wait for it. Invented keys cause one every `UNKNOWN_KEY_S` and no more. Where readings
fail, the keys that are known are believed for the issuer's `stale_s`.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import structlog

from hotslot.errors import UnavailableError
from hotslot.rpc.tls_files import LOOK_EVERY_S, FileStamps
from shared.identity.issuers import TrustedIssuer
from shared.identity.key_set import MAX_SET_BYTES, KeySet, SigningKey, parse_key_set

log = structlog.get_logger(__name__)

UNKNOWN_KEY_S = 10.0
"""Least time between two readings for the sake of a key that is not known."""
FAILED_S = 2.0
"""Least time from a reading that failed to the next."""
READING_S = 10.0
"""Longest time of a reading."""
HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Headers of a reading: what is compressed could be of any size."""


class IssuerKeys:
    """Keys of one issuer; belongs to one event loop. Close it."""

    def __init__(
        self,
        issuer: TrustedIssuer,
        read: "Callable[[TrustedIssuer], Awaitable[bytes]] | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads nothing before it is asked."""
        self._issuer = issuer
        self._read = read or read_key_set
        self._clock = clock
        self._stamps = FileStamps((Path(issuer.jwks),)) if issuer.is_file else None
        self._set: KeySet | None = None
        self._read_s = self._ended_s = -float("inf")
        """Times of the last reading that succeeded, and of the last one."""
        self._failure = ""
        self._reading: asyncio.Task[None] | None = None

    def close(self) -> None:
        """End a reading that is under way."""
        if self._reading is not None:
            self._reading.cancel()

    def begin(self) -> None:
        """Begin to read keys that are not there, or old."""
        if self._is_due():
            self._begin_reading()

    async def find(self, kid: str, algorithm: str) -> SigningKey | None:
        """The key of a signature; None for one that the issuer does not have. Raises UnavailableError as `check`."""
        self.begin()
        if not self._is_fresh():
            await self._read_once(FAILED_S)
        self.check()
        assert self._set is not None
        if (found := self._set.find(kid, algorithm)) is None:
            await self._read_once(FAILED_S if self._issuer.is_file else UNKNOWN_KEY_S)
            found = self._set.find(kid, algorithm)
        return found

    async def ready(self) -> None:
        """Have keys that are not too old, where that can be had."""
        self.begin()
        if not self._is_fresh():
            await self._read_once(FAILED_S)

    def has(self, thumbprint: str) -> bool:
        """Tell whether a key is the issuer's now. Raises UnavailableError as `check`."""
        self.check()
        assert self._set is not None
        return self._set.has(thumbprint)

    def check(self) -> None:
        """Raise UnavailableError while the keys are not known, or were read too long ago."""
        if not self._is_fresh():
            message = f"the keys of issuer {self._issuer.name} cannot be read, so its tokens cannot be verified now"
            raise UnavailableError(message, retry_after_s=FAILED_S)

    def _is_fresh(self) -> bool:
        return self._set is not None and self._clock() - self._read_s < self._issuer.stale_s

    def _is_due(self) -> bool:
        if self._clock() - self._ended_s < FAILED_S:
            return False
        if self._stamps is not None and self._stamps.changed(LOOK_EVERY_S):
            return True
        return self._set is None or bool(self._failure) or self._clock() - self._read_s >= self._issuer.refresh_s

    async def _read_once(self, least_s: float) -> None:
        """Have the keys read, unless that was done less than `least_s` ago; waits for a reading under way."""
        if self._reading is None and self._clock() - self._ended_s >= least_s:
            self._begin_reading()
        if self._reading is not None:
            await asyncio.wait([self._reading])

    def _begin_reading(self) -> None:
        if self._reading is None:
            self._reading = asyncio.create_task(self._run())

    async def _run(self) -> None:
        stamps = self._stamps.look() if self._stamps is not None else None
        try:
            async with asyncio.timeout(READING_S):
                data = await self._read(self._issuer)
                found = await asyncio.to_thread(parse_key_set, data, self._issuer.algorithms)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, ssl.SSLError) as exc:
            if not self._failure:
                log.warning("issuer_keys_not_read", issuer=self._issuer.name, why=f"{type(exc).__name__}: {exc}")
            self._failure = str(exc) or type(exc).__name__
        else:
            if found != self._set:
                kids = [one.kid for one in found.keys]
                log.info("issuer_keys_read", issuer=self._issuer.name, num_keys=len(kids), kids=kids[:8])
            self._set, self._read_s, self._failure = found, self._clock(), ""
            if self._stamps is not None and stamps is not None:
                self._stamps.taken = stamps
        finally:
            self._ended_s = self._clock()
            self._reading = None


async def read_key_set(issuer: TrustedIssuer) -> bytes:
    """Bytes of an issuer's set of keys, from its file or URL. No redirect is followed, and no more read than a set has.

    Raises OSError, httpx2.HTTPError, and ValueError for what is no answer.
    """
    if issuer.is_file:
        return await asyncio.to_thread(_file, Path(issuer.jwks))
    is_tls = urlsplit(issuer.jwks).scheme == "https"
    # Reading the system's certificates takes long enough to be a thread's work.
    verify = await asyncio.to_thread(_trust, issuer.ca_file) if is_tls else False
    body = bytearray()
    async with (
        httpx2.AsyncClient(verify=verify, follow_redirects=False, timeout=READING_S, trust_env=is_tls) as client,
        client.stream("GET", issuer.jwks, headers=HEADERS) as response,
    ):
        if response.status_code != httpx2.codes.OK:
            raise ValueError(f"HTTP {response.status_code}")
        async for data in response.aiter_raw():
            body += data
            if len(body) > MAX_SET_BYTES:
                break
    return bytes(body)


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def _file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_SET_BYTES + 1)
