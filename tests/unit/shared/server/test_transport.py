"""TLS between our own servers and channels, mutual too, and certificates that change while calls run."""

import asyncio
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotslot.errors import InsecureTransportError, InvalidRequestError, UnavailableError
from hotslot.local.authority import Authority
from hotslot.rpc.channel import ChannelOptions, connect, open_blocking_channel, open_channel
from hotslot.rpc.security import ChannelSecurity
from hotslot.rpc.tls_files import LOOK_EVERY_S, TlsFiles, TlsPaths
from shared.server.grpc_server import RpcServer, ServerOptions, Service, serve
from shared.server.transport import check_dialled
from shared.transport_settings import Transport
from tests.support.certificates import Party, party
from tests.unit.shared.server.test_rpc_socket import NAME, EchoServicer, add_to_server

ROTATION_S = LOOK_EVERY_S * 1.5
"""Time in which every channel that is used has looked at its files."""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@asynccontextmanager
async def served(transport: Transport, **more: Any) -> AsyncIterator[RpcServer]:
    options = ServerOptions(grace_s=0.2, transport=transport, **more)
    async with serve([Service(NAME, add_to_server, EchoServicer())], options) as server:
        await server.set_ready(True)
        yield server


async def ask(channel: Any, text: str = "hello") -> str:
    method = channel.unary_unary(f"/{NAME}/unary_unary", StringValue.SerializeToString, StringValue.FromString)
    return str((await method(StringValue(value=text), timeout=60)).value)


def options(security: ChannelSecurity) -> ChannelOptions:
    return ChannelOptions(max_attempts=1, security=security)


async def test_a_call_over_tls_trusts_the_authority_of_its_file_alone(tmp_path: Path, authority: Authority) -> None:
    server, client = party(tmp_path, "server", authority), party(tmp_path, "client", authority)
    async with served(server.transport(mutual=False)) as running:
        endpoint = f"127.0.0.1:{running.port}"
        async with open_channel(endpoint, options(client.security(mutual=False))) as channel:
            assert await ask(channel) == "hello"
        client.trust(Authority(tmp_path / "other"))
        async with open_channel(endpoint, options(client.security(mutual=False))) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await ask(channel)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        async with open_channel(endpoint, ChannelOptions(max_attempts=1)) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(channel)


async def test_a_certificate_of_another_name_is_refused_unless_that_name_is_expected(
    tmp_path: Path, authority: Authority
) -> None:
    server = party(tmp_path, "server", authority, hosts=("worker.hotslot",))
    client = party(tmp_path, "client", authority)
    async with served(server.transport()) as running:
        endpoint = f"127.0.0.1:{running.port}"
        async with open_channel(endpoint, options(client.security())) as channel:
            with pytest.raises(UnavailableError):
                await connect(channel, 5)
        named = client.security(worker_name="worker.hotslot").for_workers()
        async with open_channel(endpoint, options(named)) as channel:
            assert await ask(channel) == "hello"


async def test_a_server_that_asks_for_certificates_answers_no_client_without_one(
    tmp_path: Path, authority: Authority
) -> None:
    server, client = party(tmp_path, "server", authority), party(tmp_path, "client", authority)
    stranger = party(tmp_path, "stranger", Authority(tmp_path / "other"))
    stranger.trust(authority)
    async with served(server.transport()) as running:
        endpoint = f"127.0.0.1:{running.port}"
        async with open_channel(endpoint, options(client.security())) as channel:
            assert await ask(channel) == "hello"
        for security in (client.security(mutual=False), stranger.security()):
            async with open_channel(endpoint, options(security)) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await ask(channel)


async def test_the_blocking_channel_speaks_tls_too(tmp_path: Path, authority: Authority) -> None:
    server, client = party(tmp_path, "server", authority), party(tmp_path, "client", authority)
    async with served(server.transport()) as running:

        def check() -> Any:
            with open_blocking_channel(f"127.0.0.1:{running.port}", options(client.security())) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                return stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status

        assert await asyncio.to_thread(check) == health_pb2.HealthCheckResponse.SERVING


async def test_no_less_than_tls_1_2_is_spoken(tmp_path: Path, authority: Authority) -> None:
    server = party(tmp_path, "server", authority)
    async with served(server.transport(mutual=False)) as running:

        def version(newest: ssl.TLSVersion) -> str | None:
            context = ssl.create_default_context(cafile=str(server.bundle_file))
            context.set_alpn_protocols(["h2"])
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
            with (
                socket.create_connection(("127.0.0.1", running.port), 5) as sock,
                context.wrap_socket(sock, server_hostname="localhost") as connection,
            ):
                return connection.version()

        assert await asyncio.to_thread(version, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        with pytest.raises(OSError):  # noqa: PT011 (its class is OpenSSL's choice)
            await asyncio.to_thread(version, ssl.TLSVersion.TLSv1_1)


async def test_every_certificate_the_authority_included_is_rotated_under_load_without_a_failed_call(
    tmp_path: Path, authority: Authority
) -> None:
    server, client = party(tmp_path, "server", authority), party(tmp_path, "client", authority)
    other = Authority(tmp_path / "other")
    answered, failures = 0, list[BaseException]()
    stop = asyncio.Event()

    async def load(channel: Any) -> None:
        nonlocal answered
        while not stop.is_set():
            try:
                await ask(channel)
                answered += 1
            except grpc.aio.AioRpcError as exc:
                failures.append(exc)

    async def short_lives(endpoint: str) -> None:
        """New connections all the time, which meet whatever the files hold then."""
        while not stop.is_set():
            async with open_channel(endpoint, options(client.security())) as channel:
                try:
                    await ask(channel)
                except grpc.aio.AioRpcError as exc:
                    failures.append(exc)

    # Connections end all the time, so that each state of the files has handshakes.
    async with served(server.transport(), max_connection_age_s=1.0) as running:
        endpoint = f"127.0.0.1:{running.port}"
        async with open_channel(endpoint, options(client.security())) as channel:
            lasting = channel.unary_stream(
                f"/{NAME}/unary_stream", StringValue.SerializeToString, StringValue.FromString
            )
            tasks = [asyncio.create_task(load(channel)) for _ in range(4)]
            tasks.append(asyncio.create_task(short_lives(endpoint)))
            held = lasting(StringValue(value="slow"), timeout=60)
            steps: list[tuple[Party, tuple[Authority, ...], Authority | None]] = [
                (server, (authority, other), None),
                (client, (authority, other), None),
                (server, (authority, other), other),
                (client, (authority, other), other),
                (server, (other,), None),
                (client, (other,), None),
            ]
            for one, trusted, signer in steps:
                await asyncio.sleep(ROTATION_S)
                one.trust(*trusted)
                if signer is not None:
                    one.certify(signer)
            await asyncio.sleep(ROTATION_S)
            stop.set()
            await asyncio.gather(*tasks)
            held.cancel()
            assert [str(failure) for failure in failures] == []
            assert answered > 100
            # Only the new authority's certificates are taken any more.
            old = party(tmp_path, "old", authority)
            old.trust(other)
            async with open_channel(endpoint, options(old.security())) as late:
                with pytest.raises(grpc.aio.AioRpcError):
                    await ask(late)


async def test_a_stream_goes_on_while_its_channel_is_replaced(tmp_path: Path, authority: Authority) -> None:
    server, client = party(tmp_path, "server", authority), party(tmp_path, "client", authority)
    async with (
        served(server.transport()) as running,
        open_channel(f"127.0.0.1:{running.port}", options(client.security())) as channel,
    ):
        flood = channel.unary_stream(f"/{NAME}/unary_stream", StringValue.SerializeToString, StringValue.FromString)
        call = flood(StringValue(value="flood"), timeout=120)
        before = channel.current()  # type: ignore[attr-defined]
        await call.read()
        await asyncio.sleep(ROTATION_S)
        client.certify(authority)
        assert await ask(channel) == "hello"
        assert channel.current() is not before  # type: ignore[attr-defined]
        for _ in range(20):
            message: Any = await call.read()
            assert message.value
        call.cancel()


async def test_half_written_files_change_nothing(tmp_path: Path, authority: Authority) -> None:
    client = party(tmp_path, "client", authority)
    other = party(tmp_path, "other", authority)
    files = TlsFiles(TlsPaths(client.cert_file, client.key_file, client.bundle_file))
    before = files.material
    shutil.copy(other.cert_file, client.cert_file)
    assert not files.refresh(0)
    assert files.material == before
    shutil.copy(other.key_file, client.key_file)
    assert files.refresh(0)
    assert files.material != before


def test_files_that_cannot_be_used_are_named(tmp_path: Path, authority: Authority) -> None:
    client, other = party(tmp_path, "client", authority), party(tmp_path, "other", authority)
    empty = tmp_path / "empty.pem"
    empty.touch()
    for paths, named in (
        (TlsPaths(client.cert_file, other.key_file), "client.crt"),
        (TlsPaths(client.cert_file), "certificate without its key"),
        (TlsPaths(ca_file=tmp_path / "nowhere"), "nowhere"),
        (TlsPaths(ca_file=empty), "empty.pem"),
        (TlsPaths(client.key_file, client.key_file), "client.key"),
    ):
        with pytest.raises(InvalidRequestError, match=named):
            TlsFiles(paths)


async def test_plaintext_leaves_the_machine_only_when_that_is_asked_for_and_says_so() -> None:
    with pytest.raises(InsecureTransportError, match="HOTSLOT_INSECURE"):
        async with served(Transport(), address="0.0.0.0:0"):
            pass
    with structlog.testing.capture_logs() as logs:
        async with served(Transport(insecure=True), address="0.0.0.0:0"):
            pass
    assert [entry["log_level"] for entry in logs if entry["event"] == "plaintext_listener"] == ["warning"]
    for endpoint, is_refused in (
        ("127.0.0.1:1", False),
        ("localhost:1", False),
        ("[::1]:1", False),
        ("unix:/x", False),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", True),
        ("dns:///localhost:1", False),
        ("dns:///store:1", True),
        ("store:7400", True),
        ("10.0.0.1:7400", True),
        ("localhost.example.org:7400", True),
        ("127.0.0.1.example.org:7400", True),
    ):
        assert _refused(endpoint) == is_refused, endpoint
        check_dialled(endpoint, uses_tls=False, insecure=True)
        check_dialled(endpoint, uses_tls=True, insecure=False)


def _refused(endpoint: str) -> bool:
    found = []
    try:
        check_dialled(endpoint, uses_tls=False, insecure=False)
        found.append(False)
    except InsecureTransportError:
        found.append(True)
    # The same for a client with a token, before anything is sent.
    try:
        open_blocking_channel(endpoint, ChannelOptions(security=ChannelSecurity(token="secret"))).close()
        found.append(False)
    except InsecureTransportError:
        found.append(True)
    assert found[0] == found[1]
    return found[0]


async def test_probes_without_a_certificate_ask_the_health_port_and_find_nothing_else_there(
    tmp_path: Path, authority: Authority
) -> None:
    server = party(tmp_path, "server", authority)
    async with (
        served(server.transport(health="127.0.0.1:0")) as running,
        open_channel(f"127.0.0.1:{running.health_port}", ChannelOptions(max_attempts=1)) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await ask(channel)
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED
        await running.set_ready(False)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_token_is_sent_with_every_call_and_read_again_when_its_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    seen: list[Any] = []

    async def handle(request: Any, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        return b""

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}", options(ChannelSecurity(token_file=file))) as channel:
        method: Any = channel.unary_unary("/a.B/C")
        await method(b"")
        file.write_text("second\n")
        deadline = time.monotonic() + 60
        while seen[-1] != "Bearer second" and time.monotonic() < deadline:
            await method(b"")
        file.write_text("")  # being written
        await asyncio.sleep(ROTATION_S)
        await method(b"")
    await server.stop(None)
    assert seen[0] == "Bearer first"
    assert seen[-1] == "Bearer second"


def test_neither_token_nor_key_shows_in_what_is_printed(tmp_path: Path, authority: Authority) -> None:
    client = party(tmp_path, "client", authority)
    options_ = ChannelOptions(security=client.security(token="very-secret"))
    assert "very-secret" not in repr(options_)
    files = TlsFiles(TlsPaths(client.cert_file, client.key_file, client.bundle_file))
    assert "PRIVATE" not in repr(files.material)
    with pytest.raises(InvalidRequestError) as refused:
        open_channel("127.0.0.1:1", ChannelOptions(security=ChannelSecurity(token="very secret")))
    assert "very" not in refused.value.message
