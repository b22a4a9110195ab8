"""Policies of adapters to messages and back."""

from hotslot.errors import FieldViolation, InvalidRequestError
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.times import to_timestamp
from shared.fleet.replica_policy import ReplicaPolicy
from store_service.catalog.records import PinnedVersion, PolicyRecord

MAX_REPLICAS = 10_000


def policy_of(request: pb.SetAdapterPolicyRequest) -> ReplicaPolicy:
    """Raises InvalidRequestError with every field at fault."""
    least, most = request.min_replicas, request.max_replicas
    problems = []
    if not 0 <= least <= MAX_REPLICAS:
        problems.append(FieldViolation("min_replicas", f"found {least}, expected 0 to {MAX_REPLICAS}"))
    if most and not max(least, 1) <= most <= MAX_REPLICAS:
        expected = f"expected 0 for no bound, or {max(least, 1)} to {MAX_REPLICAS}"
        problems.append(FieldViolation("max_replicas", f"found {most}, {expected}"))
    if problems:
        raise InvalidRequestError(problems)
    return ReplicaPolicy(least, most or None, request.pinned)


def policy_to_pb(record: PolicyRecord) -> pb.AdapterPolicy:
    """An adapter's policy."""
    return pb.AdapterPolicy(
        adapter=record.adapter,
        min_replicas=record.policy.min_replicas,
        max_replicas=record.policy.max_replicas or 0,
        pinned=record.policy.pinned,
        etag=record.etag,
        update_time=to_timestamp(record.update_time_s),
    )


def pinned_to_pb(version: PinnedVersion) -> pb.PinnedVersion:
    """A version that workers should hold."""
    return pb.PinnedVersion(tenant=version.tenant, digest=version.digest, policy=policy_to_pb(version.record))
