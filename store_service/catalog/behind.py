"""Versions that stand behind a name just now, which workers may be serving."""

from collections.abc import Iterable

from sqlalchemy import Engine, exists, or_, select

from hotslot.errors import AdapterNotFoundError
from hotslot.ids import AdapterName, TagName, TenantId
from store_service.catalog import reads
from store_service.catalog.database import reading
from store_service.catalog.records import VersionSummary
from store_service.catalog.tables import tags, versions

NEWEST = 2
"""Newest versions that workers may not have replaced yet."""


class VersionsBehind:
    """Look-up over a SQLAlchemy engine; it blocks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, tenant: TenantId, name: AdapterName, tag_names: Iterable[TagName]) -> list[VersionSummary]:
        """Versions that these tags point at, and the newest ones; none for an adapter that is not there."""
        with reading(self._engine) as connection:
            try:
                adapter = reads.live_adapter(connection, tenant, name)
            except AdapterNotFoundError:
                return []
            is_tagged = exists().where(tags.c.version_id == versions.c.id, tags.c.name.in_(list(tag_names)))
            newest = select(versions.c.id).where(versions.c.adapter_id == adapter.id).order_by(versions.c.id.desc())
            query = select(*reads.SUMMARY_COLUMNS).where(
                versions.c.adapter_id == adapter.id, or_(is_tagged, versions.c.id.in_(newest.limit(NEWEST)))
            )
            return reads.version_summaries(connection, adapter, connection.execute(query).all())
