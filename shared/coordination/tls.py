"""TLS to Redis, from files that may change: each connection reads them anew."""

import ssl
from collections.abc import Mapping
from typing import Any

from redis.asyncio import BlockingConnectionPool, RedisCluster
from redis.asyncio.connection import SSLConnection

from hotslot.rpc.tls_files import TlsPaths


class TlsConnection(SSLConnection):
    """A connection that trusts the certificates of its files alone, and never speaks less than TLS 1.2.

    redis-py's own trusts the system's certificates beside them, and keeps the files' first content.
    """

    def _connection_arguments(self) -> Mapping[str, Any]:
        found = self.ssl_context
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = found.check_hostname
        context.verify_mode = found.cert_reqs
        context.minimum_version = max(found.min_version or ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
        if found.ca_certs or found.ca_path:
            context.load_verify_locations(found.ca_certs, found.ca_path)
        else:
            context.load_default_certs()
        if found.certfile:
            # The password is for keys that have one, which would otherwise be asked for at the terminal.
            context.load_cert_chain(found.certfile, found.keyfile, found.password or "")
        if found.ciphers:
            context.set_ciphers(found.ciphers)
        found.context = context
        return super()._connection_arguments()


def tls_arguments(url: str, paths: TlsPaths) -> dict[str, str]:
    """Arguments of redis-py for the files; the URL's own parameters go before them."""
    if not url.startswith("rediss"):
        return {}
    named = {"ssl_ca_certs": paths.ca_file, "ssl_certfile": paths.cert_file, "ssl_keyfile": paths.key_file}
    return {name: str(path) for name, path in named.items() if path is not None}


def use_in_pool(pool: BlockingConnectionPool) -> None:
    """Let a pool for rediss:// open such connections."""
    if pool.connection_class is SSLConnection:
        pool.connection_class = TlsConnection


def use_in_cluster(cluster: RedisCluster) -> None:
    """The same for a cluster: the nodes that it begins with, and those that it learns of."""
    if cluster.connection_kwargs.get("connection_class") is SSLConnection:
        cluster.connection_kwargs["connection_class"] = TlsConnection
        for node in cluster.startup_nodes:
            node.connection_class = TlsConnection
