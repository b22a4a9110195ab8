"""Several stores on one catalog: their leases, claims and generations of blobs, objects that were found damaged."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "leases",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("expire_time_s", sa.Double, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )
    op.create_table(
        "blob_generations",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("weights_digest", sa.String(71), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "weights_digest", name="pk_blob_generations"),
    )
    op.create_table(
        "blob_claims",
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("weights_digest", sa.String(71), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("expire_time_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("token", name="pk_blob_claims"),
    )
    op.create_index("ix_blob_claims_weights_digest", "blob_claims", ["weights_digest"])
    op.create_table(
        "damaged_objects",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("weights_digest", sa.String(71), nullable=False),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "weights_digest", name="pk_damaged_objects"),
    )
