"""The table of the chart's values: what people change, and where it stands in the objects."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.check_manifests import KubernetesObject

ABSENT = object()
"""In the place of a field that an object does not have."""

SWITCHES: Mapping[str, str] = {
    "certManager": "cert-manager",
    "redis": "redis",
    "severalStores": "several-stores",
    "keda": "keda",
    "autoscalers": "autoscalers",
    "inferencePool": "inference-pool",
    "monitoring": "monitoring",
    "adapters": "adapters",
    "priorities": "priorities",
    "tracing": "tracing",
    "workloadIdentity": "workload-identity",
}
"""Values that add a component's objects. What a component changes in others is a value of its own."""


@dataclass(frozen=True, slots=True)
class Knob:
    """A value of the chart."""

    value: str
    """Its place in the values, with dots."""
    kind: str
    name: str
    path: tuple[str, ...]
    """Fields from the object down. In a list, `[name]` is the element of that name, `[+]` all that the base has not."""
    form: str = "plain"
    """plain, optional (no field where there is no value), image, settings or more (`[+]`)."""


def _pod(value: str, kind: str, name: str, container: str) -> Iterator[Knob]:
    template = ("spec", "template", "spec")
    own = (*template, "containers", f"[{container}]")
    yield Knob(f"{value}.image", kind, name, (*own, "image"), "image")
    yield Knob(f"{value}.replicas", kind, name, ("spec", "replicas"), "optional")
    yield Knob(f"{value}.resources", kind, name, (*own, "resources"))
    yield Knob(f"{value}.podLabels", kind, name, ("spec", "template", "metadata", "labels"))
    yield Knob(f"{value}.env", kind, name, (*own, "env"), "optional")
    yield Knob(f"{value}.moreEnvFrom", kind, name, (*own, "envFrom", "[+]"), "more")
    yield Knob(f"{value}.moreContainers", kind, name, (*template, "containers", "[+]"), "more")
    yield Knob(f"{value}.moreVolumes", kind, name, (*template, "volumes", "[+]"), "more")
    yield Knob(f"{value}.moreVolumeMounts", kind, name, (*own, "volumeMounts", "[+]"), "more")
    grace = "terminationGracePeriodSeconds"
    yield Knob(f"{value}.{grace}", kind, name, (*template, grace))
    for field in ("priorityClassName", "nodeSelector", "tolerations", "affinity", "runtimeClassName"):
        yield Knob(f"{value}.{field}", kind, name, (*template, field), "optional")
    yield Knob(f"{value}.settings", "ConfigMap", name, ("data",), "settings")
    annotations = ("metadata", "annotations")
    yield Knob(f"{value}.serviceAccountAnnotations", "ServiceAccount", name, annotations, "optional")


def _knobs() -> Iterator[Knob]:
    yield from _pod("store", "StatefulSet", "hotslot-store", "store")
    yield Knob("store.podManagementPolicy", "StatefulSet", "hotslot-store", ("spec", "podManagementPolicy"), "optional")
    claim = ("spec", "volumeClaimTemplates", "[data]", "spec")
    yield Knob("store.storage", "StatefulSet", "hotslot-store", (*claim, "resources", "requests", "storage"))
    yield Knob("store.storageClassName", "StatefulSet", "hotslot-store", (*claim, "storageClassName"), "optional")
    yield from _pod("worker", "Deployment", "hotslot-worker", "worker")
    volume = ("spec", "template", "spec", "volumes", "[cache]", "emptyDir", "sizeLimit")
    yield Knob("worker.cacheSize", "Deployment", "hotslot-worker", volume)
    yield from _pod("gateway", "Deployment", "hotslot-gateway", "gateway")
    yield from _pod("controller", "Deployment", "hotslot-controller", "controller")
    scaled = ("keda.sh", "ScaledObject", "hotslot-worker")
    for field in ("minReplicaCount", "maxReplicaCount", "cooldownPeriod", "triggers"):
        yield Knob(f"keda.{field}", scaled[1], scaled[2], ("spec", field))
    for part in ("worker", "gateway"):
        for field in ("minReplicas", "maxReplicas", "metrics"):
            name = f"hotslot-{part}"
            yield Knob(f"autoscalers.{part}.{field}", "HorizontalPodAutoscaler", name, ("spec", field))
    yield Knob("certManager.storeNames", "Certificate", "hotslot-store", ("spec", "dnsNames"))
    yield Knob("inferencePool.parentRefs", "HTTPRoute", "hotslot-worker", ("spec", "parentRefs"))
    yield Knob("inferencePool.picker", "InferencePool", "hotslot-worker", ("spec", "endpointPickerRef"))
    yield Knob("inferencePool.settings", "ConfigMap", "hotslot-sidecar", ("data",), "settings")


KNOBS: Sequence[Knob] = tuple(_knobs())


def value_at(thing: Any, path: Sequence[str]) -> Any:
    """The value at a path below an object, or ABSENT."""
    for step in path:
        if step.startswith("["):
            thing = next((each for each in thing if each.get("name", _claim(each)) == step[1:-1]), ABSENT)
        else:
            thing = thing.get(step, ABSENT)
        if thing is ABSENT:
            return ABSENT
    return thing


def put(thing: Any, path: Sequence[str], value: Any) -> None:
    """Set the value at a path, whose parents are there but for the last one."""
    *parents, last = path
    for number, step in enumerate(parents):
        below = value_at(thing, [step])
        if below is ABSENT:
            assert number == len(parents) - 1, path
            below = thing[step] = {}
        thing = below
    if last == "[+]":
        thing.append(value)
    else:
        thing[last] = value


def _claim(each: KubernetesObject) -> Any:
    return each.get("metadata", {}).get("name")
