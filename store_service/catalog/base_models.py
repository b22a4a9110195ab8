"""The base models that adapters can be admitted for; known to all tenants.

A name belongs to the tenant that registered it first and stands for what was registered then, until it is moved. A
digest stands for the first registration of it; it is never looked up among the names.
"""

import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import structlog
from cachetools import LRUCache
from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hotslot.errors import BaseModelInUseError, BaseModelNameTakenError, BaseModelNotFoundError, ForbiddenError
from hotslot.formats.base_details import details_from_json
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind, looks_like_a_digest
from hotslot.ids import DEFAULT_TENANT, TenantId
from store_service.catalog.checksums import base_model_checksum, base_model_name_checksum, check
from store_service.catalog.database import reading, writing
from store_service.catalog.records import BaseModelRecord
from store_service.catalog.tables import base_model_names as names
from store_service.catalog.tables import base_models, versions

log = structlog.get_logger(__name__)

MAX_KEPT_SPECS = 64


class BaseModels:
    """Base models over a SQLAlchemy engine; `operators` are the tenants that may move and delete others' names."""

    def __init__(self, engine: Engine, operators: Collection[TenantId] = (DEFAULT_TENANT,)) -> None:
        self._engine = engine
        self._operators = frozenset(operators)
        self._specs: LRUCache[object, BaseSpec] = LRUCache(MAX_KEPT_SPECS)
        self._lock = threading.Lock()

    def register(
        self, spec: BaseSpec, tenant: TenantId = DEFAULT_TENANT, *, move: bool = False
    ) -> tuple[BaseModelRecord, bool]:
        """Make a base model known under its name; the flag is false where it was.

        With `move`, a name that stands for another base model stands for this one from now on. Details and
        digests of modules' values are added to a base model that was registered without, by those who may move its
        name.

        Raises BaseModelNameTakenError, and ForbiddenError for a move by a tenant whose name it is not.
        """
        with writing(self._engine) as connection:
            name = self._take_name(connection, spec, tenant)
            moved_from = name.digest if name.digest != spec.digest else None
            if moved_from is not None:
                if not move:
                    raise BaseModelNameTakenError(spec.name, spec.digest, name.digest)
                self._require_power(name, tenant)
                name = _set_name(connection, spec.name, spec.digest, name.owner)
            row, created = _insert(connection, spec)
            if self._has_power(name.owner, tenant):
                row = _add_knowledge(connection, row, spec)
            record = _record(row, name)
        if moved_from is not None:
            log.warning("base_model_name_moved", name=spec.name, was=moved_from, now=spec.digest, by=tenant)
        return record, created

    def get(self, name_or_digest: str) -> BaseModelRecord:
        """By digest, or what a name stands for; raises BaseModelNotFoundError."""
        query = select(base_models).order_by(base_models.c.id).limit(1)
        with reading(self._engine) as connection:
            if looks_like_a_digest(name_or_digest):
                row = connection.execute(query.where(base_models.c.digest == name_or_digest)).one_or_none()
                name = _name_row(connection, row.name) if row is not None else None
            else:
                row, bare = None, name_or_digest.rstrip("/")
                name = _name_row(connection, name_or_digest) or _name_row(connection, bare)
                if name is not None:
                    stands = and_(base_models.c.name == name.name, base_models.c.digest == name.digest)
                    row = connection.execute(query.where(stands)).one_or_none()
        if row is None:
            raise BaseModelNotFoundError(name_or_digest)
        record = _record(row, name)
        if row.checksum is None:
            return record
        with self._lock:  # as long as nothing more is known of it, one object, which others may know by its identity
            spec = self._specs.setdefault((row.id, row.checksum), record.spec)
        return replace(record, spec=spec)

    def list(self, *, limit: int, after: int, name_or_digest: str = "") -> list[tuple[int, BaseModelRecord]]:
        """Base models, all or those registered so, in order of registration, each with its position."""
        query = select(base_models).where(base_models.c.id > after).order_by(base_models.c.id).limit(limit)
        if name_or_digest:
            query = query.where(_is_registered_so(name_or_digest))
        with reading(self._engine) as connection:
            rows = connection.execute(query).all()
            named = _names_of(connection, [row.name for row in rows])
            return [(row.id, _record(row, named.get(row.name))) for row in rows]

    def delete(self, name_or_digest: str, tenant: TenantId = DEFAULT_TENANT) -> Sequence[BaseModelRecord]:
        """Forget everything that was registered under a name, or a digest with all of its names; returns what went.

        Raises BaseModelNotFoundError, ForbiddenError as `register`, and BaseModelInUseError.
        """
        with writing(self._engine) as connection:
            # Taken for writing: a publication of an adapter for one of them holds it until that is done.
            rows = connection.execute(
                select(base_models).where(_is_registered_so(name_or_digest)).with_for_update()
            ).all()
            if not rows:
                raise BaseModelNotFoundError(name_or_digest)
            named = _names_of(connection, [row.name for row in rows])
            for row in rows:
                self._require_power(named.get(row.name), tenant)
            if num_adapters := _num_adapters(connection, rows):
                raise BaseModelInUseError(name_or_digest, num_adapters)
            gone = [_record(row, named.get(row.name)) for row in rows]
            connection.execute(delete(base_models).where(base_models.c.id.in_([row.id for row in rows])))
            for row in rows:
                connection.execute(delete(names).where(names.c.name == row.name, names.c.digest == row.digest))
        for record in gone:
            log.warning("base_model_deleted", name=record.spec.name, digest=record.spec.digest, by=tenant)
        return gone

    def _take_name(self, connection: Connection, spec: BaseSpec, tenant: TenantId) -> Any:
        """The name's row, made when there is none. One without an owner becomes an operator's who knows the model."""
        make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        values = _name_values(spec.name, spec.digest, tenant)
        connection.execute(make(names).values(values).on_conflict_do_nothing())
        row = _name_row(connection, spec.name, for_update=True)
        assert row is not None, "it was there, or was just written"
        if row.owner is None and row.digest == spec.digest and tenant in self._operators:
            return _set_name(connection, row.name, row.digest, tenant)
        return row

    def _require_power(self, name: Any, tenant: TenantId) -> None:
        if name is not None and not self._has_power(name.owner, tenant):
            raise ForbiddenError(
                f"the base model's name {name.name!r} belongs to another tenant than {tenant!r}; that one, or one of "
                "the store's operator_tenants, may move or delete it"
            )

    def _has_power(self, owner: str | None, tenant: TenantId) -> bool:
        return tenant in self._operators or owner == tenant


def _is_registered_so(name_or_digest: str) -> ColumnElement[bool]:
    column = base_models.c.digest if looks_like_a_digest(name_or_digest) else base_models.c.name
    return column == name_or_digest


def _num_adapters(connection: Connection, rows: Sequence[Row[Any]]) -> int:
    """Adapters that would be left without their base model, or were admitted under one of these names."""
    ids = [row.id for row in rows]
    digests = {row.digest for row in rows}
    elsewhere = set(
        connection.scalars(
            select(base_models.c.digest).where(base_models.c.digest.in_(digests), base_models.c.id.not_in(ids))
        )
    )
    named = [and_(versions.c.base_model == row.name, versions.c.base_model_digest == row.digest) for row in rows]
    last = versions.c.base_model_digest.in_(digests - elsewhere)
    count = select(func.count(versions.c.adapter_id.distinct())).where(or_(last, *named))
    return int(connection.execute(count).scalar_one())


def _insert(connection: Connection, spec: BaseSpec) -> tuple[Row[Any], bool]:
    """The row of a name and digest, and whether it is new; safe, since the name's row is held."""
    query = select(base_models).where(base_models.c.name == spec.name, base_models.c.digest == spec.digest)
    row = connection.execute(query).one_or_none()
    if row is not None:
        return row, False
    values = {
        "name": spec.name,
        "digest": spec.digest,
        "model_type": spec.model_type,
        "weights_fingerprint": spec.weights_fingerprint,
        "modules": _modules_json(spec),
        "create_time_s": time.time(),
        "details": spec.details.to_json() if spec.details is not None else "",
    }
    connection.execute(insert(base_models).values(**values, checksum=base_model_checksum(SimpleNamespace(**values))))
    return connection.execute(query).one(), True


def _add_knowledge(connection: Connection, row: Row[Any], spec: BaseSpec) -> Row[Any]:
    """Add what the row lacks and the spec has: digests of modules' values, and details."""
    known = _record(row, None).spec
    more: dict[str, Any] = {}
    if any(module.values_digest for module in spec.modules) and not any(m.values_digest for m in known.modules):
        more["modules"] = _modules_json(spec)
    if spec.details is not None and spec.details.says_more_than(known.details):
        more["details"] = spec.details.to_json()
    if more:
        values = {**row._asdict(), **more}
        values["checksum"] = base_model_checksum(SimpleNamespace(**values))
        connection.execute(update(base_models).where(base_models.c.id == row.id).values(values))
    return connection.execute(select(base_models).where(base_models.c.id == row.id)).one()


def _set_name(connection: Connection, name: str, digest: str, owner: str | None) -> Any:
    values = _name_values(name, digest, owner)
    connection.execute(update(names).where(names.c.name == name).values(values))
    return SimpleNamespace(**values)


def _name_values(name: str, digest: str, owner: str | None) -> dict[str, Any]:
    values = {"name": name, "digest": digest, "owner": owner, "update_time_s": time.time()}
    return {**values, "checksum": base_model_name_checksum(SimpleNamespace(**values))}


def _name_row(connection: Connection, name: str, *, for_update: bool = False) -> Row[Any] | None:
    query = select(names).where(names.c.name == name)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    return _checked_name(row) if row is not None else None


def _names_of(connection: Connection, wanted: Collection[str]) -> dict[str, Row[Any]]:
    rows = connection.execute(select(names).where(names.c.name.in_(set(wanted))))
    return {row.name: _checked_name(row) for row in rows}


def _checked_name(row: Row[Any]) -> Row[Any]:
    """The row again; raises CatalogDamagedError when it is not what was written."""
    check(row.checksum, base_model_name_checksum(row), f"the base model's name {row.name!r}")
    return row


def _modules_json(spec: BaseSpec) -> list[list[str | int]]:
    return [
        [m.path, m.kind.value, m.in_features, m.out_features, *([m.values_digest] if m.values_digest else [])]
        for m in spec.modules
    ]


def _record(row: Row[Any], name: Any) -> BaseModelRecord:
    """With its name's row, if it has one; raises CatalogDamagedError when the row is not what was written."""
    check(row.checksum, base_model_checksum(row), f"base model {row.name!r}")
    modules = tuple(BaseModule(path, ModuleKind(kind), *rest) for path, kind, *rest in row.modules)
    details = details_from_json(row.details)
    spec = BaseSpec(row.name, row.model_type, row.weights_fingerprint, modules, details=details)
    owner = TenantId(name.owner) if name is not None and name.owner is not None else None
    return BaseModelRecord(spec, row.create_time_s, owner, name is None or name.digest != row.digest)
