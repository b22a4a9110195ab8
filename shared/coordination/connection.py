"""The connection to Redis: one node or a cluster, bounded, and safe under cancellation.

A command that is cancelled half-way leaves its reply in the socket for the next command; gRPC cancels handlers all
the time. So every command runs in a task of its own, which goes on to the end when the caller goes away.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from hotslot.errors import CoordinationForbiddenError, CoordinationUnavailableError
from hotslot.redis_url import CLUSTER, SENTINEL, read_sentinel_url, without_user
from hotslot.rpc.tls_files import TlsFiles, TlsPaths
from hotslot.secret_urls import masked_url
from hotslot.tracing import SpanKind, span_inside
from shared.coordination.keys import PING, Key
from shared.coordination.password import PasswordFile
from shared.coordination.refusals import refusal
from shared.coordination.sentinel import sentinel_pool
from shared.coordination.tls import tls_arguments, use_in_cluster, use_in_pool
from shared.coordination.unreadable import FORM_ERRORS
from shared.metrics.numbers import Measured, Spreads, Tally
from shared.settings import RedisUrl
from shared.transport_settings import RedisTransport

T = TypeVar("T")
PLAIN_COMMAND = "command"
"""In the place of a script's name, for commands without one."""


@dataclass(frozen=True)
class Script:
    """A Lua function by its text."""

    name: str
    text: str

    @cached_property
    def sha(self) -> str:
        """Hash by which a server knows it."""
        return hashlib.sha1(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Options of the connection to Redis."""

    url: str = field(repr=False)
    """redis://, rediss://, unix://, or with +cluster or +sentinel behind the scheme."""
    command_timeout_s: float = 2.0
    """Longest wait for one command, waiting for a connection included."""
    connect_timeout_s: float = 1.0
    max_connections: int = 16
    tls: TlsPaths = field(default_factory=TlsPaths)
    """Files for rediss://; they are read for each connection, and so may change."""
    password_file: Path | None = None
    """File of the password, read for each connection; the URL has none then."""

    @classmethod
    def of(cls, url: RedisUrl, settings: RedisTransport) -> "RedisOptions":
        """Options of a process; raises InvalidRequestError for files that cannot be used."""
        tls = TlsPaths(settings.redis_cert_file, settings.redis_key_file, settings.redis_ca_file)
        TlsFiles(tls)
        if settings.redis_password_file is not None:
            PasswordFile(url.value, settings.redis_password_file).get_credentials()
        return cls(url.value, tls=tls, password_file=settings.redis_password_file)


class RedisConnection:
    """A pool of connections; raises CoordinationUnavailableError for everything that can go wrong with them.

    CoordinationForbiddenError, a kind of it, is for what its access rules refuse.
    """

    def __init__(self, options: RedisOptions) -> None:
        self._shown_url = masked_url(options.url)
        self._timeout_s = options.command_timeout_s
        self._running: set[asyncio.Task[Any]] = set()
        self._client = _open(options)
        self._durations = Spreads("hotslot_redis_seconds")
        self._errors = Tally("hotslot_redis_errors_total")
        self.refused_records = Tally("hotslot_redis_records_refused_total")
        """Records that readers of this connection did not believe, by reason."""

    async def __aenter__(self) -> "RedisConnection":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let running commands end, then disconnect."""
        if self._running:
            await asyncio.wait(self._running)
        await self._client.aclose()

    async def ping(self) -> None:
        """Return when Redis answers; raises CoordinationUnavailableError when it does not."""
        # A read that any node of a cluster routes alike, where PING would go to one node only.
        await self.run(lambda client: client.exists(PING), [PING])

    async def evaluate(self, script: Script, keys: Sequence[Key], arguments: Sequence[str | int]) -> Any:
        """Run a script by its hash, sending its text only to a server that does not know it yet."""

        async def call(client: Any) -> Any:
            try:
                return await client.evalsha(script.sha, len(keys), *keys, *arguments)
            except exceptions.NoScriptError:
                return await client.eval(script.text, len(keys), *keys, *arguments)

        return await self.run(call, keys, script.name)

    async def run(self, command: Callable[[Any], Awaitable[T]], keys: Sequence[str] = (), script: str = "") -> T:
        """Run a command to its end, even if the caller is cancelled meanwhile.

        The keys that it names, and the script that it runs, are for the message of a refusal.
        """
        task = asyncio.create_task(self._timed(command, keys, script))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def readings(self) -> Iterator[Measured]:
        """Numbers of the commands."""
        yield from self._durations.readings()
        yield from self._errors.readings()
        yield from self.refused_records.readings()

    async def _timed(self, command: Callable[[Any], Awaitable[T]], keys: Sequence[str], script: str) -> T:
        began_s, name = time.monotonic(), script or PLAIN_COMMAND
        described = {"db.system.name": "redis", "db.operation.name": name}
        try:
            with span_inside("hotslot.redis", described, kind=SpanKind.CLIENT):
                return await self._bounded(command, keys, script)
        except CoordinationUnavailableError as exc:
            self._errors.add(name, "forbidden" if isinstance(exc, CoordinationForbiddenError) else "unavailable")
            raise
        finally:
            self._durations.add(time.monotonic() - began_s, name)

    async def _bounded(self, command: Callable[[Any], Awaitable[T]], keys: Sequence[str], script: str) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await command(self._client)
        except (exceptions.RedisError, exceptions.RedisClusterException, OSError, TimeoutError, *FORM_ERRORS) as exc:
            # The last ones are the parser's, for bytes that are no protocol of Redis.
            if (refused := refusal(exc, keys, script)) is not None:
                raise CoordinationForbiddenError(
                    f"Redis at {self._shown_url} refuses {refused}; docs/network.md has the rights that its user needs"
                ) from exc
            reason = str(exc) or type(exc).__name__
            raise CoordinationUnavailableError(
                f"Redis at {self._shown_url} cannot be used: {reason}", retry_after_s=1.0
            ) from exc

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # No caller wants an abandoned command's failure any more.
            task.exception()


def _open(options: RedisOptions) -> Any:
    # One more try on a fresh connection: the pool's may have died while idle. All commands here can be repeated.
    retry = Retry(NoBackoff(), 1, supported_errors=(exceptions.ConnectionError,))
    common: dict[str, Any] = {
        "decode_responses": True,
        # Bytes that are no text lie under a key that is not ours; readers pass them over.
        "encoding_errors": "replace",
        "socket_timeout": options.command_timeout_s,
        "socket_connect_timeout": options.connect_timeout_s,
        "retry": retry,
        **tls_arguments(options.url, options.tls),
    }
    url = options.url
    if options.password_file is not None:
        # redis-py takes a user from the URL or from the provider, which has the URL's.
        common["credential_provider"] = PasswordFile(url, options.password_file)
        url = without_user(url)
    if SENTINEL in url:
        sentinel = read_sentinel_url(url)
        return Redis.from_pool(sentinel_pool(sentinel, options.max_connections, options.command_timeout_s, common))
    if CLUSTER in url:
        cluster = RedisCluster.from_url(url.replace(CLUSTER, "://"), max_connections=options.max_connections, **common)
        use_in_cluster(cluster)
        return cluster
    pool = BlockingConnectionPool.from_url(
        url, max_connections=options.max_connections, timeout=options.command_timeout_s, **common
    )
    use_in_pool(pool)
    return Redis(connection_pool=pool)
