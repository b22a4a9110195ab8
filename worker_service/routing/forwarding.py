"""One request on its one hop: the same metadata and deadline, raw messages back, cancelled when the caller leaves.

**Invariant**: a forwarded request is never forwarded again. The mark that says so comes from the caller, so all it
may do is keep a request on the worker that it reached.
"""

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass

import grpc

from hotslot.errors import InsecureTransportError, InvalidEndpointError, UnavailableError
from hotslot.ids import NO_PARTY, PartyId, TenantId, WorkerId
from hotslot.rpc.channel import ChannelOptions, connect, open_channel
from hotslot.rpc.pool import Pool
from hotslot.rpc.security import AUTHORIZATION, NO_SECURITY, ChannelSecurity
from hotslot.rpc.status import from_rpc_error
from hotslot.rpc.stub_method import CallHearer
from hotslot.rpc.tenant import FORWARDED_KEY, PARTY_KEY, PRINCIPAL_KEY, SCOPES_KEY, TENANT_KEY
from hotslot.tracing import span_inside
from shared.fleet.records import WorkerRecord

METHOD = "/hotslot.worker.v1.InferenceService/Generate"
CONNECT_TIMEOUT_S = 1.0
MAX_IDLE_PEERS = 64

# Each connection has its own of these.
_OF_THE_HOP = frozenset({"user-agent", "content-type", "te", "host", "connection", FORWARDED_KEY})
# A worker calls as itself, for the tenant that it has settled: a caller's token goes no further.
_OF_THE_CALLER = frozenset({AUTHORIZATION, PRINCIPAL_KEY, SCOPES_KEY, TENANT_KEY, PARTY_KEY})
_RESERVED = ("grpc-", ":")

Carried = tuple[tuple[str, str | bytes], ...]
Peers = Pool[grpc.aio.Channel]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A request as it goes to another worker."""

    message: bytes
    """A serialised GenerateRequest."""
    metadata: Carried
    timeout_s: float | None


def open_peers(
    keepalive_s: float,
    *,
    use_proxy: bool = False,
    security: ChannelSecurity = NO_SECURITY,
    hearer: CallHearer | None = None,
) -> Peers:
    """Connections to other workers; one whose end is silent for 1.5 × `keepalive_s` counts as broken."""
    options = ChannelOptions(
        max_attempts=1,
        stream_timeout_s=None,
        keepalive_s=keepalive_s,
        use_proxy=use_proxy,
        security=security,
        hearer=hearer,
    )

    def dial(endpoint: str) -> grpc.aio.Channel:
        try:
            return open_channel(endpoint, options)
        except (InvalidEndpointError, InsecureTransportError) as exc:
            raise UnavailableError(f"a worker's address cannot be called: {exc.message}") from exc

    return Pool(dial, MAX_IDLE_PEERS)


def metadata_to_carry(
    received: Iterable[tuple[str, str | bytes]], tenant: TenantId, forwarder: WorkerId, party: PartyId = NO_PARTY
) -> Carried:
    """Everything that the caller sent, trace included, less what belongs to its connection or itself, and the mark."""
    left_out = _OF_THE_HOP | _OF_THE_CALLER
    carried = [(key, value) for key, value in received if key not in left_out and not key.startswith(_RESERVED)]
    told = ((PARTY_KEY, party),) if party else ()
    return (*carried, (TENANT_KEY, tenant), (FORWARDED_KEY, forwarder), *told)


def is_forwarded(received: Iterable[tuple[str, str | bytes]]) -> bool:
    """Tell whether a worker forwarded this request already."""
    return any(key == FORWARDED_KEY for key, _ in received)


async def forward(peers: Peers, peer: WorkerRecord, parcel: Parcel) -> AsyncGenerator[bytes, None]:
    """The serialised answers of another worker. Closing the generator cancels the call there.

    A message is read when the one before was taken, so a slow reader slows the other worker's stream down and not
    this one's memory up. Raises the other worker's errors, and UnavailableError when it is lost.
    """
    info = peer.info
    async with peers.use(info.endpoint) as channel:
        try:
            with span_inside("hotslot.connect", {"server.address": info.endpoint}):
                await connect(channel, CONNECT_TIMEOUT_S)
        except UnavailableError as exc:
            raise UnavailableError(f"worker {info.worker_id} at {info.endpoint}: {exc.message}") from exc
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(METHOD)
        call = method(parcel.message, timeout=parcel.timeout_s, metadata=parcel.metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as exc:
            raise from_rpc_error(exc) from exc
        finally:
            call.cancel()
