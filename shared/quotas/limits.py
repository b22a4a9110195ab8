"""Limits of tenants, from settings and a JSON file that may change at any time.

    {"defaults": {"adapters": 100, "requests_per_minute": 6000},
     "tenants": {"acme": {"adapters": 1000, "requests_per_minute": null}}}

What a tenant's own row leaves out is what the defaults say, and what these leave out is what the settings say; null is
no bound.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from hotslot.contract.quotas import QuotaKind
from hotslot.errors import FieldViolation, HotslotError, InvalidRequestError
from hotslot.ids import parse_tenant
from shared.followed_file import FollowedFile

log = structlog.get_logger(__name__)

MAX_FILE_BYTES = 16 * 2**20
MAX_LIMIT = 2**62
KINDS = tuple(kind for kind in QuotaKind if kind is not QuotaKind.UNSPECIFIED)

Limits = Mapping[QuotaKind, int]
"""Limits by kind; a kind that is left out has no bound."""
NO_LIMITS: Limits = {}
_Row = Mapping[QuotaKind, int | None]


@dataclass(frozen=True, slots=True)
class QuotaTable:
    """Content of the file."""

    defaults: _Row
    tenants: Mapping[str, _Row]


EMPTY_TABLE = QuotaTable({}, {})


class TenantLimits:
    """Limits as they are now. Any thread may ask."""

    def __init__(self, settings: Limits = NO_LIMITS, path: Path | None = None) -> None:
        """Raises InvalidRequestError for a file that cannot be used."""
        self._settings = settings
        self._table = FollowedFile(path, read_quotas, EMPTY_TABLE)
        self._known: dict[str, Limits] = {}
        self._of_others = _merged(settings, self._table.content.defaults)

    def of(self, tenant: str) -> Limits:
        """Limits of a tenant."""
        if self._table.refresh():
            self._of_others, self._known = _merged(self._settings, self._table.content.defaults), {}
        row = self._table.content.tenants.get(tenant)
        if row is None:
            return self._of_others
        found = self._known.get(tenant)
        if found is None:
            found = self._known[tenant] = _merged(self._settings, self._table.content.defaults, row)
        return found


def parse_quotas(data: bytes, where: str) -> QuotaTable:
    """The file's content; raises InvalidRequestError naming the row at fault."""
    try:
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        document = json.loads(data)
        if not isinstance(document, dict) or set(document) - {"defaults", "tenants"}:
            raise ValueError("expected an object with `defaults` and `tenants`, and nothing else")
        tenants = document.get("tenants", {})
        if not isinstance(tenants, dict):
            raise TypeError("tenants: expected an object")
        rows: dict[str, _Row] = {parse_tenant(name): _row(name, row) for name, row in tenants.items()}
        return QuotaTable(_row("defaults", document.get("defaults", {})), rows)
    except (ValueError, RecursionError, TypeError, HotslotError) as exc:
        raise InvalidRequestError(
            [FieldViolation(where, f"expected quotas as docs/quotas.md has them: {exc}")]
        ) from exc


def read_quotas(path: Path) -> QuotaTable:
    """Quotas of a file; raises InvalidRequestError."""
    try:
        return parse_quotas(path.read_bytes(), str(path))
    except OSError as exc:
        raise InvalidRequestError([FieldViolation(str(path), exc.strerror or str(exc))]) from exc


def _row(name: str, row: Any) -> _Row:
    if not isinstance(row, dict):
        raise TypeError(f"{name}: expected an object of kinds and limits")
    known = {kind.value: kind for kind in KINDS}
    found: dict[QuotaKind, int | None] = {}
    for word, limit in row.items():
        if word not in known:
            raise ValueError(f"{name}: unknown kind {word[:40]!r}; there are {', '.join(known)}")
        if limit is not None and (type(limit) is not int or not 0 <= limit <= MAX_LIMIT):
            raise ValueError(f"{name}.{word}: found {str(limit)[:40]}, expected a whole number or null")
        found[known[word]] = limit
    return found


def _merged(settings: Limits, *rows: _Row) -> Limits:
    merged: dict[QuotaKind, int | None] = dict(settings)
    for row in rows:
        merged.update(row)
    return {kind: limit for kind, limit in merged.items() if limit is not None}
