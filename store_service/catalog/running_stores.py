"""Stores that run on a catalog now, as they say by leases, and whether one more may join them."""

from hotslot.errors import StoreUnavailableError
from store_service.catalog.leases import CatalogLeases
from store_service.catalog.store_notes import PREFIX, RunningStore

LEASE_S = 45.0
RENEW_S = 10.0


class RunningStores:
    """The stores of a catalog, as one of them sees them. Everything blocks, and may raise StoreUnavailableError."""

    def __init__(self, leases: CatalogLeases, own: RunningStore) -> None:
        self._leases = leases
        self._own = own

    def join(self) -> None:
        """Be known as running; raises StoreUnavailableError where versions of one store would be missing on another."""
        others = [store for store in self.found() if store.id != self._own.id]
        alone = next((store for store in [self._own, *others] if not store.has_objects), None)
        if others and alone is not None:
            which = "this store" if alone is self._own else f"store {alone.id}"
            raise StoreUnavailableError(
                f"{which} keeps its blobs on its disk alone, and {len(others)} other store(s) run on this catalog "
                f"({', '.join(store.id for store in others)[:200]}): they could not read each other's versions. Set "
                f"blob_url (HOTSLOT_BLOB_URL) for all of them; a store that was killed counts for {LEASE_S:g} s"
            )
        self.renew()

    def renew(self) -> None:
        """Stay known for a while."""
        self._leases.take(f"{PREFIX}{self._own.id}", LEASE_S, self._own.to_note())

    def leave(self) -> None:
        """Be known as running no more."""
        self._leases.give_back(f"{PREFIX}{self._own.id}")

    def found(self) -> list[RunningStore]:
        """All stores that run."""
        return [RunningStore.from_note(lease.note) for lease in self._leases.found(PREFIX) if lease.is_held]
