"""Which versions each tenant has used here, under which references and when: a tenant sees only its own. Pure state."""

from collections.abc import Callable
from dataclasses import dataclass, field

from hotslot.ids import Digest, TenantId
from worker_service.adapters.version import AdapterVersion

MAX_REFERENCES = 16
PRUNE_ABOVE = 4_096


@dataclass(slots=True)
class SeenVersion:
    """One tenant's use of one version."""

    max_rank: int
    weights_digest: Digest
    size_bytes: int
    """Of its weights blob."""
    references: dict[str, float] = field(default_factory=dict)
    """When each of them was used last, least recently first."""

    @property
    def last_used_s(self) -> float:
        """The latest use under any reference."""
        return max(self.references.values())


@dataclass(slots=True)
class SeenVersions:
    """All uses; those of versions that are gone from the worker are forgotten in time."""

    is_here: Callable[[Digest, SeenVersion], bool]
    """Whether the worker has a version in any tier, or is loading it."""
    _seen: dict[tuple[TenantId, Digest], SeenVersion] = field(default_factory=dict)
    _prune_above: int = PRUNE_ABOVE

    def note(self, version: AdapterVersion, now_s: float) -> None:
        """A request used this version."""
        seen = self._seen.get((version.tenant, version.digest))
        if seen is None:
            if len(self._seen) >= self._prune_above:
                self.prune()
            manifest = version.manifest
            seen = SeenVersion(manifest.max_rank, manifest.weights_digest, manifest.weights_size_bytes)
            self._seen[version.tenant, version.digest] = seen
        text = str(version.reference)
        seen.references.pop(text, None)
        seen.references[text] = now_s
        if len(seen.references) > MAX_REFERENCES:
            del seen.references[next(iter(seen.references))]

    def of_tenant(self, tenant: TenantId) -> dict[Digest, SeenVersion]:
        """What a tenant used, by digest."""
        return {digest: seen for (owner, digest), seen in self._seen.items() if owner == tenant}

    def latest_users(self, most: int) -> dict[Digest, list[tuple[TenantId, str]]]:
        """For each version the tenants that used it last, by name, each with the reference that it used last.

        By name, so that who uses it over and over in turns changes nothing.
        """
        users: dict[Digest, list[tuple[TenantId, str]]] = {}
        for (tenant, digest), seen in sorted(self._seen.items(), key=lambda item: -item[1].last_used_s):
            of_version = users.setdefault(digest, [])
            if len(of_version) < most:
                of_version.append((tenant, next(reversed(seen.references))))
        return {digest: sorted(of_version) for digest, of_version in users.items()}

    def with_blobs(self, has_blob: Callable[[Digest], bool]) -> frozenset[Digest]:
        """The versions whose weights blob somebody has."""
        return frozenset(digest for (_, digest), seen in self._seen.items() if has_blob(seen.weights_digest))

    def is_shared(self, tenant: TenantId, digest: Digest) -> bool:
        """Whether another tenant uses the same version."""
        return any(owner != tenant and seen_digest == digest for owner, seen_digest in self._seen)

    def forget(self, tenant: TenantId, digest: Digest) -> None:
        """The tenant does not use this version any more."""
        self._seen.pop((tenant, digest), None)

    def prune(self) -> None:
        """Forget versions that are not on the worker; afterwards memory follows what is resident."""
        self._seen = {key: seen for key, seen in self._seen.items() if self.is_here(key[1], seen)}
        self._prune_above = max(PRUNE_ABOVE, 2 * len(self._seen))
