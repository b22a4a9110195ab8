"""A client and a server that do not agree on certificates: the error says which of them wants what."""

from pathlib import Path

import pytest

from hotslot import ChannelOptions, WorkerClient
from hotslot.errors import UnavailableError
from hotslot.local.authority import Authority
from hotslot.rpc.handshakes import unreached_reason
from hotslot.rpc.security import NO_SECURITY, ChannelSecurity
from shared.server.grpc_server import ServerOptions, serve
from shared.transport_settings import Transport
from tests.support.certificates import party
from tests.support.fake_worker import FakeWorker
from tests.support.slow_proxy import slow_proxy

NO_TLS = "it does not speak TLS"
WANTS_TLS = "Socket closed: it may want TLS, and no certificates to trust are named"
SERVERS = {
    "plaintext": {"plain": "", "trusting": NO_TLS, "strange": NO_TLS, "mutual": NO_TLS, "misnamed": NO_TLS},
    "tls": {
        "plain": WANTS_TLS, "trusting": "", "strange": "its certificate is not trusted: unable to get local issuer",
        "mutual": "", "misnamed": "its certificate has another name",
    },
    "mutual": {
        "plain": WANTS_TLS, "trusting": "it may want a certificate of yours",
        "strange": "its certificate is not trusted", "mutual": "", "misnamed": "its certificate has another name",
    },
}  # fmt: skip
"""What each client is told of each server; nothing where they agree."""


@pytest.mark.parametrize("kind", SERVERS)
async def test_each_disagreement_is_told_in_its_own_words(kind: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    server, client = party(tmp_path, "server", authority), party(tmp_path, "client", authority)
    stranger = party(tmp_path, "stranger", Authority(tmp_path / "other"))
    transport = Transport() if kind == "plaintext" else server.transport(mutual=kind == "mutual")
    callers = {
        "plain": NO_SECURITY,
        "trusting": client.security(mutual=False),
        "strange": stranger.security(mutual=False),
        "mutual": client.security(),
        "misnamed": client.security(server_name="another.name"),
    }
    options = ServerOptions(address="127.0.0.1:0", grace_s=0.1, transport=transport)
    async with serve(FakeWorker().services(), options) as running:
        await running.set_ready(True)
        for name, told in SERVERS[kind].items():
            security: ChannelSecurity = callers[name]
            calls = ChannelOptions(max_attempts=1, security=security)
            async with WorkerClient(f"127.0.0.1:{running.port}", calls) as worker:
                if not told:
                    assert (await worker.status(timeout_s=60)).worker_id
                    continue
                with pytest.raises(UnavailableError) as refused:
                    await worker.status(timeout_s=60)
                assert told in refused.value.message, (kind, name)


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ("", "no answer"),
        ("failed to connect; last error: UNKNOWN: ipv4:1.2.3.4:5: Connection refused", "Connection refused"),
        ("DNS resolution failed for x:1: C-ares status is not ARES_SUCCESS: [a: b, c: not found]", "not found"),
        ("Socket closed", "Socket closed"),
    ],
)  # fmt: skip
def test_other_reasons_stay_as_they_were(details: str, reason: str) -> None:
    assert unreached_reason(details, uses_tls=False) == reason


@pytest.mark.parametrize("uses_tls", [True, False])
async def test_a_connection_over_a_long_way_stands_at_the_first_attempt(uses_tls: bool, tmp_path: Path) -> None:
    server = party(tmp_path, "server", Authority(tmp_path / "authority"))
    transport = server.transport(mutual=False) if uses_tls else Transport()
    security = server.security(mutual=False) if uses_tls else NO_SECURITY
    options = ServerOptions(address="127.0.0.1:0", grace_s=0.1, transport=transport)
    async with serve(FakeWorker().services(), options) as running, slow_proxy(running.port) as proxy:
        await running.set_ready(True)
        proxy.delay_s = 0.25
        calls = ChannelOptions(max_attempts=1, security=security)
        async with WorkerClient(f"127.0.0.1:{proxy.port}", calls) as worker:
            assert (await worker.status(timeout_s=60)).worker_id
        assert proxy.connections == 1
