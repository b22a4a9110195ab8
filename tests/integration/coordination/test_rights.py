"""The user of Redis with the documented rights can do everything; with one less, the missing one is named."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from hotslot.contract.control import WorkerState
from hotslot.contract.placement import Tier
from hotslot.errors import CoordinationForbiddenError, CoordinationUnavailableError
from hotslot.ids import Digest
from hotslot.local.embedded_valkey import EmbeddedValkey, embedded_valkey
from hotslot.pb.hotslot.placement.v1 import placement_pb2 as pb
from shared.coordination import keys
from shared.coordination.connection import RedisConnection, RedisOptions
from shared.coordination.directory import Directory
from shared.coordination.keys import KEY_PATTERN, PoolKeys
from shared.coordination.rights import CALLED_ON_CLUSTER, acl_rule, commands
from shared.coordination.seals import RecordSeals
from shared.fleet.records import ReportedLoad, WorkerReport
from shared.pool_secret import PoolSecret
from store_service.placement.access import tell_access
from tests.integration.coordination.fleet import POOL, Member, beating, digest, joined, member_of, resident, worker
from tests.integration.coordination.test_placement_service import running
from tests.support.forger import secret_in
from tests.support.waiting import until

USER, PASSWORD = "hotslot", "SECRETpassword"
DOCS = Path(__file__).resolve().parents[3] / "docs" / "network.md"


def url_of(server: EmbeddedValkey, *, user: str = USER, password: str = PASSWORD) -> str:
    return server.url.replace("://", f"://{user}:{password}@")


def options(url: str) -> RedisOptions:
    """Patient, so that a busy machine is not taken for a Redis that is away."""
    return RedisOptions(url, command_timeout_s=20.0, connect_timeout_s=20.0)


async def administer(server: EmbeddedValkey, *command: str) -> None:
    """Run a command with all rights."""
    async with Redis(port=server.port) as admin:
        run: Any = admin.execute_command  # it has no types
        await run(*command)


async def grant(server: EmbeddedValkey, rule: str) -> None:
    """Give the user these rights and no others, on a server that knows no script yet."""
    await administer(server, "FLUSHALL")
    await administer(server, "SCRIPT", "FLUSH")
    await administer(server, "ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", *rule.split())


@asynccontextmanager
async def allowed(server: EmbeddedValkey, rule: str) -> AsyncIterator[RedisConnection]:
    await grant(server, rule)
    async with RedisConnection(options(url_of(server))) as redis:
        yield redis


async def live(redis: RedisConnection) -> None:
    """All that workers and stores do with Redis: join, report, take over, be swept, be listed and watched, leave."""
    await redis.ping()
    directory = Directory(redis)
    await directory.revision(POOL)
    dead = Member(redis, worker("w-dead"), lease_s=0.001)
    await dead.announce()
    await dead.report(resident(1), resident(2))
    old = Member(redis, worker("w-old", endpoint="same:1"))
    await old.announce()
    await old.report(resident(1))
    new = Member(redis, worker("w-new", epoch=2, endpoint="same:1"))
    await new.announce(WorkerState.READY, ReportedLoad())
    await new.touch_pool()
    start = await directory.revision(POOL)
    await new.report(resident(1), resident(2, Tier.HOST))
    await new.report(resident(2))
    assert await directory.pools() == [POOL]
    assert [record.info.worker_id for record in (await directory.workers(POOL)).workers] == ["w-new"]
    assert len((await directory.placements(POOL, [digest(1), digest(2)]))[digest(2)]) == 1
    assert len(await directory.residency(POOL, new.info.worker_id)) == 1
    assert (await directory.changes(POOL, start)).changes
    await defend(redis)
    assert await new.release()


async def defend(redis: RedisConnection) -> None:
    """Keep a place that another claims without the pool's secret."""
    with TemporaryDirectory() as folder:
        seals = RecordSeals(PoolSecret(secret_in(Path(folder))))
        await Member(redis, worker("w-false", epoch=9, endpoint="mine:1")).announce()
        mine = Member(redis, worker("w-mine", epoch=8, endpoint="mine:1"), seals=seals)
        await mine.announce()
        assert await mine.release()


@pytest.fixture(scope="module", params=["node", "cluster"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedValkey]:
    with embedded_valkey(cluster=request.param == "cluster") as valkey:
        yield valkey


def is_cluster(server: EmbeddedValkey) -> bool:
    return "cluster" in server.url


async def test_the_documented_rights_are_enough(server: EmbeddedValkey) -> None:
    async with allowed(server, acl_rule(cluster=is_cluster(server))) as redis:
        await live(redis)


@pytest.mark.parametrize("command", [*commands(), *CALLED_ON_CLUSTER])
async def test_a_command_less_is_named(server: EmbeddedValkey, command: str) -> None:
    is_needed = command not in CALLED_ON_CLUSTER or is_cluster(server)
    rule = acl_rule(cluster=is_cluster(server)).replace(f" +{command} ", " ").removesuffix(f" +{command}")
    async with allowed(server, rule) as redis:
        if not is_needed:
            await live(redis)
            return
        with pytest.raises(CoordinationForbiddenError) as refused:
            await live(redis)
    # A user without the right to let keys end leaves some that do not.
    await administer(server, "FLUSHALL")
    message = refused.value.message
    assert f" refuses the command {command}" in message
    assert "docs/network.md" in message
    assert "\n" not in message
    assert "SECRET" not in message


@pytest.mark.parametrize(
    ("pattern", "named"),
    [("~other*", "{hotslot}:ping"), ("~{hotslot}*", f"{PoolKeys.of(POOL).prefix}:"), ("~{hotslot:*", "{hotslot}:ping")],
)
async def test_a_key_that_is_refused_is_named(server: EmbeddedValkey, pattern: str, named: str) -> None:
    rule = acl_rule(cluster=is_cluster(server)).replace(f"~{KEY_PATTERN}", pattern)
    async with allowed(server, rule) as redis:
        with pytest.raises(CoordinationForbiddenError, match="refuses access to a key like ") as refused:
            await live(redis)
    assert named in refused.value.message


async def test_a_key_that_only_a_script_touches_is_told_with_the_script(server: EmbeddedValkey) -> None:
    prefix = PoolKeys.of(POOL).prefix
    patterns = " ".join(
        f"~{prefix}:{name}*" for name in ("worker", "endpoint", "leases", "changes", "since", "residency")
    )
    rule = acl_rule(cluster=is_cluster(server)).replace(f"~{KEY_PATTERN}", patterns)
    async with allowed(server, rule) as redis:
        member = Member(redis, worker("w-1"))
        await member.announce()
        with pytest.raises(CoordinationForbiddenError, match="its script report calls"):
            await member.report(resident(1))


@pytest.mark.parametrize("login", [{"password": "SECRETwrong"}, {"user": "SECRETnobody"}, {}])
async def test_a_login_that_is_refused_is_told_without_its_password(
    server: EmbeddedValkey, login: dict[str, str]
) -> None:
    await grant(server, acl_rule(cluster=is_cluster(server)))
    if not login:
        await administer(server, "ACL", "SETUSER", USER, "off")
    async with RedisConnection(options(url_of(server, **login))) as redis:
        with pytest.raises(CoordinationForbiddenError, match="refuses the login: ") as refused:
            await redis.ping()
    assert PASSWORD not in refused.value.message
    assert "SECRETwrong" not in refused.value.message


async def test_a_worker_says_in_one_line_what_is_refused_and_joins_when_it_is_allowed(server: EmbeddedValkey) -> None:
    rule = acl_rule(cluster=is_cluster(server))
    async with allowed(server, rule.replace(" +hset", "")) as redis:
        with capture_logs() as logs:
            report = WorkerReport(WorkerState.READY, ReportedLoad(), ())
            async with beating(member_of(redis, worker(), lambda: report, lease_s=2.0)) as registration:
                await until(lambda: any(entry["log_level"] == "warning" for entry in logs))
                await administer(server, "ACL", "SETUSER", USER, "+hset")
                await until(lambda: registration.connected)
    said = [entry["why"] for entry in logs if entry["log_level"] == "warning"]
    assert len(said) == 1
    assert "refuses the command hset, which its script announce calls" in said[0]


async def test_a_store_says_in_one_line_what_is_refused(server: EmbeddedValkey) -> None:
    rule = acl_rule(cluster=is_cluster(server))
    async with allowed(server, rule.replace(" +zrange ", " ")) as redis:
        with capture_logs() as logs:
            await tell_access(redis)
    (entry,) = logs
    assert "refuses the command zrange;" in entry["why"]
    async with allowed(server, rule) as redis:
        with capture_logs() as logs:
            await tell_access(redis)
    assert logs == []


async def test_a_listing_of_workers_fails_with_the_reason(server: EmbeddedValkey) -> None:
    rule = acl_rule(cluster=is_cluster(server)).replace(" +evalsha", "")
    await grant(server, rule + " +flushall")
    async with (
        running(replace(server, url=url_of(server)), command_timeout_s=20.0) as rig,
        RedisConnection(options(server.url)) as admin,
    ):
        await joined(admin, "w-1")
        with pytest.raises(CoordinationForbiddenError, match="refuses the command evalsha"):
            await rig.call(rig.stub.ListWorkers(pb.ListWorkersRequest(base_model="org/model")))


async def test_a_cluster_that_is_away_is_a_typed_error() -> None:
    async with RedisConnection(RedisOptions("redis+cluster://:SECRET@127.0.0.1:1")) as redis:
        with pytest.raises(CoordinationUnavailableError, match="cannot be used") as away:
            await redis.ping()
    assert not isinstance(away.value, CoordinationForbiddenError)
    assert "SECRET" not in away.value.message


def test_every_key_is_within_the_pattern_and_the_documents_have_the_rule() -> None:
    prefix = KEY_PATTERN.removesuffix("*")
    pool = PoolKeys.of(POOL)
    built = [pool.worker(worker().worker_id), pool.endpoint("h:1"), pool.since, pool.leases, pool.changes]
    built += [pool.residency(worker().worker_id), pool.placements(Digest("sha256:0")), keys.POOLS]
    assert all(key.startswith(prefix) for key in built)
    text = " ".join(DOCS.read_text().replace("\\\n", " ").split())
    assert acl_rule() in text
    assert " ".join(f"+{name}" for name in CALLED_ON_CLUSTER) in text
