"""The table of bindings: each type of the contract with its message."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from hotslot.codec.binding import NEGATED, Binding, omits, reads_zero_as
from hotslot.codec.compiling import Codec, compiled
from hotslot.codec.settling import settled_call, settled_chat, settled_message, settled_request, settled_stop
from hotslot.contract import catalog, control, garbage, generation, placement, quotas, sharing, store_status, tokens
from hotslot.contract.admission_warning import AdmissionWarning
from hotslot.contract.generation import Chunk, Finished, GenerationEvent, Started
from hotslot.errors import FieldViolation, InvalidRequestError, Violation
from hotslot.formats.base_details import BaseDetails, details_from_json
from hotslot.formats.base_spec import BaseModule, BaseSpec
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.formats.strict_json import StrictJsonError
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2
from hotslot.pb.hotslot.placement.v1 import placement_pb2
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb2
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2 as control_pb2
from hotslot.pb.hotslot.worker.v1 import inference_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)


def _details_json(details: BaseDetails | None) -> str:
    return details.to_json() if details is not None else ""


def _details(text: str) -> BaseDetails | None:
    try:
        return details_from_json(text)
    except StrictJsonError as exc:
        raise InvalidRequestError([FieldViolation("details_json", str(exc))]) from exc


BINDINGS: tuple[Binding, ...] = (
    # Generations.
    Binding(
        generation.GenerationRequest,
        inference_pb2.GenerateRequest,
        # The value that older workers assume is not written, so that nothing about the message is new to them.
        through={"num_choices": reads_zero_as(1), "skip_special_tokens": omits(True)},
        settle=settled_request,
    ),
    Binding(
        generation.ChatPrompt,
        inference_pb2.ChatPrompt,
        names={
            "add_generation_prompt": "omit_generation_prompt",
            "tools": "tools_json",
            "template_arguments": "template_arguments_json",
        },
        through={"add_generation_prompt": NEGATED},
        settle=settled_chat,
    ),
    Binding(generation.ChatMessage, inference_pb2.ChatMessage, settle=settled_message),
    Binding(generation.TextPart, inference_pb2.ContentPart),
    Binding(generation.ToolCall, inference_pb2.ToolCall, names={"arguments": "arguments_json"}, settle=settled_call),
    Binding(generation.AdapterSelection, inference_pb2.AdapterSelection),
    Binding(generation.AdapterSelection, control_pb2.DefaultAdapter),
    Binding(
        generation.Sampling,
        inference_pb2.SamplingParams,
        through={"top_p": reads_zero_as(1.0), "repetition_penalty": omits(1.0)},
    ),
    Binding(
        generation.Stop,
        inference_pb2.StopConditions,
        names={"strings": "stop_strings", "token_ids": "stop_token_ids"},
        settle=settled_stop,
    ),
    Binding(generation.Logprobs, inference_pb2.LogprobOptions),
    Binding(generation.Started, inference_pb2.GenerateStarted),
    Binding(generation.ServedAdapter, inference_pb2.ServedAdapter),
    Binding(generation.Chunk, inference_pb2.GenerateChunk),
    Binding(generation.TokenLogprob, inference_pb2.TokenLogprob),
    Binding(generation.TokenAlternative, inference_pb2.TokenAlternative),
    Binding(generation.Finished, inference_pb2.GenerateFinished),
    Binding(generation.Usage, inference_pb2.Usage),
    Binding(generation.Timings, inference_pb2.Timings),
    Binding(generation.Completion, inference_pb2.CompleteResponse),
    Binding(generation.Choice, inference_pb2.CompletedChoice),
    Binding(tokens.Token, inference_pb2.Token),
    Binding(tokens.TokenCount, inference_pb2.CountTokensResponse),
    Binding(tokens.DecodedTokens, inference_pb2.DetokenizeResponse),
    # One worker.
    Binding(control.ModelInfo, inference_pb2.GetModelInfoResponse),
    Binding(control.LoadedAdapter, control_pb2.LoadedAdapter),
    Binding(control.LoadResult, control_pb2.LoadAdapterResponse),
    Binding(control.LoadTimings, control_pb2.LoadTimings),
    Binding(control.WorkerAdapters, control_pb2.ListAdaptersResponse),
    Binding(control.WorkerStatus, control_pb2.GetWorkerStatusResponse),
    Binding(control.CompiledBucket, control_pb2.CompiledBucket),
    Binding(control.GraphStatus, control_pb2.GraphStatus),
    Binding(control.ArenaStatus, control_pb2.ArenaStatus),
    Binding(control.UncapturedSteps, control_pb2.UncapturedSteps),
    Binding(control.StartupStage, control_pb2.StartupStage),
    Binding(control.SlotStatus, control_pb2.SlotStatus),
    Binding(control.KvStatus, control_pb2.KvStatus),
    Binding(control.QueueStatus, control_pb2.QueueStatus),
    # The fleet.
    Binding(placement.Worker, placement_pb2.Worker),
    Binding(placement.WorkerLoad, placement_pb2.WorkerLoad),
    Binding(placement.WorkerCandidate, placement_pb2.WorkerCandidate),
    Binding(placement.WorkerPick, placement_pb2.PickWorkersResponse),
    Binding(placement.Placement, placement_pb2.Placement),
    Binding(placement.PlacementEvent, placement_pb2.WatchPlacementsResponse),
    # The catalog.
    Binding(catalog.Adapter, store_pb2.Adapter),
    Binding(catalog.Tag, store_pb2.Tag),
    Binding(
        catalog.Version,
        store_pb2.Version,
        spread="manifest",
        extra=frozenset({"warnings"}),
        after=catalog.Version.verified,
    ),
    Binding(Manifest, store_pb2.Manifest, written=frozenset({"max_rank"})),
    Binding(AdapterModule, store_pb2.AdapterModule),
    Binding(Violation, store_pb2.Violation),
    Binding(AdmissionWarning, store_pb2.Warning),
    Binding(catalog.AdapterPolicy, store_pb2.AdapterPolicy),
    Binding(sharing.KnownCaller, store_pb2.GetCallerResponse),
    Binding(sharing.AdapterShare, store_pb2.AdapterShare),
    Binding(catalog.PrunedVersion, store_pb2.PrunedVersion),
    Binding(catalog.PruneReport, store_pb2.PruneVersionsResponse),
    Binding(catalog.VersionHolder, store_pb2.VersionHolder),
    Binding(catalog.PinnedVersion, store_pb2.PinnedVersion),
    Binding(catalog.AdapterPolicy, fleet_pb2.PinningPolicy),
    Binding(catalog.PinnedVersion, fleet_pb2.PinnedVersion),
    Binding(catalog.ResolvedAdapter, store_pb2.ResolveAdapterResponse),
    Binding(catalog.TransferProgress, store_pb2.ImportProgress),
    Binding(catalog.AdapterEvent, store_pb2.WatchAdaptersResponse),
    Binding(catalog.BaseModel, store_pb2.BaseModel, inline="spec"),
    Binding(
        BaseSpec,
        store_pb2.BaseModel,
        names={"details": "details_json"},
        through={"details": (_details_json, _details)},
        extra=frozenset({"loaded"}),
        is_part=True,
    ),
    Binding(BaseModule, store_pb2.BaseModule, extra=frozenset({"absence"})),
    Binding(catalog.BaseModelMatch, store_pb2.FindBaseModelsResponse),
    Binding(quotas.TenantQuota, store_pb2.GetQuotaResponse),
    Binding(quotas.QuotaUsage, store_pb2.QuotaUsage),
    Binding(store_status.StoreStatus, store_pb2.GetStoreStatusResponse),
    Binding(store_status.StorePart, store_pb2.StorePart),
    Binding(garbage.GarbageReport, store_pb2.CollectGarbageResponse),
    Binding(garbage.Removal, store_pb2.Removal),
)

_TYPES = {b.message.DESCRIPTOR.full_name: b.kind for b in reversed(BINDINGS) if not b.is_part}
_BY_TYPE = {(binding.kind, binding.message.DESCRIPTOR.full_name): binding for binding in BINDINGS}
_CODECS: dict[tuple[type[Any], str], Codec] = {}


def codec_of(kind: type[Any], descriptor: Any) -> Codec | None:
    """The codec of a type for a message, compiled at its first use; None where they are not bound."""
    key = kind, descriptor.full_name
    codec = _CODECS.get(key)
    if codec is None and key in _BY_TYPE:
        codec = _CODECS[key] = compiled(_BY_TYPE[key], codec_of)
    return codec


def type_bound_to(descriptor: Any) -> type[Any] | None:
    """The type that stands for a message; None for one that is given by its fields."""
    return _TYPES.get(descriptor.full_name)


def _needed(kind: type[Any], descriptor: Any) -> Codec:
    codec = codec_of(kind, descriptor)
    assert codec is not None, f"{kind.__name__} is not bound to {descriptor.full_name}"
    return codec


def to_proto(kind: type[M], value: object) -> M:
    """Make a message of a value whose type is bound to it."""
    return kind(**_needed(type(value), kind.DESCRIPTOR).encode(value))


def from_proto(kind: type[T], message: Any) -> T:
    """Make a value of a type from a message that it is bound to.

    Raises DigestMismatchError and InvalidAdapterError for a version whose manifest is not that of its digest.
    """
    return cast(T, _needed(kind, message.DESCRIPTOR).decode(message))


_EVENTS: Mapping[str, type[Any]] = {"started": Started, "chunk": Chunk, "finished": Finished}
_EVENT_NAMES = {kind: name for name, kind in _EVENTS.items()}
_EVENT_FIELDS: Any = inference_pb2.GenerateResponse.DESCRIPTOR.fields_by_name


def generation_event_to_proto(event: GenerationEvent) -> inference_pb2.GenerateResponse:
    """Make the message of an event."""
    name = _EVENT_NAMES[type(event)]
    encoded: Any = _needed(type(event), _EVENT_FIELDS[name].message_type).encode(event)
    return inference_pb2.GenerateResponse(**{name: encoded})


def generation_event_from_proto(message: inference_pb2.GenerateResponse) -> GenerationEvent | None:
    """Make the event of a message; None for a kind that this version does not know."""
    name: Any = message.WhichOneof("event")
    return from_proto(_EVENTS[name], getattr(message, name)) if name in _EVENTS else None
