"""Bounds of the HTTP server: connections, heads and bodies that are too many, too slow or too large, and its pages."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from gateway_service.routes import routes_of
from tests.support.gateway import open_gateway, served
from tests.support.waiting import until

pytestmark = pytest.mark.integration

NO_WORKER = {"gateway_worker": "127.0.0.1:1"}


async def raw(port: int, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await writer.drain()
    return reader, writer


async def test_connections_beyond_the_bound_are_refused_and_others_are_served() -> None:
    async with open_gateway(**NO_WORKER, gateway_max_connections=3) as gateway:
        kept = [await raw(gateway.server.port, b"GET /version HTTP/1.1\r\n") for _ in range(3)]
        await until(lambda: gateway.server.num_connections == 3)
        reader, writer = await raw(gateway.server.port, b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        refused = await asyncio.wait_for(reader.read(), 60)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"TOO_MANY_CONNECTIONS" in refused
        assert b"retry-after: 1" in refused.lower()
        kept[0][1].write(b"host: x\r\n\r\n")
        assert (await kept[0][0].readline()).startswith(b"HTTP/1.1 200 ")
        for _, other in (*kept, (reader, writer)):
            other.close()
        await until(lambda: gateway.server.num_connections == 0)


async def test_what_is_written_leaves_at_once() -> None:
    async with open_gateway(**NO_WORKER) as gateway:
        _, writer = await raw(gateway.server.port, b"GET /version HTTP/1.1\r\n")
        await until(lambda: gateway.server.num_connections == 1)
        (connection,) = gateway.server.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /version HTTP/1.1\r\nhost:"], ids=["nothing", "half a head"])
async def test_a_head_that_does_not_come_ends_its_connection(sent: bytes) -> None:
    async with open_gateway(**NO_WORKER, gateway_head_timeout_s=0.3) as gateway:
        reader, writer = await raw(gateway.server.port, sent)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        await until(lambda: gateway.server.num_connections == 0)


async def test_a_second_head_must_come_in_time_too() -> None:
    async with open_gateway(**NO_WORKER, gateway_head_timeout_s=0.3, gateway_idle_s=30) as gateway:
        reader, writer = await raw(gateway.server.port, b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(0.5)
        assert gateway.server.num_connections == 1, "an idle connection is kept"
        writer.write(b"GET /ver")
        await until(lambda: gateway.server.num_connections == 0)
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"NONSENSE",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1",
        b"GET / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["nonsense", "a negative length", "no host", "TLS"],
)
async def test_what_is_no_request_is_refused_in_openais_form(sent: bytes) -> None:
    async with open_gateway(**NO_WORKER, gateway_head_timeout_s=1.0) as gateway:
        reader, writer = await raw(gateway.server.port, sent + b"\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 60)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b'"MALFORMED_REQUEST"' in answer
        writer.close()
        await until(lambda: gateway.server.num_connections == 0)


async def test_a_head_that_is_too_large_is_refused_though_it_came_at_once() -> None:
    async with open_gateway(**NO_WORKER, gateway_max_header_bytes=4096) as gateway:
        for head in (
            b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 5000,
            b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nhost: x",
        ):
            reader, writer = await raw(gateway.server.port, head + b"\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 60)
            assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), answer
            writer.close()


async def test_headers_are_bounded_in_number_and_what_is_refused_is_counted() -> None:
    async with open_gateway(**NO_WORKER, gateway_max_connections=1) as gateway:
        gate = gateway.gateway.gate
        assert gate is not None
        many = b"".join(b"x-%d: y\r\n" % number for number in range(101))
        head = b"GET /version HTTP/1.1\r\nhost: x\r\n"
        reader, writer = await raw(gateway.server.port, head + many[: many.index(b"x-90")] + b"\r\n")
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 200 ")
        refused, other = await raw(gateway.server.port, head + b"\r\n")
        assert (await asyncio.wait_for(refused.readline(), 60)).startswith(b"HTTP/1.1 503 ")
        writer.close()
        other.close()
        await until(lambda: gateway.server.num_connections == 0)
        reader, writer = await raw(gateway.server.port, head + many + b"\r\n")
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 431 ")
        writer.close()
        assert gate.counters.snapshot() == {("bound_refusals", "connections"): 1, ("bound_refusals", "metadata"): 1}


async def test_a_body_without_a_length_is_bounded_too(tmp_path: Path) -> None:
    async with served(tmp_path, gateway_max_body_bytes=2048) as stack:
        http = await stack.http()

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"x" * 1000

        answer = await http.post("/v1/completions", content=parts(), headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "BODY_TOO_LARGE")


async def test_the_document_and_the_page_have_every_route_and_need_nothing_else() -> None:
    async with (
        open_gateway(**NO_WORKER) as gateway,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{gateway.server.port}") as http,
    ):
        document = (await http.get("/openapi.json")).json()
        page = (await http.get("/docs")).text
        assert re.findall(r"(?:src|href)=\"(?!/openapi.json)", page) == []
        assert not re.search(r"https?://(?!json-schema)", page)
        routes = {route.path.replace(":path", "") for route in routes_of(gateway.gateway)}
        assert routes - {"/openapi.json", "/docs"} == set(document["paths"])
        for path in document["paths"]:
            assert path in page
        references = set(re.findall(r'"#/components/schemas/(\w+)"', (await http.get("/openapi.json")).text))
        assert references <= set(document["components"]["schemas"])
        assert (await http.get("/version")).json() == {"version": document["info"]["version"]}
