"""A fleet under load, store, two workers and a gateway as processes, with a real Prometheus that scrapes them."""

import itertools
import random
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from hotslot import AdapterSelection, BlockingHotslotClient, GenerationRequest
from hotslot.contract.generation import Stop
from hotslot.errors import HotslotError
from hotslot.local.child_processes import free_port
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.prometheus import Prometheus, hold_soon, program, running_prometheus
from tests.support.stack import Stack

SPEC = echo_model().spec
ADAPTERS = tuple(f"team/bot-{number}" for number in range(6))
"""More than the four slots of a worker."""


@dataclass
class ObservedFleet:
    """The fleet, with the addresses of its metrics."""

    stack: Stack
    folder: Path
    ports: dict[str, list[int]]
    ending: threading.Event = field(default_factory=threading.Event)

    @property
    def targets(self) -> dict[str, list[str]]:
        return {role: [f"127.0.0.1:{port}" for port in ports] for role, ports in self.ports.items()}

    @property
    def workers(self) -> list[str]:
        return [worker.spec.endpoint for worker in self.stack.workers]

    @property
    def store(self) -> str:
        assert self.stack.store is not None
        return self.stack.store.spec.endpoint

    def scrape(self, role: str, number: int = 0) -> str:
        """Text of a process's own endpoint."""
        answer = httpx2.get(f"http://{self.targets[role][number]}/metrics", trust_env=False)
        assert answer.status_code == 200
        return answer.text

    def generate_for_ever(self, seed: int) -> None:
        """Load of one client: through a worker, through the fleet's client, and through the gateway."""
        choice = random.Random(seed)
        worker = self.workers[seed % len(self.workers)]
        with (
            BlockingHotslotClient(self.store) as fleet,
            BlockingHotslotClient(self.store, worker, route=False) as one,
            httpx2.Client(base_url=f"http://{self.stack.gateway}", trust_env=False, timeout=60) as http,
        ):
            while not self.ending.is_set():
                name = choice.choice(ADAPTERS)
                prompt = "word " * choice.randint(1, 20)
                request = GenerationRequest(
                    prompt, (AdapterSelection(name),), stop=Stop(max_tokens=choice.randint(2, 12))
                )
                with suppress(HotslotError, httpx2.HTTPError):
                    choice.choice((fleet, one)).complete(request)
                    body = {"model": name, "prompt": prompt, "max_tokens": 4}
                    http.post("/v1/completions", json=body)
                    http.get("/v1/models")
                    if choice.random() < 0.1:
                        one.complete(GenerationRequest("x", (AdapterSelection("team/absent"),)))

    def publish_for_ever(self) -> None:
        """Versions that come every second, so that content moves whenever Prometheus looks."""
        with BlockingHotslotClient(self.store) as client:
            for seed in itertools.count(100):
                draft = self.folder / f"draft-{seed}"
                adapter(spec=SPEC, seed=seed).write(draft)
                with suppress(HotslotError):
                    client.store.push(draft, ADAPTERS[seed % len(ADAPTERS)], base_model=SPEC.digest)
                if self.ending.wait(1):
                    return


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObservedFleet]:
    folder = tmp_path_factory.mktemp("observed")
    ports = {"store": [free_port()], "worker": [free_port(), free_port()], "gateway": [free_port()]}
    imported = folder / "roots" / "imported"
    adapter(spec=SPEC, seed=99).write(imported)
    with Stack(folder) as stack:
        store = {"import_roots": str(imported.parent), "metrics_listen": f"127.0.0.1:{ports['store'][0]}"}
        stack.start_store(**store, blob_cache_bytes=str(2**30))
        for port in ports["worker"]:
            stack.launch_echo_worker(metrics_listen=f"127.0.0.1:{port}", lease_s="2").wait_ready(120)
        stack.start_gateway(
            metrics_listen=f"127.0.0.1:{ports['gateway'][0]}",
            gateway_metrics="true",
            gateway_worker_metrics=f"127.0.0.1:{ports['worker'][0]}",
        )
        observed = ObservedFleet(stack, folder, ports)
        with BlockingHotslotClient(observed.store) as client:
            for seed, name in enumerate(ADAPTERS):
                draft = folder / f"draft-{seed}"
                adapter(spec=SPEC, seed=seed).write(draft)
                client.store.push(draft, name, base_model=SPEC.digest)
            client.store.import_directory(str(imported), "team/imported", base_model=SPEC.digest)
        yield observed


@pytest.fixture(scope="module")
def loaded(fleet: ObservedFleet) -> Iterator[ObservedFleet]:
    """The same, under load until the tests end."""
    threads = [threading.Thread(target=fleet.generate_for_ever, args=(seed,)) for seed in range(6)]
    threads.append(threading.Thread(target=fleet.publish_for_ever))
    for thread in threads:
        thread.start()
    yield fleet
    fleet.ending.set()
    for thread in threads:
        thread.join(60)


@pytest.fixture(scope="module")
def prometheus(loaded: ObservedFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, once it has scraped everything for a while."""
    program("prometheus")
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), loaded.targets) as running:
        hold_soon(lambda: bool(running.query("count_over_time(up[30s]) >= 15")))
        yield running
