"""Redis behind Sentinel: each new connection asks the sentinels which node is the primary."""

from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection
from redis.backoff import NoBackoff

from hotslot.redis_url import SentinelUrl
from shared.coordination.tls import TlsConnection

SENTINEL_PARAMETERS = {"sentinel_username": "username", "sentinel_password": "password"}


class PrimaryTlsConnection(SentinelManagedConnection, TlsConnection):
    """A connection to the primary over TLS."""


class PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the primary, of which a command waits for a free one, as with one node: redis-py has these two
    as pools of their own."""

    async def aclose(self) -> None:
        """Disconnect from the primary, and from the sentinels."""
        await super().aclose()
        await self.sentinel_manager.aclose()


def sentinel_pool(url: SentinelUrl, max_connections: int, timeout_s: float, arguments: dict[str, Any]) -> PrimaryPool:
    """Pool of connections to the primary of a service; `arguments` are those of each connection.

    `timeout_s` is that of a command. Sentinels are dialled with the same certificates, and with a user and password of
    their own.
    """
    node: dict[str, Any] = {**BlockingConnectionPool.from_url(url.node_url()).connection_kwargs, **arguments}
    sentinel = {name: node.pop(parameter) for parameter, name in SENTINEL_PARAMETERS.items() if parameter in node}
    for name in ("host", "port"):
        node.pop(name, None)
    sentinel |= {name: value for name, value in node.items() if name.startswith(("socket_", "ssl_"))}
    # One after the other is asked, once, within the time of the command that waits for it.
    patience_s = timeout_s / (len(url.hosts) + 1)
    sentinel |= {"socket_timeout": patience_s, "socket_connect_timeout": patience_s, "retry": Retry(NoBackoff(), 0)}
    sentinel["ssl"] = url.uses_tls
    # Neither class has types.
    manager = Sentinel(url.hosts, sentinel_kwargs=sentinel)  # type: ignore[no-untyped-call]
    for each in manager.sentinels:
        _use_tls(each)
    return PrimaryPool(  # type: ignore[no-untyped-call]
        url.service,
        manager,
        connection_class=PrimaryTlsConnection if url.uses_tls else SentinelManagedConnection,
        max_connections=max_connections,
        timeout=timeout_s,
        **node,
    )


def _use_tls(client: "Redis") -> None:
    if client.connection_pool.connection_class is SSLConnection:
        client.connection_pool.connection_class = TlsConnection
