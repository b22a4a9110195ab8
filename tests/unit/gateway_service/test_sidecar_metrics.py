"""A gateway beside a worker reads its metrics by the certificates of its calls, and follows them when they change."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gateway_service.metrics import SidecarMetrics
from hotslot.errors import InvalidRequestError
from hotslot.local.authority import Authority
from hotslot.rpc.security import ChannelSecurity
from shared.metrics.endpoint import MetricsEndpoint
from tests.support.certificates import Party, party
from tests.support.waiting import until_async

OWN, WORKERS = (b"# HELP %s Text.\n# TYPE %s gauge\n%s 2.0\n" % (name, name, name) for name in (b"a", b"b"))


async def text() -> bytes:
    return WORKERS


@asynccontextmanager
async def worker(its: Party) -> AsyncIterator[str]:
    endpoint = MetricsEndpoint(text)
    server = await endpoint.listen("127.0.0.1:0", its.transport())
    try:
        yield f"localhost:{endpoint.port}"
    finally:
        server.close()
        await endpoint.close()


async def told(sidecar: SidecarMetrics) -> bool:
    return b"\nb 2.0" in await sidecar.with_worker(OWN)


async def test_the_worker_is_known_by_its_name_in_the_fleet_and_asks_for_a_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a")
    its, ours = party(tmp_path, "worker", authority, hosts=("worker",)), party(tmp_path, "gateway", authority)
    async with worker(its) as address:
        named = SidecarMetrics(address, ours.security(worker_name="worker"))
        assert await told(named)
        for other in (ours.security(), ours.security(worker_name="store"), ours.security(mutual=False)):
            wrong = SidecarMetrics(address, other)
            assert await wrong.with_worker(OWN) == OWN
            await wrong.close()
        await named.close()


async def test_new_certificates_are_used_without_a_restart(tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    its, ours = party(tmp_path, "worker", first), party(tmp_path, "gateway", first)
    async with worker(its) as address:
        sidecar = SidecarMetrics(address, ours.security())
        assert await told(sidecar)
        before = sidecar._client
        its.certify(second)
        its.trust(second)
        ours.certify(second)
        ours.trust(second)

        async def follows() -> bool:
            return await told(sidecar) and sidecar._client is not before

        # The worker takes new certificates for new connections, and the sidecar opens one once it has seen its own.
        await until_async(follows)
        await sidecar.close()


def test_files_that_cannot_be_used_are_told_at_the_start(tmp_path: Path) -> None:
    security = replace(ChannelSecurity(), ca_file=tmp_path / "missing.crt")
    with pytest.raises(InvalidRequestError, match=r"missing\.crt"):
        SidecarMetrics("localhost:1", security)
