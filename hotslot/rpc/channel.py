"""Opening channels: every call gets a deadline, the tenant and the caller's token, and what is safe is retried.

`open_channel` is for asyncio, `open_blocking_channel` for threads. Both return what generated stubs take. No other code
opens a channel: what is decided here (proxies, keepalive, limits, forks) holds for every call.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import grpc

from hotslot.endpoints import dialled_endpoint
from hotslot.errors import UnavailableError
from hotslot.ids import TenantId
from hotslot.rpc.forking import FORK_GUARD
from hotslot.rpc.message_sizes import MAX_MESSAGE_BYTES
from hotslot.rpc.security import NO_SECURITY, BearerToken, ChannelSecurity, check_transport
from hotslot.rpc.stub_method import CallHearer, Metadata, StubMethod
from hotslot.rpc.tenant import TENANT_KEY
from hotslot.rpc.tls_files import TlsFiles

# Retried when the answer is UNAVAILABLE and no headers came: calling these twice is calling them once. The others
# are retried by grpc only when it knows that the server never saw them.
SAFE_TO_RETRY: Mapping[str, tuple[str, ...]] = {
    "hotslot.store.v1.AdapterStoreService": (
        "ValidateAdapter",
        "GetAdapter",
        "ListAdapters",
        "ListVersions",
        "ResolveAdapter",
        "WatchAdapters",
        "RegisterBaseModel",
        "ListBaseModels",
        "FindBaseModels",
        "AddBaseModelAlias",
        "IssueEpoch",
        "GetAdapterPolicy",
        "ListAdapterPolicies",
        "GetQuota",
        "GetCaller",
        "ListShares",
        "ListSharedAdapters",
        "ListPinnedVersions",
    ),
    "hotslot.store.v1.BlobService": ("ReadBlob", "GetWriteStatus", "FindMissingBlobs"),
    "hotslot.store.v1.CompiledCodeService": ("ReadCompiledCode",),
    "hotslot.fleet.v1.FleetService": ("IssueEpoch", "ListPinnedVersions", "ReadCompiledCode"),
    "hotslot.placement.v1.PlacementService": ("PickWorkers", "ListWorkers", "ListPlacements", "WatchPlacements"),
    "hotslot.worker.v1.InferenceService": ("Generate", "Complete", "CountTokens", "Detokenize", "GetModelInfo"),
    "hotslot.worker.v1.AdapterControlService": (
        "LoadAdapter",
        "PinAdapter",
        "UnpinAdapter",
        "ListAdapters",
        "GetWorkerStatus",
        "UndrainWorker",
    ),
    "grpc.health.v1.Health": ("Check",),
}

CONNECT_ATTEMPT_MS = 5_000
"""Longest time of one attempt to connect, over half the world or to a server that is busy with other handshakes."""
RETIRED_S = 3600.0
"""Longest time for which calls go on over a channel that another one has replaced, with newer certificates."""


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """Options of a channel's calls."""

    tenant: TenantId | None = None
    """Tenant that calls are for; None leaves it to the token's principal, and is the default tenant without one."""
    metadata: Metadata = ()
    """Sent with every call, besides the tenant."""
    unary_timeout_s: float = 30.0
    """Deadline of a call with one answer that sets none itself."""
    stream_timeout_s: float | None = 600.0
    """Deadline of a call that streams in either direction and sets none itself; None leaves it without one."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    """Largest message in either direction; servers take as much."""
    max_attempts: int = 4
    """Attempts of a call that is safe to retry, the first one included; grpc allows 5 at most. 1 turns retries off."""
    keepalive_s: float = 20.0
    """Time between two probes of an idle connection; not below half the server's setting."""
    use_proxy: bool = False
    """Go through the proxy that grpc_proxy, https_proxy or http_proxy names, where no_proxy does not exclude the host.
    By default these variables, which are meant for the way out of a network, do not break calls inside of it."""
    security: ChannelSecurity = NO_SECURITY
    """Certificates and token of the caller."""
    hearer: CallHearer | None = None
    """Hears of each call, to count it; on channels for asyncio."""


DEFAULT_OPTIONS = ChannelOptions()


def open_channel(endpoint: str, options: ChannelOptions = DEFAULT_OPTIONS) -> grpc.aio.Channel:
    """A channel for asyncio. Connects on first use; close it, or use it with `async with`.

    `endpoint` is host:port, or `dns:///host:port` to spread calls over all addresses of a name. Raises
    InvalidEndpointError for anything else, InvalidRequestError for certificates and tokens that cannot be read,
    InsecureTransportError where a token would leave this machine in plaintext, and ForkedClientError in a child
    process that cannot use gRPC.
    """
    target, arguments = _checked(endpoint, options), _arguments(options)
    if not options.security.uses_tls:
        plain = partial(grpc.aio.insecure_channel, target, arguments)
        return cast(grpc.aio.Channel, _AsyncChannel(plain, options, endpoint))
    files = TlsFiles(options.security.tls_paths)

    def dial() -> grpc.aio.Channel:
        return grpc.aio.secure_channel(target, _credentials(files), arguments)

    return cast(grpc.aio.Channel, _AsyncChannel(dial, options, endpoint, files))


def open_blocking_channel(endpoint: str, options: ChannelOptions = DEFAULT_OPTIONS) -> grpc.Channel:
    """A channel for threads; otherwise like `open_channel`, but for a life short enough to keep its certificates."""
    target, arguments = _checked(endpoint, options), _arguments(options)
    if options.security.uses_tls:
        credentials = _credentials(TlsFiles(options.security.tls_paths))
        dial = partial(grpc.secure_channel, target, credentials, arguments)
    else:
        dial = partial(grpc.insecure_channel, target, arguments)
    return cast(grpc.Channel, _BlockingChannel(dial, replace(options, hearer=None), endpoint))


async def connect(channel: grpc.aio.Channel, timeout_s: float) -> None:
    """Return when a channel's connection stands; raises UnavailableError when it fails or takes too long."""
    state = channel.get_state(try_to_connect=True)
    if state is grpc.ChannelConnectivity.READY:
        return
    try:
        async with asyncio.timeout(timeout_s):
            while state is not grpc.ChannelConnectivity.READY:
                if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
                    raise UnavailableError("connection failed")
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError as exc:
        raise UnavailableError(f"no connection within {timeout_s:g} s") from exc


class _Channel:
    """A channel whose methods carry the defaults; everything else is the channel's own."""

    def __init__(self, dial: Callable[[], Any], options: ChannelOptions, endpoint: str) -> None:
        self._token = BearerToken(options.security)
        self._channel = dial()
        self._options = options
        self.hearer, self.endpoint = options.hearer, endpoint
        named = ((TENANT_KEY, str(options.tenant)),) if options.tenant is not None else ()
        self._metadata: Metadata = (*named, *options.metadata)
        FORK_GUARD.opened(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.current(), name)

    def current(self) -> Any:
        """The channel that new calls go over."""
        return self._channel

    def defaults(self) -> Metadata:
        """Metadata of every call."""
        return (*self._metadata, *self._token.metadata())

    def unary_unary(self, *args: Any, **kwargs: Any) -> StubMethod:
        return StubMethod(self, "unary_unary", (args, kwargs), self._options.unary_timeout_s)

    def unary_stream(self, *args: Any, **kwargs: Any) -> StubMethod:
        return StubMethod(self, "unary_stream", (args, kwargs), self._options.stream_timeout_s)

    def stream_unary(self, *args: Any, **kwargs: Any) -> StubMethod:
        return StubMethod(self, "stream_unary", (args, kwargs), self._options.stream_timeout_s)

    def stream_stream(self, *args: Any, **kwargs: Any) -> StubMethod:
        return StubMethod(self, "stream_stream", (args, kwargs), self._options.stream_timeout_s)


class _AsyncChannel(_Channel):
    """With TLS a row of channels: one keeps its certificates in gRPC's Python client, so new ones get a new channel."""

    def __init__(
        self, dial: Callable[[], Any], options: ChannelOptions, endpoint: str, files: TlsFiles | None = None
    ) -> None:
        super().__init__(dial, options, endpoint)
        self._dial = dial
        self._files = files
        self._retired: dict[grpc.aio.Channel, asyncio.Task[None]] = {}

    def current(self) -> Any:
        if self._files is not None and self._files.refresh():
            replaced, self._channel = self._channel, self._dial()
            ending = asyncio.get_running_loop().create_task(replaced.close(RETIRED_S))
            self._retired[replaced] = ending
            ending.add_done_callback(lambda _: self._retired.pop(replaced, None))
        return self._channel

    async def __aenter__(self) -> "_AsyncChannel":
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        self._files = None
        ending = list(self._retired.values())
        if grace:
            await asyncio.gather(
                asyncio.wait(ending, timeout=grace) if ending else _nothing(), self._channel.close(grace)
            )
        else:
            await self._channel.close(grace)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        FORK_GUARD.closed(self)


async def _nothing() -> None:
    """Wait for no channel."""


class _BlockingChannel(_Channel):
    def __enter__(self) -> "_BlockingChannel":
        self._channel.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()
        FORK_GUARD.closed(self)


def _credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Credentials of the files' current content; gRPC asks for TLS 1.2 or newer."""
    material = files.material
    return grpc.ssl_channel_credentials(material.ca, material.key, material.cert)


def _checked(endpoint: str, options: ChannelOptions) -> str:
    """Text for gRPC to dial, once it is known that it may."""
    FORK_GUARD.check()
    target = dialled_endpoint(endpoint).target
    check_transport(endpoint, options.security)
    return target


def _arguments(options: ChannelOptions) -> list[tuple[str, int | str]]:
    keepalive_ms = round(options.keepalive_s * 1e3)
    name = options.security.server_name
    return [
        *([("grpc.ssl_target_name_override", name)] if name else []),
        ("grpc.service_config", json.dumps(_service_config(options))),
        ("grpc.enable_retries", 1),
        ("grpc.enable_http_proxy", int(options.use_proxy)),
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.keepalive_time_ms", keepalive_ms),
        ("grpc.keepalive_timeout_ms", keepalive_ms // 2),
        # Timeout of grpc's other pings: while one of them is under way, no keepalive is sent.
        ("grpc.http2.ping_timeout_ms", keepalive_ms // 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A server that restarts is found again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # By its name a pause, it is the time of one attempt: TCP, TLS and HTTP/2 take four ways there and back.
        ("grpc.min_reconnect_backoff_ms", CONNECT_ATTEMPT_MS),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def _service_config(options: ChannelOptions) -> dict[str, Any]:
    """https://github.com/grpc/grpc/blob/master/doc/service_config.md, and gRFC A6 for the retry policy."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if options.max_attempts > 1:
        names = [
            {"service": service, "method": method} for service, methods in SAFE_TO_RETRY.items() for method in methods
        ]
        config["methodConfig"] = [
            {
                "name": names,
                "retryPolicy": {
                    "maxAttempts": options.max_attempts,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    # Not CANCELLED, how gRPC's servers end calls that come while they stop: retrying it hangs for ever.
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return config
