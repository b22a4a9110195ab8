"""Objects that a store read with other bytes than their digest's: another store may have a whole copy on its disk."""

from sqlalchemy import Engine, and_, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from hotslot.ids import Digest, TenantId
from store_service.catalog.clock import now_unix_s
from store_service.catalog.database import reading, writing
from store_service.catalog.tables import damaged_objects

MAX_LISTED = 1_000


class DamagedObjects:
    """The list of a catalog. Every method is one transaction, blocks, and may raise StoreUnavailableError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, tenant: TenantId, digest: Digest) -> None:
        """Tell other stores; again is harmless."""
        with writing(self._engine) as connection:
            make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            row = {"tenant": tenant, "weights_digest": digest, "time_s": now_unix_s(connection)}
            connection.execute(make(damaged_objects).values(row).on_conflict_do_nothing())

    def found(self) -> list[tuple[TenantId, Digest]]:
        """The oldest of the list."""
        query = select(damaged_objects).order_by(damaged_objects.c.time_s).limit(MAX_LISTED)
        with reading(self._engine) as connection:
            return [(TenantId(row.tenant), Digest(row.weights_digest)) for row in connection.execute(query)]

    def settle(self, tenant: TenantId, digest: Digest) -> None:
        """The object was stored again, or is not wanted any more."""
        is_it = and_(damaged_objects.c.tenant == tenant, damaged_objects.c.weights_digest == digest)
        with writing(self._engine) as connection:
            connection.execute(delete(damaged_objects).where(is_it))
