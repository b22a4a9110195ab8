"""Retention of versions: which ones an adapter's owner does not want to keep any more. Pure: times are passed in."""

from collections.abc import Iterable
from dataclasses import dataclass

from hotslot.ids import Digest


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Bounds on the versions of an adapter that no tag points at."""

    keep_versions: int = 0
    """Newest versions that stay, whatever their age; 0 without an `untagged_ttl_s` keeps all."""
    untagged_ttl_s: float | None = None
    """Time after which others go."""

    @property
    def removes(self) -> bool:
        """False where every version stays."""
        return bool(self.keep_versions) or self.untagged_ttl_s is not None


NO_RETENTION = RetentionPolicy()


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version as retention sees it."""

    digest: Digest
    weights_digest: Digest
    weights_size_bytes: int
    create_time_s: float
    use_time_s: float
    """Time at which it lost its last tag, or was asked for by its digest; 0 where neither happened."""
    is_tagged: bool


@dataclass(frozen=True, slots=True)
class Pruning:
    """Decision on one adapter's versions."""

    removed: tuple[StoredVersion, ...]
    num_waiting: int
    """Versions that only the grace keeps."""
    num_kept: int
    revision: int = 0
    """Revision of the tenant's catalog with the removals; 0 where nothing was removed."""
    more: bool = False
    """True where others are to be removed by the next look."""


def choose_removed(
    newest_first: Iterable[StoredVersion],
    policy: RetentionPolicy,
    *,
    now_s: float,
    grace_s: float,
    heard_since_s: float = 0.0,
) -> Pruning:
    """Choose the versions to remove; a tagged one never is, nor one of the newest that the policy keeps.

    Before `heard_since_s` nobody could say what they use: the grace of all versions counts from then, at the earliest.
    """
    removed: list[StoredVersion] = []
    num_waiting = num_kept = 0
    for position, version in enumerate(newest_first):
        idle_s = now_s - max(version.create_time_s, version.use_time_s)
        if (
            version.is_tagged
            or position < policy.keep_versions
            or not policy.removes
            or idle_s < (policy.untagged_ttl_s or 0.0)
        ):
            num_kept += 1
        elif min(idle_s, now_s - heard_since_s) < grace_s:
            num_waiting += 1
        else:
            removed.append(version)
    return Pruning(tuple(removed), num_waiting, num_kept)
