"""Summaries of versions for listings, beside their manifests."""

import hashlib
import json
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from alembic import op

from store_service.catalog import checksums
from store_service.catalog.migrations.versions.m0002_checksums import version_checksum

revision = "0005"
down_revision = "0004"

ROWS_AT_ONCE = 200


def upgrade() -> None:
    """Apply. A row that is damaged now keeps a checksum that does not match."""
    op.add_column("versions", sa.Column("weights_size_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("versions", sa.Column("max_rank", sa.Integer, nullable=False, server_default="0"))
    op.add_column("versions", sa.Column("dtype", sa.String(8), nullable=False, server_default=""))
    connection = op.get_bind()
    metadata = sa.MetaData()
    metadata.reflect(connection, only=("versions", "adapters"))
    versions, adapters = metadata.tables["versions"], metadata.tables["adapters"]
    query = (
        sa.select(versions, adapters.c.tenant, adapters.c.name)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .order_by(versions.c.id)
        .limit(ROWS_AT_ONCE)
    )
    last_id = 0
    while rows := connection.execute(query.where(versions.c.id > last_id)).all():
        last_id = rows[-1].id
        for row in rows:
            if _is_whole(row):
                summary = _summary(row.manifest_json)
                checksum = checksums.version_checksum(row, SimpleNamespace(**{**row._asdict(), **summary}))
                connection.execute(
                    sa.update(versions).where(versions.c.id == row.id).values(**summary, checksum=checksum)
                )


def _is_whole(row: sa.Row[Any]) -> bool:
    if not isinstance(row.manifest_json, bytes) or row.checksum != version_checksum(row, row):
        return False
    return bool(row.digest == "sha256:" + hashlib.sha256(row.manifest_json).hexdigest())


def _summary(manifest_json: bytes) -> dict[str, Any]:
    manifest = json.loads(manifest_json)
    return {
        "weights_size_bytes": manifest["weights_size_bytes"],
        "max_rank": max(rank for _, rank, *_ in manifest["modules"]),
        "dtype": manifest["dtype"],
    }
