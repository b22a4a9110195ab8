"""Notes by which stores on one catalog tell each other that they run, and what they are."""

import json
from dataclasses import asdict, dataclass, fields

from sqlalchemy import Connection, func, select

from store_service.catalog.clock import now_unix_s
from store_service.catalog.tables import leases

PREFIX = "store "
"""Begin of the names of their leases."""


@dataclass(frozen=True, slots=True)
class RunningStore:
    """One store."""

    id: str
    release: str
    newest_schema: int
    """Newest schema of the catalog that it knows."""
    has_objects: bool
    """Its blobs are in object storage, where other stores find them."""

    def to_note(self) -> str:
        """Text for others."""
        return json.dumps(asdict(self))

    @classmethod
    def from_note(cls, note: str) -> "RunningStore":
        """The store that a text is of; what later releases add is passed over."""
        found = json.loads(note)
        return cls(**{field.name: found[field.name] for field in fields(cls)})


def known_schemas(connection: Connection) -> list[int]:
    """Newest schemas that the stores which run know, in a transaction of its own."""
    is_store = func.substr(leases.c.name, 1, len(PREFIX)) == PREFIX
    query = select(leases.c.note).where(is_store, leases.c.expire_time_s > now_unix_s(connection))
    return [RunningStore.from_note(row.note).newest_schema for row in connection.execute(query)]
