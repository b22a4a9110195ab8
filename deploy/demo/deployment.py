"""The demo's own deployment: an embedded Valkey, a store and one worker, gone when the demo ends."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotslot.local.child_processes import free_port
from hotslot.local.children import Child, ChildSpec, stop_all
from hotslot.local.embedded_valkey import embedded_valkey
from worker_service.demo_model import BASE_MODEL

STORE_READY_S = 60.0
WORKER_READY_S = 900.0
"""A first start compiles every bucket, which takes a minute or two on a small machine."""
GRACE_S = 10.0
WORKER_SETTINGS = {
    "HOTSLOT_BUCKETS": "1,8,64",
    "HOTSLOT_MAX_SEQUENCES": "8",
    "HOTSLOT_NUM_SLOTS": "8",
    "HOTSLOT_SLOT_RANK": "16",
    "HOTSLOT_KV_TOKENS": "8192",
    "HOTSLOT_MAX_SEQUENCE_TOKENS": "1024",
}


@dataclass
class DemoProcesses:
    """Running processes."""

    store: Child
    worker: Child
    gateway: Child
    redis_url: str


@contextmanager
def deploy(model: Path, cache_dir: Path) -> Iterator[DemoProcesses]:
    """Start everything; the worker is being compiled when this yields (wait for `worker.wait_ready`)."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotslot-demo-")))
        redis_url = os.environ.get("HOTSLOT_REDIS_URL") or stack.enter_context(embedded_valkey()).url
        store = _start(folder, "store", "store_service", redis_url, {"HOTSLOT_DATA_DIR": str(folder / "store")})
        deployment = DemoProcesses(store, store, store, redis_url)
        stack.callback(
            lambda: stop_all(
                list({id(c): c for c in (deployment.store, deployment.worker, deployment.gateway)}.values()), GRACE_S
            )
        )
        deployment.worker = _start(
            folder,
            "worker",
            "worker_service",
            redis_url,
            {
                "HOTSLOT_MODEL": str(model),
                "HOTSLOT_MODEL_NAME": BASE_MODEL,
                "HOTSLOT_STORE": store.spec.endpoint,
                "HOTSLOT_CACHE_DIR": str(cache_dir),
                **WORKER_SETTINGS,
            },
        )
        store.wait_ready(STORE_READY_S)
        deployment.gateway = _start_gateway(folder, store.spec.endpoint)
        yield deployment


def _start_gateway(folder: Path, store_endpoint: str) -> Child:
    endpoint = f"127.0.0.1:{free_port()}"
    settings = {"HOTSLOT_GATEWAY_LISTEN": endpoint, "HOTSLOT_STORE": store_endpoint, "HOTSLOT_GATEWAY_WORKER": ""}
    log_path = folder / "gateway.log"
    return Child(ChildSpec("gateway", "gateway_service", endpoint, settings, log_path, health_path="/health"))


def _start(folder: Path, name: str, module: str, redis_url: str, settings: dict[str, str]) -> Child:
    endpoint = f"127.0.0.1:{free_port()}"
    common = {"HOTSLOT_LISTEN": endpoint, "HOTSLOT_REDIS_URL": redis_url}
    return Child(ChildSpec(name, module, endpoint, {**common, **settings}, folder / f"{name}.log"))
