"""Overlays that turn something on: traces go out, and object storage is used without a key."""

import pytest

from deploy.check_manifests import KubernetesObject, build, kustomizations
from shared.trace_export import wants_traces
from tests.architecture.test_manifests import SERVICES, of_kind, settings_by_name

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
