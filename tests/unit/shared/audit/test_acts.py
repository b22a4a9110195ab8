"""The audit log's table of acts, against the RPCs of the protos."""

from shared.audit.acts import LOOKS, USES, Act, act_of
from tests.unit.shared.identity.test_matrix import METHODS, name_of, named, path_of

CHANGES = """AdapterStoreService ImportAdapter CreateVersion PublishVersion PruneVersions SetTag DeleteTag DeleteAdapter
    UndeleteAdapter DeleteVersion SetAdapterPolicy DeleteAdapterPolicy RegisterBaseModel DeleteBaseModel
    AddBaseModelAlias IssueEpoch ShareAdapter UnshareAdapter CollectGarbage; BlobService WriteBlob;
    CompiledCodeService WriteCompiledCode;
    FleetService IssueEpoch WriteCompiledCode; AdapterControlService LoadAdapter UnloadAdapter PinAdapter UnpinAdapter
    SetDefaultAdapters EnableAdapters DisableAdapters DrainWorker UndrainWorker"""
"""Written down apart from the table of the product: each RPC is in one of the three."""


def test_every_rpc_of_the_protos_is_a_look_a_use_or_a_change() -> None:
    changes = {name_of(method) for method in METHODS if act_of(path_of(method)) is Act.CHANGE}
    assert changes == named(CHANGES)
    assert {path_of(method) for method in METHODS} >= LOOKS | USES
    assert not LOOKS & USES


def test_an_rpc_without_a_row_is_in_the_log() -> None:
    assert act_of("/hotslot.store.v1.AdapterStoreService/SomethingNew") is Act.CHANGE
