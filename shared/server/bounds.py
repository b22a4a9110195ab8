"""Bounds of requests: the largest entry and the most entries that each field of a request message may have.

Servers look at them before a request is decoded (`shared.server.wire_scan`), and refuse what is beyond one of them with
INVALID_REQUEST. A service checks more narrowly what depends on its settings or its model, and says so in its own words.
docs/bounds.md is this table for people: `python -m shared.server.bounds_page > docs/bounds.md`.

A new field of a request message needs a row: a server does not start without one. Fields are named as in the protos,
without the leading `hotslot.`; those of other packages in full.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that one field may hold."""

    max_bytes: int = 0
    """Most bytes of one value of text (in UTF-8) or bytes; 0 for numbers and messages."""
    max_entries: int = 1
    """Most entries of a repeated field or a map, in the whole message: those of all messages that have the field
    together."""


@dataclass(frozen=True, slots=True)
class FieldSet:
    """Fields that mean the same and so have the same bound."""

    meaning: str
    bound: Bound
    fields: tuple[str, ...]


KIB, MIB = 2**10, 2**20

MAX_DEPTH = 100
"""Most messages inside of each other; also protobuf's own limit."""
MAX_STRAYS = 2_048
"""Entries of one message, nested ones included, that its definition does not account for: fields that this server does
not know, and repetitions of what may stand once."""

GROUPS = (
    FieldSet(
        "a name, reference, tag, digest, etag, id or role",
        Bound(4 * KIB),
        (
            "fleet.v1.ListPinnedVersionsRequest.base_model_digest",
            "fleet.v1.ReadCompiledCodeRequest.key",
            "fleet.v1.WriteCompiledCodeRequest.digest",
            "fleet.v1.WriteCompiledCodeRequest.key",
            "placement.v1.ListPlacementsRequest.adapter_digest",
            "placement.v1.ListPlacementsRequest.worker_id",
            "store.v1.BaseModel.digest",
            "store.v1.BaseModel.model_type",
            "store.v1.BaseModel.weights_fingerprint",
            "store.v1.BaseModule.values_digest",
            "store.v1.CreateVersionRequest.reference",
            "store.v1.CreateVersionRequest.tag_etag",
            "store.v1.PublishVersionRequest.data_digest",
            "store.v1.PruneVersionsRequest.adapter",
            "store.v1.DeleteAdapterPolicyRequest.adapter",
            "store.v1.DeleteAdapterPolicyRequest.etag",
            "store.v1.DeleteAdapterRequest.etag",
            "store.v1.DeleteAdapterRequest.name",
            "store.v1.DeleteTagRequest.adapter",
            "store.v1.DeleteTagRequest.etag",
            "store.v1.DeleteTagRequest.tag",
            "store.v1.DeleteVersionRequest.adapter",
            "store.v1.DeleteVersionRequest.digest",
            "store.v1.GetAdapterPolicyRequest.adapter",
            "store.v1.GetAdapterRequest.name",
            "store.v1.GetWriteStatusRequest.digest",
            "store.v1.HubSource.repo_id",
            "store.v1.HubSource.revision",
            "store.v1.UrlSource.digest",
            "store.v1.ImportAdapterRequest.reference",
            "store.v1.ListAdaptersRequest.name_prefix",
            "store.v1.ListPinnedVersionsRequest.base_model_digest",
            "store.v1.ListVersionsRequest.adapter",
            "store.v1.ReadBlobRequest.digest",
            "store.v1.ReadCompiledCodeRequest.key",
            "store.v1.ResolveAdapterRequest.base_model_digest",
            "store.v1.ResolveAdapterRequest.reference",
            "store.v1.SetAdapterPolicyRequest.adapter",
            "store.v1.SetAdapterPolicyRequest.etag",
            "store.v1.SetTagRequest.adapter",
            "store.v1.ShareAdapterRequest.adapter",
            "store.v1.UnshareAdapterRequest.adapter",
            "store.v1.SetTagRequest.digest",
            "store.v1.SetTagRequest.etag",
            "store.v1.SetTagRequest.tag",
            "store.v1.UndeleteAdapterRequest.name",
            "store.v1.UploadedFile.digest",
            "store.v1.WriteBlobRequest.digest",
            "store.v1.WriteCompiledCodeRequest.digest",
            "store.v1.WriteCompiledCodeRequest.key",
            "worker.v1.AdapterSelection.reference",
            "worker.v1.ChatMessage.name",
            "worker.v1.ChatMessage.role",
            "worker.v1.ChatMessage.tool_call_id",
            "worker.v1.ChatPrompt.template",
            "worker.v1.DefaultAdapter.reference",
            "worker.v1.GenerateRequest.request_id",
            "worker.v1.LoadAdapterRequest.reference",
            "worker.v1.PinAdapterRequest.reference",
            "worker.v1.ToolCall.id",
            "worker.v1.ToolCall.name",
            "worker.v1.UnloadAdapterRequest.reference",
            "worker.v1.UnpinAdapterRequest.reference",
        ),
    ),
    FieldSet(
        "a path, or a base model by a name that may be a path",
        Bound(4 * KIB),
        (
            "placement.v1.ListWorkersRequest.base_model",
            "placement.v1.PickWorkersRequest.base_model",
            "placement.v1.WatchPlacementsRequest.base_model",
            "store.v1.BaseModel.name",
            "store.v1.BaseModule.path",
            "store.v1.AddBaseModelAliasRequest.alias",
            "store.v1.AddBaseModelAliasRequest.base_model",
            "store.v1.CreateVersionRequest.base_model",
            "store.v1.DeleteBaseModelRequest.base_model",
            "store.v1.DirectorySource.path",
            "store.v1.FindBaseModelsRequest.base_model",
            "store.v1.ListBaseModelsRequest.base_model",
            "store.v1.HubSource.subfolder",
            "store.v1.UrlSource.url",
            "store.v1.ImportAdapterRequest.base_model",
            "store.v1.ListAdaptersRequest.base_model",
            "store.v1.StreamedFile.path",
            "store.v1.UploadedFile.path",
            "store.v1.ValidateAdapterRequest.base_model",
        ),
    ),
    FieldSet(
        "a page token",
        Bound(8 * KIB),
        (
            "fleet.v1.ListPinnedVersionsRequest.page_token",
            "placement.v1.ListPlacementsRequest.page_token",
            "placement.v1.ListWorkersRequest.page_token",
            "store.v1.ListAdapterPoliciesRequest.page_token",
            "store.v1.ListAdaptersRequest.page_token",
            "store.v1.ListBaseModelsRequest.page_token",
            "store.v1.ListPinnedVersionsRequest.page_token",
            "store.v1.ListSharedAdaptersRequest.page_token",
            "store.v1.ListSharesRequest.page_token",
            "store.v1.ListVersionsRequest.page_token",
        ),
    ),
    FieldSet(
        "labels",
        Bound(max_entries=64),
        tuple(f"store.v1.{name}Request.labels" for name in ("CreateVersion", "ImportAdapter", "ListAdapters")),
    ),
    FieldSet(
        "tenants that an adapter is shared with",
        Bound(4 * KIB, max_entries=256),
        ("store.v1.ShareAdapterRequest.tenants", "store.v1.UnshareAdapterRequest.tenants"),
    ),
    FieldSet(
        "metadata of a scaler's trigger", Bound(max_entries=64), ("externalscaler.ScaledObjectRef.scalerMetadata",)
    ),
    FieldSet(
        "names, keys and values of an autoscaler",
        Bound(16 * KIB),
        (
            "externalscaler.GetMetricsRequest.metricName",
            "externalscaler.ScaledObjectRef.name",
            "externalscaler.ScaledObjectRef.namespace",
            "externalscaler.ScaledObjectRef.ScalerMetadataEntry.key",
            "externalscaler.ScaledObjectRef.ScalerMetadataEntry.value",
        ),
    ),
    FieldSet("annotations", Bound(max_entries=32), ("store.v1.CreateVersionRequest.annotations",)),
    FieldSet("further tags of a version", Bound(4 * KIB, max_entries=32), ("store.v1.CreateVersionRequest.tags",)),
    FieldSet(
        "an annotation's or a label's key or value: 128 and 512 characters, of four bytes each at most",
        Bound(2 * KIB),
        (
            "store.v1.CreateVersionRequest.AnnotationsEntry.key",
            "store.v1.CreateVersionRequest.AnnotationsEntry.value",
            "store.v1.CreateVersionRequest.LabelsEntry.key",
            "store.v1.CreateVersionRequest.LabelsEntry.value",
            "store.v1.ImportAdapterRequest.LabelsEntry.key",
            "store.v1.ImportAdapterRequest.LabelsEntry.value",
            "store.v1.ListAdaptersRequest.LabelsEntry.key",
            "store.v1.ListAdaptersRequest.LabelsEntry.value",
        ),
    ),
    FieldSet(
        "files of a checkpoint",
        Bound(max_entries=1_024),
        tuple(f"store.v1.{name}Request.files" for name in ("CreateVersion", "PublishVersion", "ValidateAdapter")),
    ),
    FieldSet(
        "digests of one look-up", Bound(4 * KIB, max_entries=1_000), ("store.v1.FindMissingBlobsRequest.digests",)
    ),
    FieldSet(
        "modules of a base model; the largest published ones have some 70,000",
        Bound(max_entries=100_000),
        ("store.v1.BaseModel.modules",),
    ),
    FieldSet("what is known of a base model beside its modules", Bound(1 * MIB), ("store.v1.BaseModel.details_json",)),
    FieldSet(
        "a piece of a file; messages themselves are bounded to as much",
        Bound(16 * MIB),
        (
            "fleet.v1.WriteCompiledCodeRequest.data",
            "store.v1.PublishVersionRequest.data",
            "store.v1.WriteBlobRequest.data",
            "store.v1.WriteCompiledCodeRequest.data",
        ),
    ),
    FieldSet("the header of a weights file", Bound(5 * MIB), ("store.v1.FindBaseModelsRequest.weights_header",)),
    FieldSet(
        "references of adapters that are served together",
        Bound(4 * KIB, max_entries=1_024),
        ("placement.v1.PickWorkersRequest.adapters",),
    ),
    FieldSet(
        "adapters that are served together",
        Bound(max_entries=2_048),
        ("worker.v1.GenerateRequest.adapters", "worker.v1.SetDefaultAdaptersRequest.adapters"),
    ),
    FieldSet(
        "a prompt's text: more than a million tokens",
        Bound(8 * MIB),
        (
            "worker.v1.ChatMessage.content",
            "worker.v1.ChatMessage.reasoning_content",
            "worker.v1.ContentPart.text",
            "worker.v1.CountTokensRequest.text",
            "worker.v1.GenerateRequest.text",
            "worker.v1.ToolCall.arguments_json",
        ),
    ),
    FieldSet("messages of a chat", Bound(max_entries=8_192), ("worker.v1.ChatPrompt.messages",)),
    FieldSet(
        "parts of messages, and calls of tools in them",
        Bound(max_entries=16_384),
        ("worker.v1.ChatMessage.parts", "worker.v1.ChatMessage.tool_calls"),
    ),
    FieldSet("variables of a chat's template", Bound(1 * MIB), ("worker.v1.ChatPrompt.template_arguments_json",)),
    FieldSet("tools of a chat", Bound(1 * MIB, max_entries=2_048), ("worker.v1.ChatPrompt.tools_json",)),
    FieldSet(
        "tokens of a prompt, or to be turned into text",
        Bound(max_entries=2**20),
        ("worker.v1.DetokenizeRequest.token_ids", "worker.v1.TokenPrompt.token_ids"),
    ),
    FieldSet(
        "tokens that sampling or an end of generation names",
        Bound(max_entries=4_096),
        ("worker.v1.SamplingParams.logit_bias", "worker.v1.StopConditions.stop_token_ids"),
    ),
    FieldSet("stop strings", Bound(4 * KIB, max_entries=2_048), ("worker.v1.StopConditions.stop_strings",)),
)


_OTHERS = ("google.", "externalscaler.")
"""Packages of protos that are not ours."""


def full_name_of(field: str) -> str:
    """The name of a row's field as descriptors have it."""
    return field if field.startswith(_OTHERS) else f"hotslot.{field}"


BOUNDS = {full_name_of(field): group.bound for group in GROUPS for field in group.fields}
"""By the field's full name."""
