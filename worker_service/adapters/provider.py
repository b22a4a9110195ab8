"""From the adapters that a request selects to the versions that serve it.

**Invariant**: a request is served by the digests that its references stood for when it was accepted, and by nothing
else, whatever moves meanwhile.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from hotslot.errors import NotFoundError
from hotslot.ids import TenantId
from hotslot.references import Reference
from worker_service.adapters.policy import Selection
from worker_service.adapters.references import ReferenceCache
from worker_service.adapters.tiers import AdapterTiers
from worker_service.adapters.version import AdapterVersion
from worker_service.engine.mix_size import mix_too_large


@dataclass(frozen=True, slots=True)
class Chosen:
    """One adapter of a request, with the version that serves it."""

    selection: Selection
    version: AdapterVersion


@dataclass(frozen=True, slots=True)
class AdapterProvider:
    """References and tiers of one worker. Belongs to one event loop."""

    references: ReferenceCache
    tiers: AdapterTiers

    def known(self, tenant: TenantId, reference: Reference, *, is_forwarded: bool = False) -> AdapterVersion | None:
        """The version that a reference stood for when the store was last asked; never waits, as `resolve_known`."""
        version = self.references.resolve_known(tenant, _name_of(reference) if is_forwarded else reference)
        return version if version is not None and reference.digest in (None, version.digest) else None

    async def resolve(
        self,
        tenant: TenantId,
        selections: Sequence[Selection],
        min_revision: int = 0,
        *,
        is_forwarded: bool = False,
    ) -> tuple[Chosen, ...]:
        """The versions that serve a request which begins now, at a revision of the tenant's catalog or a later one.

        Of one that was forwarded, tags with a digest were settled by the worker that it reached first.
        Raises the store's errors, CatalogBehindError, and InvalidRequestError when they never fit the slots together.
        """
        resolve = self._resolve_settled if is_forwarded else self.references.resolve_current
        chosen = tuple([Chosen(s, await resolve(tenant, s.reference, min_revision)) for s in selections])
        mix = {item.version.digest: item for item in chosen}
        # One that is too large by itself is RANK_TOO_LARGE, which the loader says.
        if len(mix) > 1:
            ranks = {str(item.selection.reference): item.version.manifest.ranks_in_slots for item in mix.values()}
            error = mix_too_large(ranks, self.tiers.engine)
            if error is not None:
                raise error
        return chosen

    async def _resolve_settled(self, tenant: TenantId, reference: Reference, min_revision: int) -> AdapterVersion:
        """The version of the digest: asked for by its tag first, so that here too a move of the tag is prepared for."""
        name = _name_of(reference)
        if name != reference:
            with suppress(NotFoundError):
                version = await self.references.resolve_current(tenant, name)
                if version.digest == reference.digest:
                    return version
        return await self.references.resolve_current(tenant, reference, min_revision)

    async def close(self) -> None:
        """End everything that is under way."""
        await self.references.close()
        await self.tiers.close()


def _name_of(reference: Reference) -> Reference:
    """A tag without the digest beside it."""
    return replace(reference, digest=None) if reference.tag is not None else reference
