"""Times of a catalog by its size: rows are written in bulk, then asked for as a store does.

`python -m tools.bench.catalog_size URL`: a SQLAlchemy URL of an empty database, SQLite or PostgreSQL.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Engine, func, insert, select, text, update

from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, AdapterName, Digest
from hotslot.references import parse_reference
from store_service.catalog import checksums
from store_service.catalog.blob_claims import BlobClaims
from store_service.catalog.catalog import Catalog
from store_service.catalog.database import open_database, writing
from store_service.catalog.records import AdapterFilter, NewVersion
from store_service.catalog.tables import adapters, tags, tenants, versions
from tools.bench.full_load import percentile

SIZES = (1_000, 10_000, 100_000)
VERSIONS_EACH = 5
NUM_CALLS = 200
BATCH = 2_000
BASE_DIGEST = Digest(f"sha256:{7:064x}")
MODULES = (AdapterModule("model.layers.0.self_attn.q_proj", 8, 2.0),)


def weights_digest(number: int) -> Digest:
    """Digest of weights that no blob has."""
    return Digest(f"sha256:{number:064x}")


def manifest(number: int) -> Manifest:
    """Manifest of a version of its own."""
    return Manifest(BASE_DIGEST, weights_digest(number), 1000, "F32", MODULES)


def fill(engine: Engine, first: int, last: int) -> None:
    """Write adapters with VERSIONS_EACH versions each, the newest of them `latest`, as a store's rows are."""
    now_s = time.time()
    for begin in range(first, last, BATCH):
        numbers = range(begin, min(begin + BATCH, last))
        with writing(engine) as connection:
            if not begin:
                connection.execute(insert(tenants).values(name=DEFAULT_TENANT, revision=1, oldest_revision=0))
            rows = [_adapter_row(number, now_s) for number in numbers]
            connection.execute(insert(adapters), rows)
            newest = connection.execute(select(func.coalesce(func.max(versions.c.id), 0))).scalar_one()
            found = [
                _version_row(row, newest + VERSIONS_EACH * (row["id"] - rows[0]["id"]) + each + 1, now_s)
                for row in rows
                for each in range(VERSIONS_EACH)
            ]
            connection.execute(insert(versions), found)
            connection.execute(insert(tags), [_tag_row(row, found, at, now_s) for at, row in enumerate(rows)])
            connection.execute(update(tenants).values(revision=last))
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT setval('versions_id_seq', (SELECT max(id) FROM versions))"))


def _adapter_row(number: int, now_s: float) -> dict[str, Any]:
    names = {"tenant": DEFAULT_TENANT, "name": f"bench/bot-{number:06}", "create_time_s": now_s}
    row = {"id": number + 1, **names, "delete_time_s": None, "purge_time_s": None}
    checksum = checksums.adapter_checksum(SimpleNamespace(**row))
    return {**row, "revision": number + 1, "update_time_s": now_s, "checksum": checksum}


def _version_row(adapter: dict[str, Any], number: int, now_s: float) -> dict[str, Any]:
    described = manifest(number)
    row = {
        "id": number,
        "adapter_id": adapter["id"],
        "digest": described.digest,
        "manifest_json": described.canonical_json(),
        "base_model": "bench/base",
        "base_model_digest": BASE_DIGEST,
        "weights_digest": described.weights_digest,
        "weights_size_bytes": described.weights_size_bytes,
        "max_rank": described.max_rank,
        "dtype": described.dtype,
        "source": "upload",
        "config_json": "{}",
        "create_time_s": now_s,
        "use_time_s": now_s,
        "annotations": "",
    }
    owner, found = SimpleNamespace(**adapter), SimpleNamespace(**row)
    row["checksum"] = checksums.version_checksum(owner, found)
    row["config_checksum"] = checksums.config_checksum(owner, found)
    row["annotations_checksum"] = checksums.annotations_checksum(owner, found)
    return row


def _tag_row(adapter: dict[str, Any], found: list[dict[str, Any]], at: int, now_s: float) -> dict[str, Any]:
    version = found[VERSIONS_EACH * (at + 1) - 1]
    row = {"adapter_id": adapter["id"], "name": "latest", "version_id": version["id"], "revision": 1}
    row["update_time_s"] = now_s
    checksum = checksums.tag_checksum(SimpleNamespace(**adapter), SimpleNamespace(**row), version["digest"])
    return {**row, "checksum": checksum}


def measure(engine: Engine, num_adapters: int) -> dict[str, float]:
    """Milliseconds of calls at a size, medians and 99th percentiles of NUM_CALLS; GC's whole passes in seconds."""
    catalog, claims, rng = Catalog(engine), BlobClaims(engine, "bench"), random.Random(0)

    def any_name() -> str:
        return f"bench/bot-{rng.randrange(num_adapters):06}"

    unknown = iter(range(10**9, 2 * 10**9))
    version = iter(range(10**8, 10**9))

    def publish() -> None:
        new = NewVersion(manifest(next(version) + num_adapters), "bench/base", "upload", "{}")
        reference = parse_reference(any_name())
        catalog.create_version(DEFAULT_TENANT, reference.name, new, tag=reference.tag, new_labels={}, tag_etag="")

    calls: dict[str, Callable[[], object]] = {
        "resolve": lambda: catalog.resolve(DEFAULT_TENANT, parse_reference(any_name())),
        "list page of 100": lambda: catalog.list_adapters(
            DEFAULT_TENANT, AdapterFilter(), limit=100, after=(any_name(), 0)
        ),
        "list versions": lambda: catalog.list_versions(DEFAULT_TENANT, AdapterName(any_name()), limit=50, before=0),
        "blob of a version": lambda: catalog.readable_weights(
            DEFAULT_TENANT, weights_digest(rng.randrange(num_adapters))
        ),
        "publish": publish,
        "condemn": lambda: claims.condemn((DEFAULT_TENANT, weights_digest(next(unknown)))),
    }
    found: dict[str, float] = {}
    for name, call in calls.items():
        times_ms = []
        for _ in range(NUM_CALLS):
            began_s = time.perf_counter()
            call()
            times_ms.append((time.perf_counter() - began_s) * 1e3)
        found[f"{name} p50 ms"], found[f"{name} p99 ms"] = percentile(times_ms, 50), percentile(times_ms, 99)
    began_s = time.perf_counter()
    num_referenced = len(catalog.referenced_weights())
    found["references of a pass s"] = round(time.perf_counter() - began_s, 3)
    found["references of a pass, µs per version"] = round((time.perf_counter() - began_s) * 1e6 / num_referenced, 2)
    return found


def main(url: str) -> None:
    """Fill and measure at each size; one line of JSON each."""
    engine = open_database(url)
    before = 0
    for size in SIZES:
        began_s = time.perf_counter()
        fill(engine, before, size)
        filled_s = round(time.perf_counter() - began_s, 1)
        before = size
        row = {"adapters": size, "versions": size * VERSIONS_EACH, "filled in s": filled_s, **measure(engine, size)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
