"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "tenants",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("oldest_revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_table(
        "base_models",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("model_type", sa.String(128), nullable=False),
        sa.Column("weights_fingerprint", sa.String(128), nullable=False),
        sa.Column("modules", sa.JSON, nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_base_models"),
        sa.UniqueConstraint("name", "digest", name="uq_base_models_name"),
    )
    op.create_index("ix_base_models_digest", "base_models", ["digest"])
    op.create_table(
        "adapters",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
        sa.Column("update_time_s", sa.Double, nullable=False),
        sa.Column("delete_time_s", sa.Double, nullable=True),
        sa.Column("purge_time_s", sa.Double, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_adapters"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_adapters_tenant"),
    )
    op.create_index("ix_adapters_purge_time_s", "adapters", ["purge_time_s"])
    op.create_index("ix_adapters_tenant_name", "adapters", ["tenant", "name"])
    op.create_index(
        "uq_adapters_live_name",
        "adapters",
        ["tenant", "name"],
        unique=True,
        sqlite_where=sa.text("delete_time_s IS NULL"),
        postgresql_where=sa.text("delete_time_s IS NULL"),
    )
    op.create_table(
        "labels",
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("value", sa.String(512), nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "key", name="pk_labels"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_labels_adapter_id", ondelete="CASCADE"),
    )
    op.create_table(
        "versions",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("manifest_json", sa.LargeBinary, nullable=False),
        sa.Column("base_model", sa.String(512), nullable=False),
        sa.Column("base_model_digest", sa.String(71), nullable=False),
        sa.Column("weights_digest", sa.String(71), nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("config_json", sa.Text, nullable=False),
        sa.Column("create_time_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
        sa.UniqueConstraint("adapter_id", "digest", name="uq_versions_adapter_id"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_versions_adapter_id", ondelete="CASCADE"),
    )
    op.create_index("ix_versions_weights_digest", "versions", ["weights_digest"])
    op.create_table(
        "tags",
        sa.Column("adapter_id", ROW_ID, nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("version_id", ROW_ID, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("update_time_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "name", name="pk_tags"),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name="fk_tags_adapter_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_tags_version_id", ondelete="CASCADE"),
    )
    op.create_index("ix_tags_version_id", "tags", ["version_id"])
    op.create_table(
        "events",
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("adapter", sa.String(255), nullable=False),
        sa.Column("tag", sa.String(128), nullable=True),
        sa.Column("digest", sa.String(71), nullable=True),
        sa.Column("time_s", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "revision", name="pk_events"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.name"], name="fk_events_tenant"),
    )
