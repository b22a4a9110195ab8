"""Calls in the audit log: every RPC of the protos, with canaries in every field, before a real server."""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from hotslot.errors import AuditUnavailableError, HotslotError, NotFoundError, UnauthenticatedError
from hotslot.formats.principals import Scope
from hotslot.rpc.status import from_rpc_error
from shared.audit.acts import Act, act_of
from shared.audit.audit_log import MAX_UNKNOWN_A_SECOND, AuditLog, opened_audit
from shared.audit.objects import OF_REQUESTS
from shared.audit.settings import AuditSettings
from shared.identity.authenticator import Authenticator
from shared.server.grpc_server import ServerOptions, serve
from tests.support.principals import Roster, bearer
from tests.support.waiting import until
from tests.unit.shared.identity.test_matrix import METHODS, SERVICES, name_of, path_of, recording

WITHOUT_OBJECTS = {
    # Worker and tenant are all that these are about.
    "AdapterControlService.DrainWorker",
    "AdapterControlService.UndrainWorker",
    "AdapterControlService.EnableAdapters",
    "AdapterControlService.DisableAdapters",
    "AdapterStoreService.IssueEpoch",
    "AdapterStoreService.CollectGarbage",
    "FleetService.IssueEpoch",
    "InferenceService.CountTokens",
    "InferenceService.Detokenize",
}


READ = asyncio.Event()
"""A message of a client's stream came to its handler."""


class Served:
    """All services of the protos, whose handlers find nothing, with an audit log."""

    def __init__(self, channel: grpc.aio.Channel, log: Path, audit: AuditLog, tokens: dict[str, str]) -> None:
        self.channel, self.log, self.audit, self.tokens = channel, log, audit, tokens
        self.ran: list[tuple[str, str]] = []

    async def call(self, method: MethodDescriptor, request: bytes, *metadata: tuple[str, str]) -> HotslotError:
        """The error that the call ends with."""
        shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
        stub = getattr(self.channel, shape)(path_of(method))
        call = stub(iter([request]) if method.client_streaming else request, metadata=metadata, timeout=60)
        try:
            if method.server_streaming:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as exc:
            return from_rpc_error(exc)
        raise AssertionError("no handler here succeeds")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@asynccontextmanager
async def everything_served(folder: Path, **settings: Any) -> AsyncIterator[Served]:
    roster = Roster(folder / "principals.json")
    roster.add("everything", set(Scope))
    roster.add("gate", [Scope.GATEWAY])
    path = folder / "audit.log"
    options = AuditSettings(**{"audit": "all", "audit_file": path, **settings})
    async with AsyncExitStack() as stack:
        audit = stack.enter_context(opened_audit("store", options))
        authenticator = Authenticator(roster.path)
        stack.callback(authenticator.close)
        ran: list[tuple[str, str]] = []
        serving = serve(
            [reading(service, ran) for service in SERVICES],
            ServerOptions(grace_s=0.2),
            observers=[],
            authenticator=authenticator,
            audit=audit,
        )
        server = await stack.enter_async_context(serving)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        served = Served(channel, path, audit, roster.tokens)
        served.ran = ran
        yield served


def reading(service: Any, ran: list[tuple[str, str]]) -> Any:
    """As `recording`, but streams are read to their end first, as handlers do."""
    found = recording(service, ran)
    inner = found.add_to_server

    class Reading:
        def __init__(self, server: Any) -> None:
            self._server = server

        def add_generic_rpc_handlers(self, handlers: Any) -> None:
            self._server.add_generic_rpc_handlers(tuple(map(_reads, handlers)))

    def _reads(generic: Any) -> Any:
        handlers = {name: _after_reading(handler) for name, handler in generic._method_handlers.items()}
        return grpc.method_handlers_generic_handler(
            service.full_name, {name.rpartition("/")[2]: handler for name, handler in handlers.items()}
        )

    def _after_reading(handler: Any) -> Any:
        if not handler.request_streaming:
            return handler
        behaviour = handler.stream_stream or handler.stream_unary

        async def run(request: Any, context: Any) -> Any:
            async for _ in request:
                READ.set()
            # The end of a stream may be seen before the cancellation that it comes from.
            await asyncio.sleep(0.2 if READ.is_set() else 0)
            return await behaviour(request, context)

        make = grpc.stream_unary_rpc_method_handler
        return make(run, handler.request_deserializer, handler.response_serializer)

    return type(found)(found.full_name, lambda servicer, server: inner(servicer, Reading(server)), found.servicer)


def filled(descriptor: Descriptor, canaries: dict[str, str], path: str = "", depth: int = 0) -> Any:
    """A message with a canary of its own in every text and bytes field, and what else it takes to be one."""
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        where = f"{path}.{field.name}".lstrip(".")
        oneof = field.containing_oneof
        if oneof is not None and message.WhichOneof(oneof.name) is not None and len(oneof.fields) > 1:
            continue  # Each arm has a message of its own: see `variants`.
        fill(message, field, where, canaries, depth)
    return message


def fill(message: Any, field: FieldDescriptor, where: str, canaries: dict[str, str], depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        canaries[f"{where}.key"] = key = canary()
        if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
            canaries[f"{where}.value"] = held = canary()
            getattr(message, field.name)[key] = held
        return
    if field.message_type is not None:
        if depth > 6 or not field.message_type.full_name.startswith("hotslot."):
            return
        made = filled(field.message_type, canaries, where, depth + 1)
        if field.is_repeated:
            getattr(message, field.name).append(made)
        else:
            getattr(message, field.name).CopyFrom(made)
        return
    if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return
    canaries[where] = text = canary()
    value: Any = text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def canary() -> str:
    return "canary" + secrets.token_hex(8)


def variants(descriptor: Descriptor) -> list[tuple[Any, dict[str, str]]]:
    """Filled messages that have every arm of each oneof between them."""
    canaries: dict[str, str] = {}
    found = [(filled(descriptor, canaries), canaries)]
    for oneof in descriptor.oneofs:
        for field in oneof.fields:
            canaries = {}
            message = filled(descriptor, canaries)
            message.ClearField(field.name)
            fill(message, field, field.name, canaries, 0)
            found.append((message, canaries))
    return found


async def test_no_text_of_a_request_but_names_and_digests_comes_into_the_log(tmp_path: Path) -> None:
    async with everything_served(tmp_path) as served:
        told: dict[str, set[str]] = {}
        secret = canary()
        for method in METHODS:
            for message, canaries in variants(method.input_type):
                before = len(served.lines())
                await served.call(
                    method,
                    message.SerializeToString(),
                    bearer(served.tokens["everything"]),
                    ("x-secret", secret),
                    ("cookie", secret),
                )
                new = served.lines()[before:]
                text = json.dumps(new)
                shown = {path for path, value in canaries.items() if value in text}
                assert shown <= {*OF_REQUESTS, "request_id"}, name_of(method)
                told.setdefault(name_of(method), set()).update(shown)
                assert len(new) == (act_of(path_of(method)) is not Act.LOOK), f"{name_of(method)} {new}"
        whole = served.log.read_text()
        assert secret not in whole
        assert served.tokens["everything"][-43:] not in whole
        acting = {name_of(method) for method in METHODS if act_of(path_of(method)) is not Act.LOOK}
        assert {name for name in acting if not told[name] - {"request_id"}} == WITHOUT_OBJECTS & acting


async def test_a_line_says_who_did_what_for_whom_and_how_it_ended(tmp_path: Path) -> None:
    (set_tag,) = [method for method in METHODS if name_of(method) == "AdapterStoreService.SetTag"]
    request = GetMessageClass(set_tag.input_type)(adapter="bot", tag="prod", digest="sha256:" + "a" * 64, etag="r1")
    async with everything_served(tmp_path, audit="changes") as served:
        trace = ("traceparent", "00-" + "b" * 32 + "-" + "c" * 16 + "-01")
        acting = [("hotslot-principal", "alice"), ("hotslot-scopes", "publish"), ("x-request-id", "req-1"), trace]
        error = await served.call(set_tag, request.SerializeToString(), bearer(served.tokens["gate"]), *acting)
        assert isinstance(error, NotFoundError)
        (line,) = served.lines()
        assert line.pop("time").endswith("+00:00")
        assert line.pop("duration_ms") >= 0
        assert line.pop("peer").startswith("ipv4:127.0.0.1:")
        assert line == {
            "event": "audit",
            "service": "store",
            "principal": "gate",
            "acting_for": "alice",
            "tenant": "acme",
            "rpc": "hotslot.store.v1.AdapterStoreService/SetTag",
            "act": "change",
            "object": {"adapter": "bot", "tag": "prod", "digest": "sha256:" + "a" * 64},
            "request_id": "req-1",
            "trace_id": "b" * 32,
            "code": "NOT_FOUND",
            "reason": "NOT_FOUND",
        }


async def test_names_end_no_line_and_ids_are_ids(tmp_path: Path) -> None:
    (set_tag,) = [method for method in METHODS if name_of(method) == "AdapterStoreService.SetTag"]
    evil = 'x"}\n{"event":"audit","principal":"root"}\x1b[2J\u2028\u202e'
    request = GetMessageClass(set_tag.input_type)(adapter=evil, tag="y" * 4000)
    async with everything_served(tmp_path, audit="changes") as served:
        ids = [("x-request-id", 'a" b'), ("traceparent", "zz")]
        await served.call(set_tag, request.SerializeToString(), bearer(served.tokens["everything"]), *ids)
        (line,) = served.lines()
        assert served.log.read_text().count("\n") == 1
        assert served.log.read_text().isascii()
        assert "\x1b" not in served.log.read_text()
        assert line["object"]["adapter"] == evil
        assert len(line["object"]["tag"]) == 256
        assert (line["request_id"], line["trace_id"]) == ("", "")


async def test_refused_callers_are_in_the_log_and_cannot_fill_it(tmp_path: Path) -> None:
    (set_tag,) = [method for method in METHODS if name_of(method) == "AdapterStoreService.SetTag"]
    async with everything_served(tmp_path, audit="changes") as served:
        for _ in range(5 * MAX_UNKNOWN_A_SECOND):
            assert isinstance(await served.call(set_tag, b""), UnauthenticatedError)
        await served.call(set_tag, b"", bearer(served.tokens["everything"]))
        lines = served.lines()
        assert lines[0]["code"] == "UNAUTHENTICATED"
        assert lines[-1]["code"] == "NOT_FOUND"  # one who is known is not left out
        assert served.audit.num_unknown == 5 * MAX_UNKNOWN_A_SECOND - (len(lines) - 1) > 0


async def test_while_the_log_cannot_be_written_changes_go_on_and_are_told_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (set_tag,) = [method for method in METHODS if name_of(method) == "AdapterStoreService.SetTag"]
    async with everything_served(tmp_path, audit="changes") as served:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", no_space)
            await served.call(set_tag, b"", bearer(served.tokens["everything"]))
        assert served.audit.num_lost == 1
        assert len(served.ran) == 1
        told = capsys.readouterr()
        assert "audit_not_written" in told.out + told.err
        assert "SetTag" in told.out + told.err
        await served.call(set_tag, b"", bearer(served.tokens["everything"]))
        assert len(served.lines()) == 1


async def test_no_change_is_made_without_a_line_where_the_operator_has_chosen_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = {name_of(method): method for method in METHODS}
    set_tag, resolve = by_name["AdapterStoreService.SetTag"], by_name["AdapterStoreService.ResolveAdapter"]
    async with everything_served(tmp_path, audit_failure="refuse") as served:
        token = bearer(served.tokens["everything"])
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", no_space)
            assert isinstance(await served.call(set_tag, b"", token), AuditUnavailableError)
            assert served.ran == []
            assert isinstance(await served.call(resolve, b"", token), NotFoundError)
            assert len(served.ran) == 1
        await served.call(set_tag, b"", token)
        assert [line["code"] for line in served.lines()] == ["BEGUN", "NOT_FOUND"]
        assert len(served.ran) == 2


async def test_a_caller_that_leaves_is_in_the_log(tmp_path: Path) -> None:
    (upload,) = [method for method in METHODS if name_of(method) == "BlobService.WriteBlob"]
    READ.clear()
    async with everything_served(tmp_path) as served:

        async def endless() -> AsyncIterator[bytes]:
            yield GetMessageClass(upload.input_type)(digest="sha256:" + "d" * 64).SerializeToString()
            await asyncio.Event().wait()

        stub: Any = served.channel.stream_unary(path_of(upload))
        call = stub(endless(), metadata=(bearer(served.tokens["everything"]),))
        async with asyncio.timeout(60):
            await READ.wait()
        call.cancel()
        await until(lambda: bool(served.lines()))
        (line,) = served.lines()
        assert (line["code"], line["object"]) == ("CANCELLED", {"digest": "sha256:" + "d" * 64})


def no_space(descriptor: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")
