"""Annotations of versions, and what retention goes by."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Apply. Stores of earlier releases may use the same database: every column has a default."""
    op.add_column("versions", sa.Column("annotations", sa.Text, nullable=False, server_default=""))
    op.add_column("versions", sa.Column("annotations_checksum", sa.String(64), nullable=False, server_default=""))
    op.add_column("versions", sa.Column("use_time_s", sa.Double, nullable=False, server_default="0"))
    op.add_column("adapter_policies", sa.Column("keep_versions", sa.Integer, nullable=False, server_default="0"))
    op.add_column("adapter_policies", sa.Column("untagged_ttl_s", sa.Double, nullable=True))
    op.add_column("adapter_policies", sa.Column("retention_checksum", sa.String(64), nullable=False, server_default=""))
    op.create_table(
        "released_weights",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("weights_digest", sa.String(71), primary_key=True),
        sa.Column("time_s", sa.Double, nullable=False),
    )
