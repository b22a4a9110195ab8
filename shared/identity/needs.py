"""The table of what each RPC needs: one of these scopes, for a tenant's objects or for those of the deployment.

A server does not start with an RPC that has no row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from google.protobuf import descriptor_pool

from hotslot.errors import ScopeMissingError
from hotslot.formats.principals import Scope


class About(Enum):
    """Objects that an RPC is about."""

    TENANT = auto()
    """Those of the tenant that calls; another's are not found."""
    DEPLOYMENT = auto()
    """Those that belong to no tenant: workers, base models, epochs."""


@dataclass(frozen=True, slots=True)
class Need:
    """Scopes, one of which a call needs, and what it is about."""

    scopes: frozenset[Scope]
    about: About

    def check(self, method: str, scopes: frozenset[Scope], name: str) -> None:
        """Raise ScopeMissingError for a principal without any of the scopes."""
        if self.scopes & scopes:
            return
        wanted = " or ".join(scope.value for scope in Scope if scope in self.scopes)
        raise ScopeMissingError(f"{method.removeprefix('/')} needs the scope {wanted}, which {name} does not have")


def _tenant(*scopes: Scope) -> Need:
    return Need(frozenset(scopes), About.TENANT)


def _deployment(*scopes: Scope) -> Need:
    return Need(frozenset(scopes), About.DEPLOYMENT)


_S = Scope
_STORE: Mapping[str, Need] = {
    "ImportAdapter": _tenant(_S.PUBLISH),
    "ValidateAdapter": _tenant(_S.PUBLISH),
    "CreateVersion": _tenant(_S.PUBLISH),
    "PublishVersion": _tenant(_S.PUBLISH),
    "PruneVersions": _tenant(_S.ADMIN),
    "GetAdapter": _tenant(_S.READ),
    "ListAdapters": _tenant(_S.READ),
    "ListVersions": _tenant(_S.READ),
    "ResolveAdapter": _tenant(_S.READ, _S.WORKER),
    "SetTag": _tenant(_S.PUBLISH),
    "DeleteTag": _tenant(_S.PUBLISH),
    "DeleteAdapter": _tenant(_S.ADMIN),
    "UndeleteAdapter": _tenant(_S.ADMIN),
    "DeleteVersion": _tenant(_S.ADMIN),
    "SetAdapterPolicy": _tenant(_S.ADMIN),
    "GetAdapterPolicy": _tenant(_S.READ),
    "ListAdapterPolicies": _tenant(_S.READ),
    "GetQuota": _tenant(_S.READ, _S.USE, _S.PUBLISH, _S.ADMIN),
    "GetStoreStatus": _deployment(_S.READ, _S.OPERATOR),
    "CollectGarbage": _deployment(_S.OPERATOR),
    "DeleteAdapterPolicy": _tenant(_S.ADMIN),
    "GetCaller": _deployment(*_S),
    "ShareAdapter": _tenant(_S.ADMIN),
    "UnshareAdapter": _tenant(_S.ADMIN),
    "ListShares": _tenant(_S.READ),
    "ListSharedAdapters": _tenant(_S.READ),
    "ListPinnedVersions": _deployment(_S.WORKER),
    "WatchAdapters": _tenant(_S.READ, _S.WORKER),
    "RegisterBaseModel": _deployment(_S.WORKER, _S.OPERATOR),
    "DeleteBaseModel": _deployment(_S.OPERATOR),
    "ListBaseModels": _deployment(_S.READ, _S.PUBLISH, _S.WORKER, _S.OPERATOR),
    "FindBaseModels": _deployment(_S.PUBLISH, _S.OPERATOR),
    "AddBaseModelAlias": _deployment(_S.OPERATOR),
    "IssueEpoch": _deployment(_S.WORKER),
}
_BLOBS: Mapping[str, Need] = {
    "ReadBlob": _tenant(_S.READ, _S.WORKER),
    "WriteBlob": _tenant(_S.PUBLISH),
    "GetWriteStatus": _tenant(_S.PUBLISH),
    "FindMissingBlobs": _tenant(_S.PUBLISH),
}
_CODE: Mapping[str, Need] = {
    # Compiled code is one tenant's, by a setting: the workers' own.
    "ReadCompiledCode": _tenant(_S.WORKER),
    "WriteCompiledCode": _tenant(_S.WORKER),
}
_PLACEMENT: Mapping[str, Need] = {
    "PickWorkers": _tenant(_S.READ, _S.USE),
    "ListWorkers": _deployment(_S.READ, _S.USE, _S.GATEWAY, _S.OPERATOR),
    "ListPlacements": _tenant(_S.READ),
    "WatchPlacements": _tenant(_S.READ),
}
_INFERENCE: Mapping[str, Need] = {
    # A worker forwards what it has been asked by a caller that may.
    "Generate": _tenant(_S.USE, _S.WORKER),
    "Complete": _tenant(_S.USE),
    "CountTokens": _tenant(_S.USE),
    "Detokenize": _tenant(_S.USE),
    "GetModelInfo": _deployment(_S.READ, _S.USE, _S.GATEWAY, _S.OPERATOR),
}
_CONTROL: Mapping[str, Need] = {
    "LoadAdapter": _tenant(_S.USE),
    "UnloadAdapter": _tenant(_S.ADMIN),
    "PinAdapter": _tenant(_S.ADMIN),
    "UnpinAdapter": _tenant(_S.ADMIN),
    "ListAdapters": _tenant(_S.READ),
    "SetDefaultAdapters": _tenant(_S.ADMIN),
    "EnableAdapters": _tenant(_S.ADMIN),
    "DisableAdapters": _tenant(_S.ADMIN),
    "DrainWorker": _deployment(_S.OPERATOR),
    "UndrainWorker": _deployment(_S.OPERATOR),
    "GetWorkerStatus": _deployment(_S.READ, _S.OPERATOR),
}
_SCALER: Mapping[str, Need] = {
    method: _deployment(_S.READ, _S.OPERATOR)
    for method in ("IsActive", "StreamIsActive", "GetMetricSpec", "GetMetrics")
}
_SERVICES: Mapping[str, Mapping[str, Need]] = {
    "hotslot.store.v1.AdapterStoreService": _STORE,
    "hotslot.store.v1.BlobService": _BLOBS,
    "hotslot.store.v1.CompiledCodeService": _CODE,
    "hotslot.fleet.v1.FleetService": {
        "IssueEpoch": _STORE["IssueEpoch"],
        "ListPinnedVersions": _STORE["ListPinnedVersions"],
        **_CODE,
    },
    "hotslot.placement.v1.PlacementService": _PLACEMENT,
    "externalscaler.ExternalScaler": _SCALER,
    "hotslot.worker.v1.InferenceService": _INFERENCE,
    "hotslot.worker.v1.AdapterControlService": _CONTROL,
}
NEEDS: Mapping[str, Need] = {
    f"/{service}/{method}": need for service, methods in _SERVICES.items() for method, need in methods.items()
}


def check_needs(service: str) -> None:
    """Raise LookupError for a service of ours with an RPC that has no row."""
    try:
        methods = descriptor_pool.Default().FindServiceByName(service).methods
    except KeyError:
        return  # One that tests serve without a proto; each call to it is refused where callers are known.
    missing = [method.name for method in methods if f"/{service}/{method.name}" not in NEEDS]
    if missing:
        raise LookupError(f"{service}: {', '.join(missing)} without a row in shared/identity/needs.py")
