"""A catalog of any database as a SQLite file, in one of its states, and such a file as a catalog of any database.

A backup has the catalog as SQLite whatever the store has, so that it restores into any kind of store.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, Integer, Table, create_engine, delete, func, insert, inspect, select

from hotslot.errors import NotFoundError, PreconditionError
from hotslot.secret_urls import masked_url
from store_service.catalog.database import open_database, reading, writing
from store_service.catalog.tables import adapters, base_models, catalog_identity, metadata, tenants, versions
from store_service.content.keys import BlobKey

BATCH_ROWS = 1_000
_CONTENT = (tenants, base_models, adapters, versions)
"""Tables with rows in every catalog that a store has been used with."""


@contextmanager
def opened_as_it_is(url: str) -> Iterator[Engine]:
    """A database that stores may be using: nothing of it is changed.

    Raises NotFoundError where it has no catalog, PreconditionError for one of another release, and
    StoreUnavailableError.
    """
    engine = create_engine(url, pool_pre_ping=True, isolation_level="REPEATABLE READ")
    try:
        with reading(engine) as connection:
            _require_known(connection, masked_url(url))
        yield engine
    finally:
        engine.dispose()


def copy_database(engine: Engine, target: Path) -> None:
    """Copy a catalog in one of its states, with all that was acknowledged before, into a new SQLite file."""
    copy = open_database(f"sqlite:///{target}")
    try:
        with reading(engine) as source, writing(copy) as connection:
            _copy_rows(source, connection)
    finally:
        copy.dispose()
    with closing(sqlite3.connect(target)) as file:
        file.execute("PRAGMA journal_mode = DELETE")  # one file, which is everything


def require_no_catalog(url: str) -> None:
    """Raises PreconditionError where a store has been used with a database, and StoreUnavailableError."""
    engine = create_engine(url)
    try:
        with reading(engine) as connection:
            tables = set(inspect(connection).get_table_names())
            used = [table.name for table in _CONTENT if table.name in tables and _has_rows(connection, table)]
    finally:
        engine.dispose()
    if used:
        raise PreconditionError(
            f"{masked_url(url)} has a catalog with rows in {', '.join(used)}, and a restore overwrites nothing: name "
            "an empty database",
            "catalog_url",
        )


def fill_database(source: Path, url: str) -> None:
    """Make a database the catalog that a SQLite file is: all of it in one transaction, or nothing.

    Raises PreconditionError where a store has been used with it meanwhile, and StoreUnavailableError.
    """
    file, engine = open_database(f"sqlite:///{source}"), open_database(url)
    try:
        with reading(file) as rows, writing(engine) as connection:
            if any(_has_rows(connection, table) for table in _CONTENT):
                problem = f"{masked_url(url)} has been written to meanwhile; nothing was restored"
                raise PreconditionError(problem, "catalog_url")
            _copy_rows(rows, connection)
            if engine.dialect.name == "postgresql":
                _go_on_counting(connection)
    finally:
        file.dispose()
        engine.dispose()


def refers_to(engine: Engine, key: BlobKey) -> bool:
    """True while a version of the catalog has these weights."""
    query = select(versions.c.id).join(adapters, adapters.c.id == versions.c.adapter_id)
    with reading(engine) as connection:
        found = query.where(adapters.c.tenant == key[0], versions.c.weights_digest == key[1]).limit(1)
        return connection.execute(found).first() is not None


def _require_known(connection: Connection, where: str) -> None:
    found = inspect(connection)
    tables = set(found.get_table_names())
    if catalog_identity.name not in tables:
        raise NotFoundError(f"{where} has no catalog; does HOTSLOT_CATALOG_URL name the store's?", "catalog_url")
    for table in metadata.sorted_tables:
        columns = {column["name"] for column in found.get_columns(table.name)} if table.name in tables else set()
        if columns != set(table.columns.keys()):
            raise PreconditionError(
                f"{where} has a catalog of another release (its table {table.name} differs): use the release that the "
                "store runs",
                "catalog_url",
            )


def _has_rows(connection: Connection, table: Table) -> bool:
    return connection.execute(select(func.count()).select_from(select(table).limit(1).subquery())).scalar_one() > 0


def _copy_rows(source: Connection, target: Connection) -> None:
    """Copy all tables, in place of what a migration put there."""
    for table in reversed(metadata.sorted_tables):
        target.execute(delete(table))
    for table in metadata.sorted_tables:
        rows = source.execution_options(yield_per=BATCH_ROWS).execute(select(table))
        for batch in _partitions(rows.mappings().partitions(BATCH_ROWS)):
            target.execute(insert(table), batch)


def _partitions(partitions: Iterable[Iterable[object]]) -> Iterator[list[dict[str, object]]]:
    for rows in partitions:
        yield [dict(row) for row in rows]  # type: ignore[call-overload]


def _go_on_counting(connection: Connection) -> None:
    """Have rows that are to come numbered after those that were copied."""
    for table in metadata.sorted_tables:
        (first, *others) = table.primary_key.columns
        if others or first.name != "id" or not isinstance(first.type, Integer):
            continue
        sequence = func.pg_get_serial_sequence(table.name, first.name)
        largest = select(func.coalesce(func.max(first), 0) + 1).scalar_subquery()
        connection.execute(select(func.setval(sequence, largest, False)))
