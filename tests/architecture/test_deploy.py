"""What deployments set is what the services read."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway_service.settings import GatewaySettings
from shared.settings import ENV_PREFIX
from store_service.settings import STREAM_BYTES, StoreSettings
from worker_service.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
STORE = {ENV_PREFIX + name.upper() for name in StoreSettings.model_fields}
GATEWAY = {ENV_PREFIX + name.upper() for name in GatewaySettings.model_fields}
WORKER = {ENV_PREFIX + name.upper() for name in WorkerSettings.model_fields}
STORE_NAME = "hotslot-store"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
FLEET: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.fleet.yml").read_text())
OF_OBJECT_STORAGE = {"AWS_ENDPOINT", "AWS_ALLOW_HTTP", "AWS_SKIP_SIGNATURE", "AWS_REGION"}
"""Variables of the S3 client."""


def names_in(path: str) -> set[str]:
    """Every `HOTSLOT_…` that a file names."""
    return set(re.findall(rf"\b{ENV_PREFIX}[A-Z_]+", (ROOT / path).read_text()))


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("deploy/store.Dockerfile", STORE),
        ("deploy/worker.Dockerfile", WORKER),
        ("docker-compose.yml", STORE | WORKER | GATEWAY | {"HOTSLOT_TAG"}),
        ("docker-compose.fleet.yml", STORE | WORKER | GATEWAY | {"HOTSLOT_TAG"}),
        ("deploy/kubernetes/base/kustomization.yaml", STORE | WORKER | GATEWAY),
        ("deploy/kubernetes/base/worker.yaml", WORKER),
        ("deploy/kubernetes/components/gpu/kustomization.yaml", WORKER),
        ("deploy/kubernetes/components/inference-pool/kustomization.yaml", GATEWAY),
        ("deploy/kubernetes/components/several-stores/kustomization.yaml", STORE),
    ],
)
def test_a_deployment_sets_only_settings_that_exist(path: str, known: set[str]) -> None:
    assert names_in(path)
    assert names_in(path) <= known


def test_the_store_fits_into_the_memory_that_kubernetes_gives_it() -> None:
    base = ROOT / "deploy/kubernetes/base"
    kustomization = yaml.safe_load((base / "kustomization.yaml").read_text())
    literals = next(entry["literals"] for entry in kustomization["configMapGenerator"] if entry["name"] == STORE_NAME)
    chosen = dict(literal.removeprefix(ENV_PREFIX).split("=", 1) for literal in literals)
    settings = StoreSettings(**{name.lower(): value for name, value in chosen.items()})
    (container,) = yaml.safe_load((base / "store.yaml").read_text())["spec"]["template"]["spec"]["containers"]
    limit = re.fullmatch(r"(\d+)Mi", container["resources"]["limits"]["memory"])
    assert limit is not None
    assert settings.memory_bound_bytes + settings.max_uploads * STREAM_BYTES <= int(limit[1]) * 2**20


@pytest.mark.parametrize(
    ("service", "known"), [("store", STORE), ("gateway", GATEWAY), ("worker-a", WORKER), ("worker-b", WORKER)]
)
def test_a_composed_service_gets_only_its_own_settings(service: str, known: set[str]) -> None:
    assert set(COMPOSE["services"][service]["environment"]) <= known


@pytest.mark.parametrize(
    ("service", "known"),
    [
        ("store", STORE | OF_OBJECT_STORAGE),
        ("store-b", STORE | OF_OBJECT_STORAGE),
        ("gateway", GATEWAY),
        ("worker-a", WORKER),
    ],
)
def test_a_service_of_the_composed_fleet_gets_only_its_own_settings(service: str, known: set[str]) -> None:
    assert set(FLEET["services"][service]["environment"]) <= known


def test_the_stores_of_the_composed_fleet_are_alike_and_alone_with_their_data() -> None:
    first = COMPOSE["services"]["store"]["environment"] | FLEET["services"]["store"]["environment"]
    second = FLEET["services"]["store-b"]["environment"]
    assert first == second
    assert ":" not in second["HOTSLOT_CATALOG_URL"].partition("://")[2].partition("@")[0], "the password is a file's"
    data = {name for name, service in FLEET["services"].items() if "data" in service.get("networks", ())}
    assert data == {"store", "store-b", "postgres", "objects"}
    assert not any("ports" in FLEET["services"][name] for name in ("postgres", "objects"))


def test_prometheus_of_the_composed_fleet_scrapes_what_serves_metrics() -> None:
    config = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    targets = {t for job in config["scrape_configs"] for group in job["static_configs"] for t in group["targets"]}
    served = {
        f"{name}:{service['environment']['HOTSLOT_METRICS_LISTEN'].rpartition(':')[2]}"
        for name, service in FLEET["services"].items()
        if "HOTSLOT_METRICS_LISTEN" in service.get("environment", {})
    }
    assert targets == served


@pytest.mark.parametrize("service", sorted(FLEET["services"].keys() - COMPOSE["services"].keys()))
def test_every_service_of_the_composed_fleet_has_a_health_check_and_restarts(service: str) -> None:
    assert FLEET["services"][service]["healthcheck"]["test"]
    assert FLEET["services"][service]["restart"] == "unless-stopped"


@pytest.mark.parametrize("service", sorted(COMPOSE["services"]))
def test_every_composed_service_has_a_health_check_and_restarts(service: str) -> None:
    assert COMPOSE["services"][service]["healthcheck"]["test"]
    assert COMPOSE["services"][service]["restart"] == "unless-stopped"


@pytest.mark.parametrize("path", sorted((ROOT / "deploy").glob("*.Dockerfile")), ids=lambda path: path.name)
def test_an_image_runs_without_rights_and_says_how_it_is(path: Path) -> None:
    final_stage = path.read_text().split("\nFROM ")[-1]
    assert re.search(r"^USER (?!0\b)\d+:\d+$", final_stage, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*hotslot-health", final_stage, re.MULTILINE)


@pytest.mark.parametrize("dockerfile", sorted((ROOT / "deploy").glob("*.Dockerfile")), ids=lambda path: path.stem)
def test_what_an_image_copies_is_let_through_to_its_build(dockerfile: Path) -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), re.MULTILINE)
    sources = {source for copied in copies for source in copied.split() if "[" not in source}
    assert len(sources) > 4
    assert sources <= let_through
