"""Schemas of the catalog during an update: several releases at once, each with what it knows, or a refusal."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from hotslot.errors import CatalogDamagedError, StoreUnavailableError
from store_service.catalog import schema
from store_service.catalog.database import migrate_database, open_database
from store_service.catalog.leases import CatalogLeases
from store_service.catalog.running_stores import RunningStores
from store_service.catalog.schema import SchemaStep, migrate, next_schema, steps
from store_service.catalog.store_notes import RunningStore

EXPAND = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "{number}", "{before}"
def upgrade():
    op.create_table("t{number}", sa.Column("id", sa.Integer, primary_key=True))
"""
CONTRACT = """
from alembic import op
revision, down_revision, CONTRACTS = "{number}", "{before}", True
def upgrade():
    op.drop_table("t{dropped}")
"""


def store(number: int, newest: int, *, has_objects: bool = True) -> RunningStore:
    return RunningStore(f"store-{number}", "1.0", newest, has_objects)


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """Migrations of a later release: ours, one that expands, and one that takes what that made away again."""
    folder = tmp_path / "migrations"
    (folder / "versions").mkdir(parents=True)
    for path in [*schema.MIGRATIONS.glob("*.py"), *schema.MIGRATIONS.glob("versions/*.py")]:
        (folder / path.relative_to(schema.MIGRATIONS)).write_text(path.read_text())
    newest = schema.newest()
    names = [f"{newest + offset:04}" for offset in range(3)]
    expand = EXPAND.format(number=names[1], before=names[0])
    (folder / "versions" / "m_expand.py").write_text(expand)
    contract = CONTRACT.format(number=names[2], before=names[1], dropped=names[1])
    (folder / "versions" / "m_contract.py").write_text(contract)
    return folder


@pytest.fixture
def catalog(engine: Engine) -> Iterator[Engine]:
    """A catalog of this release; what a test makes of its schema is undone."""
    newest = schema.newest()
    yield engine
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE IF EXISTS t{newest + 1:04}"))
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{newest:04}'"))
        connection.execute(text("DELETE FROM counters"))


def update(engine: Engine, migrations: Path) -> int:
    with engine.connect() as connection:
        number = migrate(connection, migrations)
        connection.commit()
        return number


def test_a_contraction_waits_for_stores_that_know_less() -> None:
    known = [SchemaStep(1, False), SchemaStep(2, False), SchemaStep(3, True), SchemaStep(4, False)]
    assert next_schema(1, known, []) == 4
    assert next_schema(1, known, [4, 3]) == 4
    assert next_schema(1, known, [4, 2]) == 2
    assert next_schema(2, known, [1]) == 2
    assert next_schema(3, known, [1]) == 4


def test_every_migration_so_far_expands_or_says_that_it_does_not() -> None:
    assert [step.number for step in steps()] == list(range(1, schema.newest() + 1))
    assert [step.number for step in steps() if step.contracts] == []


def test_a_release_expands_beside_the_one_before_and_contracts_when_that_has_ended(
    catalog: Engine, later: Path
) -> None:
    newest = schema.newest()
    old = RunningStores(CatalogLeases(catalog, "store-1"), store(1, newest))
    old.join()
    assert update(catalog, later) == newest + 1
    # A store of the release before starts again meanwhile, and serves with what it knows.
    assert migrate_database(catalog) == newest + 1
    new = RunningStores(CatalogLeases(catalog, "store-2"), store(2, newest + 2))
    new.join()
    assert update(catalog, later) == newest + 1
    old.leave()
    assert update(catalog, later) == newest + 2
    with pytest.raises(
        StoreUnavailableError, match=f"serve with it from schema {newest + 2} on.*knows {newest}.*backup"
    ):
        migrate_database(catalog)


def test_stores_that_start_at_once_migrate_once(postgres: Engine) -> None:
    with postgres.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE started_at_once"))
    url = postgres.url.set(database="started_at_once")
    with ThreadPoolExecutor(4) as threads:
        for engine in threads.map(lambda _: open_database(url.render_as_string(hide_password=False)), range(4)):
            engine.dispose()


def test_a_number_that_is_none_is_damage(catalog: Engine) -> None:
    with catalog.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '00x1'"))
    with pytest.raises(CatalogDamagedError, match="00x1"):
        migrate_database(catalog)


@pytest.mark.parametrize("alone", [1, 2], ids=["the first has no object storage", "the second has none"])
def test_stores_that_could_not_read_each_others_blobs_do_not_run_together(engine: Engine, alone: int) -> None:
    first, second = (
        RunningStores(CatalogLeases(engine, f"store-{number}"), store(number, 1, has_objects=number != alone))
        for number in (1, 2)
    )
    first.join()
    with pytest.raises(StoreUnavailableError, match="blob_url"):
        second.join()
    first.join()
    first.leave()
    second.join()


def test_stores_over_object_storage_run_together_and_know_each_other(engine: Engine) -> None:
    stores = [RunningStores(CatalogLeases(engine, f"store-{number}"), store(number, 1)) for number in range(3)]
    for each in stores:
        each.join()
    assert [found.id for found in stores[0].found()] == ["store-0", "store-1", "store-2"]


def test_a_lease_ends_unless_it_is_renewed_and_one_holder_has_it(engine: Engine) -> None:
    one, two = CatalogLeases(engine, "one"), CatalogLeases(engine, "two")
    assert one.take("work", 60)
    assert not two.take("work", 60)
    two.give_back("work")
    assert [lease.holder for lease in two.found("wor")] == ["one"]
    assert one.take("work", -1)
    assert two.take("work", 60)
    assert not one.take("work", 60)
    two.give_back("work")
    assert two.found("work") == []
