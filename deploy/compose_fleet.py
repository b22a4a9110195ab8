"""The composed fleet: any store answers any call, goes and comes back, and Prometheus sees every part of it."""

import asyncio
import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Protocol

from deploy.compose_calls import PROMPT, REFERENCE, PrintedAnswer, await_ready, expect, hotslot, say
from deploy.demo.http_request import ask_over_http
from worker_service.demo_model import BASE_MODEL

ADAPTER = Path(__file__).parent / "demo" / "adapters" / "pirate"
STORE_READY_TIMEOUT_S = 240.0
WORKER_READY_TIMEOUT_S = 900.0
SCRAPED_TIMEOUT_S = 60.0


class ComposeCommands(Protocol):
    """ComposeCommands on a running deployment."""

    def __call__(self, *arguments: str, check: bool = True) -> None:
        """Run one compose command."""


def check_fleet(compose: ComposeCommands, ports: dict[str, int]) -> None:
    """Everything that two stores are for, once."""
    first, second, *workers, gateway = (
        f"127.0.0.1:{ports[name]}"
        for name in ("STORE_PORT", "STORE_B_PORT", "WORKER_A_PORT", "WORKER_B_PORT", "GATEWAY_PORT")
    )
    for store in (first, second):
        await_ready("store", store, STORE_READY_TIMEOUT_S)
    pushed = hotslot("push", str(ADAPTER), REFERENCE, "--base", BASE_MODEL, "--store", first)[0]
    digest = pushed["version"]["digest"]
    found = [hotslot("show", REFERENCE, "--store", store)[0] for store in (first, second)]
    expect(all(digest in json.dumps(each) for each in found), f"the stores do not both have {digest}: {found}")
    say(f"pushed to one store, shown by both: {digest}")
    for worker in workers:
        await_ready("worker", worker, WORKER_READY_TIMEOUT_S)
    say("stopping the store that it was pushed to")
    compose("stop", "store")
    answer = PrintedAnswer(workers[1])
    expect(answer.digests == [digest], f"{answer.worker_id} served {answer.digests}, expected [{digest}]")
    over_http = asyncio.run(ask_over_http(gateway, PROMPT, REFERENCE))
    expect(digest in over_http.fingerprint, f"the gateway was served by {over_http.fingerprint}, expected {digest}")
    compose("start", "store")
    await_ready("store", first, STORE_READY_TIMEOUT_S)
    await_scraped(ports["PROMETHEUS_PORT"])


def await_scraped(port: int) -> None:
    """Wait until Prometheus has every part, and knows the alerts."""
    roles = {"store": 2, "worker": 2, "gateway": 1}
    deadline_s, up = time.monotonic() + SCRAPED_TIMEOUT_S, dict[str, int]()
    while up != roles:
        expect(time.monotonic() < deadline_s, f"Prometheus has {up}, expected {roles}")
        time.sleep(1.0)
        result = _ask(port, "query", query='sum by (role) (up{job="hotslot"} == 1)')["result"]
        up = {each["metric"]["role"]: int(each["value"][1]) for each in result}
    rules = [rule["name"] for group in _ask(port, "rules")["groups"] for rule in group["rules"]]
    expect(len(rules) > 10, f"Prometheus has the alerts {rules}")
    say(f"Prometheus scrapes {up} and has {len(rules)} alerts")


def _ask(port: int, what: str, **parameters: str) -> Any:
    url = f"http://127.0.0.1:{port}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]
