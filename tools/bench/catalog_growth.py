"""Growth of resolving and listing with the number of adapters."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.formats.file_names import CATALOG_FILE
from hotslot.formats.manifest import AdapterModule, Manifest
from hotslot.ids import DEFAULT_TENANT
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.references import parse_reference
from store_service.catalog.catalog import Catalog
from store_service.catalog.database import open_database
from store_service.catalog.records import NewVersion
from tests.support.checkpoints import adapter
from tests.support.store import dial
from tools.bench.full_load import percentile

NUM_RESOLVES = 500
NUM_PUSHED = 20


def small_spec(num_layers: int = 30) -> BaseSpec:
    """A base with as many linears as SmolLM2-135M."""
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    modules = [
        BaseModule(f"model.layers.{layer}.block.{part}", ModuleKind.LINEAR, 8, 8)
        for layer in range(num_layers)
        for part in parts
    ]
    return BaseSpec("bench/small", "llama", "bench", tuple(modules))


def fill(data_dir: Path, first: int, last: int) -> float:
    """Add adapters, each with a manifest of its own, straight to a store's catalog; milliseconds for each."""
    engine = open_database(f"sqlite:///{data_dir / CATALOG_FILE}")
    catalog = Catalog(engine)
    spec = small_spec()
    modules = tuple(AdapterModule(module.path, 8, 2.0) for module in spec.modules)
    began_s = time.perf_counter()
    for number in range(first, last):
        reference = parse_reference(f"bench/bot-{number}")
        manifest = Manifest(spec.digest, adapter_digest(number), 1000 + number, "F32", modules)
        version = NewVersion(manifest, spec.name, "upload", "{}")
        catalog.create_version(
            DEFAULT_TENANT, reference.name, version, tag=reference.tag, new_labels={"team": "a"}, tag_etag=""
        )
    engine.dispose()
    return (time.perf_counter() - began_s) * 1e3 / max(1, last - first)


def adapter_digest(number: int) -> Any:
    """A weights digest that no blob has."""
    return f"sha256:{number:064x}"


async def measure_catalog(endpoint: str, num_adapters: int) -> dict[str, Any]:
    """Resolves of random adapters one after the other, a list of all, and one of a filter that few match."""
    async with dial(endpoint) as store:
        times_ms = []
        for number in np.random.default_rng(0).integers(0, num_adapters, NUM_RESOLVES):
            began_s = time.perf_counter()
            await store.resolve(f"bench/bot-{number}")
            times_ms.append((time.perf_counter() - began_s) * 1e3)
        began_s, token, num_listed = time.perf_counter(), "", 0
        while token or not num_listed:
            page = await store.call("ListAdapters", pb.ListAdaptersRequest(page_size=1000, page_token=token))
            num_listed, token = num_listed + len(page.adapters), page.next_page_token
        list_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        await store.call("ListAdapters", pb.ListAdaptersRequest(name_prefix=f"bench/bot-{num_adapters - 1}"))
        prefix_ms = (time.perf_counter() - began_s) * 1e3
    return {
        "listed": num_listed,
        "resolve_p50_ms": percentile(times_ms, 50),
        "resolve_p99_ms": percentile(times_ms, 99),
        "list_all_s": round(list_s, 2),
        "list_prefix_ms": round(prefix_ms, 1),
    }


async def measure_pushes(endpoint: str) -> dict[str, float]:
    """Whole pushes of an adapter of 210 modules, files and version, one after the other."""
    spec = small_spec()
    parts = tuple({module.path.rpartition(".")[2] for module in spec.modules})
    times_ms = []
    async with dial(endpoint) as store:
        await store.register(spec)
        for number in range(NUM_PUSHED):
            draft = adapter(parts, spec=spec, rank=4, seed=number)
            began_s = time.perf_counter()
            await store.push(draft, f"pushed/small-{number}")
            times_ms.append((time.perf_counter() - began_s) * 1e3)
    return {"p50_ms": percentile(times_ms, 50), "p99_ms": percentile(times_ms, 99)}
