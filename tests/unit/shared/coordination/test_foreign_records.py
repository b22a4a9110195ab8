"""Whatever text Redis hands out, it becomes a record that messages can hold, or is passed over."""

import dataclasses
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hotslot.codec import to_proto
from hotslot.contract.placement import Tier
from hotslot.ids import TenantId, WorkerId, digest_of
from hotslot.pb.hotslot.placement.v1 import placement_pb2
from shared.coordination.encoding import (
    decode_changes,
    decode_resident,
    decode_worker,
    encode_info,
    encode_load,
    encode_resident,
)
from shared.coordination.unreadable import TOLD_FOR_S, Unreadable
from shared.fleet.records import PlacedVersion, ReportedLoad, Resident, WorkerInfo
from store_service.rpc.fleet_contract import placement_of, worker_of

DIGEST = digest_of(b"a")
INFO = WorkerInfo(WorkerId("w"), "h:1", DIGEST, "org/m", "bfloat16", 16, 1.7e9, 3, 8, 64, 512)
numbers = st.integers() | st.floats() | st.sampled_from([2**31, 2**63, 10**400, -1])
scalars = st.none() | st.booleans() | numbers | st.text() | st.characters(categories=["Cs"])
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(), inner))
texts = documents.map(json.dumps) | st.text() | st.sampled_from(["[" * 100_000, "NaN", '{"a": 1'])


def changed(record: Any) -> st.SearchStrategy[str]:
    """The record as a document with some of its fields replaced, or missing."""
    names = [field.name for field in dataclasses.fields(record)]
    whole = json.loads(encode_info(record) if isinstance(record, WorkerInfo) else encode_load(record))
    replaced = st.dictionaries(st.sampled_from(names), scalars, max_size=3)
    dropped = st.sets(st.sampled_from(names), max_size=1)
    return st.builds(
        lambda new, gone: json.dumps({k: v for k, v in {**whole, **new}.items() if k not in gone}), replaced, dropped
    )


@given(
    st.fixed_dictionaries(
        {
            "info": changed(INFO) | texts,
            "state": st.sampled_from(["ready", "draining"]) | texts,
            "load": changed(ReportedLoad()) | texts,
            "lease_until_ms": st.integers().map(str) | texts,
            "residency_revision": st.integers().map(str) | texts,
        }
    )
)
def test_a_worker_is_read_as_messages_hold_it_or_not_at_all(fields: dict[str, str]) -> None:
    record = Unreadable().read("worker", lambda: decode_worker(fields))
    if record is not None:
        to_proto(placement_pb2.Worker, worker_of(record)).SerializeToString()
        assert record.load.max_sequences >= 1
        assert record.load.in_flight >= 0


@given(st.lists(scalars | st.lists(scalars, max_size=3), max_size=7).map(json.dumps) | texts)
def test_a_resident_is_read_as_messages_hold_it_or_not_at_all(text: str) -> None:
    resident = Unreadable().read("resident", lambda: decode_resident(DIGEST, text))
    if resident is not None:
        placement = placement_of(PlacedVersion(WorkerId("w"), resident))
        to_proto(placement_pb2.Placement, placement).SerializeToString()
        assert resident.demand >= 0


@given(st.lists(st.lists(st.just(DIGEST) | scalars, max_size=4), max_size=3).map(json.dumps) | texts)
def test_changes_are_read_or_passed_over(text: str) -> None:
    for change in Unreadable().read("changes", lambda: decode_changes(1, "w", text)) or []:
        assert change.digest == DIGEST


def test_a_change_away_from_something_unreadable_still_counts() -> None:
    after = Resident(DIGEST, Tier.HOST, others=((TenantId("t"), "n"),))
    (change,) = decode_changes(5, "w", json.dumps([[DIGEST, "garbage", encode_resident(after)]]))
    assert (change.before, change.after) == (None, after)


def test_a_place_is_told_of_once_a_minute() -> None:
    now_s = [0.0]
    told = Unreadable(lambda: now_s[0])
    before = dict(told._told_at_s)
    assert told.read("a", lambda: json.loads("{")) is None
    assert told._told_at_s != before
    now_s[0] = TOLD_FOR_S / 2
    assert told.read("a", lambda: json.loads("{")) is None
    assert told._told_at_s == {"a": 0.0}
    now_s[0] = 2 * TOLD_FOR_S
    assert told.read("a", lambda: json.loads("{")) is None
    assert told._told_at_s == {"a": 2 * TOLD_FOR_S}
    assert told.read("b", lambda: 5) == 5
