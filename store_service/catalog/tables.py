"""The catalog's tables. The migrations create them; a test holds both against each other.

The `checksum` columns are explained in `store_service.catalog.checksums`.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows by itself only where the key is an INTEGER.
RowId = BigInteger().with_variant(Integer, "sqlite")

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("oldest_revision", BigInteger, nullable=False),
)
"""`revision` counts the tenant's changes: updating it first makes a tenant's writers take turns, so events become
visible in their order. Events up to `oldest_revision` are gone."""

counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Numbers that only grow: the fencing epochs of workers."""

base_models = Table(
    "base_models",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("name", String(512), nullable=False),
    Column("digest", String(71), nullable=False, index=True),
    Column("model_type", String(128), nullable=False),
    Column("weights_fingerprint", String(128), nullable=False),
    Column("modules", JSON, nullable=False),
    Column("create_time_s", Double, nullable=False),
    Column("checksum", String(64), nullable=False, server_default=""),
    Column("details", Text, nullable=False, server_default=""),
    UniqueConstraint("name", "digest"),
)

base_model_names = Table(
    "base_model_names",
    metadata,
    Column("name", String(512), primary_key=True),
    Column("digest", String(71), nullable=False, index=True),
    Column("owner", String(64), nullable=True),
    Column("update_time_s", Double, nullable=False),
    Column("checksum", String(64), nullable=False),
)
"""Names: the digest that each stands for, and the tenant that registered it first, if that was written down."""

adapters = Table(
    "adapters",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("tenant", String(64), ForeignKey("tenants.name"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("create_time_s", Double, nullable=False),
    Column("update_time_s", Double, nullable=False),
    Column("delete_time_s", Double, nullable=True),
    Column("purge_time_s", Double, nullable=True, index=True),
    Column("checksum", String(64), nullable=False, server_default=""),
)
Index(
    "uq_adapters_live_name",
    adapters.c.tenant,
    adapters.c.name,
    unique=True,
    sqlite_where=adapters.c.delete_time_s.is_(None),
    postgresql_where=adapters.c.delete_time_s.is_(None),
)
Index("ix_adapters_tenant_name", adapters.c.tenant, adapters.c.name)

labels = Table(
    "labels",
    metadata,
    Column("adapter_id", RowId, ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("value", String(512), nullable=False),
    Column("checksum", String(64), nullable=False, server_default=""),
)

versions = Table(
    "versions",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("adapter_id", RowId, ForeignKey("adapters.id", ondelete="CASCADE"), nullable=False),
    Column("digest", String(71), nullable=False),
    Column("manifest_json", LargeBinary, nullable=False),
    Column("base_model", String(512), nullable=False),
    Column("base_model_digest", String(71), nullable=False),
    Column("weights_digest", String(71), nullable=False, index=True),
    Column("weights_size_bytes", BigInteger, nullable=False, server_default="0"),
    Column("max_rank", Integer, nullable=False, server_default="0"),
    Column("dtype", String(8), nullable=False, server_default=""),
    Column("source", Text, nullable=False),
    Column("config_json", Text, nullable=False),
    Column("create_time_s", Double, nullable=False),
    Column("checksum", String(64), nullable=False, server_default=""),
    Column("config_checksum", String(64), nullable=False, server_default=""),
    Column("annotations", Text, nullable=False, server_default=""),
    Column("annotations_checksum", String(64), nullable=False, server_default=""),
    Column("use_time_s", Double, nullable=False, server_default="0"),
    UniqueConstraint("adapter_id", "digest"),
)
"""`weights_size_bytes`, `max_rank` and `dtype` are the manifest's, so that listings need not parse it. `annotations`
are a JSON object, or empty. `use_time_s` is when the version lost its last tag, or was asked for by its digest: a hint
for retention, without a checksum."""

tags = Table(
    "tags",
    metadata,
    Column("adapter_id", RowId, ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("version_id", RowId, ForeignKey("versions.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("revision", BigInteger, nullable=False),
    Column("update_time_s", Double, nullable=False),
    Column("checksum", String(64), nullable=False, server_default=""),
)

adapter_policies = Table(
    "adapter_policies",
    metadata,
    Column("adapter_id", RowId, ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("min_replicas", Integer, nullable=False),
    Column("max_replicas", Integer, nullable=True),
    Column("pinned", Boolean, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("update_time_s", Double, nullable=False),
    Column("checksum", String(64), nullable=False),
    Column("keep_versions", Integer, nullable=False, server_default="0"),
    Column("untagged_ttl_s", Double, nullable=True),
    Column("retention_checksum", String(64), nullable=False, server_default=""),
)

adapter_shares = Table(
    "adapter_shares",
    metadata,
    Column("adapter_id", RowId, ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("tenant", String(64), primary_key=True, index=True),
    Column("time_s", Double, nullable=False),
    Column("checksum", String(64), nullable=False),
)
"""Tenants that an adapter's owner shares it with; `*` is every one."""

released_weights = Table(
    "released_weights",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("weights_digest", String(71), primary_key=True),
    Column("time_s", Double, nullable=False),
)
"""Weights of versions that retention removed: their blobs go at once if no other version has them."""

dropped_weights = Table(
    "dropped_weights",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("weights_digest", String(71), nullable=False),
    Column("time_s", Double, nullable=False, index=True),
)
"""Weights of versions that were removed, for whatever reason, by the database's clock: the blobs that a pass of
collection asks about. Only added to; rows go when they are some days old."""

events = Table(
    "events",
    metadata,
    Column("tenant", String(64), ForeignKey("tenants.name"), primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("adapter", String(255), nullable=False),
    Column("tag", String(128), nullable=True),
    Column("digest", String(71), nullable=True),
    Column("time_s", Double, nullable=False),
    Column("checksum", String(64), nullable=False, server_default=""),
)

catalog_identity = Table(
    "catalog_identity",
    metadata,
    Column("id", String(64), primary_key=True),
)
"""One row: what object storage knows this catalog by."""

leases = Table(
    "leases",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("expire_time_s", Double, nullable=False),
    Column("note", Text, nullable=False),
)
"""Claims of stores that end unless renewed, by the database's clock."""

blob_generations = Table(
    "blob_generations",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("weights_digest", String(71), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("time_s", Double, nullable=False),
)
"""Number in the name of a blob's object, of blobs that were removed from object storage before; that of others is 0."""

blob_claims = Table(
    "blob_claims",
    metadata,
    Column("token", String(32), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("weights_digest", String(71), nullable=False, index=True),
    Column("holder", String(64), nullable=False),
    Column("expire_time_s", Double, nullable=False),
)
"""Publications under way: between the object and the version that refers to it."""

damaged_objects = Table(
    "damaged_objects",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("weights_digest", String(71), primary_key=True),
    Column("time_s", Double, nullable=False),
)
"""Objects that a store read with other bytes than their digest's, for stores that have a whole copy."""
