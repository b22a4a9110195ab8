"""The contract's types and the protos: each field has its twin, and what goes there comes back."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotslot.codec import from_proto, generation_event_from_proto, generation_event_to_proto, to_proto
from hotslot.codec.binding import Binding
from hotslot.codec.compiling import IncompleteBindingError, compiled
from hotslot.codec.table import BINDINGS, codec_of
from hotslot.contract.catalog import TransferProgress, TransferStage, Version
from hotslot.contract.control import LoadedAdapter, SlotStatus
from hotslot.contract.generation import (
    AdapterSelection,
    ChatMessage,
    ChatPrompt,
    Chunk,
    Finished,
    GenerationEvent,
    GenerationRequest,
    JsonText,
    Sampling,
    Started,
    Stop,
    TextPart,
    ToolCall,
    Usage,
)
from hotslot.errors import DigestMismatchError
from hotslot.formats.base_details import BaseDetails
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import Digest
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2
from hotslot.pb.hotslot.placement.v1 import placement_pb2
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2, blob_pb2, compiled_code_pb2
from hotslot.pb.hotslot.worker.v1 import adapter_control_pb2, inference_pb2

STORES = (placement_pb2, fleet_pb2, adapter_store_pb2, blob_pb2, compiled_code_pb2)
FILES = (*STORES, adapter_control_pb2, inference_pb2)
DIGEST = Digest("sha256:" + "0" * 64)

PARAMETERS = "its fields are the parameters of one call: the client builds it of its method's"
WRAPS_ONE = "holds what the call returns, and nothing beside it but what pages take"
COMPOSED = "composed of bound messages where it is sent and received"
CHUNKS = "bytes that stream: `hotslot.rpc.blob_chunks`, or as they are"
UNBOUND: dict[str, str] = {
    "GenerateResponse": "one event, of the types of `GenerationEvent`: `generation_event_to_proto` and back",
    "TokenPrompt": "a list of token ids, as a prompt has it",
    "HubSource": "parameters of ImportAdapter",
    "DirectorySource": "parameters of ImportAdapter",
    "UrlSource": "parameters of ImportAdapter",
    "UploadedFile": "parameters of ValidateAdapter and CreateVersion",
    "ImportAdapterResponse": COMPOSED,
    "CreateVersionResponse": COMPOSED,
    "ValidateAdapterResponse": COMPOSED,
    "RegisterBaseModelResponse": COMPOSED,
    "AddBaseModelAliasResponse": COMPOSED,
    "StreamedFile": CHUNKS,
    "PublishVersionResponse": COMPOSED,
    "ReadBlobResponse": CHUNKS,
    "WriteBlobResponse": CHUNKS,
    "GetWriteStatusResponse": CHUNKS,
    "ReadCompiledCodeResponse": CHUNKS,
    "WriteCompiledCodeResponse": CHUNKS,
}


def messages() -> Iterator[Any]:
    """Descriptors of all messages of all protos."""
    for file in FILES:
        yield from file.DESCRIPTOR.message_types_by_name.values()


BOUND = {binding.message.DESCRIPTOR.full_name for binding in BINDINGS}


def named(binding: Binding) -> str:
    return f"{binding.kind.__name__}-{binding.message.DESCRIPTOR.name}"


@pytest.mark.parametrize("descriptor", list(messages()), ids=lambda descriptor: descriptor.name)
def test_every_message_is_bound_to_a_type_or_listed_with_the_reason(descriptor: Any) -> None:
    is_request = descriptor.name.endswith("Request") and descriptor.name != "GenerateRequest"
    # A response of no fields, of one, or of a page.
    contents = {field.name for field in descriptor.fields} - {"next_page_token", "revision"}
    wraps_one = descriptor.name.endswith("Response") and len(contents) <= 1
    is_listed = descriptor.name in UNBOUND or is_request or wraps_one
    is_bound = descriptor.full_name in BOUND
    assert is_bound or is_listed
    assert not (is_bound and descriptor.name in UNBOUND)


@pytest.mark.parametrize("binding", BINDINGS, ids=named)
def test_every_field_of_a_message_has_its_twin_in_the_type_and_the_other_way_round(binding: Binding) -> None:
    codec = codec_of(binding.kind, binding.message.DESCRIPTOR)  # raises IncompleteBindingError
    assert codec is not None
    for name in binding.extra:
        assert name in {field.name for field in fields(binding.kind)}


def test_a_type_that_lacks_a_field_of_its_message_is_no_twin() -> None:
    with pytest.raises(IncompleteBindingError, match=r"KvStatus lacks SlotStatus\.num_slots"):
        compiled(Binding(SlotStatus, adapter_control_pb2.KvStatus), codec_of)
    names = {"prompt_tokens": "num_slots", "completion_tokens": "free_slots", "cached_tokens": "running_sequences"}
    with pytest.raises(IncompleteBindingError, match=r"Usage lacks .*max_sequences.* of .*WorkerLoad"):
        compiled(Binding(Usage, placement_pb2.WorkerLoad, names=names), codec_of)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT32 = st.integers(-(2**31), 2**31 - 1)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXTS,
    JsonText: TEXTS.map(JsonText),
    bytes: st.binary(max_size=8),
    bool: st.booleans(),
    int: INT32,
    float: st.floats(allow_nan=False),
    datetime: st.datetimes(timezones=st.just(UTC)),
    BaseDetails: st.just(None),
}
# To the microsecond, as they are carried.
SECONDS = st.integers(-(10**12), 10**12).map(lambda microseconds: microseconds / 1e6)
MODULES = st.builds(AdapterModule, TEXTS, st.integers(1, 64), st.floats(0.1, 9), st.booleans())
MANIFESTS = st.builds(
    Manifest,
    *(st.just(DIGEST), st.just(DIGEST), INT32, st.just("F32")),
    st.lists(MODULES, min_size=1, max_size=3).map(tuple),
    st.lists(INT32, max_size=2).map(tuple),
)


def tuples_of(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(items, max_size=3).map(tuple)


# Of what has several forms, the one that messages give back.
CANONICAL: dict[tuple[type[Any], str], Callable[[], st.SearchStrategy[Any]]] = {
    (GenerationRequest, "prompt"): lambda: TEXTS | values_of(ChatPrompt) | tuples_of(INT32),
    (GenerationRequest, "num_choices"): lambda: st.integers(1, 9),
    (GenerationRequest, "adapters"): lambda: tuples_of(values_of(AdapterSelection)),
    (ChatPrompt, "messages"): lambda: tuples_of(values_of(ChatMessage)),
    (ChatPrompt, "add_generation_prompt"): st.booleans,
    (ChatPrompt, "tools"): lambda: tuples_of(TEXTS.filter(bool).map(JsonText)),
    (ChatPrompt, "template_arguments"): lambda: PLAIN[JsonText],
    (ChatMessage, "content"): lambda: TEXTS,
    (ChatMessage, "parts"): lambda: tuples_of(st.none() | values_of(TextPart)),
    (ChatMessage, "tool_calls"): lambda: tuples_of(values_of(ToolCall)),
    (ToolCall, "arguments"): lambda: PLAIN[JsonText],
    (Sampling, "seed"): lambda: st.none() | st.integers(0, 2**64 - 1),
    (Sampling, "top_p"): lambda: st.floats(0.1, 2),
    (Stop, "max_tokens"): lambda: INT32,
    (Stop, "strings"): lambda: tuples_of(TEXTS),
    (Stop, "token_ids"): lambda: tuples_of(INT32),
    (TransferProgress, "stage"): lambda: st.sampled_from([TransferStage.QUEUED, TransferStage.PUBLISHING]),
    (Version, "manifest_json"): lambda: st.just(b""),
}


def values_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Values of a type in the one form that its message has for each."""
    if kind is Manifest:
        return MANIFESTS
    extra = next(binding for binding in BINDINGS if binding.kind is kind).extra
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name not in extra}
    found = st.builds(kind, **{name: value_of(kind, name, hint) for name, hint in hints.items()})
    if kind is ChatPrompt:
        return found.filter(lambda chat: not (chat.add_generation_prompt and chat.continue_final_message))
    return found | st.builds(with_manifest, found, MANIFESTS) if kind is Version else found


def with_manifest(version: Version, manifest: Manifest) -> Version:
    canonical = manifest.canonical_json()
    return replace(version, digest=manifest.digest, modules=manifest.modules, manifest_json=canonical)


def value_of(kind: type[Any], name: str, hint: Any) -> st.SearchStrategy[Any]:
    """Values of one field."""
    if (kind, name) in CANONICAL:
        return CANONICAL[kind, name]()
    hint = getattr(hint, "__supertype__", hint)
    if get_origin(hint) is tuple:
        return tuples_of(value_of(kind, "", get_args(hint)[0]))
    if get_origin(hint) is Mapping:
        return st.dictionaries(*(value_of(kind, "", part) for part in get_args(hint)), max_size=3)
    if NoneType in get_args(hint):
        (inner,) = (part for part in get_args(hint) if part is not NoneType)
        return st.none() | value_of(kind, name, inner)
    if hint is float and name.endswith("_s"):
        return SECONDS
    if issubclass(hint, StrEnum):
        return st.sampled_from(list(hint))
    return PLAIN[hint] if hint in PLAIN else values_of(hint)


@pytest.mark.parametrize("binding", [binding for binding in BINDINGS if not binding.is_part], ids=named)
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_value_comes_back_from_the_wire_as_it_went(binding: Binding, data: st.DataObject) -> None:
    value = data.draw(values_of(binding.kind))
    received = binding.message.FromString(to_proto(binding.message, value).SerializeToString())
    assert from_proto(binding.kind, received) == value


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(values_of(Started) | values_of(Chunk) | values_of(Finished))
def test_an_event_comes_back_from_the_wire_as_it_went(event: GenerationEvent) -> None:
    message = generation_event_to_proto(event)
    assert generation_event_from_proto(type(message).FromString(message.SerializeToString())) == event


def test_an_event_of_a_kind_that_this_version_does_not_know_is_none() -> None:
    assert generation_event_from_proto(inference_pb2.GenerateResponse()) is None


def test_values_of_a_newer_peer_read_as_unspecified_or_as_the_first_kind() -> None:
    unknown = adapter_control_pb2.LoadedAdapter.FromString(b"\x18\x63")
    assert unknown.tier == 99
    assert from_proto(LoadedAdapter, unknown).tier == "unspecified"
    stage = adapter_store_pb2.ImportProgress.FromString(b"\x08\x63")
    assert from_proto(TransferProgress, stage).stage is TransferStage.QUEUED


def test_what_is_not_set_reads_as_the_types_default() -> None:
    request = from_proto(
        GenerationRequest,
        inference_pb2.GenerateRequest(text="x", adapters=[inference_pb2.AdapterSelection(reference="a")]),
    )
    assert request == GenerationRequest("x", (AdapterSelection("a", 1.0),), stop=Stop(default_max_tokens=0))


def test_a_version_whose_manifest_is_not_its_digests_is_refused() -> None:
    manifest = Manifest(DIGEST, DIGEST, 5, "F32", (AdapterModule("a", 1, 1.0),))
    message = adapter_store_pb2.Version(digest=DIGEST, manifest_json=manifest.canonical_json())
    with pytest.raises(DigestMismatchError):
        from_proto(Version, message)
