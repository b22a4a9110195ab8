"""Times of a catalog by its size: rows are written in bulk, then asked for, and collected, as a store does.

`python -m tools.bench.catalog_size [URL] [--sizes N,N]` prints one JSON object: for a URL that of this empty database,
else of SQLite and of the PostgreSQL that a wheel brings.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import Engine, func, insert, make_url, select, text, update

from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT, AdapterName, Digest
from hotslot.references import parse_reference
from store_service.catalog import checksums
from store_service.catalog.blob_claims import BlobClaims
from store_service.catalog.catalog import Catalog
from store_service.catalog.database import open_database, writing
from store_service.catalog.records import AdapterFilter, NewVersion
from store_service.catalog.tables import adapters, tags, tenants, versions
from store_service.content.collection import Collector
from store_service.content.published import PublishedBlobs
from store_service.content.uploads import UploadFolder
from store_service.content.waiting import CollectionOptions
from store_service.opening import open_data
from store_service.settings import StoreSettings
from tests.support.postgres import postgres_server
from tools.bench.full_load import percentile
from tools.bench.processes import log_errors_only

SIZES = (1_000, 10_000, 100_000)
"""Adapters."""
VERSIONS_EACH = 5
NUM_CALLS = 200
NUM_REMOVED = 100
"""Versions that are removed between two passes."""
GRACE_S = 1000.0
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
    """Milliseconds of calls at a size, medians and 99th percentiles of NUM_CALLS."""
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
    return {key: value for name, call in calls.items() for key, value in timed(name, call).items()}


def timed(name: str, call: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of NUM_CALLS calls."""
    times_ms = []
    for _ in range(NUM_CALLS):
        began_s = time.perf_counter()
        call()
        times_ms.append((time.perf_counter() - began_s) * 1e3)
    return {f"{name} p50 ms": percentile(times_ms, 50), f"{name} p99 ms": percentile(times_ms, 99)}


def measure_passes(url: str, folder: Path, num_adapters: int) -> dict[str, float]:
    """Seconds of passes of collection over a disk with every blob: one that looks at everything, one after NUM_REMOVED
    versions were removed, one that removes their blobs."""
    clock = SimpleNamespace(now_s=0.0)
    settings = StoreSettings(data_dir=folder, catalog_url=url)  # type: ignore[arg-type]
    began_s = time.perf_counter()
    data = open_data(settings, lambda tenant: None)
    seconds = {"start s": round(time.perf_counter() - began_s, 3)}
    for key in data.catalog.referenced_weights():
        data.blobs.index.enter(key, 1000)
    published = PublishedBlobs(data.catalog, data.blobs, data.claims)
    uploads = UploadFolder(folder, max_upload_bytes=1)
    options = CollectionOptions(GRACE_S, GRACE_S, GRACE_S)
    collector = Collector(published, uploads, data.ledger, data.ownership, options, lambda: clock.now_s)

    def run(name: str, after_s: float) -> None:
        clock.now_s += after_s
        began_s = time.perf_counter()
        removals = collector.run()
        seconds[f"{name} s"] = round(time.perf_counter() - began_s, 3)
        seconds[f"{name}, blobs removed"] = len(removals)

    run("pass over everything", 0.0)
    for number in random.Random(num_adapters).sample(range(num_adapters), NUM_REMOVED):
        name = AdapterName(f"bench/bot-{number:06}")
        _, oldest = data.catalog.list_versions(DEFAULT_TENANT, name, limit=VERSIONS_EACH, before=0)[-1]
        data.catalog.delete_version(DEFAULT_TENANT, name, oldest.digest, force=True)
    run("first pass after", 1.0)
    run("quiet pass", 1.0)
    # Less than the time after which everything is looked at again, twice.
    clock.now_s += GRACE_S * 0.4
    collector.run()
    run("pass over everything that removes", GRACE_S * 0.7)
    run("pass after that", 1.0)
    data.engine.dispose()
    return seconds


def main() -> None:
    """Fill and measure at each size, in each database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", default="", help="an empty database")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of adapters, with commas")
    arguments = parser.parse_args()
    log_errors_only()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    with tempfile.TemporaryDirectory(prefix="catalog-size-") as name:
        folder = Path(name)
        if arguments.url:
            found = {make_url(arguments.url).get_backend_name(): grow(arguments.url, folder, sizes)}
        else:
            found = {"sqlite": grow(f"sqlite:///{folder / 'grown.sqlite3'}", folder / "sqlite", sizes)}
            with postgres_server() as server:
                found["postgresql"] = grow(server.new_database(), folder / "postgresql", sizes)
    print(json.dumps(found, indent=2))


def grow(url: str, folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """The figures of one database at each size."""
    engine = open_database(url)
    rows, before = [], 0
    for size in sizes:
        began_s = time.perf_counter()
        fill(engine, before, size)
        filled_s = round(time.perf_counter() - began_s, 1)
        before = size
        row = {"adapters": size, "versions": size * VERSIONS_EACH, "filled in s": filled_s, **measure(engine, size)}
        row.update(measure_passes(url, folder / str(size), size))
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    engine.dispose()
    return rows


if __name__ == "__main__":
    main()
