"""Leases between the stores of one catalog: what one of them does for all, until it ends or stops renewing.

A lease saves work that is done twice; it protects nothing, since its holder may go on after it has ended unnoticed.
"""

from dataclasses import dataclass

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from store_service.catalog.clock import now_unix_s
from store_service.catalog.database import reading, writing
from store_service.catalog.tables import leases


@dataclass(frozen=True, slots=True)
class CatalogLease:
    """A lease as it stands."""

    name: str
    holder: str
    note: str
    """Words of its holder for others."""
    is_held: bool
    """It has not ended."""


class CatalogLeases:
    """The leases of one holder. Every method is one transaction, blocks, and may raise StoreUnavailableError."""

    def __init__(self, engine: Engine, holder: str) -> None:
        self._engine = engine
        self.holder = holder

    def take(self, name: str, for_s: float, note: str = "") -> bool:
        """Take a lease, or renew it; false while another holder has it."""
        with writing(self._engine) as connection:
            make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            now_s = now_unix_s(connection)
            row = {"name": name, "holder": self.holder, "expire_time_s": now_s + for_s, "note": note}
            taken = connection.execute(
                make(leases)
                .values(row)
                .on_conflict_do_update(
                    index_elements=[leases.c.name],
                    set_=row,
                    where=(leases.c.holder == self.holder) | (leases.c.expire_time_s <= now_s),
                )
                .returning(leases.c.name)
            )
            return taken.first() is not None

    def give_back(self, name: str) -> None:
        """End a lease early; harmless where another holder has it."""
        with writing(self._engine) as connection:
            connection.execute(delete(leases).where(leases.c.name == name, leases.c.holder == self.holder))

    def found(self, prefix: str) -> list[CatalogLease]:
        """Leases whose names begin so, by name."""
        begins_so = func.substr(leases.c.name, 1, len(prefix)) == prefix
        query = select(leases).where(begins_so).order_by(leases.c.name)
        with reading(self._engine) as connection:
            now_s = now_unix_s(connection)
            rows = connection.execute(query).all()
        return [CatalogLease(row.name, row.holder, row.note, row.expire_time_s > now_s) for row in rows]

    def clear(self) -> None:
        """Forget leases that ended more than a day ago."""
        with writing(self._engine) as connection:
            now_s = now_unix_s(connection)
            connection.execute(delete(leases).where(leases.c.expire_time_s < now_s - 86400.0))
