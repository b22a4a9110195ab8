"""The Helm chart is the kustomize base, and with an overlay's values it is the overlay: rendered by Helm itself."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.chart.chart import ChartSources, InexpressibleError, added_by, files
from deploy.chart.knobs import KNOBS, SWITCHES
from deploy.chart.writing import image_of, key_of
from deploy.check_manifests import KubernetesObject, kustomizations

helm_python = pytest.importorskip(
    "helm_python", reason=f"Helm's library has no wheel for {sys.platform} on this processor"
)

OVERLAYS = [folder.name for folder in kustomizations()[1:]]


@pytest.fixture(scope="module")
def sources() -> ChartSources:
    return ChartSources.built()


@pytest.fixture(scope="module")
def chart(sources: ChartSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(sources, tmp_path_factory.mktemp("chart"))


def written(sources: ChartSources, folder: Path) -> Path:
    for path, text in files(sources).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def rendered(chart: Path, values: dict[str, Any] | None = None) -> dict[tuple[str, str], KubernetesObject]:
    from deploy.chart.rendering import rendered, without_checksums

    return without_checksums(rendered(chart, values or {}))


def values_of(chart: Path, overlay: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((chart / "values" / f"{overlay}.yaml").read_text(encoding="utf-8"))
    return values


def differences(found: dict[tuple[str, str], KubernetesObject], expected: list[KubernetesObject]) -> list[str]:
    wanted = {key_of(manifest): manifest for manifest in expected}
    missing = [f"{key}: missing" for key in wanted.keys() - found.keys()]
    more = [f"{key}: of no overlay" for key in found.keys() - wanted.keys()]
    other = [
        f"{key}: {field}: {found[key].get(field)} is not {wanted[key].get(field)}"
        for key in found.keys() & wanted.keys()
        for field in found[key].keys() | wanted[key].keys()
        if found[key].get(field) != wanted[key].get(field)
    ]
    return sorted([*missing, *more, *other])


def test_the_chart_with_its_default_values_is_the_base(chart: Path, sources: ChartSources) -> None:
    assert differences(rendered(chart), sources.base) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_chart_with_an_overlays_values_is_the_overlay(chart: Path, sources: ChartSources, overlay: str) -> None:
    assert values_of(chart, overlay), "an overlay that changes nothing"
    assert differences(rendered(chart, values_of(chart, overlay)), sources.overlays[overlay]) == []


def test_a_change_for_which_the_chart_has_no_value_is_found(sources: ChartSources, tmp_path: Path) -> None:
    changed = copy.deepcopy(sources.overlays["gpu"])
    worker = next(m for m in changed if key_of(m) == ("Deployment", "hotslot-worker"))
    worker["spec"]["template"]["spec"]["hostNetwork"] = True
    other = ChartSources(sources.base, {"gpu": changed}, sources.added)
    found = rendered(written(other, tmp_path), values_of(written(other, tmp_path), "gpu"))
    assert any("hostNetwork" in line for line in differences(found, changed))


def test_an_object_of_no_component_is_told(sources: ChartSources) -> None:
    stray = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "stray"}}
    with pytest.raises(InexpressibleError, match="stray"):
        added_by([sources.base, [*sources.base, stray]])


def test_every_value_is_of_an_object_that_some_overlay_has(sources: ChartSources) -> None:
    known = {key_of(m) for m in sources.base} | {key_of(m) for its in sources.added.values() for m in its}
    assert [knob.value for knob in KNOBS if (knob.kind, knob.name) not in known] == []
    assert sorted(sources.added) == sorted(SWITCHES)


def test_helm_has_nothing_to_say_against_the_chart(chart: Path) -> None:
    found = helm_python.lint(str(chart))
    assert [message for message in found["messages"] if "icon" not in message["error"]] == []


@pytest.mark.parametrize(
    "values",
    [{"workers": {}}, {"worker": {"replica": 3}}, {"worker": {"replicas": "three"}}, {"keda": {"enabled": "yes"}}],
)
def test_a_mistyped_value_is_refused(chart: Path, values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        rendered(chart, values)


def test_values_of_all_kinds_become_what_kubernetes_takes(chart: Path) -> None:
    image = {"repository": "registry.example:5000/hotslot-worker", "digest": "sha256:" + "a" * 64}
    settings = {
        "HOTSLOT_NUM_SLOTS": 32,
        "HOTSLOT_BLOB_CACHE_BYTES": 16_000_000_000,
        "HOTSLOT_X": True,
        "HOTSLOT_Y": 'a"b',
    }
    found = rendered(chart, {"worker": {"image": image, "settings": settings, "replicas": None}})
    worker, config = found["Deployment", "hotslot-worker"], found["ConfigMap", "hotslot-worker"]
    assert "replicas" not in worker["spec"]
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{image['repository']}@{image['digest']}"
    written = {name: config["data"][name] for name in settings}
    assert written == dict(zip(settings, ("32", "16000000000", "true", 'a"b'), strict=True))


def test_pods_are_new_where_their_settings_are(chart: Path) -> None:
    from deploy.chart.rendering import CHECKSUM
    from deploy.chart.rendering import rendered as with_checksums

    def sums(values: dict[str, Any]) -> dict[str, str]:
        return {
            name: manifest["spec"]["template"]["metadata"]["annotations"][CHECKSUM]
            for (kind, name), manifest in with_checksums(chart, values).items()
            if kind in ("Deployment", "StatefulSet")
        }

    before, after = sums({}), sums({"worker": {"settings": {"HOTSLOT_NUM_SLOTS": "9"}}})
    assert {name for name in before if before[name] != after[name]} == {"hotslot-worker"}
    assert len(before) == 3


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a/b:1", ("a/b", "1", "")),
        ("host:5000/a", ("host:5000/a", "", "")),
        ("host:5000/a:1@sha256:ff", ("host:5000/a", "1", "sha256:ff")),
    ],
)
def test_an_images_name_is_taken_apart(text: str, parts: tuple[str, str, str]) -> None:
    assert tuple(image_of(text).values()) == parts
