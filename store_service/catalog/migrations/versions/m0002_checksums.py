"""Checksums for the rows that decide what a name stands for, and a name for the catalog itself."""

import hashlib
import secrets
from typing import Any

import sqlalchemy as sa
from alembic import op

from store_service.catalog import checksums

revision = "0002"
down_revision = "0001"

TABLES = ("adapters", "versions", "tags", "base_models", "events")


def version_checksum(adapter: Any, row: Any) -> str:
    """Checksum of a version of an adapter, as it was until summaries came into its row."""
    values = (
        "version",
        adapter.tenant,
        adapter.name,
        row.digest,
        row.weights_digest,
        row.base_model,
        row.base_model_digest,
        row.source,
        row.create_time_s,
    )
    return hashlib.sha256(repr(values).encode("utf-8", "backslashreplace")).hexdigest()


def upgrade() -> None:
    """Apply; what is there now is believed."""
    for table in TABLES:
        op.add_column(table, sa.Column("checksum", sa.String(64), nullable=False, server_default=""))
    op.create_table(
        "catalog_identity",
        sa.Column("id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalog_identity"),
    )
    connection = op.get_bind()
    connection.execute(sa.text("INSERT INTO catalog_identity (id) VALUES (:id)"), {"id": secrets.token_hex(16)})
    metadata = sa.MetaData()
    metadata.reflect(connection, only=TABLES)
    adapters, versions, tags, base_models, events = (metadata.tables[name] for name in TABLES)
    adapter_of = {row.id: row for row in connection.execute(sa.select(adapters))}
    version_of = {row.id: row for row in connection.execute(sa.select(versions))}
    for row in adapter_of.values():
        _set(connection, adapters, [adapters.c.id == row.id], checksums.adapter_checksum(row))
    for row in version_of.values():
        checksum = version_checksum(adapter_of[row.adapter_id], row)
        _set(connection, versions, [versions.c.id == row.id], checksum)
    for row in connection.execute(sa.select(tags)).all():
        checksum = checksums.tag_checksum(adapter_of[row.adapter_id], row, version_of[row.version_id].digest)
        _set(connection, tags, [tags.c.adapter_id == row.adapter_id, tags.c.name == row.name], checksum)
    for row in connection.execute(sa.select(base_models)).all():
        _set(connection, base_models, [base_models.c.id == row.id], checksums.base_model_checksum(row))
    for row in connection.execute(sa.select(events)).all():
        where = [events.c.tenant == row.tenant, events.c.revision == row.revision]
        _set(connection, events, where, checksums.event_checksum(row))


def _set(connection: sa.Connection, table: sa.Table, where: list[sa.ColumnElement[bool]], checksum: str) -> None:
    connection.execute(sa.update(table).where(*where).values(checksum=checksum))
