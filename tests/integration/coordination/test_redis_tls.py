"""rediss:// with a private authority and certificates of clients, to a real Valkey behind TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hotslot.errors import CoordinationUnavailableError
from hotslot.local.authority import Authority
from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.rpc.tls_files import TlsPaths
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.server.transport import http_context
from tests.support.certificates import Party, party
from tests.support.patient_redis import patient

pytestmark = pytest.mark.integration


@asynccontextmanager
async def behind_tls(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port that speaks TLS for one that does not."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def paths(one: Party, *, mutual: bool = True) -> TlsPaths:
    cert, key = (one.cert_file, one.key_file) if mutual else (None, None)
    return TlsPaths(cert, key, one.bundle_file)


async def usable(url: str, tls: TlsPaths) -> bool:
    async with RedisConnection(patient(url, tls=tls)) as redis:
        try:
            await redis.ping()
        except CoordinationUnavailableError:
            return False
        return True


@pytest.mark.parametrize("cluster", [False, True], ids=["node", "cluster"])
async def test_redis_is_dialled_with_our_certificates_and_trusted_by_our_authority_alone(
    tmp_path: Path, cluster: bool
) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    server, client = party(tmp_path, "redis", authority), party(tmp_path, "client", authority)
    stranger = party(tmp_path, "stranger", other)
    context = http_context(server.transport())
    assert context is not None
    with embedded_valkey(cluster=cluster) as valkey:
        async with behind_tls(urlsplit(valkey.url).port or 0, context) as port:
            scheme = "rediss+cluster" if cluster else "rediss"
            url = f"{scheme}://127.0.0.1:{port}"
            if cluster:
                # Its nodes name their own port, which speaks no TLS: that the first connection stands is what counts.
                with pytest.raises(CoordinationUnavailableError) as failed:
                    async with RedisConnection(patient(url, tls=paths(client))) as redis:
                        await redis.ping()
                assert "CERTIFICATE_VERIFY_FAILED" not in str(failed.value)
                with pytest.raises(CoordinationUnavailableError, match=r"(?i)certificate"):
                    async with RedisConnection(patient(url, tls=paths(stranger))) as redis:
                        await redis.ping()
                return
            assert await usable(url, paths(client))
            assert not await usable(url, paths(client, mutual=False))
            assert not await usable(url, paths(stranger))
            assert not await usable(url, TlsPaths())
            # As parameters of the URL too, which go before the settings.
            query = f"?ssl_ca_certs={client.bundle_file}&ssl_certfile={client.cert_file}&ssl_keyfile={client.key_file}"
            assert await usable(url + query, paths(stranger))


async def test_new_certificates_are_used_by_connections_that_come_back(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    server, client = party(tmp_path, "redis", authority), party(tmp_path, "client", authority)
    context = http_context(server.transport())
    assert context is not None
    with embedded_valkey() as valkey:
        async with behind_tls(valkey.port, context) as port:
            url = f"rediss://127.0.0.1:{port}"
            async with RedisConnection(RedisOptions(url, tls=paths(client), max_connections=1)) as redis:
                await redis.ping()
                for one in (server, client):
                    one.trust(other)
                    one.certify(other)
                await redis._client.connection_pool.disconnect()
                await redis.ping()
