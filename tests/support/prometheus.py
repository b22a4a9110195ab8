"""A real Prometheus for tests, as Debian packages it."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotslot.local.child_processes import free_port, tied_to_parent
from tests.support.programs import needed_program
from tests.support.waiting import PATIENCE_S
from tools.debian_programs import ROOT

RULES = ROOT / "deploy" / "prometheus" / "rules"
RULE_TESTS = ROOT / "deploy" / "prometheus" / "tests"
SCRAPE_EVERY_S = 1
START_S = 120.0


def program(name: str) -> str:
    """Path of `prometheus` or `promtool`."""
    return needed_program("prometheus", f"usr/bin/{name}").path


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a query's answer."""

    labels: Mapping[str, str]
    value: float


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def query(self, expression: str) -> list[Series]:
        """Series of an expression now."""
        data = self._get("/api/v1/query", query=expression)
        if data["resultType"] == "scalar":
            return [Series({}, float(data["result"][1]))]
        return [Series(item["metric"], float(item["value"][1])) for item in data["result"]]

    def targets(self) -> dict[str, str]:
        """Health of each target by its instance."""
        active = self._get("/api/v1/targets", state="active")["activeTargets"]
        return {target["labels"]["instance"]: target["health"] for target in active}

    def metadata(self) -> dict[str, list[dict[str, str]]]:
        """Type and help of every metric that was scraped, by name."""
        found: dict[str, list[dict[str, str]]] = self._get("/api/v1/metadata")
        return found

    def alerts(self) -> list[str]:
        """Names of the rules that were loaded."""
        groups = self._get("/api/v1/rules")["groups"]
        return [rule["name"] for group in groups for rule in group["rules"]]

    def is_ready(self) -> bool:
        """True once it answers queries."""
        try:
            return bool(self.query("vector(1)"))
        except OSError:
            return False

    def _get(self, path: str, **query: str) -> Any:
        url = f"{self._url}{path}?{urllib.parse.urlencode(query)}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=60) as answer:
            document = json.load(answer)
        assert document["status"] == "success", document
        return document["data"]


def hold_soon(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Return once a condition holds; raises TimeoutError where it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("it does not come true")
        time.sleep(0.1)


@contextmanager
def running_prometheus(folder: Path, roles: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """A Prometheus with our alerts that scrapes these targets, by role, until the block is left."""
    port = free_port()
    jobs = [{"targets": list(targets), "labels": {"role": role}} for role, targets in roles.items()]
    config = {
        "global": {"scrape_interval": f"{SCRAPE_EVERY_S}s", "evaluation_interval": f"{SCRAPE_EVERY_S}s"},
        "rule_files": [str(RULES / "*.yaml")],
        "scrape_configs": [{"job_name": "hotslot", "static_configs": jobs}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(tied_to_parent(command), stdout=log, stderr=subprocess.STDOUT)
        try:
            prometheus = Prometheus(port)
            hold_soon(prometheus.is_ready, START_S)
            yield prometheus
        finally:
            process.terminate()
            process.wait(60)
