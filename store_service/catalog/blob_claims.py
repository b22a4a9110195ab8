"""Claims on blobs in object storage, so that no store removes what another one is about to publish.

Object storage runs requests late, and in any order, when it or a store was stopped in between: a deletion may come
after the upload of the next publication. So an object's name carries its blob's **generation**. A removal raises it,
before anything is deleted, in a transaction that makes sure that no version refers to the blob and no claim is on it.
Whatever is deleted late has a name that is used no more.

A publication claims its blob before it uploads, and gives the claim up in the transaction that makes the version. A
claim that is as old as `CLAIM_S` may be broken by a removal; its publication finds that out there, and begins again.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    and_,
    delete,
    exists,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite

from hotslot.ids import Digest, TenantId
from store_service.catalog.clock import now_unix_s
from store_service.catalog.database import reading, writing
from store_service.catalog.references import by_tenant
from store_service.catalog.tables import adapters, blob_claims, blob_generations, versions

CLAIM_S = 600.0
"""Age from which a claim may be broken: most publications take seconds, and one that is broken begins again."""
KEPT_S = 7 * 86400.0
"""Time for which the generation of a removed blob is remembered: no deletion comes later than that."""

_Key: TypeAlias = tuple[TenantId, Digest]


@dataclass(frozen=True, slots=True)
class BlobClaim:
    """A publication's claim."""

    token: str
    generation: int


class ClaimBrokenError(Exception):
    """A removal came first: the blob has to be stored again. No caller of the store hears of it."""


class BlobClaims:
    """Claims of one store. Every method is one transaction, blocks, and may raise StoreUnavailableError."""

    def __init__(self, engine: Engine, holder: str) -> None:
        """`holder` is the same after a restart, since `forget_own` goes by it."""
        self._engine = engine
        self._holder = holder

    def claim(self, key: _Key) -> BlobClaim:
        """Begin a publication of a blob."""
        with writing(self._engine) as connection:
            _lock(connection, key)
            token, expire_time_s = secrets.token_hex(16), now_unix_s(connection) + CLAIM_S
            row = {"token": token, "holder": self._holder, "expire_time_s": expire_time_s}
            connection.execute(insert(blob_claims).values(tenant=key[0], weights_digest=key[1], **row))
            return BlobClaim(token, _generation(connection, key))

    def give_up(self, claim: BlobClaim) -> None:
        """End a claim whose publication came to nothing; harmless where it has ended."""
        with writing(self._engine) as connection:
            connection.execute(delete(blob_claims).where(blob_claims.c.token == claim.token))

    def forget_own(self) -> None:
        """End the claims of the process before this one."""
        with writing(self._engine) as connection:
            connection.execute(delete(blob_claims).where(blob_claims.c.holder == self._holder))

    def generation(self, key: _Key) -> int:
        """Number in the name of a blob's object."""
        with reading(self._engine) as connection:
            return _generation(connection, key)

    def generations(self) -> dict[_Key, int]:
        """Numbers of all blobs whose is not 0."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(blob_generations)).all()
        return {(TenantId(row.tenant), Digest(row.weights_digest)): row.generation for row in rows}

    def generations_among(self, keys: Iterable[_Key]) -> dict[_Key, int]:
        """Numbers of those of the blobs whose is not 0."""
        with reading(self._engine) as connection:
            rows = [
                row
                for found in _among(select(blob_generations), blob_generations, keys)
                for row in connection.execute(found)
            ]
        return {(TenantId(row.tenant), Digest(row.weights_digest)): row.generation for row in rows}

    def claimed_among(self, keys: Iterable[_Key]) -> set[_Key]:
        """Those of the blobs with a claim that no removal may break."""
        with reading(self._engine) as connection:
            live = select(blob_claims).where(blob_claims.c.expire_time_s > now_unix_s(connection))
            rows = [row for found in _among(live, blob_claims, keys) for row in connection.execute(found)]
        return {(TenantId(row.tenant), Digest(row.weights_digest)) for row in rows}

    def condemn(self, key: _Key) -> int | None:
        """Begin the removal of a blob: from now on its object has another name. Returns the number of the last name
        that may be deleted; None, and nothing has changed, where a version refers to the blob or is about to."""
        with writing(self._engine) as connection:
            _lock(connection, key)
            is_claimed = _is(blob_claims, key)
            now_s = now_unix_s(connection)
            # Waits for a publication that gives one of these up now, and then sees its version.
            connection.execute(delete(blob_claims).where(is_claimed, blob_claims.c.expire_time_s <= now_s))
            if connection.execute(select(blob_claims.c.token).where(is_claimed).limit(1)).first() is not None:
                return None
            if connection.execute(_uses(key)).first() is not None:
                return None
            last = _generation(connection, key)
            make = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            row = {"tenant": key[0], "weights_digest": key[1], "generation": last + 1, "time_s": now_s}
            same = [blob_generations.c.tenant, blob_generations.c.weights_digest]
            changed = make(blob_generations).values(row).on_conflict_do_update(index_elements=same, set_=row)
            connection.execute(changed)
            return last

    def purge(self) -> None:
        """Forget the generations of blobs that were removed so long ago that no deletion is still to come."""
        used = exists().where(
            versions.c.weights_digest == blob_generations.c.weights_digest,
            versions.c.adapter_id == adapters.c.id,
            adapters.c.tenant == blob_generations.c.tenant,
        )
        claimed = exists().where(
            blob_claims.c.weights_digest == blob_generations.c.weights_digest,
            blob_claims.c.tenant == blob_generations.c.tenant,
        )
        with writing(self._engine) as connection:
            before_s = now_unix_s(connection) - KEPT_S
            old = select(blob_generations).where(blob_generations.c.time_s < before_s, ~used, ~claimed)
            old = old.order_by(blob_generations.c.tenant, blob_generations.c.weights_digest).limit(1_000)
            for row in connection.execute(old).all():
                key = TenantId(row.tenant), Digest(row.weights_digest)
                _lock(connection, key)
                is_old = and_(_is(blob_generations, key), blob_generations.c.time_s < before_s, ~used, ~claimed)
                connection.execute(delete(blob_generations).where(is_old))


def redeem(connection: Connection, claim: BlobClaim) -> None:
    """Give a claim up in the transaction that refers to its blob; raises ClaimBrokenError, and then it must not."""
    gone = connection.execute(
        delete(blob_claims).where(blob_claims.c.token == claim.token).returning(blob_claims.c.token)
    )
    if gone.first() is None:
        raise ClaimBrokenError(claim.token)


def _generation(connection: Connection, key: _Key) -> int:
    query = select(blob_generations.c.generation).where(_is(blob_generations, key))
    return connection.execute(query).scalar_one_or_none() or 0


def _among(query: Select[Any], table: Table, keys: Iterable[_Key]) -> Iterator[Select[Any]]:
    """The query about some blobs, in as many parts as databases take."""
    of_digests = table.c.weights_digest.in_
    return (query.where(table.c.tenant == tenant, of_digests(some)) for tenant, some in by_tenant(keys))


def _is(table: Table, key: _Key) -> ColumnElement[bool]:
    return and_(table.c.tenant == key[0], table.c.weights_digest == key[1])


def _uses(key: _Key) -> Select[tuple[int]]:
    return (
        select(versions.c.id)
        .join(adapters, adapters.c.id == versions.c.adapter_id)
        .where(adapters.c.tenant == key[0], versions.c.weights_digest == key[1])
        .limit(1)
    )


def _lock(connection: Connection, key: _Key) -> None:
    """Have one transaction at a time deal with a blob, until it ends. SQLite's writers are alone in any case."""
    if connection.dialect.name != "sqlite":
        number = int.from_bytes(hashlib.sha256(f"{key[0]} {key[1]}".encode()).digest()[:8], "big", signed=True)
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})
