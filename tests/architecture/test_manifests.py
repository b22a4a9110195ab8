"""Manifests give each pod what it needs and no more: flows, accounts, rights, secrets by their names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from controller_service.adapter_resource import WantedAdapter, WantedPolicy, wanted_of
from controller_service.settings import ControllerSettings
from deploy import prometheus_rule
from deploy.check_manifests import (
    SECRETS,
    WORKLOADS,
    KubernetesObject,
    build,
    kustomizations,
    reference_problems,
    schema_problems,
)
from deploy.custom_resources import schemas
from gateway_service.settings import GatewaySettings
from hotslot.capacity import HOST_SPARE, WorkerShape, memory_of
from hotslot.formats.model_sizes import sizes_of
from hotslot.redis_url import check_redis_url
from shared.metrics.table import TABLE
from shared.server.grpc_server import AGE_SPREAD, GOODBYE_S
from shared.settings import ENV_PREFIX, Settings
from store_service.settings import StoreSettings
from tools.supply.lock import AARCH64, MACHINES
from worker_service.demo_model import BASE_MODEL, ensure_model
from worker_service.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = kustomizations()
SERVICES = {"hotslot-store": 7400, "hotslot-worker": 7500, "hotslot-gateway": 7600}
METRICS_PORT = 9400
PROCESS_BYTES = 600 * 2**20
"""Of torch and compiled code, as docs/capacity.md has it."""
ON_THE_WAY_BYTES = 768 * 2**20
"""Host memory that is kept beside the cache for adapters that come next."""
HEALTH_PORTS = {"store": 7401, "worker": 7501, "controller": 7701}
EXACT_TAG = re.compile(r"^[a-z0-9./-]+(:\d+\.\d+\.\d+(-[a-z]+)?|@sha256:[0-9a-f]{64})$")
CLIENT = {"hotslot.dev/client": "true"}
FLOWS = {
    ("in", "hotslot-store", "hotslot-worker", 7400), ("in", "hotslot-store", "hotslot-gateway", 7400),
    ("in", "hotslot-store", "client", 7400),
    ("in", "hotslot-worker", "hotslot-worker", 7500), ("in", "hotslot-worker", "hotslot-gateway", 7500),
    ("in", "hotslot-worker", "client", 7500),
    ("in", "hotslot-gateway", "client", 7600),
    ("out", "hotslot-store", "redis", 6379), ("out", "hotslot-store", "internet", 443),
    ("out", "hotslot-worker", "redis", 6379), ("out", "hotslot-worker", "internet", 443),
    ("out", "hotslot-worker", "hotslot-store", 7400), ("out", "hotslot-worker", "hotslot-worker", 7500),
    ("out", "hotslot-gateway", "hotslot-store", 7400), ("out", "hotslot-gateway", "hotslot-worker", 7500),
    ("out", "hotslot", "kube-dns", 53),
}  # fmt: skip
"""Every flow that is needed, by direction, pod, peer and port."""
FLOWS_OF = {
    "redis": {("in", "redis", "hotslot-store", 6379), ("in", "redis", "hotslot-worker", 6379)},
    "several-stores": {
        ("out", "hotslot-store", "catalog", 5432),
        ("out", "hotslot-store", "objects", 8333), ("out", "hotslot-store", "objects", 9000),
    },
    "keda": {("in", "hotslot-store", "keda-operator", 7400)},
    "inference-pool": {("in", "hotslot-worker", "client", 7600)},
    "monitoring": {("in", name, "prometheus", METRICS_PORT) for name in SERVICES},
    "tracing": {("out", name, "opentelemetry-collector", 4317) for name in SERVICES},
    "workload-identity": {("out", "hotslot-store", "the node", port) for port in (80, 988)},
    "adapters": {
        ("in", "hotslot-store", "hotslot-controller", 7400), ("out", "hotslot-controller", "hotslot-store", 7400),
        # The address of the Kubernetes API is the cluster's.
        ("out", "hotslot-controller", "internet", 443), ("out", "hotslot-controller", "internet", 6443),
    },
}  # fmt: skip
"""Flows that a component adds."""


@dataclass(frozen=True)
class Built:
    """An overlay."""

    components: frozenset[str]
    objects: list[KubernetesObject]


@pytest.fixture(scope="module", params=OVERLAYS, ids=lambda folder: folder.name)
def overlay(request: pytest.FixtureRequest) -> Built:
    kustomization = yaml.safe_load((request.param / "kustomization.yaml").read_text(encoding="utf-8"))
    return Built(frozenset(Path(name).name for name in kustomization.get("components", ())), build(request.param))


@pytest.fixture
def objects(overlay: Built) -> list[KubernetesObject]:
    return overlay.objects


def of_kind(objects: list[KubernetesObject], *kinds: str) -> list[KubernetesObject]:
    return [each for each in objects if each["kind"] in kinds]


def pods(objects: list[KubernetesObject]) -> dict[str, KubernetesObject]:
    """Pods' templates by the name of their workload."""
    return {each["metadata"]["name"]: each["spec"]["template"] for each in of_kind(objects, *WORKLOADS)}


def flows(policy: KubernetesObject) -> Iterator[tuple[str, str, str, int]]:
    spec = policy["spec"]
    labels = spec["podSelector"].get("matchLabels", {})
    (several,) = [e["values"] for e in spec["podSelector"].get("matchExpressions", ())] or [None]
    owners = several or [labels.get("app.kubernetes.io/name", labels.get("app.kubernetes.io/part-of"))]
    for direction, rules, ends in (("in", "ingress", "from"), ("out", "egress", "to")):
        for rule in spec.get(rules, ()):
            assert rule[ends], "a rule without a peer lets everything through"
            for peer in rule[ends]:
                for port in rule["ports"]:
                    yield from ((direction, owner, peer_name(peer), port["port"]) for owner in owners)


def peer_name(peer: dict[str, Any]) -> str:
    if "ipBlock" in peer and ip_network(peer["ipBlock"]["cidr"]).is_link_local:
        assert peer["ipBlock"]["cidr"].endswith("/32"), "one address of the node"
        return "the node"
    if "ipBlock" in peer:
        assert peer["ipBlock"]["except"], "the Internet without the networks that are no part of it"
        return "internet"
    labels = peer["podSelector"]["matchLabels"]
    if labels == CLIENT:
        return "client"
    return str(labels.get("app.kubernetes.io/name", labels.get("k8s-app", labels.get("hotslot.dev/serves"))))


def containers(template: KubernetesObject) -> list[KubernetesObject]:
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", ())]


def settings_by_name(objects: list[KubernetesObject]) -> dict[str, dict[str, str]]:
    """Settings in ConfigMaps, by the names without the digest of their content."""
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(objects, "ConfigMap")}
    return {name.rsplit("-", 1)[0]: data for name, data in maps.items() if any(key.isupper() for key in data)}


def test_an_overlay_fits_kubernetes_and_itself(objects: list[KubernetesObject]) -> None:
    assert [*schema_problems(objects), *reference_problems(objects)] == []


def test_nothing_is_let_through_but_what_is_needed(overlay: Built) -> None:
    objects = overlay.objects
    policies = of_kind(objects, "NetworkPolicy")
    needed = FLOWS.union(*(FLOWS_OF.get(component, set()) for component in overlay.components))
    assert {flow for policy in policies for flow in flows(policy)} == needed
    (denies,) = [policy for policy in policies if set(policy["spec"]) == {"podSelector", "policyTypes"}]
    assert sorted(denies["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    denied = denies["spec"]["podSelector"]["matchLabels"].items()
    for name, template in pods(objects).items():
        labels = template["metadata"]["labels"]
        assert denied <= labels.items(), f"{name} is not denied anything"
        assert labels["app.kubernetes.io/name"] == name
        opened = {port["containerPort"] for c in template["spec"]["containers"] for port in c["ports"]}
        assert {port for direction, pod, _, port in needed if (direction, pod) == ("in", name)} <= opened


def test_each_service_has_an_account_of_its_own_without_a_token(objects: list[KubernetesObject]) -> None:
    accounts = {each["metadata"]["name"]: each for each in of_kind(objects, "ServiceAccount")}
    used = [template["spec"]["serviceAccountName"] for template in pods(objects).values()]
    assert sorted(used) == sorted(set(used)) == sorted(accounts)
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())
    tokens = {name for name, template in pods(objects).items() if template["spec"]["automountServiceAccountToken"]}
    assert tokens == pods(objects).keys() & {"hotslot-controller"}, "the one that calls the Kubernetes API"


def test_the_controllers_rights_are_those_of_its_calls_in_its_own_namespace() -> None:
    objects = build(KUBERNETES / "overlays" / "adapters")
    assert of_kind(objects, "ClusterRole", "ClusterRoleBinding") == []
    (role,) = of_kind(objects, "Role")
    assert {(r["apiGroups"][0], r["resources"][0], *r["verbs"]) for r in role["rules"]} == {
        ("hotslot.dev", "adapters", "list", "watch", "patch"),
        ("hotslot.dev", "adapters/status", "patch"),
    }
    (binding,) = of_kind(objects, "RoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "hotslot-controller"}]


def test_the_example_of_an_adapter_fits_its_definition_and_is_read() -> None:
    example = yaml.safe_load((ROOT / "examples" / "kubernetes" / "adapter.yaml").read_text(encoding="utf-8"))
    (definition,) = of_kind(build(KUBERNETES / "overlays" / "adapters"), "CustomResourceDefinition")
    (kind,) = definition["spec"]["versions"]
    schema = kind["schema"]["openAPIV3Schema"]
    jsonschema.Draft202012Validator(schema).validate(example)
    assert example["spec"].keys() <= schema["properties"]["spec"]["properties"].keys()
    assert wanted_of(example).policy is not None
    names = {field.alias or name for name, field in WantedAdapter.model_fields.items()}
    assert schema["properties"]["spec"]["properties"].keys() == names
    policy = schema["properties"]["spec"]["properties"]["policy"]["properties"]
    assert policy.keys() == {field.alias or name for name, field in WantedPolicy.model_fields.items()}


def test_pods_have_no_rights(objects: list[KubernetesObject]) -> None:
    for template in pods(objects).values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not any(spec.get(each) for each in ("hostNetwork", "hostPID", "hostIPC"))
        assert spec["securityContext"]["runAsUser"] >= 1000
        for container in containers(template):
            context = container["securityContext"]
            assert not context.get("privileged")
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert container["resources"]["limits"].keys() <= {"memory", "nvidia.com/gpu"}, (
                "no throttling of processors"
            )


def test_settings_are_ones_that_the_service_reads_and_takes(objects: list[KubernetesObject]) -> None:
    kinds: dict[str, type[Settings]] = {
        "hotslot-store": StoreSettings, "hotslot-worker": WorkerSettings,
        "hotslot-gateway": GatewaySettings, "hotslot-sidecar": GatewaySettings,
        "hotslot-controller": ControllerSettings,
    }  # fmt: skip
    for name, data in settings_by_name(objects).items():
        chosen: dict[str, Any] = own_settings(data)
        # A settings class refuses names that it does not know.
        kinds[name](**chosen)


def own_settings(data: dict[str, str]) -> dict[str, str]:
    """Settings by their names, without variables of OpenTelemetry that docs/observing.md has."""
    page = (ROOT / "docs" / "observing.md").read_text(encoding="utf-8")
    is_known = {key: key.startswith("OTEL_") and f"`{key}`" in page for key in data}
    return {key.removeprefix(ENV_PREFIX).lower(): value for key, value in data.items() if not is_known[key]}


def test_an_image_is_an_exact_release(objects: list[KubernetesObject]) -> None:
    release = version("hotslot")
    for template in pods(objects).values():
        for container in containers(template):
            assert EXACT_TAG.fullmatch(container["image"]), container["image"]
            if container["image"].startswith("hotslot-"):
                assert container["image"].partition(":")[2].removesuffix("-cuda") == release


def test_workers_go_where_their_images_can_run(objects: list[KubernetesObject]) -> None:
    arm64 = {name for name, machines in MACHINES.items() if AARCH64 in machines}
    bound = {
        name: template["spec"].get("nodeSelector", {}).get("kubernetes.io/arch")
        for name, template in pods(objects).items()
        if name in SERVICES
    }
    assert "store" in arm64
    assert not arm64 & {"worker", "worker-cpu"}
    assert bound == {"hotslot-store": None, "hotslot-gateway": None, "hotslot-worker": "amd64"}


@pytest.mark.model
def test_a_worker_has_the_memory_that_the_formulas_of_capacity_say(objects: list[KubernetesObject]) -> None:
    data = settings_by_name(objects)["hotslot-worker"]
    named: dict[str, Any] = own_settings(data)
    chosen = WorkerSettings(**named)
    assert chosen.model_name == BASE_MODEL
    shape = WorkerShape(chosen.dtype, chosen.num_slots, chosen.slot_rank, chosen.kv_tokens or WorkerShape().kv_tokens)
    memory = memory_of(sizes_of(ensure_model(), BASE_MODEL), shape, chosen.slot_rank, 0)
    in_use = PROCESS_BYTES + round(chosen.host_cache_bytes * HOST_SPARE)
    # On a GPU's worker the weights pass through the host's memory.
    in_use += memory.device_bytes if chosen.device != "cuda" else memory.weights_bytes
    resources = pods(objects)["hotslot-worker"]["spec"]["containers"][0]["resources"]
    request, limit = (int(resources[kind]["memory"].removesuffix("Gi")) * 2**30 for kind in ("requests", "limits"))
    assert in_use <= request
    assert in_use + ON_THE_WAY_BYTES <= limit


def test_every_container_is_probed(objects: list[KubernetesObject]) -> None:
    for template in pods(objects).values():
        for container in template["spec"]["containers"]:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()


def test_pods_of_many_are_spread_over_zones_and_machines(objects: list[KubernetesObject]) -> None:
    for name, template in pods(objects).items():
        if name in SERVICES:
            spreads = template["spec"]["topologySpreadConstraints"]
            keys = ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
            assert [each["topologyKey"] for each in spreads] == keys
            for each in spreads:
                assert each["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_pods_have_the_time_that_their_settings_take_to_end(objects: list[KubernetesObject]) -> None:
    settings = settings_by_name(objects)
    defaults = {"hotslot-store": StoreSettings().grace_s, "hotslot-gateway": GatewaySettings().grace_s}
    for name, template in pods(objects).items():
        if name not in SERVICES:
            continue
        (container, *_) = template["spec"]["containers"]
        stop_s = float(container["lifecycle"]["preStop"]["sleep"]["seconds"])
        age_s = float(settings[name].get("HOTSLOT_MAX_CONNECTION_AGE_S", 0))
        drain_s = AGE_SPREAD * age_s + GOODBYE_S if age_s else 0.0
        grace_s = float(
            settings[name].get("HOTSLOT_DRAIN_GRACE_S", settings[name].get("HOTSLOT_GRACE_S", defaults.get(name, 0)))
        )
        assert grace_s
        assert stop_s + drain_s + grace_s + 1 <= template["spec"]["terminationGracePeriodSeconds"], name


def test_the_number_of_pods_is_its_autoscalers_where_there_is_one(objects: list[KubernetesObject]) -> None:
    scalers = of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    scaled = [each["spec"]["scaleTargetRef"]["name"] for each in scalers]
    assert len(scaled) == len(set(scaled))
    for workload in of_kind(objects, *WORKLOADS):
        assert ("replicas" in workload["spec"]) == (workload["metadata"]["name"] not in scaled)


def test_every_service_has_a_disruption_budget(objects: list[KubernetesObject]) -> None:
    budgets = [each["spec"]["selector"]["matchLabels"] for each in of_kind(objects, "PodDisruptionBudget")]
    assert {budget["app.kubernetes.io/name"] for budget in budgets} == set(pods(objects)) >= set(SERVICES)


def test_connections_are_encrypted_and_secrets_are_no_part_of_manifests(objects: list[KubernetesObject]) -> None:
    assert of_kind(objects, "Secret") == []
    settings = settings_by_name(objects)
    for name, data in settings.items():
        # A gateway beside a worker listens in plaintext for the proxies of a pool; its calls go by TLS.
        assert ("HOTSLOT_INSECURE" in data) == (name == "hotslot-sidecar")
        assert data["HOTSLOT_TLS_CERT_FILE"]
        assert ("HOTSLOT_PRINCIPALS_FILE" in data) == (name != "hotslot-controller"), (
            "known callers, where there are any"
        )
        if name in ("hotslot-store", "hotslot-worker"):
            assert data["HOTSLOT_TLS_CLIENT_CA_FILE"]
            assert data["HOTSLOT_POOL_SECRET_FILE"]
            check_redis_url(data["HOTSLOT_REDIS_URL"])
            scheme, _, rest = data["HOTSLOT_REDIS_URL"].partition("://")
            assert (scheme, ":" in rest.partition("@")[0]) == ("rediss", False), "the password is a file's"
        assert not [key for key in data if key.endswith(("_TOKEN", "_PASSWORD", "CATALOG_URL"))]
    for name, template in pods(objects).items():
        mounted = {
            volume["name"]: volume["secret"]["secretName"]
            for volume in template["spec"]["volumes"]
            if "secret" in volume
        }
        assert set(mounted.values()) <= SECRETS
        for container in containers(template):
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            sources = [
                source["configMapRef"]["name"] for source in container.get("envFrom", ()) if "configMapRef" in source
            ]
            files = [
                value
                for source in sources
                for key, value in settings[source.rsplit("-", 1)[0]].items()
                if key.endswith("_FILE")
            ]
            assert all(str(Path(file).parent) in mounts for file in files), name
            keys = {mounted[volume] for volume in mounts.values() if mounted.get(volume, "").endswith("-tls")}
            own = "hotslot-gateway" if container["name"] == "gateway" else f"hotslot-{name.removeprefix('hotslot-')}"
            assert keys == {f"{own}-tls"}, "only its own key"


def test_probes_ask_the_port_that_needs_no_certificate(objects: list[KubernetesObject]) -> None:
    for name, template in pods(objects).items():
        for container in template["spec"]["containers"]:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container[probe]
                if name == "hotslot-gateway":
                    assert asked["httpGet"]["scheme"] == "HTTPS"
                elif container["name"] in HEALTH_PORTS:
                    assert asked["grpc"]["port"] == HEALTH_PORTS[container["name"]]
                else:
                    assert asked.keys() & {"httpGet", "exec"}


def test_metrics_are_served_by_every_service_and_scraped_by_its_own_name(overlay: Built) -> None:
    settings = settings_by_name(overlay.objects)
    assert {settings[name]["HOTSLOT_METRICS_LISTEN"] for name in SERVICES} == {f"[::]:{METRICS_PORT}"}
    monitors = {each["metadata"]["name"]: each["spec"] for each in of_kind(overlay.objects, "PodMonitor")}
    assert set(monitors) == (set(SERVICES) if "monitoring" in overlay.components else set())
    for name, spec in monitors.items():
        assert spec["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}
        (endpoint,) = spec["podMetricsEndpoints"]
        template = pods(overlay.objects)[name]
        ports = {port["name"]: port["containerPort"] for c in template["spec"]["containers"] for port in c["ports"]}
        assert ports[endpoint["port"]] == METRICS_PORT
        assert (endpoint["scheme"], endpoint["tlsConfig"]["serverName"]) == ("https", name.removeprefix("hotslot-"))
        # The alerts are for a job called hotslot.
        assert template["metadata"]["labels"][spec["jobLabel"]] == "hotslot"


def test_alerts_and_dashboards_are_those_of_their_folders() -> None:
    objects = build(KUBERNETES / "overlays" / "monitoring")
    assert prometheus_rule.OUTPUT.read_text(encoding="utf-8") == prometheus_rule.prometheus_rule(), (
        "run python -m deploy.prometheus_rule"
    )
    (rule,) = of_kind(objects, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(prometheus_rule.RULES.read_text(encoding="utf-8"))
    maps = [each for each in of_kind(objects, "ConfigMap") if "grafana_dashboard" in each["metadata"].get("labels", {})]
    dashboards = {name: text for each in maps for name, text in each["data"].items()}
    assert dashboards == {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "deploy" / "grafana").glob("*.json")}


def test_metrics_that_autoscalers_ask_for_are_made_of_metrics_that_there_are() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "adapter-rules.yaml").read_text(encoding="utf-8"))[
        "custom"
    ]
    objects = build(KUBERNETES / "overlays" / "autoscalers")
    asked = {
        metric["pods"]["metric"]["name"]
        for scaler in of_kind(objects, "HorizontalPodAutoscaler")
        for metric in scaler["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    assert asked == {rule["name"]["as"] for rule in rules}
    used = {name for rule in rules for name in re.findall(r"\bhotslot_\w+", rule["metricsQuery"] + rule["seriesQuery"])}
    assert used - asked <= TABLE.keys()


def test_a_mistyped_field_of_a_custom_resource_is_found() -> None:
    objects = build(KUBERNETES / "overlays" / "production")
    assert {f"{each['apiVersion']}/{each['kind']}" for each in objects} & schemas().keys()
    (scaled,) = of_kind(objects, "ScaledObject")
    scaled["spec"]["maxReplicas"] = scaled["spec"].pop("maxReplicaCount")
    (problem,) = list(schema_problems(objects))
    assert "maxReplicas" in problem


def test_a_secret_that_no_operator_is_told_of_is_found() -> None:
    objects = build(KUBERNETES / "base")
    volumes = pods(objects)["hotslot-store"]["spec"]["volumes"]
    next(volume for volume in volumes if "secret" in volume)["secret"]["secretName"] = "hotslot-typo"
    assert any("Secret/hotslot-typo" in problem for problem in reference_problems(objects))
