"""Opens the catalog's database: SQLite with everything durable, or PostgreSQL by URL; brings its schema up to date.

SQLite pages have no checksums, so a SQLite file is looked through when it is opened.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from hotslot.errors import CatalogDamagedError, QuotaExceededError, StoreUnavailableError
from store_service.catalog.tables import catalog_identity

BUSY_TIMEOUT_S = 30
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
        **_sqlite_options() if is_sqlite else {"isolation_level": "REPEATABLE READ"},
    )
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    with _failures_are_typed(str(parsed)), engine.connect() as connection:
        if is_sqlite:
            _look_through(connection)
        _migrate(connection)
        connection.commit()
    return engine


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


def migration_config(connection: Connection) -> Config:
    """Settings that alembic needs."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _migrate(connection: Connection) -> None:
    try:
        command.upgrade(migration_config(connection), "head")
    except CommandError as exc:
        raise StoreUnavailableError(f"the catalog's schema is not of this version of hotslot: {exc}") from exc


def _look_through(connection: Connection) -> None:
    for pragma in ("integrity_check(1)", "foreign_key_check"):
        first = connection.exec_driver_sql(f"PRAGMA {pragma}").first()
        if first is not None and first[0] != "ok":
            raise CatalogDamagedError(f"{pragma} found {' '.join(str(part) for part in first)}")


def _sqlite_options() -> dict[str, Any]:
    return {"connect_args": {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}}


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
