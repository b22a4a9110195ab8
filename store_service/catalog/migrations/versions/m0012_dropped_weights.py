"""Weights that removed versions left, so that a pass of collection asks about these alone."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "dropped_weights",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("weights_digest", sa.String(71), nullable=False),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_dropped_weights"),
    )
    op.create_index("ix_dropped_weights_time_s", "dropped_weights", ["time_s"])
