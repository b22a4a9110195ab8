"""A record is believed as a worker of the pool sealed it, where it sealed it for; anything else is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotslot.contract.placement import Tier
from hotslot.ids import TenantId, WorkerId, digest_of
from shared.coordination.belief import KEPT_FOR_S, MAX_LATE_S, MAX_SKEW_S, Beliefs, doubt_of_time
from shared.coordination.distrust import Distrust
from shared.coordination.encoding import decode_resident, decode_worker, encode_info, encode_load, encode_resident
from shared.coordination.seals import Doubt, RecordSeals, SignedBeat
from shared.coordination.unreadable import TOLD_FOR_S
from shared.fleet.records import ReportedLoad, Resident, WorkerInfo, WorkerRecord
from shared.pool_secret import PoolSecret

POOL, OTHER_POOL = digest_of(b"base"), digest_of(b"another base")
DIGEST, OTHER_DIGEST = digest_of(b"a"), digest_of(b"b")
WORKER, OTHER = WorkerId("w-1"), WorkerId("w-2")
INFO = WorkerInfo(WORKER, "h:1", POOL, "org/m", "bfloat16", 16, 1.7e9, 3, 8, 64, 512)
LOAD = ReportedLoad(1, 2, 8)
NOW_S = 1_800_000_000.0
LEASE_MS = 10_000

texts = st.text(max_size=12)
residents = st.builds(
    Resident,
    st.just(DIGEST),
    st.sampled_from([Tier.SLOT, Tier.HOST, Tier.DISK]),
    st.booleans(),
    texts,
    texts.map(TenantId),
    st.floats(0, 8),
    st.lists(st.tuples(texts.map(TenantId), texts), max_size=3).map(tuple),
)


def seals_with(folder: Path, *lines: str, **kwargs: Any) -> RecordSeals:
    path = folder / f"secret-{abs(hash(lines))}"
    path.write_text("\n".join(f"{line:*<32}" for line in lines), "utf-8")
    return RecordSeals(PoolSecret(path), clock=lambda: NOW_S, **kwargs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def ours(folder: Path) -> RecordSeals:
    return seals_with(folder, "ours")


def sealed_worker(seals: RecordSeals, beat: int = 1) -> dict[str, str]:
    info, load = encode_info(INFO), encode_load(LOAD)
    return {
        "info": info,
        "state": "ready",
        "load": seals.seal_load(POOL, WORKER, info, "ready", load, LEASE_MS, beat),
        "lease_until_ms": "1",
    }


def checked(
    seals: RecordSeals, fields: dict[str, str], pool: Any = POOL, worker: str = WORKER
) -> SignedBeat | Doubt | None:
    return seals.check_worker(pool, worker, fields["info"], fields["state"], fields["load"])


def test_what_is_sealed_is_believed_and_read_as_before(ours: RecordSeals) -> None:
    fields = sealed_worker(ours, 7)
    assert checked(ours, fields) == SignedBeat(int(NOW_S * 1e3), LEASE_MS, 7)
    record = decode_worker(fields)
    assert (record.info, record.load) == (INFO, LOAD)


@given(residents)
def test_a_sealed_resident_is_believed_and_read_as_before(ours: RecordSeals, resident: Resident) -> None:
    sealed = ours.seal_resident(POOL, WORKER, DIGEST, encode_resident(resident))
    assert ours.check_resident(POOL, WORKER, DIGEST, sealed) is None
    assert decode_resident(DIGEST, sealed) == resident
    # A report compares texts to tell what changed.
    assert ours.seal_resident(POOL, WORKER, DIGEST, encode_resident(resident)) == sealed


@given(st.data())
def test_a_record_that_differs_by_one_character_is_refused(ours: RecordSeals, data: st.DataObject) -> None:
    fields = sealed_worker(ours)
    name = data.draw(st.sampled_from(["info", "state", "load"]))
    at = data.draw(st.integers(0, len(fields[name]) - 1))
    new = data.draw(st.characters() | st.sampled_from(['"', "}", ",", "", ":"]))
    changed = {**fields, name: fields[name][:at] + new + fields[name][at + 1 :]}
    if changed != fields:
        assert isinstance(checked(ours, changed), Doubt)
    text = ours.seal_resident(POOL, WORKER, DIGEST, encode_resident(Resident(DIGEST, Tier.SLOT)))
    at = data.draw(st.integers(0, len(text) - 1))
    other = text[:at] + new + text[at + 1 :]
    assert other == text or ours.check_resident(POOL, WORKER, DIGEST, other) is not None


def test_a_seal_holds_in_its_place_alone(ours: RecordSeals, folder: Path) -> None:
    fields = sealed_worker(ours)
    assert checked(ours, fields, pool=OTHER_POOL) is Doubt.FORGED
    assert checked(ours, fields, worker=OTHER) is Doubt.FORGED
    text = ours.seal_resident(POOL, WORKER, DIGEST, encode_resident(Resident(DIGEST, Tier.SLOT)))
    places = [(OTHER_POOL, WORKER, DIGEST), (POOL, OTHER, DIGEST), (POOL, WORKER, OTHER_DIGEST)]
    assert {ours.check_resident(*place, text) for place in places} == {Doubt.FORGED}
    theirs = seals_with(folder, "theirs")
    assert (checked(theirs, fields), theirs.check_resident(POOL, WORKER, DIGEST, text)) == (
        Doubt.FORGED,
        Doubt.FORGED,
    )


def test_parts_do_not_reach_into_each_other(ours: RecordSeals) -> None:
    load = ours.seal_load(POOL, WorkerId("a"), "bc", "d", "{}", 1, 1)
    assert isinstance(ours.check_worker(POOL, "a", "bc", "d", load), SignedBeat)
    for worker, info, state in (("ab", "c", "d"), ("a", "b", "cd"), ("", "abc", "d"), ("a", "bcd", "")):
        assert ours.check_worker(POOL, worker, info, state, load) is Doubt.FORGED


@given(texts | st.sampled_from(['"seal":"', '{"a":1,"seal":""}', ',"seal":"1.1.1.' + 22 * "A" + '"}', "[" * 9000]))
def test_what_is_unsigned_is_refused_and_never_an_exception(ours: RecordSeals, text: str) -> None:
    assert isinstance(ours.check_worker(POOL, WORKER, text, text, text), Doubt)
    assert ours.check_resident(POOL, WORKER, DIGEST, text) is not None


def test_unsigned_records_are_believed_while_a_fleet_is_given_its_secret(folder: Path, ours: RecordSeals) -> None:
    plain = {**sealed_worker(ours), "load": encode_load(LOAD)}
    resident = encode_resident(Resident(DIGEST, Tier.SLOT))
    lenient, none = seals_with(folder, "ours", believes_unsigned=True), RecordSeals()
    for seals in (lenient, none):
        assert checked(seals, plain) is None
        assert seals.check_resident(POOL, WORKER, DIGEST, resident) is None
    assert (checked(ours, plain), ours.check_resident(POOL, WORKER, DIGEST, resident)) == (
        Doubt.UNSIGNED,
        Doubt.UNSIGNED,
    )
    # A wrong seal is no missing one, and a reader without the secret passes seals over.
    assert checked(lenient, sealed_worker(seals_with(folder, "theirs"))) is Doubt.FORGED
    assert checked(none, sealed_worker(ours)) is None
    assert none.seal_load(POOL, WORKER, "i", "s", "{}", 1, 1) == "{}"
    assert none.seal_resident(POOL, WORKER, DIGEST, resident) == resident


def test_while_the_secret_changes_both_are_accepted_and_the_first_signs(folder: Path) -> None:
    old, both, turned, new = (seals_with(folder, *each) for each in (["o"], ["o", "n"], ["n", "o"], ["n"]))
    stages = [old, both, turned, new]
    for earlier, later in itertools.pairwise(stages):
        for signer, reader in ((earlier, later), (later, earlier)):
            assert isinstance(checked(reader, sealed_worker(signer)), SignedBeat)
    assert checked(new, sealed_worker(old)) is Doubt.FORGED


def record(worker: str = WORKER, endpoint: str = "h:1", epoch: int = 3) -> WorkerRecord:
    fields = {"info": encode_info(INFO), "state": "ready", "load": encode_load(LOAD), "lease_until_ms": "1"}
    found = decode_worker(fields)
    info = WorkerInfo(**{**{name: getattr(INFO, name) for name in INFO.__slots__}, "worker_id": worker,
                         "endpoint": endpoint, "epoch": epoch})  # fmt: skip
    return WorkerRecord(info, found.state, found.load, 1.0, 0)


class Reader:
    """One reader's beliefs, on clocks that a test moves."""

    def __init__(self) -> None:
        self.beliefs, self.now_s = Beliefs(), 1_000.0

    def sees(self, beat: int, *, at_s: float | None = None, **kwargs: Any) -> Doubt | None:
        wall_s = NOW_S + self.now_s
        stamp = SignedBeat(round((wall_s if at_s is None else at_s) * 1e3), LEASE_MS, beat)
        (doubt,) = self.beliefs.doubts([(record(**kwargs), stamp)], self.now_s, wall_s)
        return doubt


def test_a_heartbeat_holds_for_its_lease_from_when_it_was_first_seen() -> None:
    reader = Reader()
    assert reader.sees(5) is None
    reader.now_s += LEASE_MS / 1e3
    assert reader.sees(5) is None
    reader.now_s += 0.1
    assert reader.sees(5) is Doubt.SILENT
    assert reader.sees(6) is None


def test_an_older_heartbeat_is_a_replay_unless_answers_overtook_each_other() -> None:
    reader = Reader()
    assert reader.sees(5) is None
    assert reader.sees(4) is None
    reader.now_s += MAX_LATE_S + 0.1
    assert reader.sees(4) is Doubt.REPLAYED
    assert reader.sees(5) is None


def test_a_reader_that_has_seen_nothing_goes_by_the_time_of_day() -> None:
    bounds = {-MAX_SKEW_S - 1: False, -MAX_SKEW_S + 1: True, LEASE_MS / 1e3 + MAX_SKEW_S - 1: True,
              LEASE_MS / 1e3 + MAX_SKEW_S + 1: False}  # fmt: skip
    for age_s, is_believed in bounds.items():
        reader = Reader()
        doubt = reader.sees(1, at_s=NOW_S + reader.now_s - age_s)
        assert (doubt is None) == is_believed, age_s
    assert doubt_of_time(SignedBeat(0, LEASE_MS, 1), NOW_S) is Doubt.OUT_OF_TIME


def test_of_two_starts_at_an_endpoint_the_newer_counts_also_when_it_is_shown_no_more() -> None:
    reader = Reader()
    assert reader.sees(1, worker="w-old", epoch=3) is None
    assert reader.sees(1, worker="w-new", epoch=4) is None
    assert reader.sees(2, worker="w-old", epoch=3) is Doubt.OLDER_START
    assert reader.sees(3, worker="w-old", endpoint="h:2", epoch=3) is None


def test_in_one_answer_the_newer_start_counts_whichever_comes_first() -> None:
    for order in (1, -1):
        stamp = SignedBeat(round(NOW_S * 1e3), LEASE_MS, 1)
        pair = [(record("w-old", epoch=3), stamp), (record("w-new", epoch=4), stamp)][::order]
        assert list(Beliefs().doubts(pair, 0.0, NOW_S)) == [Doubt.OLDER_START, None][::order]


@settings(deadline=None, max_examples=3)
@given(st.integers(2, 5))
def test_what_is_seen_no_more_is_forgotten(rounds: int) -> None:
    reader = Reader()
    for number in range(rounds * 50):
        reader.sees(1, worker=f"w-{number}", endpoint=f"h:{number + 1}")
        if number % 50 == 49:
            reader.now_s += KEPT_FOR_S + 1
    reader.sees(1, worker="w-last")
    assert len(reader.beliefs._beats) <= 1
    assert len(reader.beliefs._starts) <= 1


def test_distrust_is_counted_and_told_once_a_minute() -> None:
    now_s = [0.0]
    distrust = Distrust(clock=lambda: now_s[0])
    for number in range(1_000):
        distrust.count(f"worker {number}", Doubt.UNSIGNED)
    assert distrust.counts[Doubt.UNSIGNED] == 1_000
    assert distrust._told[Doubt.UNSIGNED] == 1
    now_s[0] = TOLD_FOR_S
    distrust.count("worker x", Doubt.UNSIGNED)
    assert distrust._told[Doubt.UNSIGNED] == 1_001


def test_a_sealed_load_is_a_document_that_earlier_releases_read(ours: RecordSeals) -> None:
    document = json.loads(sealed_worker(ours)["load"])
    assert {name: document[name] for name in json.loads(encode_load(LOAD))} == json.loads(encode_load(LOAD))
    (tier, pinned, tenant, name, *rest) = json.loads(
        ours.seal_resident(POOL, WORKER, DIGEST, encode_resident(Resident(DIGEST, Tier.SLOT, name="n")))
    )
    assert (tier, pinned, tenant, name, rest[:2]) == ("slot", 0, "default", "n", [0.0, []])
