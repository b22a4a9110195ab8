"""Revisions that writes return, against SQLite and a real PostgreSQL: a read at one of them or above sees the write."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from hotslot.errors import AdapterNotFoundError, HotslotError, TagNotFoundError
from hotslot.ids import AdapterName
from hotslot.references import parse_reference
from shared.fleet.replica_policy import ReplicaPolicy
from store_service.catalog.catalog import Catalog
from store_service.catalog.database import open_database
from store_service.catalog.policies import Policies
from tests.contract.test_catalog import ACME, BOT, LATEST, OTHER, STABLE, create


@dataclass(frozen=True)
class Written:
    """Parts of a catalog with an adapter of two versions, the second of which is `latest`."""

    catalog: Catalog
    policies: Policies


def deleted_adapter(at: Written) -> int:
    return at.catalog.delete_adapter(ACME, BOT, etag="", grace_s=100.0).revision


def undeleted_adapter(at: Written) -> int:
    at.catalog.delete_adapter(ACME, BOT, etag="", grace_s=100.0)
    return at.catalog.undelete_adapter(ACME, BOT).revision


WRITES: dict[str, Callable[[Written], int]] = {
    "create_version": lambda at: create(at.catalog, 3)[0].revision,
    "create_version with labels": lambda at: create(at.catalog, 3, labels={"step": "3"})[0].revision,
    "create_version again": lambda at: create(at.catalog, 2)[0].revision,
    "create another adapter": lambda at: create(at.catalog, 1, AdapterName("other"))[0].revision,
    "set_tag": lambda at: at.catalog.set_tag(ACME, BOT, STABLE, create(at.catalog, 1)[0].digest, etag="").revision,
    "set_tag again": lambda at: (
        at.catalog.set_tag(ACME, BOT, LATEST, create(at.catalog, 2)[0].digest, etag="").revision
    ),
    "delete_tag": lambda at: at.catalog.delete_tag(ACME, BOT, LATEST, etag=""),
    "delete_version": lambda at: at.catalog.delete_version(ACME, BOT, create(at.catalog, 2)[0].digest, force=True),
    "delete_adapter": deleted_adapter,
    "undelete_adapter": undeleted_adapter,
    "set policy": lambda at: at.policies.set(ACME, BOT, ReplicaPolicy(2), etag="").revision,
    "set policy again": lambda at: at.policies.set(ACME, BOT, ReplicaPolicy(1), etag="").revision,
    "delete policy": lambda at: at.policies.delete(ACME, BOT, etag=""),
}
GONE: dict[str, type[HotslotError]] = {
    "delete_tag": TagNotFoundError,
    "delete_version": TagNotFoundError,
    "delete_adapter": AdapterNotFoundError,
}


@pytest.fixture
def at(engine: Engine) -> Written:
    at = Written(Catalog(engine), Policies(engine))
    create(at.catalog, 1)
    create(at.catalog, 2)
    at.policies.set(ACME, BOT, ReplicaPolicy(1), etag="")
    create(at.catalog, 1, tenant=OTHER)
    return at


@pytest.mark.parametrize("name", WRITES)
def test_a_write_returns_the_revision_that_the_catalog_has_with_it(at: Written, name: str) -> None:
    before = at.catalog.revision(ACME)
    returned = WRITES[name](at)
    assert returned == at.catalog.revision(ACME) >= before
    assert [event.revision for event in at.catalog.events_after(ACME, returned, limit=9)] == []


@pytest.mark.parametrize("name", WRITES)
def test_a_resolve_after_a_write_is_at_its_revision_or_above(at: Written, name: str) -> None:
    returned = WRITES[name](at)
    if name in GONE:
        with pytest.raises(GONE[name]):
            at.catalog.resolve(ACME, parse_reference(BOT))
    else:
        assert at.catalog.resolve(ACME, parse_reference(BOT)).revision >= returned


def test_what_is_only_read_has_no_revision_of_a_write(at: Written) -> None:
    assert at.catalog.get_adapter(ACME, BOT).revision == 0
    assert at.catalog.resolve(ACME, parse_reference(BOT)).version.revision == 0
    assert at.policies.get(ACME, BOT).revision == 0


def test_the_revisions_of_a_tenant_are_its_own(at: Written) -> None:
    before = at.catalog.revision(OTHER)
    create(at.catalog, 3)
    assert create(at.catalog, 2, tenant=OTHER)[0].revision == at.catalog.revision(OTHER) > before


def test_a_catalog_has_an_id_of_its_own_which_it_keeps(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two", "one"):
        engine = open_database(f"sqlite:///{tmp_path / name}.sqlite3")
        found.append(Catalog(engine).identity())
        assert found[-1] == Catalog(engine).state().id
        engine.dispose()
    assert found[0] == found[2] != found[1]
    assert all(found)
