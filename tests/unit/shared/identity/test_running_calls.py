"""Running calls: one whose caller may no longer make it ends in time with the reason, and frees what it held."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from hotslot.errors import (
    HotslotError,
    ScopeMissingError,
    TenantForbiddenError,
    TokenExpiredError,
    TokenRevokedError,
    UnauthenticatedError,
    UnavailableError,
)
from hotslot.formats.principals import Scope
from hotslot.rpc.status import from_rpc_error
from shared.identity.authenticator import Authenticator
from shared.identity.running_calls import ENDED_S, RunningCalls
from shared.server.grpc_server import ServerOptions, Service, serve
from tests.support.issuer import JwksServer, Key, signed, write_issuers
from tests.support.machine_pace import within
from tests.support.principals import Roster, bearer

BOUND_S = 5.0
"""Longest time that a running call has after a change, as docs/security.md says."""
KEY = Key("first")
SERVICE = "hotslot.store.v1.BlobService"
METHODS = {
    # shapes by methods of one service, which needs read or publish
    "unary_unary": "GetWriteStatus",
    "unary_stream": "ReadBlob",
    "stream_unary": "WriteBlob",
}


class Endless:
    """Handlers that would go on for ever, and count what they hold."""

    def __init__(self) -> None:
        self.num_held = 0

    def service(self) -> Service:
        async def unary(request: Any, context: Any) -> bytes:
            self.num_held += 1
            try:
                await asyncio.sleep(60)
            finally:
                self.num_held -= 1
            return b""

        async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
            self.num_held += 1
            try:
                while True:
                    yield b"x"
                    await asyncio.sleep(0.05)
            finally:
                self.num_held -= 1

        handlers = {
            method: getattr(grpc, f"{shape}_rpc_method_handler")(stream if shape == "unary_stream" else unary)
            for shape, method in METHODS.items()
        }

        def add(servicer: object, server: Any) -> None:
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

        return Service(SERVICE, add, object())


@asynccontextmanager
async def served(
    tmp_path: Path, endless: Endless
) -> AsyncIterator[tuple[Roster, Callable[..., "asyncio.Task[HotslotError]"]]]:
    roster = Roster(tmp_path / "principals.json")
    roster.add("alice", [Scope.READ, Scope.PUBLISH])
    roster.add("bob", [Scope.READ, Scope.PUBLISH])
    with JwksServer(KEY).running() as keys:
        issuers = write_issuers(tmp_path / "issuers.json", keys.url, scopes=["read", "publish"], leeway_s=0)
        known = Authenticator(roster.path, issuers_path=issuers)
        options = ServerOptions(grace_s=0.2)
        async with (
            serve([endless.service()], options, observers=[], authenticator=known) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):

            async def call(shape: str, token: str) -> HotslotError:
                async def messages() -> AsyncIterator[bytes]:
                    # One and no more: gRPC's client loses the status of a call that ends while it writes.
                    yield b""
                    await asyncio.sleep(60)

                stub = getattr(channel, shape)(f"/{SERVICE}/{METHODS[shape]}")
                running = stub(messages() if shape.startswith("stream") else b"", metadata=[bearer(token)], timeout=60)
                try:
                    if shape.endswith("stream"):
                        async for _ in running:
                            pass
                    else:
                        await running
                except grpc.aio.AioRpcError as exc:
                    return from_rpc_error(exc)
                raise AssertionError("no handler here succeeds")

            yield roster, lambda shape, token: asyncio.create_task(call(shape, token))
        known.close()


async def until(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


def revoke(roster: Roster) -> None:
    roster.change("alice", revoked_s=int(time.time()))


def expire(roster: Roster) -> None:
    roster.change("alice", expires_s=int(time.time()))


def forget(roster: Roster) -> None:
    del roster.principals["alice"]
    roster.write()


def lose_scopes(roster: Roster) -> None:
    roster.principals["alice"] = replace(roster.principals["alice"], scopes=frozenset([Scope.USE]))
    roster.write()


def move_tenant(roster: Roster) -> None:
    roster.principals["alice"] = replace(roster.principals["alice"], tenants=frozenset(["umbrella"]))
    roster.write()


CHANGES: dict[str, tuple[Callable[[Roster], None], type[HotslotError]]] = {
    "revoked": (revoke, TokenRevokedError),
    "expired": (expire, TokenExpiredError),
    "forgotten": (forget, UnauthenticatedError),
    "without the scope": (lose_scopes, ScopeMissingError),
    "of another tenant": (move_tenant, TenantForbiddenError),
}


@pytest.mark.parametrize("kind", CHANGES)
async def test_calls_of_every_shape_end_when_their_caller_may_no_longer_make_them(kind: str, tmp_path: Path) -> None:
    change, expected = CHANGES[kind]
    endless = Endless()
    async with served(tmp_path, endless) as (roster, call):
        tasks = [call(shape, roster.tokens["alice"]) for shape in METHODS]
        others = [call(shape, roster.tokens["bob"]) for shape in METHODS]
        await until(lambda: endless.num_held == 2 * len(METHODS))
        with within(BOUND_S):
            change(roster)
            errors = await asyncio.gather(*tasks)
        assert [type(error) for error in errors] == [expected] * len(METHODS)
        assert endless.num_held == len(METHODS)
        assert not any(task.done() for task in others)
        for task in others:
            task.cancel()


async def test_a_call_ends_with_its_json_web_token(tmp_path: Path) -> None:
    endless = Endless()
    async with served(tmp_path, endless) as (_, call):
        ends_s = int(time.time()) + 2
        task = call("unary_stream", signed(KEY, scope="read", exp=ends_s))
        other = call("unary_stream", signed(KEY, scope="read"))
        await until(lambda: endless.num_held == 2)
        with within(ends_s - time.time() + BOUND_S):
            error = await task
        assert type(error) is TokenExpiredError
        assert time.time() >= ends_s
        assert not other.done()
        other.cancel()


async def test_what_cannot_be_told_ends_no_call_and_a_call_is_ended_once() -> None:
    ended: list[HotslotError] = []
    raised: list[HotslotError | None] = [UnavailableError("the keys are away")]

    def check() -> None:
        if raised[0] is not None:
            raise raised[0]

    calls = RunningCalls()
    with calls.of(check, ended.append):
        await asyncio.sleep(ENDED_S)
        assert ended == []
        raised[0] = TokenRevokedError("revoked")
        await asyncio.sleep(ENDED_S)
    assert ended == [raised[0]]
    with calls.of(check, ended.append):
        pass
    await asyncio.sleep(ENDED_S)
    assert len(ended) == 1
    calls.close()
