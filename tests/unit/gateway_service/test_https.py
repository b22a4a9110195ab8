"""HTTPS of the gateway: certificates from files that change, and clients that must show one."""

import asyncio
import ssl
from pathlib import Path

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gateway_service.app import running_gateway
from gateway_service.server import serve_http
from gateway_service.settings import GatewaySettings
from hotslot.errors import InsecureTransportError
from hotslot.local.authority import Authority
from tests.support.certificates import Party, party


def hello(request: object) -> PlainTextResponse:
    return PlainTextResponse("hello")


APP = Starlette(routes=[Route("/", hello)])


def settings(server: Party, *, mutual: bool) -> GatewaySettings:
    return GatewaySettings(
        gateway_listen="127.0.0.1:0",
        gateway_cert_file=server.cert_file,
        gateway_key_file=server.key_file,
        gateway_client_ca_file=server.bundle_file if mutual else None,
    )


async def ask(port: int, trusted: Party, shown: Party | None = None) -> str:
    context = ssl.create_default_context(cafile=str(trusted.bundle_file))
    if shown is not None:
        context.load_cert_chain(shown.cert_file, shown.key_file)
    async with httpx2.AsyncClient(verify=context, trust_env=False) as client:
        return (await client.get(f"https://localhost:{port}/")).text


async def test_certificates_of_the_gateway_change_without_a_restart(tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    server, client = party(tmp_path, "gateway", first), party(tmp_path, "client", first)
    async with serve_http(APP, settings(server, mutual=False)) as running:
        assert await ask(running.port, client) == "hello"
        server.certify(second)
        with pytest.raises(httpx2.ConnectError):
            await ask(running.port, client)
        client.trust(second)
        assert await ask(running.port, client) == "hello"
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200" not in await reader.read()


async def test_a_client_without_a_certificate_is_refused_where_they_are_asked_for(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    server, client = party(tmp_path, "gateway", authority), party(tmp_path, "client", authority)
    stranger = party(tmp_path, "stranger", other)
    async with serve_http(APP, settings(server, mutual=True)) as running:
        assert await ask(running.port, client, client) == "hello"
        for shown in (None, stranger):
            with pytest.raises((httpx2.TransportError, ssl.SSLError)):
                await ask(running.port, client, shown)
        server.trust(authority, other)
        assert await ask(running.port, client, stranger) == "hello"


@pytest.mark.parametrize(("listen", "store"), [("0.0.0.0:0", "127.0.0.1:1"), ("127.0.0.1:0", "store.example:7400")])
async def test_plaintext_leaves_the_machine_only_when_that_is_asked_for(listen: str, store: str) -> None:
    with pytest.raises(InsecureTransportError, match="HOTSLOT_INSECURE"):
        async with running_gateway(GatewaySettings(gateway_listen=listen, store=store)):
            pass
    async with running_gateway(GatewaySettings(gateway_listen=listen, store=store, insecure=True)):
        pass
