"""A real deployment for tests: Valkey, store and workers as processes on free ports, all gone when the block ends."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from hotslot.local.child_processes import free_port
from hotslot.local.children import Child, ChildSpec, stop_all
from hotslot.local.embedded_valkey import embedded_valkey

STORE_READY_S = 120.0
WORKER_READY_S = 300.0
"""A first start compiles every bucket."""
GRACE_S = 10.0


class Stack:
    """The processes of one deployment; data and logs are in `folder`.

    Use it with `with`, in a thread that outlives it. Settings are those of the service, as `num_slots="4"`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis_url = ""
        self.valkey_port = 0
        self.valkey_pid = 0
        self.store: Child | None = None
        self.workers: list[Child] = []
        self.others: list[Child] = []
        self.gateway = ""
        """Endpoint of the gateway's HTTP."""
        self._exit = ExitStack()
        self._valkey = self._exit.enter_context(ExitStack())

    def __enter__(self) -> Self:
        self._start_valkey(0)
        # What uses Valkey ends before it does.
        self._exit.callback(lambda: stop_all(self._children(), GRACE_S))
        return self

    def __exit__(self, *exc: object) -> None:
        self._exit.close()

    def _start_valkey(self, port: int) -> None:
        valkey = self._valkey.enter_context(embedded_valkey(port=port))
        self.redis_url, self.valkey_port, self.valkey_pid = valkey.url, valkey.port, valkey.pid

    def restart_valkey(self) -> None:
        """Kill it and start an empty one on the same port."""
        self._valkey.close()
        self._start_valkey(self.valkey_port)

    def _children(self) -> list[Child]:
        return [*([self.store] if self.store is not None else []), *self.workers, *self.others]

    def start_store(self, **settings: str) -> Child:
        """Start the store and wait until it serves."""
        defaults = {"data_dir": str(self.folder / "store"), "redis_url": self.redis_url}
        self.store = _start("store", "store_service", self.folder, {**defaults, **settings})
        self.store.wait_ready(STORE_READY_S)
        return self.store

    def start_gateway(self, **settings: str) -> Child:
        """Start a gateway of the fleet and wait until it serves; the store and a worker must be there."""
        assert self.store is not None, "start the store first"
        self.gateway = f"127.0.0.1:{free_port()}"
        defaults = {"gateway_listen": self.gateway, "store": self.store.spec.endpoint}
        spec = _spec("gateway", "gateway_service", self.folder, {**defaults, **settings})
        child = Child(replace(spec, endpoint=self.gateway, health_path="/health"))
        self.others.append(child)
        child.wait_ready(STORE_READY_S)
        return child

    def start_worker(self, model: Path, **settings: str) -> Child:
        """Start a worker on a model's folder and wait until it serves; the store must be there."""
        worker = self._launch_worker("worker_service", str(model), settings)
        worker.wait_ready(WORKER_READY_S)
        return worker

    def launch_echo_worker(self, **settings: str) -> Child:
        """Start a worker around the echo model; it is not ready yet."""
        return self._launch_worker("tests.support.echo_process", settings.pop("model", "quick"), settings)

    def _launch_worker(self, module: str, model: str, settings: dict[str, str]) -> Child:
        assert self.store is not None, "start the store first"
        defaults = {"model": model, "store": self.store.spec.endpoint, "redis_url": self.redis_url}
        worker = _start(f"worker-{len(self.workers) + 1}", module, self.folder, {**defaults, **settings})
        self.workers.append(worker)
        return worker

    def start_again(self, child: Child) -> Child:
        """Kill a process and start it as it was, on the same port; it is not ready yet.

        Call it in the thread of the block: the kernel ends the process with the thread that started it.
        """
        child.kill()
        again = Child(child.spec)
        if child is self.store:
            self.store = again
        else:
            self.workers[self.workers.index(child)] = again
        return again


def _start(name: str, module: str, folder: Path, settings: dict[str, str]) -> Child:
    return Child(_spec(name, module, folder, settings))


def _spec(name: str, module: str, folder: Path, settings: dict[str, str]) -> ChildSpec:
    endpoint = f"127.0.0.1:{free_port()}"
    environment = {f"HOTSLOT_{key.upper()}": value for key, value in {"listen": endpoint, **settings}.items()}
    health = settings.get("health_listen", "")
    return ChildSpec(name, module, endpoint, environment, folder / f"{name}.log", health)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (ProcessLookupError, FileNotFoundError):
        return False
