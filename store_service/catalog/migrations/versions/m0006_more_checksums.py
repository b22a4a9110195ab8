"""Checksums for what describes adapters and versions: labels, and configs as they were published."""

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
    adapter_ids = sa.select(adapters.c.id).order_by(adapters.c.id).limit(ROWS_AT_ONCE)
    labelled = sa.select(labels, *owner).join(adapters, adapters.c.id == labels.c.adapter_id)
    this_label = sa.and_(labels.c.adapter_id == sa.bindparam("of"), labels.c.key == sa.bindparam("named"))
    set_label = sa.update(labels).where(this_label).values(checksum=sa.bindparam("computed"))
    last_id = 0
    while ids := connection.scalars(adapter_ids.where(adapters.c.id > last_id)).all():
        rows = connection.execute(labelled.where(adapters.c.id.between(ids[0], ids[-1]))).all()
        last_id = ids[-1]
        computed = [{"of": r.adapter_id, "named": r.key, "computed": checksums.label_checksum(r, r)} for r in rows]
        if computed:
            connection.execute(set_label, computed)
    described = (
        sa.select(versions.c.id, versions.c.digest, versions.c.config_json, *owner)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .order_by(versions.c.id)
        .limit(ROWS_AT_ONCE)
    )
    set_config = (
        sa.update(versions).where(versions.c.id == sa.bindparam("of")).values(config_checksum=sa.bindparam("computed"))
    )
    last_id = 0
    while rows := connection.execute(described.where(versions.c.id > last_id)).all():
        last_id = rows[-1].id
        connection.execute(set_config, [{"of": r.id, "computed": checksums.config_checksum(r, r)} for r in rows])
