"""Redis as people run it: passwords of any characters, from the URL or a file that changes; sentinels with rights and
TLS of their own."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from hotslot.errors import CoordinationForbiddenError, CoordinationUnavailableError, InvalidRequestError
from hotslot.local.authority import Authority
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from hotslot.local.redis_probe import look_at_redis, redis_access
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.password import PasswordFile
from shared.coordination.rights import SENTINEL_RULE, acl_rule
from shared.coordination.sentinel import PrimaryTlsConnection
from shared.coordination.tls import TlsConnection
from shared.server.transport import http_context
from shared.settings import RedisUrl
from shared.transport_settings import RedisTransport
from tests.integration.coordination.test_redis_tls import behind_tls, paths
from tests.integration.coordination.test_rights import DOCS, live
from tests.support.certificates import party
from tests.support.patient_redis import PATIENCE_S, patient
from tests.support.sentinels import SERVICE, WatchedValkey, watched_valkey

USER = "hot_slot"
passwords = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1, max_size=24)


@pytest.fixture(scope="module", params=["node", "cluster"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedValkey]:
    with embedded_valkey(cluster=request.param == "cluster") as valkey:
        yield valkey


async def administer(port: int, *command: str) -> Any:
    async with Redis(port=port, decode_responses=True) as admin:
        run: Any = admin.execute_command  # it has no types
        return await run(*command)


async def set_password(server: EmbeddedValkey, password: str) -> None:
    rule = acl_rule(cluster="cluster" in server.url).split()
    await administer(server.port, "ACL", "SETUSER", USER, "reset", "on", f">{password}", *rule)


def url_for(server: EmbeddedValkey, userinfo: str) -> str:
    return server.url.replace("://", f"://{userinfo}@")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(password=passwords)
async def test_any_password_signs_in_from_the_url_and_from_a_file(
    server: EmbeddedValkey, tmp_path: Path, password: str
) -> None:
    await set_password(server, password)
    in_url = RedisUrl(url_for(server, f"{USER}:{quote(password, safe='')}"))
    RedisUrl.check(in_url.value)
    path = tmp_path / "password"
    path.write_text(f"{password}\n", "utf-8")
    from_file = RedisTransport(redis_password_file=path)
    for url, chosen in ((in_url, RedisTransport()), (RedisUrl(url_for(server, USER)), from_file)):
        async with RedisConnection(replace(RedisOptions.of(url, chosen), command_timeout_s=PATIENCE_S)) as redis:
            await redis.ping()


async def test_a_password_that_changes_is_read_for_the_next_connection(server: EmbeddedValkey, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("first", "utf-8")
    await set_password(server, "first")
    url = url_for(server, USER)
    async with RedisConnection(patient(url, password_file=path)) as redis:
        await redis.ping()
        await set_password(server, "second")
        path.write_text("second\r\n", "utf-8")
        # Connections that stand are ended with the user's rights.
        await redis.ping()
    path.write_text("wrong", "utf-8")
    async with RedisConnection(patient(url, password_file=path)) as redis:
        with pytest.raises(CoordinationForbiddenError, match="refuses the login") as refused:
            await redis.ping()
    assert "wrong" not in refused.value.message.replace("WRONGPASS", "")
    path.unlink()
    async with RedisConnection(patient(url, password_file=path)) as redis:
        with pytest.raises(CoordinationUnavailableError, match="No such file"):
            await redis.ping()


@pytest.mark.parametrize(
    ("url", "content", "said"),
    [
        ("redis://u:SECRET@h", b"SECRET", "redis_url has a password, too"),
        ("redis://h?password=SECRET", b"SECRET", "redis_url has a password, too"),
        ("redis://u@h", b"", "it is empty"),
        ("redis://u@h", b"\n", "it is empty"),
        ("redis://u@h", b"\xff", "expected UTF-8"),
        ("redis://u@h", None, "No such file"),
    ],
)
def test_a_password_file_that_cannot_be_used_ends_the_start(
    tmp_path: Path, url: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=re.escape(said)) as refused:
        RedisOptions.of(RedisUrl(url), RedisTransport(redis_password_file=path))
    assert "SECRET" not in str(refused.value)


def test_the_user_of_a_password_file_is_the_urls(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("pw", "utf-8")
    assert PasswordFile("redis://a%40b@h", path).get_credentials() == ("a@b", "pw")
    assert PasswordFile("redis://h?username=me", path).get_credentials() == ("me", "pw")
    assert PasswordFile("redis+sentinel://me@h,i/m", path).get_credentials() == ("me", "pw")
    assert PasswordFile("redis://h", path).get_credentials() == ("pw",)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedValkey]:
    with watched_valkey(tmp_path_factory.mktemp("watched")) as running:
        yield running


@pytest.fixture
async def rights(watched: WatchedValkey) -> str:
    """The URL of users who have exactly the documented rights, on nodes and on sentinels; nobody else has any."""
    for port in watched.nodes:
        rule = acl_rule().split()
        await administer(port, "ACL", "SETUSER", "hotslot", "reset", "on", ">node/pw", *rule)
    for port in watched.sentinels:
        await administer(port, "ACL", "SETUSER", "asker", "reset", "on", ">sentinel@pw", *SENTINEL_RULE.split())
    query = "?sentinel_username=asker&sentinel_password=sentinel%40pw"
    return watched.url.replace("://", "://hotslot:node%2Fpw@") + f"/0{query}"


async def test_the_documented_rights_are_enough_behind_sentinels(watched: WatchedValkey, rights: str) -> None:
    async with RedisConnection(RedisOptions(rights, command_timeout_s=20.0)) as redis:
        await live(redis)
    text = " ".join(DOCS.read_text("utf-8").split())
    assert SENTINEL_RULE in text
    assert look_at_redis(rights).level == "ok"


async def test_a_first_look_signs_in_with_the_password_s_file_that_services_have(
    watched: WatchedValkey, rights: str, tmp_path: Path
) -> None:
    without = rights.replace("hotslot:node%2Fpw@", "hotslot@")
    (tmp_path / "password").write_text("node/pw\n")
    (tmp_path / "wrong").write_text("SECRETwrong\n")
    named = redis_access({"HOTSLOT_REDIS_PASSWORD_FILE": str(tmp_path / "password")})
    assert look_at_redis(without, access=named).level == "ok"
    for name in ("wrong", "missing"):
        found = look_at_redis(without, access=redis_access({"HOTSLOT_REDIS_PASSWORD_FILE": str(tmp_path / name)}))
        assert found.level == "fail"
        assert "SECRET" not in found.found + found.advice


async def test_a_sentinel_that_refuses_is_told_in_one_line_without_a_password(
    watched: WatchedValkey, rights: str
) -> None:
    for changed in (rights.replace("sentinel%40pw", "SECRETwrong"), rights.replace("asker", "SECRETnobody")):
        async with RedisConnection(RedisOptions(changed, command_timeout_s=5.0)) as redis:
            with pytest.raises(CoordinationUnavailableError) as refused:
                await redis.ping()
        assert "SECRET" not in refused.value.message
        assert "sentinel" in refused.value.message.lower()
        assert "\n" not in refused.value.message


async def test_a_service_that_no_sentinel_knows_is_named(watched: WatchedValkey) -> None:
    url = watched.url.replace(SERVICE, "other")
    async with RedisConnection(patient(url)) as redis:
        with pytest.raises(CoordinationUnavailableError, match="'other'"):
            await redis.ping()
    assert "knows a primary of other" in look_at_redis(url).found


async def test_sentinels_and_nodes_are_dialled_with_our_certificates_alone(
    watched: WatchedValkey, tmp_path: Path
) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    server, client = party(tmp_path, "sentinel", authority), party(tmp_path, "client", authority)
    stranger = party(tmp_path, "stranger", other)
    context = http_context(server.transport())
    assert context is not None
    async with behind_tls(next(iter(watched.sentinels)), context) as port:
        url = f"rediss+sentinel://127.0.0.1:{port}/{SERVICE}"
        async with RedisConnection(RedisOptions(url, tls=paths(client))) as redis:
            pool = redis._client.connection_pool
            assert pool.connection_class is PrimaryTlsConnection
            (sentinel,) = pool.sentinel_manager.sentinels
            assert sentinel.connection_pool.connection_class is TlsConnection
            assert (await sentinel.sentinel_masters())[SERVICE]["port"] in watched.nodes
            # The nodes here speak no TLS, so none is used.
            with pytest.raises(CoordinationUnavailableError):
                await redis.ping()
        for wrong in (paths(stranger), paths(client, mutual=False)):
            async with RedisConnection(RedisOptions(url, tls=wrong)) as redis:
                with pytest.raises(CoordinationUnavailableError, match="No master found"):
                    await redis.ping()


async def test_a_sentinel_that_is_away_or_silent_is_passed_over(watched: WatchedValkey) -> None:
    alive = list(watched.sentinels)[-1]
    async with await asyncio.start_server(hold, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port},127.0.0.1:{alive}/{SERVICE}"
        async with RedisConnection(RedisOptions(url)) as redis:
            await redis.ping()


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a connection and say nothing until it ends."""
    await reader.read()
    writer.close()
