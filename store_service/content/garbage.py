"""Decides what a pass of collection removes, and why; pure, so that a dry run and a pass cannot differ."""

from collections.abc import Iterable, Mapping, Set

from hotslot.contract.garbage import Removal, RemovalKind, RemovalReason
from store_service.catalog.pruning import PrunedVersions
from store_service.catalog.references import ExpiredAdapter
from store_service.content.keys import BlobKey, blob_name, object_name, text_of_key
from store_service.content.waiting import UploadMark, Waiting


def of_versions(pruned: Iterable[PrunedVersions], now_unix_s: float) -> list[Removal]:
    """Versions that retention does not keep."""
    return [
        Removal(
            RemovalKind.VERSION,
            RemovalReason.RETENTION,
            each.tenant,
            each.name,
            version.digest,
            version.weights_size_bytes,
            max(0.0, now_unix_s - max(version.create_time_s, version.use_time_s)),
        )
        for each in pruned
        for version in each.removed
    ]


def of_adapters(expired: Iterable[ExpiredAdapter], now_unix_s: float) -> list[Removal]:
    """Deleted adapters whose grace is over."""
    kind, reason = RemovalKind.ADAPTER, RemovalReason.DELETED
    return [
        Removal(kind, reason, each.tenant, each.name, "", each.size_bytes, max(0.0, now_unix_s - each.purge_time_s))
        for each in expired
    ]


def of_released(local: Mapping[BlobKey, int], stored: Mapping[BlobKey, tuple[int, int]]) -> list[Removal]:
    """Blobs that versions left which retention removed; `stored` are generations and sizes of their objects."""
    reason = RemovalReason.RELEASED
    removals = [_local(key, reason, size_bytes, 0.0, 0.0) for key, size_bytes in sorted(local.items())]
    for key, (generation, size_bytes) in sorted(stored.items()):
        name = object_name(key, generation)
        removals.append(Removal(RemovalKind.OBJECT, reason, key[0], name, key[1], size_bytes))
    return removals


def of_blobs(
    unreferenced: Set[BlobKey],
    sizes: Mapping[BlobKey, int],
    waiting: Waiting,
    grace_s: float,
    removed_elsewhere: Set[BlobKey],
) -> list[Removal]:
    """Blobs on the disk: copies of what was removed from object storage wait for nothing."""
    removals = []
    for key in sorted(unreferenced):
        age_s, is_copy = waiting.waited_s(text_of_key(key)), key in removed_elsewhere
        reason = RemovalReason.REMOVED_ELSEWHERE if is_copy else RemovalReason.UNREFERENCED
        removals.append(_local(key, reason, sizes[key], age_s, 0.0 if is_copy else _left_s(grace_s, age_s)))
    return removals


def of_objects(
    found: Mapping[BlobKey, Mapping[int, int]],
    generations: Mapping[BlobKey, int],
    unreferenced: Set[BlobKey],
    waiting: Waiting,
    grace_s: float,
) -> list[Removal]:
    """Objects of blobs; `found` has their sizes by generation.

    Names of earlier generations are of removals that did not end, unless a version refers to the blob and there is no
    object of the present one: then a catalog of another age knows other names, and its readers take what there is.
    """
    removals = []
    for key, sizes in sorted(found.items()):
        current = generations.get(key, 0)
        age_s = waiting.waited_s(text_of_key(key))
        for generation, size_bytes in sorted(sizes.items()):
            reason, wait_s = RemovalReason.UNREFERENCED, _left_s(grace_s, age_s)
            if generation < current and (current in sizes or key in unreferenced):
                reason, wait_s = RemovalReason.INTERRUPTED, 0.0
            elif generation != current or key not in unreferenced:
                continue
            name = object_name(key, generation)
            removals.append(Removal(RemovalKind.OBJECT, reason, key[0], name, key[1], size_bytes, age_s, wait_s))
    return removals


def of_uploads(found: Mapping[str, UploadMark], waiting: Waiting, ttl_s: float, now_unix_s: float) -> list[Removal]:
    """Uploads by their names, on the disk or in object storage."""
    removals = []
    for name, upload in sorted(found.items()):
        age_s = waiting.waited_s(name)
        wait_s = _left_s(ttl_s, age_s)
        if upload.touch_time_s is not None:
            # A file must also look old by itself: only time that was seen twice counts otherwise.
            wait_s = max(wait_s, upload.touch_time_s + ttl_s - now_unix_s)
        kind, reason = RemovalKind.UPLOAD, RemovalReason.IDLE
        removals.append(Removal(kind, reason, upload.tenant, name, "", upload.size_bytes, age_s, wait_s))
    return removals


def with_copies(removals: Iterable[Removal], local: Mapping[BlobKey, int]) -> list[Removal]:
    """Removals with those of the copies on the disk, which go together with objects that nothing refers to."""
    merged: dict[tuple[RemovalKind, str, str], Removal] = {}
    for removal in removals:
        found = [removal]
        key = removal.tenant, removal.digest
        is_copied = removal.kind is RemovalKind.OBJECT and removal.reason is RemovalReason.UNREFERENCED
        if is_copied and not removal.wait_s and key in local:
            found.append(_local(key, removal.reason, local[key], removal.age_s, 0.0))  # type: ignore[arg-type, index]
        for each in found:
            place = each.kind, each.tenant, f"{each.name} {each.digest}"
            if place not in merged or each.wait_s < merged[place].wait_s:
                merged[place] = each
    return list(merged.values())


def _local(key: BlobKey, reason: RemovalReason, size_bytes: int, age_s: float, wait_s: float) -> Removal:
    return Removal(RemovalKind.BLOB, reason, key[0], blob_name(key), key[1], size_bytes, age_s, wait_s)


def _left_s(period_s: float, waited_s: float) -> float:
    return max(0.0, period_s - waited_s)
