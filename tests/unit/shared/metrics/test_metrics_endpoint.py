"""The endpoint of the metrics: scrapes over one connection, refusals, and bounds on what clients may send."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx2
import pytest

from hotslot.errors import InsecureTransportError
from shared.metrics import endpoint as module
from shared.metrics.endpoint import Observation, observed
from shared.metrics.numbers import Measured
from shared.metrics.scrapes import MAX_AGE_S, Scrapes
from shared.metrics.settings import Observed
from shared.metrics.table import GATEWAY, rows_of
from shared.transport_settings import Transport

HOST = "127.0.0.1"
SCRAPE = b"GET /metrics HTTP/1.0\r\n\r\n"


@asynccontextmanager
async def observing(address: str = f"{HOST}:0") -> AsyncIterator[Observation]:
    async with observed(GATEWAY, Observed(metrics_listen=address), Transport(), []) as observation:
        yield observation


async def exchange(port: int, *requests: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    for request in requests:
        writer.write(request)
    writer.write_eof()
    answer = b""
    # One that is refused may be reset, since its request was not read.
    with suppress(ConnectionResetError):
        async with asyncio.timeout(60):
            answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("address", ["[::]:0", "0.0.0.0:0"])
async def test_a_wildcard_is_every_interface_over_ipv4_too(address: str) -> None:
    observing_all = observed(GATEWAY, Observed(metrics_listen=address), Transport(insecure=True), [])
    async with observing_all as observation:
        assert (await exchange(observation.port, SCRAPE)).startswith(b"HTTP/1.1 200")


async def test_scrapes_come_over_one_connection() -> None:
    async with observing() as observation, httpx2.AsyncClient(base_url=f"http://{HOST}:{observation.port}") as client:
        first, second = await client.get("/metrics"), await client.get("/metrics?name=any")
        assert (first.status_code, first.headers["content-type"].partition(";")[0]) == (200, "text/plain")
        assert first.headers["connection"] == "keep-alive"
        assert "hotslot_build_info{" in first.text
        assert second.text.count("# TYPE") == len(rows_of(GATEWAY))
        assert (await client.head("/metrics")).text == ""
        assert (await client.get("/")).status_code == 404
        assert (await client.post("/metrics", content=b"x")).status_code == 405


async def test_what_is_no_request_ends_its_connection_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.3)
    async with observing() as observation:
        port = observation.port
        assert (await exchange(port, b"GET /metrics SPDY/9\r\n\r\n")).startswith(b"HTTP/1.1 400")
        assert await exchange(port, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000) == b""
        assert await exchange(port, b"GET /met") == b""
        assert await exchange(port, b"\xff\xfe\r\n\r\n") != b""
        smuggled = b"POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n"
        assert (await exchange(port, smuggled)).count(b"HTTP/1.1 ") == 1
        sleeper = await asyncio.open_connection(HOST, port)
        async with asyncio.timeout(60):
            assert await sleeper[0].read() == b""
        sleeper[1].close()
        assert b" 200 OK" in await exchange(port, SCRAPE)


async def test_connections_beyond_the_bound_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CONNECTIONS", 2)
    async with observing() as observation:
        held = [await asyncio.open_connection(HOST, observation.port) for _ in range(2)]
        async with asyncio.timeout(60):
            while await exchange(observation.port, SCRAPE):
                continue
        for _, writer in held:
            writer.close()
        async with asyncio.timeout(60):
            while not await exchange(observation.port, SCRAPE):
                continue


async def test_plaintext_leaves_the_machine_only_where_that_is_asked_for() -> None:
    with pytest.raises(InsecureTransportError):
        async with observing("0.0.0.0:0"):
            pass
    asked = Transport(insecure=True)
    async with observed(GATEWAY, Observed(metrics_listen="0.0.0.0:0"), asked, []) as observation:
        assert observation.port


async def test_a_port_that_is_taken_is_named() -> None:
    async with observing() as observation:
        with pytest.raises(OSError, match=f"127.0.0.1:{observation.port} for metrics"):
            async with observing(f"{HOST}:{observation.port}"):
                pass


async def test_without_an_address_nothing_listens_and_the_text_is_there_for_the_gateway() -> None:
    async with observing("") as observation:
        assert observation.port == 0
        assert b"hotslot_build_info{" in await observation.text()


async def test_what_pickers_ask_for_is_fresh_and_the_rest_a_moment_old() -> None:
    now_s, reads = 100.0, {"picker": 0, "other": 0}

    def count(name: str) -> list[Measured]:
        reads[name] += 1
        return []

    scrapes = Scrapes(
        "worker",
        [lambda: count("other")],
        (),
        [lambda: count("picker")],
        clock=lambda: now_s,
    )
    await scrapes.text()
    await scrapes.text()
    assert reads == {"picker": 2, "other": 1}
    now_s += MAX_AGE_S
    await scrapes.text()
    assert reads == {"picker": 3, "other": 2}
