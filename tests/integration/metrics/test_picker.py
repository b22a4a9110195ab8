"""A picker of an inference gateway, by its documented rules, finds the worker that has an adapter, if one has it.

Rules of the endpoint picker's LoRA affinity: of the series of `vllm:lora_requests_info` the one with the largest value
counts; its lists are split at commas and compared with the request's model as they are; a worker scores 1.0 for a model
that runs, 0.8 where one more adapter fits, 0.6 for a model that waits, else 0.
"""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hotslot import AdapterSelection, BlockingHotslotClient, BlockingWorkerClient, GenerationRequest
from hotslot.contract.control import AdapterTier
from hotslot.contract.generation import Stop
from hotslot.local.child_processes import free_port
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.prometheus import hold_soon
from tests.support.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SPEC = echo_model().spec
ADAPTERS = tuple(f"bot-{number}" for number in range(9))
NUM_WORKERS = 3
ROUNDS = 25
LORA_INFO = "vllm:lora_requests_info"
GAUGES = ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc")


def score(scrape: str, model: str) -> float:
    """Score of a worker for a request's model."""
    lines = "".join(f"{line}\n" for line in scrape.splitlines() if line.startswith(LORA_INFO))
    series = [
        (sample.value, sample.labels)
        for family in text_string_to_metric_families(lines)
        for sample in family.samples
        if sample.name == LORA_INFO
    ]
    if not series:
        return 0.0
    _, labels = max(series, key=lambda item: item[0])
    running, waiting = (
        [name for name in labels[f"{state}_lora_adapters"].split(",") if name] for state in ("running", "waiting")
    )
    if model in running:
        return 1.0
    if len(running) + len(waiting) < int(labels["max_lora"]):
        return 0.8
    return 0.6 if model in waiting else 0.0


def pick(scrapes: Mapping[str, str], model: str, choice: random.Random) -> str:
    """Endpoint of a best worker."""
    scores = {endpoint: score(text, model) for endpoint, text in scrapes.items()}
    best = max(scores.values())
    return choice.choice([endpoint for endpoint, found in scores.items() if found == best])


class PickedFleet:
    """Workers that serve what they are asked, wherever it is."""

    def __init__(self, stack: Stack, ports: list[int]) -> None:
        assert stack.store is not None
        self.store = stack.store.spec.endpoint
        self.metrics = {child.spec.endpoint: port for child, port in zip(stack.workers, ports, strict=True)}
        self.clients = {endpoint: BlockingWorkerClient(endpoint) for endpoint in self.metrics}

    def scrapes(self) -> dict[str, str]:
        return {
            endpoint: httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
            for endpoint, port in self.metrics.items()
        }

    def in_slots(self) -> dict[str, set[str]]:
        """Names whose version is in a worker's slots, as the worker itself says."""
        return {
            endpoint: {
                str(reference)
                for held in client.list_adapters().adapters
                if held.tier is AdapterTier.SLOT
                for reference in held.references
            }
            for endpoint, client in self.clients.items()
        }

    def generate(self, endpoint: str, name: str) -> None:
        request = GenerationRequest("hello", (AdapterSelection(name),), stop=Stop(max_tokens=2))
        self.clients[endpoint].complete(request)


@pytest.fixture(scope="module")
def picked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PickedFleet]:
    folder: Path = tmp_path_factory.mktemp("picked")
    ports = [free_port() for _ in range(NUM_WORKERS)]
    with Stack(folder) as stack:
        stack.start_store()
        for port in ports:
            stack.launch_echo_worker(metrics_listen=f"127.0.0.1:{port}", forward="false", staleness_s="0")
        for worker in stack.workers:
            worker.wait_ready(120)
        fleet = PickedFleet(stack, ports)
        with BlockingHotslotClient(fleet.store) as client:
            for seed, name in enumerate(ADAPTERS):
                adapter(spec=SPEC, seed=seed).write(folder / name)
                client.store.push(folder / name, name, base_model=SPEC.digest)
        yield fleet
        for each in fleet.clients.values():
            each.close()


def test_the_worker_with_the_adapter_is_picked_each_time_one_has_it(picked: PickedFleet) -> None:
    choice = random.Random(7)
    num_picks = 0
    for _ in range(ROUNDS):
        endpoint, name = choice.choice(list(picked.clients)), choice.choice(ADAPTERS)
        picked.generate(endpoint, name)
        hold_soon(lambda: score(picked.scrapes()[endpoint], name) == 1.0)  # noqa: B023 (called at once)
        scrapes, truth = picked.scrapes(), picked.in_slots()
        for wanted in ADAPTERS:
            holders = {worker for worker, names in truth.items() if f"{wanted}:latest" in names}
            for spelling in (wanted, f"{wanted}:latest") if holders else ():
                assert pick(scrapes, spelling, choice) in holders, (spelling, holders)
                num_picks += 1
            if not holders:
                assert all(score(text, wanted) < 1.0 for text in scrapes.values()), wanted
    assert num_picks > 5 * ROUNDS


def test_a_picker_finds_its_other_gauges(picked: PickedFleet) -> None:
    for text in picked.scrapes().values():
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        values = {sample.name: sample.value for sample in samples}
        assert all(values[name] >= 0 for name in GAUGES)
        (config,) = [sample.labels for sample in samples if sample.name == "vllm:cache_config_info"]
        assert (int(config["block_size"]), int(config["num_gpu_blocks"])) == (16, 128)
        assert sum(sample.name == LORA_INFO for sample in samples) == 1
