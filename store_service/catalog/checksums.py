"""Checksums of the catalog's rows: a row that changed by itself is not believed.

Each covers the names that its row hangs below (tenant, adapter), so that a row that comes up under another name, for
example through a broken index, does not match either. A manifest needs none: its digest is in its version's row.
"""

import hashlib
from typing import Any

from hotslot.errors import CatalogDamagedError


def adapter_checksum(row: Any) -> str:
    """Checksum of an adapter: its name, whether it is deleted, and until when."""
    return _checksum("adapter", row.tenant, row.name, row.create_time_s, row.delete_time_s, row.purge_time_s)


def version_checksum(adapter: Any, row: Any) -> str:
    """Checksum of a version of an adapter."""
    return _checksum(
        "version",
        adapter.tenant,
        adapter.name,
        row.digest,
        row.weights_digest,
        row.weights_size_bytes,
        row.max_rank,
        row.dtype,
        row.base_model,
        row.base_model_digest,
        row.source,
        row.create_time_s,
    )


def config_checksum(adapter: Any, row: Any) -> str:
    """Checksum of the config that a version was published with; apart, so that listings need not read it."""
    return _checksum("config", adapter.tenant, adapter.name, row.digest, row.config_json)


def annotations_checksum(adapter: Any, row: Any) -> str:
    """Checksum of a version's annotations, apart since rows are older than they; empty where there are none."""
    if not row.annotations:
        return ""
    return _checksum("annotations", adapter.tenant, adapter.name, row.digest, row.annotations)


def label_checksum(adapter: Any, row: Any) -> str:
    """Checksum of a label of an adapter."""
    return _checksum("label", adapter.tenant, adapter.name, row.key, row.value)


def tag_checksum(adapter: Any, row: Any, digest: str) -> str:
    """Checksum of a tag of an adapter, which points at the version with this digest."""
    return _checksum("tag", adapter.tenant, adapter.name, row.name, digest, row.revision, row.update_time_s)


def policy_checksum(adapter: Any, row: Any) -> str:
    """Checksum of an adapter's policy."""
    return _checksum(
        "policy",
        adapter.tenant,
        adapter.name,
        row.min_replicas,
        row.max_replicas,
        row.pinned,
        row.revision,
        row.update_time_s,
    )


def share_checksum(adapter: Any, tenant: str, time_s: float) -> str:
    """Checksum of a share of an adapter with a tenant."""
    return _checksum("share", adapter.tenant, adapter.name, tenant, time_s)


def retention_checksum(adapter: Any, row: Any) -> str:
    """Checksum of a policy's retention, apart since rows are older than it; empty where there is none."""
    if not row.keep_versions and row.untagged_ttl_s is None:
        return ""
    return _checksum("retention", adapter.tenant, adapter.name, row.keep_versions, row.untagged_ttl_s, row.revision)


def base_model_checksum(row: Any) -> str:
    """Checksum of a base model with its modules, and with its details where it has some: rows are older than those."""
    parts = [row.name, row.digest, row.model_type, row.weights_fingerprint, row.modules, row.create_time_s]
    return _checksum("base_model", *parts, *([row.details] if getattr(row, "details", "") else []))


def base_model_name_checksum(row: Any) -> str:
    """Checksum of a base model's name."""
    return _checksum("base_model_name", row.name, row.digest, row.owner, row.update_time_s)


def event_checksum(row: Any) -> str:
    """Checksum of an event."""
    return _checksum("event", row.tenant, row.revision, row.kind, row.adapter, row.tag, row.digest, row.time_s)


def check(found: str, expected: str, what: str) -> None:
    """Raises CatalogDamagedError when a row's checksum is another."""
    if found != expected:
        raise CatalogDamagedError(f"the row of {what} is not what was written")


def _checksum(*values: object) -> str:
    # A damaged row may hold anything of any type; `repr` tells all of them apart and never fails.
    return hashlib.sha256(repr(values).encode("utf-8", "backslashreplace")).hexdigest()
