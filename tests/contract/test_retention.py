"""Annotations, several tags and retention in every catalog, against SQLite and a real PostgreSQL."""

import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from hotslot.contract.catalog import AdapterEventKind
from hotslot.errors import (
    AdapterNotFoundError,
    CatalogDamagedError,
    EtagMismatchError,
    InvalidRequestError,
    VersionNotFoundError,
)
from hotslot.ids import Digest, TagName
from hotslot.references import parse_reference
from shared.fleet.replica_policy import ReplicaPolicy
from store_service.catalog import pruning
from store_service.catalog.behind import VersionsBehind
from store_service.catalog.catalog import Catalog
from store_service.catalog.policies import Policies
from store_service.catalog.pruning import VersionRetention as Retention
from store_service.catalog.records import MAX_ANNOTATIONS, VersionRecord
from store_service.catalog.retention import RetentionPolicy
from tests.contract.test_catalog import ACME, BOT, LATEST, OTHER, STABLE, kinds, new_version, resolve

GRACE_S = 60.0


class Clock:
    """Time that a test moves, as far ahead of the catalog's own as it likes."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def catalog(engine: Engine) -> Catalog:
    return Catalog(engine)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retention(engine: Engine, clock: Clock) -> Retention:
    return Retention(engine, grace_s=GRACE_S, clock=clock)


def publish(
    catalog: Catalog,
    number: int,
    annotations: Mapping[str, str] | None = None,
    tags: tuple[TagName, ...] = (),
    tag: TagName = LATEST,
    keep: int | None = None,
    etag: str = "",
) -> VersionRecord:
    version = replace(new_version(number), annotations=tuple((annotations or {}).items()))
    record, _ = catalog.create_version(
        ACME, BOT, version, tag=tag, new_labels={}, tag_etag=etag, more_tags=tags, keep=keep
    )
    return record


def listed(catalog: Catalog) -> list[Digest]:
    return [record.digest for _, record in catalog.list_versions(ACME, BOT, limit=1000, before=0)]


def test_annotations_are_shown_with_the_version_wherever_it_is_shown(catalog: Catalog) -> None:
    made = publish(catalog, 1, {"step": "40", "loss": "1.2"})
    expected = (("loss", "1.2"), ("step", "40"))
    assert made.annotations == expected
    assert catalog.resolve(ACME, parse_reference(BOT)).version.annotations == expected
    assert catalog.list_versions(ACME, BOT, limit=9, before=0)[0][1].annotations == expected
    adapter = catalog.get_adapter(ACME, BOT)
    assert adapter.latest_version is not None
    assert adapter.latest_version.annotations == expected


def test_publishing_a_version_again_merges_its_annotations_and_says_so(catalog: Catalog) -> None:
    publish(catalog, 1, {"step": "40", "loss": "1.2"})
    before = catalog.revision(ACME)
    assert publish(catalog, 1, {"loss": "", "epoch": "2"}).annotations == (("epoch", "2"), ("step", "40"))
    assert kinds(catalog, before) == [AdapterEventKind.LABELS_CHANGED]
    assert publish(catalog, 1, {"epoch": "2"}).annotations == (("epoch", "2"), ("step", "40"))
    assert catalog.revision(ACME) == before + 1
    with pytest.raises(InvalidRequestError):
        publish(catalog, 1, {f"key {number}": "x" for number in range(MAX_ANNOTATIONS)})


def test_annotations_that_changed_by_themselves_are_found(catalog: Catalog, engine: Engine) -> None:
    publish(catalog, 1, {"step": "40"})
    with engine.begin() as connection:
        connection.execute(text('UPDATE versions SET annotations = \'{"step": "41"}\''))
    with pytest.raises(CatalogDamagedError):
        catalog.resolve(ACME, parse_reference(BOT))


def test_several_tags_move_in_one_change_or_none_does(catalog: Catalog) -> None:
    first = publish(catalog, 1, tags=(STABLE,))
    assert resolve(catalog, f"{BOT}:latest") == resolve(catalog, f"{BOT}:stable") == first.digest
    with pytest.raises(EtagMismatchError):
        publish(catalog, 2, tags=(STABLE, TagName("best")), etag="r0")
    assert resolve(catalog, f"{BOT}:stable") == first.digest
    assert listed(catalog) == [first.digest]
    second = publish(catalog, 2, tags=(STABLE, TagName("best")))
    assert {resolve(catalog, f"{BOT}:{tag}") for tag in ("latest", "stable", "best")} == {second.digest}


def test_keep_is_the_policy_from_then_on_and_leaves_its_other_parts(catalog: Catalog, engine: Engine) -> None:
    policies = Policies(engine)
    publish(catalog, 1)
    policies.set(ACME, BOT, ReplicaPolicy(2, 5), etag="", retention=lambda before: RetentionPolicy(0, 7.0))
    publish(catalog, 2, keep=3)
    found = policies.get(ACME, BOT)
    assert (found.policy, found.retention) == (ReplicaPolicy(2, 5), RetentionPolicy(3, 7.0))
    before = catalog.revision(ACME)
    publish(catalog, 3, keep=3)
    assert AdapterEventKind.POLICY_CHANGED not in kinds(catalog, before)
    assert policies.with_retention() == [(ACME, BOT)] == policies.with_retention(ACME)
    assert policies.with_retention(OTHER) == []


def test_versions_beyond_the_newest_go_after_the_grace_and_their_weights_are_released(
    catalog: Catalog, retention: Retention, clock: Clock
) -> None:
    made = [publish(catalog, number, keep=2, tag=TagName("t") if number == 1 else LATEST) for number in range(1, 7)]
    assert retention.prune(ACME, BOT).removed == ()
    clock.ahead_s = GRACE_S + 1
    found = retention.look(ACME, BOT)
    assert [version.digest for version in found.removed] == [record.digest for record in reversed(made[1:4])]
    before = catalog.revision(ACME)
    pruned = retention.prune(ACME, BOT)
    assert pruned.removed == found.removed
    assert pruned.revision == catalog.revision(ACME)
    assert kinds(catalog, before) == [AdapterEventKind.VERSION_DELETED] * 3
    # The first still has the tag `t`.
    assert listed(catalog) == [made[5].digest, made[4].digest, made[0].digest]
    released = retention.released()
    assert {each.digest for each in released} == {record.manifest.weights_digest for record in made[1:4]}
    retention.settle(released)
    assert retention.released() == []
    assert retention.prune(ACME, BOT).removed == ()


def test_a_version_that_is_asked_for_by_its_digest_stays(catalog: Catalog, retention: Retention, clock: Clock) -> None:
    first = publish(catalog, 1, keep=1)
    publish(catalog, 2)
    clock.ahead_s = GRACE_S + 1
    reference = parse_reference(f"{BOT}@{first.digest}")
    retention.note_resolved(ACME, reference, catalog.resolve(ACME, reference))
    assert retention.prune(ACME, BOT).removed == ()
    clock.ahead_s = 2 * GRACE_S + 2
    assert [version.digest for version in retention.prune(ACME, BOT).removed] == [first.digest]
    with pytest.raises(VersionNotFoundError):
        catalog.resolve(ACME, reference)


def test_after_the_store_was_away_everything_has_its_grace_again_whoever_prunes(
    catalog: Catalog, engine: Engine, clock: Clock
) -> None:
    """For an hour no worker could say that it keeps a version by its digest."""
    for number in range(1, 4):
        publish(catalog, number, keep=1)
    clock.ahead_s = 3600.0
    begun = Retention(engine, grace_s=GRACE_S, clock=clock)
    for bounds in (None, RetentionPolicy(1, 0.0)):
        found = begun.prune(ACME, BOT, bounds)
        assert (found.removed, found.num_waiting, found.num_kept) == ((), 2, 1)
    clock.ahead_s += GRACE_S + 1
    assert len(begun.prune(ACME, BOT).removed) == 2


@pytest.mark.parametrize("how", ["bounds", "policy"])
def test_a_version_that_is_asked_for_by_its_digest_stays_when_a_retention_is_set_later(
    catalog: Catalog, retention: Retention, clock: Clock, how: str
) -> None:
    first = publish(catalog, 1)
    publish(catalog, 2)
    clock.ahead_s = GRACE_S + 1
    reference = parse_reference(f"{BOT}@{first.digest}")
    retention.note_resolved(ACME, reference, catalog.resolve(ACME, reference))
    if how == "policy":
        publish(catalog, 3, keep=1)
    bounds = RetentionPolicy(1, 0.0) if how == "bounds" else None
    assert first.digest not in {version.digest for version in retention.prune(ACME, BOT, bounds).removed}
    assert catalog.resolve(ACME, reference).version.digest == first.digest


def test_more_than_one_look_removes_is_said(
    catalog: Catalog, retention: Retention, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 6):
        publish(catalog, number, keep=1)
    clock.ahead_s = GRACE_S + 1
    monkeypatch.setattr(pruning, "MAX_REMOVED", 3)
    assert [(len(found.removed), found.more) for found in (retention.prune(ACME, BOT) for _ in range(3))] == [
        (3, True),
        (1, False),
        (0, False),
    ]


def test_losing_the_last_tag_begins_the_grace_anew(catalog: Catalog, retention: Retention, clock: Clock) -> None:
    first = publish(catalog, 1, keep=1, tags=(STABLE,))
    publish(catalog, 2)
    clock.ahead_s = GRACE_S + 1
    assert retention.look(ACME, BOT).removed == ()
    catalog.delete_tag(ACME, BOT, STABLE, etag="")
    clock.ahead_s = GRACE_S - 1
    assert retention.look(ACME, BOT).removed == ()
    clock.ahead_s = GRACE_S + 1
    assert [version.digest for version in retention.look(ACME, BOT).removed] == [first.digest]


def test_bounds_of_a_call_stand_in_for_the_policy(catalog: Catalog, retention: Retention, clock: Clock) -> None:
    for number in range(1, 5):
        publish(catalog, number)
    clock.ahead_s = GRACE_S + 1
    assert retention.look(ACME, BOT).removed == ()
    assert len(retention.look(ACME, BOT, RetentionPolicy(1, 0.0)).removed) == 3
    assert len(retention.look(ACME, BOT, RetentionPolicy(3, 0.0)).removed) == 1
    assert retention.look(ACME, BOT, RetentionPolicy(1, 3600.0)).removed == ()
    with pytest.raises(AdapterNotFoundError):
        retention.look(OTHER, BOT)


def test_a_retention_that_changed_by_itself_is_found(catalog: Catalog, retention: Retention, engine: Engine) -> None:
    publish(catalog, 1, keep=5)
    with engine.begin() as connection:
        connection.execute(text("UPDATE adapter_policies SET keep_versions = 1"))
    with pytest.raises(CatalogDamagedError):
        retention.look(ACME, BOT)


def test_versions_behind_a_name_are_those_that_workers_may_hold(catalog: Catalog, engine: Engine) -> None:
    behind = VersionsBehind(engine)
    assert behind(ACME, BOT, [LATEST]) == []
    made = [publish(catalog, number, tag=STABLE if number == 1 else LATEST) for number in range(1, 6)]
    found = {record.digest for record in behind(ACME, BOT, [STABLE])}
    assert found == {made[0].digest, made[3].digest, made[4].digest}
