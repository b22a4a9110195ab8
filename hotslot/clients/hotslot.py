"""The asyncio client of a whole deployment: picks the best worker, dials it, and fails over while that is safe."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from cachetools import TTLCache

from hotslot.clients.environment import FROM_ENVIRONMENT, FromEnvironment, options_of, store_of, timeout_of, worker_of
from hotslot.clients.failing_over import FailOver
from hotslot.clients.home import Home
from hotslot.clients.placement import PlacementClient
from hotslot.clients.plain_forms import Adapters, Prompt, as_adapters, as_request
from hotslot.clients.publishing import ready_workers
from hotslot.clients.routing import Picks, RouteKey
from hotslot.clients.rpc import UNARY_TIMEOUT_S, checked_timeout
from hotslot.clients.store import StoreClient
from hotslot.clients.token_requests import count_request, detokenize_request
from hotslot.clients.traced_generation import traced
from hotslot.clients.worker import WorkerClient
from hotslot.clients.written_revision import WrittenRevision
from hotslot.codec import request_to_proto
from hotslot.collecting import collect
from hotslot.contract.catalog import PublishedVersion, VersionHolder
from hotslot.contract.control import ModelInfo
from hotslot.contract.generation import Completion, GenerationEvent, GenerationRequest
from hotslot.contract.placement import WorkerPick
from hotslot.contract.tokens import DecodedTokens, TokenCount
from hotslot.errors import (
    InvalidEndpointError,
    UnavailableError,
)
from hotslot.ids import TagName
from hotslot.pb.hotslot.worker.v1 import inference_pb2 as pb
from hotslot.references import parse_reference
from hotslot.rpc.channel import ChannelOptions
from hotslot.rpc.pool import Pool

CONNECT_TIMEOUT_S = 2.0
PICK_TIMEOUT_S = 2.0
"""Longest wait for placement before any worker is better."""
PUBLISH_WAIT_S = 10.0
"""Longest wait for workers that held an adapter's name to have its new version."""
MAX_PUBLISHED = 256
PUBLISHED_TTL_S = 10.0
"""Time by which placement surely knows what workers hold."""


class HotslotClient:
    """Store, placement and workers of one deployment. Belongs to the event loop of its first call.

    `worker_endpoint` is called when placement cannot say which worker to call: any worker finds the right one itself.
    None means that there is no such worker. With `route=False` every request goes there.

    A generation that no worker could begin is tried again for `patience_s` seconds, within its own deadline, so that
    it outlives a store or workers that are away for a moment; 0 reports the failure at once.

    Its generations and loads are served by what it wrote before (`revision`), on every worker; with
    `reads_own_writes=False` only by what a request's own `min_revision` asks for.
    """

    def __init__(
        self,
        store_endpoint: str | FromEnvironment = FROM_ENVIRONMENT,
        worker_endpoint: str | FromEnvironment | None = FROM_ENVIRONMENT,
        *,
        route: bool = True,
        base_model: str = "",
        options: ChannelOptions | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        patience_s: float = 0.0,
        reads_own_writes: bool = True,
        written: WrittenRevision | None = None,
    ) -> None:
        """`written` is shared by clients that are to be served by each other's writes."""
        store_endpoint = store_of(store_endpoint)
        options = options_of(options, store=store_endpoint)
        self._written = written or WrittenRevision()
        self.store = StoreClient(store_endpoint, options, written=self._written)
        self.placement = PlacementClient(store_endpoint, options)
        worker = worker_of(FROM_ENVIRONMENT if worker_endpoint is None else worker_endpoint, store=store_endpoint)
        fallback = None if worker_endpoint is None else worker
        self._base_model = base_model
        self._picks = Picks(self._ask, time.monotonic)
        self._home = Home("the client")
        # Failing over is this client's work: a channel that retries would only delay it.
        to_workers = replace(options, security=options.security.for_workers())
        once = replace(to_workers, max_attempts=1)
        needed = self._written if reads_own_writes else WrittenRevision()
        self._published: TTLCache[str, dict[str, VersionHolder]] = TTLCache(MAX_PUBLISHED, PUBLISHED_TTL_S)
        """Workers that a publication by this client made ready, by the adapter's name."""
        self._pool = Pool(partial(_dial, once, needed))
        self._workers = FailOver(self._home, self._pool, self._picks, fallback, route, connect_timeout_s, patience_s)
        self.worker = WorkerClient(worker, to_workers, written=needed)

    @property
    def revision(self) -> int:
        """Revision of the tenant's catalog that this client's requests are served at, or at a later one.

        It is the largest that its writes returned, or that was set: to what another client wrote, or to 0 where that
        catalog is no more (CatalogBehindError). Another client passes it on as a request's `min_revision`.
        """
        return self._written.value

    @revision.setter
    def revision(self, revision: int) -> None:
        self._written.value = revision

    async def __aenter__(self) -> "HotslotClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls that are under way raise ClientClosedError. Again is harmless."""
        if self._home.leave():
            await self._picks.close()
        await asyncio.gather(self.store.close(), self.placement.close(), self.worker.close(), self._pool.close())

    async def generate(
        self,
        request: GenerationRequest | Prompt,
        *,
        adapters: Adapters = (),
        base_model: str = "",
        timeout_s: float | FromEnvironment = FROM_ENVIRONMENT,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Stream a generation from the best worker.

        A prompt alone (a text, messages or token ids) is a request with these `adapters`. `base_model` is for this
        request what the client's own is for all. A worker that fails before its first event is passed over for the
        next; after that, failures are the caller's to see, since a second run could answer something else. Closing the
        iterator cancels the request.
        """
        message = request_to_proto(as_request(request, adapters))

        def ask(worker: WorkerClient, left_s: float) -> AsyncGenerator[GenerationEvent, None]:
            return worker.generate(message, timeout_s=left_s)

        found = self._workers.anywhere(self._key(message, base_model), timeout_of(timeout_s), ask)
        async with aclosing(traced(found, message, base_model or self._base_model)) as events:
            async for event in events:
                yield event

    async def complete(
        self,
        request: GenerationRequest | Prompt,
        *,
        adapters: Adapters = (),
        base_model: str = "",
        timeout_s: float | FromEnvironment = FROM_ENVIRONMENT,
    ) -> Completion:
        """Generate to the end; the arguments are those of `generate`.

        It is streamed, which tells whether an answer has begun: only before that another worker is tried.
        """
        return await collect(self.generate(request, adapters=adapters, base_model=base_model, timeout_s=timeout_s))

    async def count_tokens(
        self,
        prompt: Prompt,
        *,
        base_model: str = "",
        add_special_tokens: bool = True,
        with_token_ids: bool = False,
        with_tokens: bool = False,
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> TokenCount:
        """Number of a text's or a chat's tokens as a prompt of a base model has them."""
        request = count_request(
            prompt, add_special_tokens=add_special_tokens, with_token_ids=with_token_ids, with_tokens=with_tokens
        )
        return await self._workers.once(
            self._base_key(base_model), timeout_s, lambda worker, left_s: worker.count_tokens(request, timeout_s=left_s)
        )

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        base_model: str = "",
        skip_special_tokens: bool = False,
        with_tokens: bool = False,
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> DecodedTokens:
        """The text of a base model's tokens."""
        request = detokenize_request(token_ids, skip_special_tokens=skip_special_tokens, with_tokens=with_tokens)
        return await self._workers.once(
            self._base_key(base_model), timeout_s, lambda worker, left_s: worker.detokenize(request, timeout_s=left_s)
        )

    async def model_info(
        self, *, adapters: Adapters = (), base_model: str = "", timeout_s: float = UNARY_TIMEOUT_S
    ) -> ModelInfo:
        """The model, its limits and its templates, as the worker has them that would answer a request like this."""
        names = tuple(selection.reference for selection in as_adapters(adapters))
        key = RouteKey(names, base_model or self._base_model)
        return await self._workers.once(key, timeout_s, lambda worker, left_s: worker.model_info(timeout_s=left_s))

    def _key(self, message: pb.GenerateRequest, base_model: str) -> RouteKey:
        adapters = () if message.base_only else tuple(selection.reference for selection in message.adapters)
        return RouteKey(adapters, base_model or self._base_model)

    def _base_key(self, base_model: str) -> RouteKey:
        return RouteKey((), base_model or self._base_model)

    async def publish(
        self,
        weights: object,
        config: object,
        reference: str,
        *,
        metadata: Mapping[str, str | float] | None = None,
        tags: Sequence[str] = (),
        keep: int | None = None,
        base_model: str = "",
        labels: Mapping[str, str] | None = None,
        tag_etag: str = "",
        adapter: str = "",
        wait_s: float = PUBLISH_WAIT_S,
    ) -> PublishedVersion:
        """Publish an adapter from memory as `name[:tag]`, and return once the next request of the name sees it.

        `weights` are a PEFT model (`config` may be None then, and `adapter` says which one if it is not the active
        one), a mapping of PEFT's names to torch tensors, numpy arrays or `RawTensor`, or the bytes of a safetensors
        file; `config` is PEFT's, as an object, a mapping or JSON. They must not change before this returns. `metadata`
        becomes the version's annotations, `tags` are moved to it too, and `keep` sets how many versions stay.

        Workers that held the name have the new version in their slots then, or, after `wait_s` or a failure, say in
        `workers` why not; requests of this client see it there all the same, as soon as it is loaded.
        """
        wait_s = checked_timeout(wait_s, "wait_s")
        published, holders = await self.store.publish(
            weights,
            config,
            reference,
            metadata=metadata,
            tags=tags,
            keep=keep,
            base_model=base_model,
            labels=labels,
            tag_etag=tag_etag,
            adapter=adapter,
        )
        parsed = parse_reference(reference)
        moved = [tag for tag in (parsed.tag, *tags) if tag is not None]
        references = [f"{parsed.name}:{tag}" for tag in dict.fromkeys(moved)]
        # Placement hears of a load a moment later than its publisher, who may be at the next one by then.
        known = self._published.get(parsed.name, {}) | {each.endpoint: each for each in holders}
        workers = await ready_workers(self._pool.use, tuple(known.values()), references, published.revision, wait_s)
        ready = {each.endpoint: known[each.endpoint] for each in workers if each.ready}
        self._published[parsed.name] = ready
        for spelling in (*references, *(str(replace(parsed, tag=TagName(tag), digest=None)) for tag in moved)):
            self._picks.note_ready(RouteKey((spelling,), self._base_model), tuple(ready))
        return replace(published, workers=workers)

    async def _ask(self, key: RouteKey) -> WorkerPick:
        return await self.placement.pick_workers(key.adapters, base_model=key.base_model, timeout_s=PICK_TIMEOUT_S)


def _dial(options: ChannelOptions, written: WrittenRevision, endpoint: str) -> WorkerClient:
    """The client of a worker that placement named."""
    try:
        return WorkerClient(endpoint, options, written=written)
    except InvalidEndpointError as exc:
        raise UnavailableError(f"placement named a worker that cannot be called: {exc.message}") from exc
