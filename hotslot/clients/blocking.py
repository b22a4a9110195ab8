"""The same clients for code without an event loop: each call runs on a private loop in a thread of its own.

Nothing is written twice: a method here is made from its asyncio original and has the same signature, except that
it returns the result (or a plain iterator) instead of an awaitable.

One made before a fork, as by a server that imports before it forks, works in every child as long as its parent has
called nothing yet; else the child's calls raise ForkedClientError.
"""

import functools
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from dataclasses import replace
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

from hotslot.clients.blobs import RetryPolicy
from hotslot.clients.environment import FROM_ENVIRONMENT, FromEnvironment, options_of, store_of, worker_of
from hotslot.clients.hotslot import HotslotClient
from hotslot.clients.loop_thread import LoopThread
from hotslot.clients.placement import PlacementClient
from hotslot.clients.store import StoreClient
from hotslot.clients.worker import WorkerClient
from hotslot.clients.written_revision import WrittenRevision
from hotslot.errors import ForkedClientError
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.pool import Closable

P = ParamSpec("P")
T = TypeVar("T")


C_co = TypeVar("C_co", bound=Closable, covariant=True)


class Blocking(Generic[C_co]):
    """An asyncio client and the loop that it lives in."""

    def __init__(self, open_client: Callable[[], C_co], loop: LoopThread | None = None) -> None:
        self._owns_loop = loop is None
        self.loop = loop or LoopThread()
        self._open_client = open_client
        # Those of parent processes stay here untouched: ending them would end what the parents do with them.
        self._clients: dict[int, C_co] = {os.getpid(): open_client()}

    @property
    def client(self) -> C_co:
        """The asyncio client of this process; use it in `loop` only."""
        process = os.getpid()
        return self._clients.get(process) or self._clients.setdefault(process, self._open_client())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; calls under way in other threads raise ClientClosedError. Again is harmless."""
        client = self._clients.get(os.getpid())
        if client is not None and not self.loop.is_closed:
            self.loop.run(client.close())
        if self._owns_loop:
            self.loop.stop()


def _call(
    method: Callable[Concatenate[C_co, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Blocking[C_co], P], T]:
    @functools.wraps(method)
    def run(self: Blocking[C_co], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.loop.run(method(self.client, *args, **kwargs))

    return cast("Callable[Concatenate[Blocking[C_co], P], T]", run)


def _iterate(
    method: Callable[Concatenate[C_co, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Blocking[C_co], P], Generator[T, None, None]]:
    @functools.wraps(method)
    def iterate(self: Blocking[C_co], *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        items, process = method(self.client, *args, **kwargs), os.getpid()
        try:
            while True:
                if os.getpid() != process:
                    raise ForkedClientError("the stream")
                item = self.loop.run(_next(items))
                if item is None:
                    return
                yield item[0]
        finally:
            # Also when the caller stops early: closing is what cancels the call, and so is closing the client.
            if os.getpid() == process and not self.loop.is_closed:
                self.loop.run(_close(items))

    return cast("Callable[Concatenate[Blocking[C_co], P], Generator[T, None, None]]", iterate)


async def _next(items: AsyncGenerator[T, None]) -> tuple[T] | None:
    async for item in items:
        return (item,)
    return None


async def _close(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()


class BlockingStoreClient(Blocking[StoreClient]):
    """`StoreClient` without an event loop."""

    def __init__(
        self,
        endpoint: str | FromEnvironment = FROM_ENVIRONMENT,
        options: ChannelOptions | None = None,
        retry: RetryPolicy | None = None,
        *,
        loop: LoopThread | None = None,
        written: WrittenRevision | None = None,
    ) -> None:
        self._written = written or WrittenRevision()
        super().__init__(lambda: StoreClient(endpoint, options, retry, written=self._written), loop)

    @property
    def revision(self) -> int:
        """See `StoreClient.revision`."""
        return self._written.value

    push = _call(StoreClient.push)
    publish = _call(StoreClient.publish)
    pull = _call(StoreClient.pull)
    validate = _call(StoreClient.validate)
    import_hub = _call(StoreClient.import_hub)
    import_directory = _call(StoreClient.import_directory)
    import_url = _call(StoreClient.import_url)
    get = _call(StoreClient.get)
    resolve = _call(StoreClient.resolve)
    list_adapters = _iterate(StoreClient.list_adapters)
    list_versions = _iterate(StoreClient.list_versions)
    list_base_models = _iterate(StoreClient.list_base_models)
    register_base_model = _call(StoreClient.register_base_model)
    delete_base_model = _call(StoreClient.delete_base_model)
    find_base_models = _call(StoreClient.find_base_models)
    add_base_model_alias = _call(StoreClient.add_base_model_alias)
    set_tag = _call(StoreClient.set_tag)
    delete_tag = _call(StoreClient.delete_tag)
    set_policy = _call(StoreClient.set_policy)
    get_policy = _call(StoreClient.get_policy)
    quota = _call(StoreClient.quota)
    status = _call(StoreClient.status)
    collect_garbage = _call(StoreClient.collect_garbage)
    list_policies = _iterate(StoreClient.list_policies)
    prune = _call(StoreClient.prune)
    share = _call(StoreClient.share)
    unshare = _call(StoreClient.unshare)
    list_shares = _iterate(StoreClient.list_shares)
    list_shared_adapters = _iterate(StoreClient.list_shared_adapters)
    caller = _call(StoreClient.caller)
    delete_policy = _call(StoreClient.delete_policy)
    delete_adapter = _call(StoreClient.delete_adapter)
    undelete_adapter = _call(StoreClient.undelete_adapter)
    delete_version = _call(StoreClient.delete_version)
    watch = _iterate(StoreClient.watch)
    read_blob = _iterate(StoreClient.read_blob)
    download_blob = _call(StoreClient.download_blob)


class BlockingPlacementClient(Blocking[PlacementClient]):
    """`PlacementClient` without an event loop."""

    def __init__(
        self,
        endpoint: str | FromEnvironment = FROM_ENVIRONMENT,
        options: ChannelOptions | None = None,
        *,
        loop: LoopThread | None = None,
    ) -> None:
        super().__init__(lambda: PlacementClient(endpoint, options), loop)

    pick_workers = _call(PlacementClient.pick_workers)
    list_workers = _iterate(PlacementClient.list_workers)
    list_placements = _iterate(PlacementClient.list_placements)
    watch_placements = _iterate(PlacementClient.watch_placements)


class BlockingWorkerClient(Blocking[WorkerClient]):
    """`WorkerClient` without an event loop."""

    def __init__(
        self,
        endpoint: str | FromEnvironment = FROM_ENVIRONMENT,
        options: ChannelOptions | None = None,
        *,
        loop: LoopThread | None = None,
        written: WrittenRevision | None = None,
    ) -> None:
        super().__init__(lambda: WorkerClient(endpoint, options, written=written), loop)

    connect = _call(WorkerClient.connect)
    generate = _iterate(WorkerClient.generate)
    complete = _call(WorkerClient.complete)
    count_tokens = _call(WorkerClient.count_tokens)
    detokenize = _call(WorkerClient.detokenize)
    chat = _call(WorkerClient.chat)
    model_info = _call(WorkerClient.model_info)
    load = _call(WorkerClient.load)
    unload = _call(WorkerClient.unload)
    pin = _call(WorkerClient.pin)
    unpin = _call(WorkerClient.unpin)
    list_adapters = _call(WorkerClient.list_adapters)
    set_default_adapters = _call(WorkerClient.set_default_adapters)
    enable_adapters = _call(WorkerClient.enable_adapters)
    disable_adapters = _call(WorkerClient.disable_adapters)
    drain = _call(WorkerClient.drain)
    undrain = _call(WorkerClient.undrain)
    status = _call(WorkerClient.status)


class BlockingHotslotClient(Blocking[HotslotClient]):
    """`HotslotClient` without an event loop; its parts share one loop."""

    def __init__(
        self,
        store_endpoint: str | FromEnvironment = FROM_ENVIRONMENT,
        worker_endpoint: str | FromEnvironment | None = FROM_ENVIRONMENT,
        *,
        route: bool = True,
        base_model: str = "",
        options: ChannelOptions | None = None,
        patience_s: float = 0.0,
        reads_own_writes: bool = True,
    ) -> None:
        self._written = WrittenRevision()
        store_endpoint = store_of(store_endpoint)
        options = options_of(options, store=store_endpoint)
        super().__init__(
            lambda: HotslotClient(
                store_endpoint,
                worker_endpoint,
                route=route,
                base_model=base_model,
                options=options,
                patience_s=patience_s,
                reads_own_writes=reads_own_writes,
                written=self._written,
            )
        )
        needed = self._written if reads_own_writes else None
        self.store = BlockingStoreClient(store_endpoint, options, loop=self.loop, written=self._written)
        self.placement = BlockingPlacementClient(store_endpoint, options, loop=self.loop)
        to_workers = replace(options, security=options.security.for_workers())
        worker = worker_of(worker_endpoint or FROM_ENVIRONMENT, store=store_endpoint)
        self.worker = BlockingWorkerClient(worker, to_workers, loop=self.loop, written=needed)

    @property
    def revision(self) -> int:
        """See `HotslotClient.revision`."""
        return self._written.value

    @revision.setter
    def revision(self, revision: int) -> None:
        self._written.value = revision

    def close(self) -> None:
        """Close all connections and end the loop."""
        for part in (self.store, self.placement, self.worker):
            part.close()
        super().close()

    generate = _iterate(HotslotClient.generate)
    complete = _call(HotslotClient.complete)
    publish = _call(HotslotClient.publish)
    count_tokens = _call(HotslotClient.count_tokens)
    detokenize = _call(HotslotClient.detokenize)
    model_info = _call(HotslotClient.model_info)
