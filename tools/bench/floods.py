"""Floods of one caller, each from a process of its own: `python -m tools.bench.floods KIND ENDPOINT`, tokens as JSON in
FLOOD_TOKENS. It harms others as well as it can until it is ended, and prints once a second what became of its calls.
A third argument bounds how many calls a second are sent by hand: those that a service let a flood send.
"""

import asyncio
import itertools
import json
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import grpc

from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, adapter_store_pb2_grpc, blob_pb2, blob_pb2_grpc
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.pb.hotslot.worker.v1 import inference_pb2_grpc as pb_grpc
from hotslot.rpc.stub_method import Metadata
from hotslot.rpc.tenant import TENANT_KEY
from tests.support.checkpoints import adapter, base_spec
from tests.support.principals import bearer
from tests.support.raw_http2 import RawConnection, raw_connection
from tests.support.store import StoreClient
from tools.bench.http_floods import CLOSED, HTTP_FLOODS, Flood, Outcomes

NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536), ("grpc.use_local_subchannel_pool", 1)]
GENERATE = "/hotslot.worker.v1.InferenceService/Generate"
LIST = "/hotslot.store.v1.AdapterStoreService/ListAdapters"
SLOW_EXPRESSION = "(?:(?:.?){300}(?:[a-z0-9_.]?){300}zz)"
TICK_S = 0.005
SENT = "sent"
"""Outcome of every call that is sent by hand."""


def request(max_tokens: int) -> pb.GenerateRequest:
    """A request for so many tokens of the base model alone."""
    stop = pb.StopConditions(max_tokens=max_tokens, ignore_eos=True)
    return pb.GenerateRequest(text=f"endless {secrets.token_hex(4)}", base_only=True, stop=stop)


async def ended(call: Any) -> str:
    """Status of a stream that is read to its end."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    code: str = (await call.code()).name
    return code


@dataclass(frozen=True)
class LongRequests:
    """So many requests for long answers, each again when it has ended."""

    count: int
    invents_tenants: bool = False

    async def __call__(self, endpoint: str, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
        token = tokens["inventor" if self.invents_tenants else "loud"]
        async with grpc.aio.insecure_channel(endpoint) as channel:
            stub = pb_grpc.InferenceServiceStub(channel)

            async def one(index: int) -> None:
                own = ((TENANT_KEY, f"t{index}"),) if self.invents_tenants else ()
                while True:
                    outcome = await ended(stub.Generate(request(480), metadata=(bearer(token), *own), timeout=600))
                    outcomes[outcome] += 1
                    await asyncio.sleep(0.0 if outcome == "OK" else 0.05)

            await asyncio.gather(*(one(index) for index in range(self.count)))


@dataclass(frozen=True)
class RawCalls:
    """So many calls a second over one connection, by hand; a connection that is closed is made anew."""

    method: str
    message: bytes
    per_s: float
    metadata: Callable[[Mapping[str, str]], list[tuple[str, str]]]
    is_cancelled: bool = False
    anew_after_s: float = 0.0
    source: str | None = None
    """Address of a stranger who shares none with the callers that are served."""

    async def __call__(self, endpoint: str, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
        while True:
            with suppress(OSError):
                async with raw_connection(endpoint, source=self.source) as connection:
                    await self._pour(connection, tokens, outcomes)
            outcomes[CLOSED] += 1
            await asyncio.sleep(self.anew_after_s)

    async def _pour(self, connection: RawConnection, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
        block = connection.block(self.method, self.metadata(tokens))
        make = connection.cancelled_call if self.is_cancelled else connection.call
        began_s, sent = time.perf_counter(), 0
        while True:
            due = min(int((time.perf_counter() - began_s) * self.per_s), sent + 100)
            await connection.send(b"".join(make(block, self.message) for _ in range(due - sent)))
            outcomes[SENT] += due - sent
            sent = due
            await asyncio.sleep(TICK_S)


async def sleepers(endpoint: str, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
    """Readers of generations that take the first message alone."""
    logprobs = pb.LogprobOptions(enabled=True, num_alternatives=20)
    held = []
    for _ in range(64):
        channel = grpc.aio.insecure_channel(endpoint, options=NARROW)
        message = request(480)
        message.logprobs.CopyFrom(logprobs)
        call: Any = pb_grpc.InferenceServiceStub(channel).Generate(message, metadata=(bearer(tokens["loud"]),))
        held.append((channel, call, asyncio.ensure_future(call.read())))
    while True:
        # A read that is given up would end the call; one that has failed is of a call that the server has ended.
        await asyncio.wait({first for _, _, first in held}, timeout=5.0)
        outcomes["held"] = sum(not call.done() for _, call, _ in held)
        await asyncio.sleep(5.0)


async def hostile_messages(endpoint: str, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
    """Requests of a million empty entries, one after the other."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        generate: Any = channel.unary_stream(GENERATE)
        while True:
            outcomes[await ended(generate(_EMPTY_ENTRIES, metadata=(bearer(tokens["loud"]),), timeout=30))] += 1


@dataclass(frozen=True)
class DrippingUploads:
    """Uploads of a byte now and then, each again when it has ended; some break off, with one that does not fit."""

    count: int
    breaks_off: bool = False

    async def __call__(self, endpoint: str, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
        metadata: Metadata = (bearer(tokens["loud"]),)
        async with grpc.aio.insecure_channel(endpoint) as channel:
            stub: Any = blob_pb2_grpc.BlobServiceStub(channel)

            async def drip(digest: str) -> AsyncIterator[blob_pb2.WriteBlobRequest]:
                yield blob_pb2.WriteBlobRequest(digest=digest, size_bytes=2**30, data=b"x")
                for offset in itertools.count(1):
                    await asyncio.sleep(0.5)
                    yield blob_pb2.WriteBlobRequest(data=b"x", offset=0 if self.breaks_off else offset)

            async def one() -> None:
                while True:
                    try:
                        await stub.WriteBlob(drip(digest_of(secrets.token_bytes(8))), metadata=metadata)
                    except grpc.aio.AioRpcError as exc:
                        outcomes[exc.code().name] += 1
                    await asyncio.sleep(0.05)

            await asyncio.gather(*(one() for _ in range(self.count)))


async def watches(endpoint: str, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
    """Watches under invented tenants, each again when it has ended."""
    async with grpc.aio.insecure_channel(endpoint) as channel:
        stub: Any = adapter_store_pb2_grpc.AdapterStoreServiceStub(channel)

        async def one(index: int) -> None:
            metadata: Metadata = (bearer(tokens["inventor"]), (TENANT_KEY, f"t{index}"))
            while True:
                call = stub.WatchAdapters(adapter_store_pb2.WatchAdaptersRequest(), metadata=metadata)
                outcomes[await ended(call)] += 1
                await asyncio.sleep(0.05)

        await asyncio.gather(*(one(index) for index in range(512)))


class KnownClient(StoreClient):
    """Client with a token."""

    token = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (bearer(self.token),)


async def configs(endpoint: str, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
    """Adapters whose expressions are made to take long, eight at a time."""
    draft = adapter(("q_proj",), spec=base_spec("acme/many", num_layers=600), rank=1)
    draft.config |= {"target_modules": f"{SLOW_EXPRESSION}|.*q_proj"}
    async with grpc.aio.insecure_channel(endpoint) as channel:
        client = KnownClient(channel)
        client.token = tokens["loud"]
        files = await client.upload(draft)
        asked = adapter_store_pb2.ValidateAdapterRequest(files=files, base_model="acme/many")

        async def one() -> None:
            while True:
                try:
                    await client.adapters.ValidateAdapter(asked, metadata=client.metadata, timeout=60)
                    outcomes["OK"] += 1
                except grpc.aio.AioRpcError as exc:
                    outcomes[exc.code().name] += 1
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(one() for _ in range(8)))


def _known(tokens: Mapping[str, str]) -> list[tuple[str, str]]:
    return [bearer(tokens["loud"])]


def _guessed(_: Mapping[str, str]) -> list[tuple[str, str]]:
    return [bearer(f"hs1_{secrets.token_hex(8)}_{secrets.token_hex(16)}")]


def _guessed_secret(tokens: Mapping[str, str]) -> list[tuple[str, str]]:
    """A secret of an id that is known, such as one's own."""
    return [bearer("_".join((*tokens["loud"].split("_")[:2], secrets.token_hex(24))))]


def _oversize(tokens: Mapping[str, str]) -> list[tuple[str, str]]:
    return [*_known(tokens), ("x-much", "y" * 30_000)]


_LONG = request(480).SerializeToString()
_EMPTY_ENTRIES = b"\x0a\x00" * 2**20
FLOODS: Mapping[str, Mapping[str, Flood]] = {
    "worker": {
        "64 long requests": LongRequests(64),
        "200 invented tenants": LongRequests(200, invents_tenants=True),
        "512 streams": LongRequests(512),
        "5,000 cancels/s": RawCalls(GENERATE, _LONG, 5_000, _known, is_cancelled=True, anew_after_s=1.0),
        "5,000 cancels/s, anew at once": RawCalls(GENERATE, _LONG, 5_000, _known, is_cancelled=True),
        "2,000 guessed tokens/s": RawCalls(GENERATE, _LONG, 2_000, _guessed, source="127.0.0.2"),
        "2,000 guessed secrets/s": RawCalls(GENERATE, _LONG, 2_000, _guessed_secret, source="127.0.0.2"),
        "500 oversize metadata/s": RawCalls(GENERATE, _LONG, 500, _oversize),
        "hostile messages of 2 MiB": hostile_messages,
        "64 readers that sleep": sleepers,
    },
    "store": {
        "256 uploads that drip": DrippingUploads(256),
        "256 uploads that break off": DrippingUploads(256, breaks_off=True),
        "512 watches, invented tenants": watches,
        "8 configs made to take long": configs,
        "5,000 cancels/s": RawCalls(LIST, b"", 5_000, _known, is_cancelled=True, anew_after_s=1.0),
    },
    "gateway": HTTP_FLOODS,
}


async def flood(kind: str, endpoint: str, tokens: Mapping[str, str], sent_per_s: float | None = None) -> None:
    """Flood until the process is ended."""
    service, _, name = kind.partition("/")
    outcomes: Outcomes = Counter()
    chosen = FLOODS[service][name]
    if sent_per_s is not None and isinstance(chosen, RawCalls):
        chosen = replace(chosen, per_s=sent_per_s)
    flooding = asyncio.create_task(_run(chosen, endpoint, tokens, outcomes))
    while not flooding.done():
        await asyncio.sleep(1.0)
        print(json.dumps(outcomes), flush=True)
    await flooding


async def _run(flood: Flood, endpoint: str, tokens: Mapping[str, str], outcomes: Outcomes) -> None:
    await flood(endpoint, tokens, outcomes)


if __name__ == "__main__":
    bound = float(sys.argv[3]) if len(sys.argv) > 3 else None
    asyncio.run(flood(sys.argv[1], sys.argv[2], json.loads(os.environ["FLOOD_TOKENS"]), bound))
