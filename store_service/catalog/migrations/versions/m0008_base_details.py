"""Details of base models that adapters are compared with."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Apply; they come with the next registration."""
    op.add_column("base_models", sa.Column("details", sa.Text, nullable=False, server_default=""))
