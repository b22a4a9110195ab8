"""The base models that adapters can be admitted for; known to all tenants."""

import time
from typing import Any, Protocol

from sqlalchemy import Engine, Row, insert, or_, select

from shared.base_spec import BaseModule, BaseSpec, ModuleKind
from shared.errors import BaseModelNotFoundError
from store_service.catalog.database import reading, writing
from store_service.catalog.records import BaseModelRecord
from store_service.catalog.tables import base_models


class BaseModels(Protocol):
    """The seam to registered base models; every method is one transaction and blocks."""

    def register(self, spec: BaseSpec) -> tuple[BaseModelRecord, bool]:
        """Make a base model known; the flag is false where it was."""

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
                return _record(row), False
            connection.execute(
                insert(base_models).values(
                    name=spec.name,
                    digest=spec.digest,
                    model_type=spec.model_type,
                    weights_fingerprint=spec.weights_fingerprint,
                    modules=[[m.path, m.kind.value, m.in_features, m.out_features] for m in spec.modules],
                    create_time_s=time.time(),
                )
            )
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


def _record(row: Row[Any]) -> BaseModelRecord:
    modules = tuple(BaseModule(path, ModuleKind(kind), num_in, num_out) for path, kind, num_in, num_out in row.modules)
    spec = BaseSpec(row.name, row.model_type, row.weights_fingerprint, modules)
    return BaseModelRecord(spec, row.create_time_s)
