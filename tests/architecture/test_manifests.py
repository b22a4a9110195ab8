"""Manifests give each pod what it needs and no more: flows, accounts, rights, secrets by their names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.check_manifests import SECRETS, WORKLOADS, KubernetesObject, build, reference_problems
from hotslot.redis_url import check_redis_url

KUBERNETES = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(file.parent for file in KUBERNETES.rglob("kustomization.yaml"))
SERVICES = {"hotslot-store": 7400, "hotslot-worker": 7500, "hotslot-gateway": 7600}
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


@pytest.fixture(scope="module", params=OVERLAYS, ids=lambda folder: folder.name)
def objects(request: pytest.FixtureRequest) -> list[KubernetesObject]:
    return build(request.param)


def of_kind(objects: list[KubernetesObject], *kinds: str) -> list[KubernetesObject]:
    return [each for each in objects if each["kind"] in kinds]


def pods(objects: list[KubernetesObject]) -> dict[str, KubernetesObject]:
    """Pods' templates by the name of their workload."""
    return {each["metadata"]["name"]: each["spec"]["template"] for each in of_kind(objects, *WORKLOADS)}


def flows(policy: KubernetesObject) -> Iterator[tuple[str, str, str, int]]:
    spec = policy["spec"]
    labels = spec["podSelector"]["matchLabels"]
    owner = labels.get("app.kubernetes.io/name", labels.get("app.kubernetes.io/part-of"))
    for direction, rules, ends in (("in", "ingress", "from"), ("out", "egress", "to")):
        for rule in spec.get(rules, ()):
            assert rule[ends], "a rule without a peer lets everything through"
            for peer in rule[ends]:
                for port in rule["ports"]:
                    yield direction, owner, peer_name(peer), port["port"]


def peer_name(peer: dict[str, Any]) -> str:
    if "ipBlock" in peer:
        assert peer["ipBlock"]["except"], "the Internet without the networks that are no part of it"
        return "internet"
    labels = peer["podSelector"]["matchLabels"]
    if labels == CLIENT:
        return "client"
    return str(labels.get("app.kubernetes.io/name", labels.get("k8s-app")))


def test_nothing_is_let_through_but_what_is_needed(objects: list[KubernetesObject]) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    assert {flow for policy in policies for flow in flows(policy)} == FLOWS
    (denies,) = [policy for policy in policies if set(policy["spec"]) == {"podSelector", "policyTypes"}]
    assert sorted(denies["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    denied = denies["spec"]["podSelector"]["matchLabels"].items()
    for name, template in pods(objects).items():
        labels = template["metadata"]["labels"]
        assert denied <= labels.items(), f"{name} is not denied anything"
        assert labels["app.kubernetes.io/name"] == name
        opened = {port["containerPort"] for c in template["spec"]["containers"] for port in c["ports"]}
        assert {port for direction, pod, _, port in FLOWS if (direction, pod) == ("in", name)} <= opened


def test_each_service_has_an_account_of_its_own_without_a_token(objects: list[KubernetesObject]) -> None:
    accounts = {each["metadata"]["name"]: each for each in of_kind(objects, "ServiceAccount")}
    used = [template["spec"]["serviceAccountName"] for template in pods(objects).values()]
    assert sorted(used) == sorted(set(used)) == sorted(accounts)
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())
    assert not any(template["spec"]["automountServiceAccountToken"] for template in pods(objects).values())


def test_pods_have_no_rights(objects: list[KubernetesObject]) -> None:
    for template in pods(objects).values():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not any(spec.get(each) for each in ("hostNetwork", "hostPID", "hostIPC"))
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_every_service_has_a_disruption_budget(objects: list[KubernetesObject]) -> None:
    budgets = [each["spec"]["selector"]["matchLabels"] for each in of_kind(objects, "PodDisruptionBudget")]
    assert {budget["app.kubernetes.io/name"] for budget in budgets} == set(pods(objects)) == set(SERVICES)


def test_connections_are_encrypted_and_secrets_are_no_part_of_manifests(objects: list[KubernetesObject]) -> None:
    assert of_kind(objects, "Secret") == []
    settings = {each["metadata"]["name"].rsplit("-", 1)[0]: each["data"] for each in of_kind(objects, "ConfigMap")}
    for name, data in settings.items():
        assert "HOTSLOT_INSECURE" not in data
        assert data["HOTSLOT_PRINCIPALS_FILE"]
        assert data["HOTSLOT_TLS_CERT_FILE"]
        if name != "hotslot-gateway":
            assert data["HOTSLOT_TLS_CLIENT_CA_FILE"]
            assert data["HOTSLOT_POOL_SECRET_FILE"]
            check_redis_url(data["HOTSLOT_REDIS_URL"])
            scheme, _, rest = data["HOTSLOT_REDIS_URL"].partition("://")
            assert (scheme, ":" in rest.partition("@")[0]) == ("rediss", False), "the password is a file's"
    for name, template in pods(objects).items():
        mounts = {mount["mountPath"] for c in template["spec"]["containers"] for mount in c["volumeMounts"]}
        files = [value for key, value in settings[name].items() if key.endswith("_FILE")]
        assert all(str(Path(file).parent) in mounts for file in files), name
        secrets = {v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v}
        assert secrets <= SECRETS
        assert secrets & {f"{other}-tls" for other in SERVICES} == {f"{name}-tls"}, "only its own key"


def test_probes_ask_the_port_that_needs_no_certificate(objects: list[KubernetesObject]) -> None:
    for name, template in pods(objects).items():
        (container,) = template["spec"]["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]
            if name == "hotslot-gateway":
                assert asked["httpGet"]["scheme"] == "HTTPS"
            else:
                assert asked["grpc"]["port"] == SERVICES[name] + 1


def test_certificates_fill_the_secrets_that_pods_mount() -> None:
    objects = build(KUBERNETES / "overlays" / "cert-manager")
    certificates = {each["spec"]["secretName"]: each["spec"] for each in of_kind(objects, "Certificate")}
    issuers = {each["metadata"]["name"] for each in of_kind(objects, "Issuer")}
    for name in SERVICES:
        spec = certificates[f"{name}-tls"]
        assert spec["issuerRef"]["name"] in issuers
        assert {name, name.removeprefix("hotslot-")} <= set(spec["dnsNames"])
        assert {"server auth", "client auth"} <= set(spec["usages"])
    authorities = {each["spec"].get("ca", {}).get("secretName") for each in of_kind(objects, "Issuer")}
    assert authorities <= {None, *certificates}


def test_a_secret_that_no_operator_is_told_of_is_found() -> None:
    objects = build(KUBERNETES / "base")
    volumes = pods(objects)["hotslot-store"]["spec"]["volumes"]
    next(volume for volume in volumes if "secret" in volume)["secret"]["secretName"] = "hotslot-typo"
    assert any("Secret/hotslot-typo" in problem for problem in reference_problems(objects))
