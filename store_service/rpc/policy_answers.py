"""Answers to calls about policies and retention: asked of the catalog and encoded on one thread."""

from hotslot.codec import to_proto
from hotslot.contract.catalog import PrunedVersion, PruneReport
from hotslot.contract.moments import moment
from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.ids import TenantId
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_name
from store_service.catalog.policies import Policies
from store_service.catalog.pruning import VersionRetention
from store_service.catalog.retention import RetentionPolicy
from store_service.publication import MAX_KEEP_VERSIONS
from store_service.rpc import contract
from store_service.rpc.paging import decode_token, encode_token, fitting, page_size_of
from store_service.rpc.requests import replica_policy_of

MAX_TOLD = 10_000
"""Most versions that one answer names."""
MAX_TTL_S = 100 * 365 * 86_400
_LISTING = ("policies",)


def set_(policies: Policies, request: pb.SetAdapterPolicyRequest, tenant: TenantId) -> pb.SetAdapterPolicyResponse:
    """Raises as `Policies.set`, and InvalidRequestError."""
    name, policy = parse_name(request.adapter), replica_policy_of(request)
    keep, ttl_s = _bounds_of(request)

    def changed(before: RetentionPolicy) -> RetentionPolicy:
        new_ttl_s = before.untagged_ttl_s if ttl_s is None else (ttl_s or None)
        return RetentionPolicy(before.keep_versions if keep is None else keep, new_ttl_s)

    record = policies.set(tenant, name, policy, etag=request.etag, retention=changed)
    policy_message = to_proto(pb.AdapterPolicy, contract.policy_of(record))
    return pb.SetAdapterPolicyResponse(policy=policy_message, revision=record.revision)


def page(
    policies: Policies, request: pb.ListAdapterPoliciesRequest, tenant: TenantId
) -> pb.ListAdapterPoliciesResponse:
    """Raises InvalidRequestError and InvalidPageTokenError."""
    limit = page_size_of(request.page_size)
    (after,) = decode_token(request.page_token, _LISTING, ("",))
    found = policies.of_tenant(tenant, limit=limit, after=str(after))
    shown, more = fitting((to_proto(pb.AdapterPolicy, contract.policy_of(it)) for it in found), limit)
    token = encode_token(_LISTING, (shown[-1].adapter,)) if more else ""
    return pb.ListAdapterPoliciesResponse(policies=shown, next_page_token=token)


def prune(
    retention: VersionRetention, policies: Policies, request: pb.PruneVersionsRequest, tenant: TenantId
) -> pb.PruneVersionsResponse:
    """Raises as `VersionRetention.prune`, and InvalidRequestError."""
    keep, ttl_s = _bounds_of(request)
    is_bounded = keep is not None or ttl_s is not None
    if is_bounded and not request.adapter:
        raise InvalidRequestError(
            [FieldViolation("adapter", "bounds other than those of policies are for one adapter")]
        )
    # A bound that is not given is no bound, and keeping none of the untagged needs no age.
    bounds = RetentionPolicy(keep or 0, ttl_s or 0.0) if is_bounded else None
    named = [parse_name(request.adapter)] if request.adapter else []
    names = named or [name for _, name in policies.with_retention(tenant)]
    told: list[PrunedVersion] = []
    num_waiting = num_kept = revision = 0
    more = False
    for name in names:
        if len(told) >= MAX_TOLD:
            more = True
            break
        pruning = (retention.look if request.dry_run else retention.prune)(tenant, name, bounds)
        told += [
            PrunedVersion(name, it.digest, it.weights_size_bytes, moment(it.create_time_s)) for it in pruning.removed
        ]
        num_waiting += pruning.num_waiting
        num_kept += pruning.num_kept
        revision = max(revision, pruning.revision)
        more = more or pruning.more
    return to_proto(pb.PruneVersionsResponse, PruneReport(tuple(told), num_waiting, num_kept, more, revision))


def _bounds_of(request: pb.SetAdapterPolicyRequest | pb.PruneVersionsRequest) -> tuple[int | None, float | None]:
    """Versions to keep, and seconds, as far as a request says; raises InvalidRequestError with every field at fault."""
    keep = request.keep_versions if request.HasField("keep_versions") else None
    ttl_s = request.untagged_ttl.ToNanoseconds() / 1e9 if request.HasField("untagged_ttl") else None
    problems = []
    if keep is not None and not 0 <= keep <= MAX_KEEP_VERSIONS:
        problems.append(FieldViolation("keep_versions", f"found {keep}, expected 0 to {MAX_KEEP_VERSIONS}"))
    if ttl_s is not None and not 0 <= ttl_s <= MAX_TTL_S:
        problems.append(FieldViolation("untagged_ttl", f"found {ttl_s:g} s, expected 0 s to a hundred years"))
    if problems:
        raise InvalidRequestError(problems)
    return keep, ttl_s
