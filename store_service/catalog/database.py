"""Opens the catalog's database: SQLite with everything durable, or PostgreSQL by URL; brings its schema up to date.

SQLite pages have no checksums, so a SQLite file is looked through when it is opened.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from hotslot.errors import CatalogDamagedError, QuotaExceededError, StoreUnavailableError
from store_service.catalog.schema import migrate
from store_service.catalog.tables import catalog_identity

BUSY_TIMEOUT_S = 30
PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Bounds of waiting for PostgreSQL's machine, where the URL sets none: by itself libpq waits for a quarter of an hour
for one that has gone. One that is there may take its time."""
_WRITES = "hotslot_writes"
_DAMAGED = ("malformed", "not a database", "Could not decode", "disk I/O error", "bad parameter")
"""Parts of SQLite's errors about a file that is damaged."""


def open_database(url: str) -> Engine:
    """Connect, look for damage, and migrate.

    Raises StoreUnavailableError when the database cannot be reached, and CatalogDamagedError.
    """
    parsed = make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    engine = create_engine(
        parsed,
        pool_pre_ping=not is_sqlite,
        pool_size=16,
        max_overflow=16,
        **_sqlite_options() if is_sqlite else _postgres_options(parsed),
    )
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    with _failures_are_typed(str(parsed)), engine.connect() as connection:
        if is_sqlite:
            _look_through(connection)
    migrate_database(engine)
    return engine


def migrate_database(engine: Engine) -> int:
    """Bring the schema as far as the stores that run allow; returns its number.

    Raises StoreUnavailableError for a catalog of a later release that this one cannot serve with, and
    CatalogDamagedError.
    """
    with _failures_are_typed("the catalog"), engine.connect() as connection:
        if connection.dialect.name != "sqlite":
            # A store that waits for another one's migration must then see it.
            connection = connection.execution_options(isolation_level="READ COMMITTED")
        number = migrate(connection)
        connection.commit()
    return number


def catalog_id(engine: Engine) -> str:
    """Id that tells this catalog from all others."""
    with reading(engine) as connection:
        return str(connection.execute(select(catalog_identity.c.id)).scalar_one())


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the catalog."""
    with _failures_are_typed("the catalog"), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is durable when the block has ended, and without effect when it raises."""
    with _failures_are_typed("the catalog"):
        writer = engine.execution_options(**{_WRITES: True})
        if engine.dialect.name != "sqlite":
            # A writer waits for its tenant's row, and must then see what the one before it wrote.
            writer = writer.execution_options(isolation_level="READ COMMITTED")
        with writer.connect() as connection, connection.begin():
            yield connection


@contextmanager
def _failures_are_typed(what: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as exc:
        if any(sign in str(exc.orig) for sign in _DAMAGED):
            raise CatalogDamagedError(str(exc.orig)) from exc
        if "disk is full" in str(exc.orig):
            raise QuotaExceededError("no space is left on the catalog's disk; enlarge it", subject="disk") from exc
        raise StoreUnavailableError(f"{what} cannot be used now: {exc.orig}", retry_after_s=1.0) from exc
    except json.JSONDecodeError as exc:
        raise CatalogDamagedError(f"a column of JSON cannot be read: {exc}") from exc
    except UnicodeDecodeError as exc:  # SQLite's error quotes what it found
        raise CatalogDamagedError(f"a text is not UTF-8: {exc}") from exc
    except SQLAlchemyError as exc:
        raise StoreUnavailableError(f"{what} cannot be used now: {exc}", retry_after_s=1.0) from exc


def _look_through(connection: Connection) -> None:
    for pragma in ("integrity_check(1)", "foreign_key_check"):
        first = connection.exec_driver_sql(f"PRAGMA {pragma}").first()
        if first is not None and first[0] != "ok":
            raise CatalogDamagedError(f"{pragma} found {' '.join(str(part) for part in first)}")


def _sqlite_options() -> dict[str, Any]:
    return {"connect_args": {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}}


def _postgres_options(url: URL) -> dict[str, Any]:
    wanted = {name: value for name, value in PATIENCE.items() if name not in url.query}
    return {"isolation_level": "REPEATABLE READ", "connect_args": wanted}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver's own idea of when transactions begin is switched off; `_begin_sqlite` begins them.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA cell_size_check = ON")
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
