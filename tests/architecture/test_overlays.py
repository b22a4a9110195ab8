"""Single overlays, which turn something on: traces, rights without a key, a Redis of the demo, certificates."""

import pytest

from deploy.check_manifests import KubernetesObject, build, kustomizations
from shared.coordination.rights import acl_rule
from shared.trace_export import wants_traces
from tests.architecture.test_manifests import SERVICES, of_kind, pods, settings_by_name

FOLDERS = {folder.name: folder for folder in kustomizations()}


@pytest.mark.parametrize(("overlay", "traced"), [("tracing", set(SERVICES)), ("base", set())])
def test_traces_are_exported_where_the_overlay_says_so(overlay: str, traced: set[str]) -> None:
    found = settings_by_name(build(FOLDERS[overlay]))
    assert {name for name in SERVICES if wants_traces(found[name])} == traced


def sources_of(objects: list[KubernetesObject]) -> list[KubernetesObject]:
    """Places that a store's environment comes from."""
    (store,) = of_kind(objects, "StatefulSet")
    return [source for each in store["spec"]["template"]["spec"]["containers"] for source in each["envFrom"]]


def test_identity_of_the_workload_leaves_no_place_for_a_key() -> None:
    assert any("secretRef" in source for source in sources_of(build(FOLDERS["several-stores"])))
    objects = build(FOLDERS["workload-identity"])
    assert not any("secretRef" in source for source in sources_of(objects))
    (store,) = of_kind(objects, "StatefulSet")
    assert store["spec"]["template"]["metadata"]["labels"]["azure.workload.identity/use"] == "true"
    (account,) = [a for a in of_kind(objects, "ServiceAccount") if a["metadata"]["name"] == "hotslot-store"]
    assert account["metadata"]["annotations"]


def test_the_redis_of_a_demo_gives_the_rights_that_are_needed_and_no_more() -> None:
    objects = build(FOLDERS["cpu-demo"])
    (container,) = pods(objects)["redis"]["spec"]["containers"]
    assert f'user hotslot on #$hash {acl_rule()}"' in container["command"][-1]
    (config,) = [each for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"] == "redis"]
    assert "user default off" in config["data"]["valkey.conf"]
    assert "port 0" in config["data"]["valkey.conf"].splitlines()


def test_certificates_fill_the_secrets_that_pods_mount() -> None:
    objects = build(FOLDERS["cert-manager"])
    certificates = {each["spec"]["secretName"]: each["spec"] for each in of_kind(objects, "Certificate")}
    issuers = {each["metadata"]["name"] for each in of_kind(objects, "Issuer")}
    for name in SERVICES:
        spec = certificates[f"{name}-tls"]
        assert spec["issuerRef"]["name"] in issuers
        assert {name, name.removeprefix("hotslot-")} <= set(spec["dnsNames"])
        assert {"server auth", "client auth"} <= set(spec["usages"])
    authorities = {each["spec"].get("ca", {}).get("secretName") for each in of_kind(objects, "Issuer")}
    assert authorities <= {None, *certificates}
