"""Run by alembic: migrates over the connection that the store has opened already."""

from typing import Any

from alembic import context

from store_service.catalog.tables import metadata


def run(driver_connection: Any) -> None:
    """Migrate. A text of SQLite's that is no UTF-8 any more is read as another one, which no checksum is right for."""
    is_sqlite = hasattr(driver_connection, "text_factory")
    if is_sqlite:
        driver_connection.text_factory = lambda text: text.decode(errors="replace")
    try:
        with context.begin_transaction():
            context.run_migrations()
    finally:
        if is_sqlite:
            driver_connection.text_factory = str


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
run(connection.connection.driver_connection)
