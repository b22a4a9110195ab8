"""Shares of adapters: the tenants that may read and use one besides its owner."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "adapter_shares",
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.Column("checksum", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "tenant", name="pk_adapter_shares"),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapters.id"], name="fk_adapter_shares_adapter_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_adapter_shares_tenant", "adapter_shares", ["tenant"])
