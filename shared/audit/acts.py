"""The table of RPCs by what they do: look, use or change. One without a row is a change, so none is forgotten."""

from collections.abc import Mapping
from enum import Enum


class Act(Enum):
    """Kind of a call, as the audit log tells them apart."""

    CHANGE = "change"
    """Alters what others see, or what a worker holds: always in the log, unless it is off."""
    USE = "use"
    """Takes weights, or has tokens computed with them: in the log by a setting."""
    LOOK = "look"
    """Reads what is known: never in the log."""


_STORE = "store.v1.AdapterStoreService"
_FLEET = "fleet.v1.FleetService"
_CODE = "store.v1.CompiledCodeService"
_BLOBS = "store.v1.BlobService"
_PLACEMENT = "placement.v1.PlacementService"
_SCALER = "externalscaler.ExternalScaler"
_INFERENCE = "worker.v1.InferenceService"
_CONTROL = "worker.v1.AdapterControlService"

_LOOKS: Mapping[str, str] = {
    _STORE: """ValidateAdapter GetAdapter ListAdapters ListVersions GetAdapterPolicy ListAdapterPolicies
        GetQuota GetStoreStatus GetCaller ListShares ListSharedAdapters ListPinnedVersions WatchAdapters
        ListBaseModels FindBaseModels""",
    _BLOBS: "GetWriteStatus FindMissingBlobs",
    _FLEET: "ListPinnedVersions",
    _PLACEMENT: "PickWorkers ListWorkers ListPlacements WatchPlacements",
    _SCALER: "IsActive StreamIsActive GetMetricSpec GetMetrics",
    _INFERENCE: "GetModelInfo",
    _CONTROL: "ListAdapters GetWorkerStatus",
}
_USES: Mapping[str, str] = {
    _STORE: "ResolveAdapter",
    _BLOBS: "ReadBlob",
    _CODE: "ReadCompiledCode",
    _FLEET: "ReadCompiledCode",
    _INFERENCE: "Generate Complete CountTokens Detokenize",
}


def _methods(table: Mapping[str, str]) -> frozenset[str]:
    return frozenset(f"/{_full(service)}/{method}" for service, text in table.items() for method in text.split())


def _full(service: str) -> str:
    return service if service == _SCALER else f"hotslot.{service}"


LOOKS = _methods(_LOOKS)
USES = _methods(_USES)


def act_of(method: str) -> Act:
    """The act of `/package.Service/Method`."""
    return Act.LOOK if method in LOOKS else Act.USE if method in USES else Act.CHANGE
