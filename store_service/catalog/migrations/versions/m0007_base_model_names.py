"""Names of base models apart from what was registered under them: what each stands for, and whose it is."""

from types import SimpleNamespace

import sqlalchemy as sa
from alembic import op

from hotslot.formats.base_spec import looks_like_a_digest
from store_service.catalog import checksums

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Apply. A name stands for what was registered last under it, and has no owner; a name like a digest for nothing.

    A row that is damaged now makes a name that is damaged.
    """
    op.create_table(
        "base_model_names",
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("owner", sa.String(64), nullable=True),
        sa.Column("update_time_s", sa.Double, nullable=False),
        sa.Column("checksum", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_base_model_names"),
    )
    op.create_index("ix_base_model_names_digest", "base_model_names", ["digest"])
    connection = op.get_bind()
    metadata = sa.MetaData()
    metadata.reflect(connection, only=("base_models", "base_model_names"))
    base_models, names = metadata.tables["base_models"], metadata.tables["base_model_names"]
    newest = {row.name: row for row in connection.execute(sa.select(base_models).order_by(base_models.c.id))}
    for row in newest.values():
        if isinstance(row.name, str) and not looks_like_a_digest(row.name):
            values = {"name": row.name, "digest": str(row.digest), "owner": None, "update_time_s": row.create_time_s}
            is_whole = row.checksum == checksums.base_model_checksum(row)
            checksum = checksums.base_model_name_checksum(SimpleNamespace(**values)) if is_whole else ""
            connection.execute(sa.insert(names).values(**values, checksum=checksum))
