"""The base models that adapters can be admitted for; known to all tenants."""

import time
from types import SimpleNamespace
from typing import Any, Protocol

from sqlalchemy import Engine, Row, insert, or_, select, update

from shared.base_spec import BaseModule, BaseSpec, ModuleKind
from shared.errors import BaseModelNotFoundError
from store_service.catalog.checksums import base_model_checksum, check
from store_service.catalog.database import reading, writing
from store_service.catalog.records import BaseModelRecord
from store_service.catalog.tables import base_models


class BaseModels(Protocol):
    """The seam to registered base models; every method is one transaction and blocks."""

    def register(self, spec: BaseSpec) -> tuple[BaseModelRecord, bool]:
        """Make a base model known; the flag is false where it was.

        Digests of modules' values are added to a base model that was registered without.
        """

    def get(self, name_or_digest: str) -> BaseModelRecord:
        """By digest, or the newest of a name; raises BaseModelNotFoundError."""

    def list(self, *, limit: int, after: int) -> list[tuple[int, BaseModelRecord]]:
        """Base models in order of registration, each with its position."""


class SqlBaseModels:
    """Base models over a SQLAlchemy engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, spec: BaseSpec) -> tuple[BaseModelRecord, bool]:
        """Make a base model known; the flag is false where it was."""
        query = select(base_models).where(base_models.c.name == spec.name, base_models.c.digest == spec.digest)
        with writing(self._engine) as connection:
            row = connection.execute(query).one_or_none()
            if row is not None:
                if not _has_values_digests(row) and any(module.values_digest for module in spec.modules):
                    values = {**row._asdict(), "modules": _modules_json(spec)}
                    values["checksum"] = base_model_checksum(SimpleNamespace(**values))
                    connection.execute(update(base_models).where(base_models.c.id == row.id).values(values))
                    row = connection.execute(query).one()
                return _record(row), False
            values = {
                "name": spec.name,
                "digest": spec.digest,
                "model_type": spec.model_type,
                "weights_fingerprint": spec.weights_fingerprint,
                "modules": _modules_json(spec),
                "create_time_s": time.time(),
            }
            checksum = base_model_checksum(SimpleNamespace(**values))
            connection.execute(insert(base_models).values(**values, checksum=checksum))
            return _record(connection.execute(query).one()), True

    def get(self, name_or_digest: str) -> BaseModelRecord:
        """By digest, or the newest of a name; raises BaseModelNotFoundError."""
        query = (
            select(base_models)
            .where(or_(base_models.c.digest == name_or_digest, base_models.c.name == name_or_digest))
            .order_by(base_models.c.id.desc())
            .limit(1)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise BaseModelNotFoundError(name_or_digest)
        return _record(row)

    def list(self, *, limit: int, after: int) -> list[tuple[int, BaseModelRecord]]:
        """Base models in order of registration, each with its position."""
        query = select(base_models).where(base_models.c.id > after).order_by(base_models.c.id).limit(limit)
        with reading(self._engine) as connection:
            return [(row.id, _record(row)) for row in connection.execute(query)]


def _modules_json(spec: BaseSpec) -> list[list[str | int]]:
    return [
        [m.path, m.kind.value, m.in_features, m.out_features, *([m.values_digest] if m.values_digest else [])]
        for m in spec.modules
    ]


def _has_values_digests(row: Row[Any]) -> bool:
    return any(module.values_digest for module in _record(row).spec.modules)


def _record(row: Row[Any]) -> BaseModelRecord:
    """Raises CatalogDamagedError when the row is not what was written."""
    check(row.checksum, base_model_checksum(row), f"base model {row.name!r}")
    modules = tuple(BaseModule(path, ModuleKind(kind), *rest) for path, kind, *rest in row.modules)
    spec = BaseSpec(row.name, row.model_type, row.weights_fingerprint, modules)
    return BaseModelRecord(spec, row.create_time_s)
