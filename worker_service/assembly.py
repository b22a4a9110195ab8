"""Puts a worker's parts together over a loaded model."""

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol

from hotslot.contract.control import CompiledBucket, ModelInfo, StartupStage
from hotslot.formats.base_spec import BaseSpec
from hotslot.ids import WorkerId
from shared.quotas.limits import TenantLimits
from shared.quotas.rates import Rates
from worker_service.adapters.catalog_watch import CatalogWatch
from worker_service.adapters.control import AdapterControl
from worker_service.adapters.disk_tier import DiskOptions, open_disk_tier
from worker_service.adapters.holdings import Holdings
from worker_service.adapters.known_reference import ReferenceLimits
from worker_service.adapters.loader import BlobDecoder, Loader, LoaderLimits
from worker_service.adapters.policy import AdapterDefaults
from worker_service.adapters.provider import AdapterProvider
from worker_service.adapters.references import ReferenceCache
from worker_service.adapters.store_client import StoreView
from worker_service.adapters.tiers import AdapterTiers
from worker_service.engine.handle import DEFAULT_SILENCE_S, EngineHandle
from worker_service.engine.kept_reports import KeptReports
from worker_service.engine.limits import EngineLimits, EnginePolicy
from worker_service.engine.listener import EngineListener
from worker_service.engine.loop import Engine
from worker_service.engine.messages import ModelRunner
from worker_service.front.counting import TokenCounting
from worker_service.front.engine_spans import EngineSpans
from worker_service.front.generation import Generation, Identity
from worker_service.front.prompts import PromptEncoder, Tokenizer
from worker_service.front.validation import RequestLimits
from worker_service.front.worker import ServingParts
from worker_service.pinned_arena import PinnedArena

MAX_CHOICES = 16


class ServableModel(Protocol):
    """A loaded model as the rest of the worker sees it; tests bring one without torch."""

    @property
    def runner(self) -> ModelRunner: ...
    @property
    def limits(self) -> EngineLimits: ...
    @property
    def decoder(self) -> BlobDecoder: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def spec(self) -> BaseSpec: ...
    @property
    def dtype(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def target_paths(self) -> tuple[str, ...]: ...
    @property
    def max_rank(self) -> int: ...
    @property
    def buckets(self) -> tuple[CompiledBucket, ...]: ...
    @property
    def startup_stages(self) -> tuple[StartupStage, ...]: ...
    @property
    def arena(self) -> PinnedArena | None: ...


@dataclass(frozen=True, slots=True)
class AssemblyOptions:
    """Options of the parts beyond those of the model."""

    host_cache_bytes: int
    max_parallel_loads: int = 4
    disk: DiskOptions | None = None
    """Keep fetched adapters on the local disk."""
    references: ReferenceLimits = field(default_factory=ReferenceLimits)
    engine: EnginePolicy = field(default_factory=EnginePolicy)
    engine_silence_s: float = DEFAULT_SILENCE_S
    """Silence of the engine after which it counts as one that hangs."""
    rates: Rates | None = None
    """Tokens that tenants may use in a minute; None limits nobody."""
    listener: EngineListener | None = None
    """Hears on the engine's thread what it does."""
    reports: KeptReports | None = None
    """Hears it in the listener's place and tells it; keeps what spans are drawn of."""


def assemble(
    model: ServableModel,
    worker_id: WorkerId,
    store: StoreView,
    executor: Executor,
    options: AssemblyOptions,
) -> tuple[ServingParts, Engine]:
    """The parts, wired to an engine that is not started yet. Call it on the event loop."""
    limits = model.limits
    engine = Engine(model.runner, limits, policy=options.engine, listener=options.reports or options.listener)
    client = EngineHandle(engine, engine.clock, options.engine_silence_s)
    disk = open_disk_tier(options.disk, store) if options.disk is not None else None
    holdings = Holdings(options.host_cache_bytes, disk.has) if disk is not None else Holdings(options.host_cache_bytes)
    loader = Loader(disk or store, model.decoder, holdings, LoaderLimits(options.max_parallel_loads), executor)
    tiers = AdapterTiers(holdings, loader, client, limits, disk)
    watch = CatalogWatch(store)
    provider = AdapterProvider(ReferenceCache(store, tiers, options.references, watch), tiers)
    policy = AdapterDefaults()
    encoder = PromptEncoder(model.tokenizer, limits.max_sequence_tokens)
    request_limits = RequestLimits(model.vocab_size, limits.max_sequence_tokens, MAX_CHOICES, limits.num_slots)
    generation = Generation(
        Identity(worker_id, model.spec.name, model.spec.digest, model.eos_token_ids),
        request_limits,
        encoder,
        provider,
        policy,
        client,
        options.rates or Rates(TenantLimits()),
        EngineSpans(options.reports, engine.clock) if options.reports is not None else None,
    )
    counting, control = TokenCounting(encoder, request_limits), AdapterControl(provider, policy)
    info = _info(worker_id, model, has_chat_template=encoder.has_chat_template)
    buckets, startup = model.buckets, model.startup_stages
    parts = ServingParts(
        info, generation, counting, control, policy, provider, watch, client, buckets, startup, model.arena
    )
    return parts, engine


def _info(worker_id: WorkerId, model: ServableModel, *, has_chat_template: bool) -> ModelInfo:
    limits, spec = model.limits, model.spec
    return ModelInfo(
        base_model=spec.name,
        base_model_digest=spec.digest,
        model_type=spec.model_type,
        dtype=model.dtype,
        max_sequence_tokens=limits.max_sequence_tokens,
        vocab_size=model.vocab_size,
        eos_token_ids=model.eos_token_ids,
        has_chat_template=has_chat_template,
        target_modules=model.target_paths,
        num_slots=limits.num_slots,
        slot_rank=limits.slot_rank,
        max_rank=model.max_rank,
        max_sequences=limits.max_running,
        worker_id=worker_id,
    )
