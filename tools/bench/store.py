"""Measures the store: verified streams against unverified ones, admission, resolving, a large catalog, full load.

`python -m tools.bench.store [--quick]` prints one JSON object. All ends share the machine, as in a test.
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.file_names import CONFIG_FILE, WEIGHTS_FILES
from hotslot.formats.safetensors_header import read_header
from hotslot.ids import TenantId
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.admission.admit import Checkpoint, admit
from store_service.admission.checks import check_tensors
from store_service.admission.config import parse_config
from store_service.admission.normalise import plan_weights, write_weights
from store_service.admission.settings import AdmissionLimits
from store_service.content.store import ContentStore
from tests.support.blob_cache import cached_blobs
from tests.support.checkpoints import adapter
from tests.support.store import dial
from tools.bench.catalog_growth import fill, measure_catalog, measure_pushes
from tools.bench.full_load import measure_full_load
from tools.bench.processes import MIB, Process, log_errors_only, process, receive, serve_raw, serve_stores
from tools.bench.streams import measure_streams

CheckpointFiles = list[tuple[str, str]]
"""Names and digests of uploaded files."""


def wide_spec(num_bytes: int) -> BaseSpec:
    """A base whose adapter of rank 256 in float32 has about so many bytes."""
    num_modules = max(1, num_bytes // (2 * 256 * 4096 * 4))
    modules = [
        BaseModule(f"model.layers.{layer}.mlp.up_proj", ModuleKind.LINEAR, 4096, 4096) for layer in range(num_modules)
    ]
    return BaseSpec(f"bench/wide-{num_modules}", "llama", "bench", tuple(modules))


def measure_admission(num_bytes: int, folder: Path) -> dict[str, float]:
    """Admission alone, as a dry run and with storing, and the time of each stage; medians of five."""
    spec = wide_spec(num_bytes)
    checkpoint = adapter(("up_proj",), spec=spec, rank=256).write(folder)
    blobs = cached_blobs(folder / "blobs")
    rounds = [_stages(checkpoint, spec, blobs) for _ in range(5)]
    size_mib = admit(checkpoint, spec, AdmissionLimits()).require().weights_size_bytes / MIB
    stages_ms = {name: round(statistics.median(row[name] for row in rounds) * 1e3, 2) for name in rounds[0]}
    seconds = stages_ms["all_dry_ms"] / 1e3
    return {
        "size_mib": round(size_mib, 1),
        "seconds": round(seconds, 3),
        "mib_s": round(size_mib / seconds, 1),
        **stages_ms,
    }


def _stages(checkpoint: Checkpoint, spec: BaseSpec, blobs: ContentStore) -> dict[str, float]:
    """Seconds of each stage alone, then of admission as a dry run and with storing, in which stages overlap."""
    limits, weights = AdmissionLimits(), checkpoint.files[WEIGHTS_FILES[0]]
    marks = [("", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    with weights.open("rb") as file:
        header = read_header(file, weights.stat().st_size, weights.name, limits.header)
        mark("header_ms")
        settings = parse_config(checkpoint.files[CONFIG_FILE].read_bytes()).settings
        mark("config_ms")
        assert settings is not None
        plan, violations = check_tensors(header, settings, spec, limits)
        assert not violations
        mark("checks_ms")
        write_weights(plan_weights(plan.modules), file, [len])
        mark("values_ms")
        write_weights(plan_weights(plan.modules), file, [hashlib.sha256().update])
        mark("values_and_hash_ms")
    admit(checkpoint, spec, limits)
    mark("all_dry_ms")
    writer = blobs.writer(TenantId("bench"))
    manifest = admit(checkpoint, spec, limits, writer.append, None, writer).require()
    mark("all_with_writing_ms")
    writer.publish(manifest.weights_digest, manifest.weights_size_bytes)
    mark("publish_ms")
    return {name: at - before for (_, before), (name, at) in pairwise(marks)}


async def push_large(endpoint: str, num_bytes: int) -> tuple[float, str, CheckpointFiles]:
    """Push one large adapter; returns seconds, the weights' digest and the uploaded files."""
    spec = wide_spec(num_bytes)
    draft = adapter(("up_proj",), spec=spec, rank=256)
    async with dial(endpoint) as store:
        await store.register(spec)
        began_s = time.perf_counter()
        files = await store.upload(draft)
        request = pb.CreateVersionRequest(reference="bench/large", files=files)
        version = (await store.call("CreateVersion", request)).version
        seconds = time.perf_counter() - began_s
    return seconds, version.manifest.weights_digest, [(file.path, file.digest) for file in files]


def measure_store(folder: Path, *, quick: bool, streams_alone: bool = False) -> dict[str, Any]:
    """Everything that goes over sockets."""
    num_bytes = (64 if quick else 256) * MIB
    sizes = (100, 1000) if quick else (100, 1000, 10_000)
    folders = folder / "store", folder / "verifying"
    for path in folders:
        path.mkdir()
    with (
        process(serve_stores, ((folders[0], {}), (folders[1], {"verify_every_s": 0}))) as server,
        process(serve_raw) as raw_server,
        process(receive, True) as tuned,
        process(receive, False) as plain,
    ):
        warm, verifying, raw = server.first
        push_s, digest, files = tuned.run(push_large, warm, num_bytes)
        tuned.run(push_large, verifying, num_bytes)
        blob = next((folders[0] / "blobs").rglob(digest.removeprefix("sha256:")))
        rows: dict[str, Any] = {"push_mib_s": round(num_bytes / MIB / push_s)}
        rows["streams"] = measure_streams(
            warm,
            verifying,
            raw_server.first,
            raw,
            blob,
            (tuned, plain),
            (server, raw_server),
            rounds=5 if quick else 15,
        )
        if streams_alone:
            rows["peak_memory_mib"] = round(server.peak_mib)
            return rows
        rows["push_small"] = tuned.run(measure_pushes, warm)
        rows["adapters"] = measure_growth(folders[0], warm, tuned, sizes)
        with process(receive, True) as another:
            peers = tuned, plain, another
            rows["full_load"] = measure_full_load(server, warm, digest, files, peers, seconds=5 if quick else 20)
        rows["peak_memory_mib"] = round(server.peak_mib)
        rows["memory_mib"] = round(server.rss_mib)
    return rows


def measure_growth(folder: Path, endpoint: str, caller: Process, sizes: tuple[int, ...]) -> dict[str, Any]:
    """The same calls with more and more adapters."""
    rows, before = {}, 0
    for size in sizes:
        create_ms = fill(folder, before, size)
        rows[str(size)] = {"create_ms": round(create_ms, 2), **caller.run(measure_catalog, endpoint, size)}
        before = size
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--streams", action="store_true", help="streams alone")
    arguments = parser.parse_args()
    quick = arguments.quick
    log_errors_only()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.streams:
            print(json.dumps({"store": measure_store(Path(folder), quick=quick, streams_alone=True)}, indent=2))
            return
        admission = measure_admission((32 if quick else 160) * MIB, Path(folder, "adapter"))
        store = measure_store(Path(folder), quick=quick)
    print(json.dumps({"admission": admission, "store": store}, indent=2))


if __name__ == "__main__":
    main()
