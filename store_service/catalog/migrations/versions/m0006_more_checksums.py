"""Checksums for what describes adapters and versions: labels, and configs as they were published."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from store_service.catalog import checksums

revision = "0006"
down_revision = "0005"

ROWS_AT_ONCE = 200


def upgrade() -> None:
    """Apply; what is there now is believed."""
    op.add_column("labels", sa.Column("checksum", sa.String(64), nullable=False, server_default=""))
    op.add_column("versions", sa.Column("config_checksum", sa.String(64), nullable=False, server_default=""))
    connection = op.get_bind()
    metadata = sa.MetaData()
    metadata.reflect(connection, only=("adapters", "labels", "versions"))
    adapters, labels, versions = (metadata.tables[name] for name in ("adapters", "labels", "versions"))
    owner = (adapters.c.tenant, adapters.c.name)
    labelled = sa.select(labels, *owner).join(adapters, adapters.c.id == labels.c.adapter_id)
    for row in connection.execute(labelled).all():
        where = sa.and_(labels.c.adapter_id == row.adapter_id, labels.c.key == row.key)
        connection.execute(sa.update(labels).where(where).values(checksum=checksums.label_checksum(row, row)))
    described = (
        sa.select(versions.c.id, versions.c.digest, versions.c.config_json, *owner)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .order_by(versions.c.id)
        .limit(ROWS_AT_ONCE)
    )
    last_id: Any = 0
    while rows := connection.execute(described.where(versions.c.id > last_id)).all():
        last_id = rows[-1].id
        for row in rows:
            checksum = checksums.config_checksum(row, row)
            connection.execute(sa.update(versions).where(versions.c.id == row.id).values(config_checksum=checksum))
