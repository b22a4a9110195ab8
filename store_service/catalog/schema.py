"""Brings a catalog's schema up to date, in steps that stores of the release before can serve beside.

A migration **expands** (adds what older stores do not know of) or **contracts** (takes away, or changes, what they
use). A store expands when it starts. It contracts once no store runs that knows less, and works with the schema of
before until then. A contraction writes down the oldest schema whose stores can still serve: an older store refuses to
start, instead of failing somewhere in a call. A store that is older than the schema, and not than that, serves with
what it knows.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.dialects import postgresql, sqlite

from hotslot.errors import CatalogDamagedError, StoreUnavailableError
from store_service.catalog.store_notes import known_schemas
from store_service.catalog.tables import counters, leases

log = structlog.get_logger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
OLDEST = "oldest_schema"
"""Counter with the oldest schema whose stores can serve with the catalog as it is now."""
_LOCK = 7_400_000_001


@dataclass(frozen=True, slots=True)
class SchemaStep:
    """One migration."""

    number: int
    contracts: bool
    """Stores that do not know it cannot serve with what it leaves."""


@cache
def steps(migrations: Path = MIGRATIONS) -> tuple[SchemaStep, ...]:
    """All migrations that this release knows, in order."""
    script = ScriptDirectory(str(migrations))
    found = [(int(each.revision), bool(getattr(each.module, "CONTRACTS", False))) for each in script.walk_revisions()]
    return tuple(SchemaStep(number, contracts) for number, contracts in sorted(found))


def newest(migrations: Path = MIGRATIONS) -> int:
    """Number of the newest schema that this release knows."""
    return steps(migrations)[-1].number


def next_schema(now: int, known: Sequence[SchemaStep], alive: Collection[int]) -> int:
    """Number of the schema to go to, where stores with these newest schemas are alive."""
    wanted = now
    for step in known:
        if step.number > now:
            if step.contracts and any(number < step.number for number in alive):
                break
            wanted = step.number
    return wanted


def migrate(connection: Connection, migrations: Path = MIGRATIONS) -> int:
    """Go as far as the stores that run allow, one process at a time; returns the schema's number.

    Raises StoreUnavailableError for a catalog of a later release that this one cannot serve with, and
    CatalogDamagedError.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
    known = steps(migrations)
    now = _current(connection)
    if now > known[-1].number:
        _require_servable(connection, now, known[-1].number)
        return now
    alive = known_schemas(connection) if inspect(connection).has_table(leases.name) else []
    wanted = next_schema(now, known, alive)
    if wanted > now:
        command.upgrade(migration_config(connection, migrations), f"{wanted:04}")
        contracted = [step.number for step in known if step.contracts and now < step.number <= wanted]
        if contracted:
            _write_oldest(connection, max(contracted))
    if wanted < known[-1].number:
        why = "stores of an earlier release are alive, which could not serve with it"
        log.info("schema_put_off", schema=wanted, newest=known[-1].number, why=why)
    return wanted


def migration_config(connection: Connection, migrations: Path = MIGRATIONS) -> Config:
    """Settings that alembic needs."""
    config = Config()
    config.set_main_option("script_location", str(migrations))
    config.attributes["connection"] = connection
    return config


def _current(connection: Connection) -> int:
    revision = MigrationContext.configure(connection).get_current_revision() or "0"
    if not (revision.isascii() and revision.isdecimal()):
        raise CatalogDamagedError(f"its schema has the number {revision!r}")
    return int(revision)


def _require_servable(connection: Connection, now: int, newest_known: int) -> None:
    query = select(counters.c.value).where(counters.c.name == OLDEST)
    oldest = connection.execute(query).scalar_one_or_none() or 0
    if oldest > newest_known:
        raise StoreUnavailableError(
            f"the catalog has schema {now} of a later release, and stores serve with it from schema {oldest} on; this "
            f"release of hotslot knows {newest_known}. Start the release that the other stores have, or one after it; "
            "to go back to this one, restore a backup of the catalog from before the update"
        )
    log.warning("catalog_of_a_later_release", schema=now, newest_known=newest_known)


def _write_oldest(connection: Connection, number: int) -> None:
    assert inspect(connection).has_table(counters.name), "no schema contracts before there are counters"
    make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    row = {"name": OLDEST, "value": number}
    connection.execute(make(counters).values(row).on_conflict_do_update(index_elements=[counters.c.name], set_=row))
