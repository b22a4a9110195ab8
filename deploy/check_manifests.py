"""Builds every kustomization and checks it: Kubernetes' schemas, and the references that schemas cannot see."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from deploy.custom_resources import custom_problems, is_custom

KUSTOMIZATIONS = Path(__file__).parent / "kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")
KUBERNETES_VERSIONS = ("1.35", "1.37")
WORKLOADS = {"Deployment", "StatefulSet"}
SECRETS = {
    "hotslot-store-tls", "hotslot-worker-tls", "hotslot-gateway-tls", "hotslot-redis", "hotslot-pool",
    "hotslot-principals", "hotslot-autoscaler-tls", "hotslot-prometheus-tls", "hotslot-controller-tls",
    "hotslot-redis-tls", "hotslot-catalog", "hotslot-objects",
}  # fmt: skip
"""Secrets that an operator makes; docs/kubernetes.md has what is in each."""

KubernetesObject = dict[str, Any]
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The quick one of C, where PyYAML was built with it."""


def kustomizations() -> list[Path]:
    """The base and the overlays; components are parts of these."""
    return [KUSTOMIZATIONS / "base", *sorted((KUSTOMIZATIONS / "overlays").iterdir())]


def build(folder: Path) -> list[KubernetesObject]:
    """The objects of a kustomization, which are the caller's to change."""
    return [document for document in yaml.load_all(_built(folder), _LOADER) if document]


@cache
def _built(folder: Path) -> str:
    built = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise SystemExit(f"{folder}: {built.stderr.strip()}")
    return built.stdout


def schema_problems(objects: list[KubernetesObject]) -> Iterator[str]:
    """Problems that the Kubernetes schemas find, unknown fields included."""
    for manifest in (each for each in objects if not is_custom(each)):
        yield from _schema_problems(json.dumps(manifest, sort_keys=True))
    yield from custom_problems(objects)


@cache
def _schema_problems(text: str) -> tuple[str, ...]:
    """Problems of one object; most are the same in every overlay, and a schema takes its time."""
    manifest, problems = json.loads(text), []
    for version in KUBERNETES_VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as exc:
            where = ".".join(map(str, exc.path))
            problems.append(f"Kubernetes {version}: {_name(manifest)}: {where}: {exc.message}")
    return tuple(problems)


def reference_problems(objects: list[KubernetesObject]) -> Iterator[str]:
    """Selectors that select nothing, and names of things that are not there."""
    existing = {_name(manifest) for manifest in objects}
    workloads = [manifest for manifest in objects if manifest["kind"] in WORKLOADS]
    templates = [workload["spec"]["template"] for workload in workloads]
    for manifest in objects:
        spec = manifest.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector"))
        if selector is not None and not any(selects(selector, template) for template in templates):
            yield f"{_name(manifest)}: its selector {selector} matches no pod"
        scaled = spec.get("scaleTargetRef")
        if scaled is not None and f"{scaled['kind']}/{scaled['name']}" not in existing:
            yield f"{_name(manifest)}: scales {scaled['name']}, which is not there"
        for trigger in spec.get("triggers", ()):
            if f"TriggerAuthentication/{trigger['authenticationRef']['name']}" not in existing:
                yield f"{_name(manifest)}: its trigger's authentication is not there"
    for workload in workloads:
        yield from _missing_names(workload, existing)
        yield from _unknown_ports(workload, objects)


def selects(selector: KubernetesObject, template: KubernetesObject) -> bool:
    """Tell whether a selector, of a Service or of any other object, has this pod."""
    labels = template["metadata"]["labels"]
    if not selector.keys() & {"matchLabels", "matchExpressions"}:
        return bool(selector.items() <= labels.items())
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        (each["operator"], labels.get(each["key"]) in each["values"]) == ("In", True)
        for each in selector.get("matchExpressions", ())
    )


def _missing_names(workload: KubernetesObject, existing: set[str]) -> Iterator[str]:
    pod = workload["spec"]["template"]["spec"]
    wanted = {f"ServiceAccount/{pod['serviceAccountName']}"}
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    volumes |= {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
    if workload["kind"] == "StatefulSet":
        wanted.add(f"Service/{workload['spec']['serviceName']}")
    for container in pod["containers"]:
        for source in container.get("envFrom", ()):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source and (kind, source[field]["name"]) not in {("Secret", name) for name in SECRETS}:
                    wanted.add(f"{kind}/{source[field]['name']}")
        keys = [entry["valueFrom"]["secretKeyRef"]["name"] for entry in container.get("env", ()) if _is_secret(entry)]
        wanted |= {f"Secret/{name}" for name in {*keys, *_secret_volumes(pod)} - SECRETS}
        wanted |= {f"ConfigMap/{v['configMap']['name']}" for v in pod.get("volumes", ()) if "configMap" in v}
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"{_name(workload)}: mounts {mount['name']!r}, which is no volume of it"
    yield from (f"{_name(workload)}: needs {name}, which is not there" for name in sorted(wanted - existing))


def _is_secret(entry: KubernetesObject) -> bool:
    return "secretKeyRef" in entry.get("valueFrom", {})


def _secret_volumes(pod: KubernetesObject) -> set[str]:
    return {volume["secret"]["secretName"] for volume in pod.get("volumes", ()) if "secret" in volume}


def _unknown_ports(workload: KubernetesObject, objects: list[KubernetesObject]) -> Iterator[str]:
    template = workload["spec"]["template"]
    ports = {
        known
        for container in template["spec"]["containers"]
        for port in container.get("ports", ())
        for known in (port["name"], port["containerPort"])
    }
    for container in template["spec"]["containers"]:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe].get("grpc") or container[probe].get("httpGet")
            if asked is not None and asked["port"] not in ports:
                yield f"{_name(workload)}: its {probe} asks a port that it does not open"
    for manifest in objects:
        if manifest["kind"] == "Service" and selects(manifest["spec"]["selector"], template):
            for port in manifest["spec"]["ports"]:
                if port["targetPort"] not in ports:
                    yield f"{_name(manifest)}: {port['targetPort']!r} is no port of {_name(workload)}"


def _name(manifest: KubernetesObject) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def main() -> int:
    """Check them all; 1 when there is a problem."""
    failed = False
    for folder in kustomizations():
        objects = build(folder)
        problems = [*schema_problems(objects), *reference_problems(objects)]
        failed = failed or bool(problems) or not objects
        print(f"{folder.relative_to(KUSTOMIZATIONS.parent)}: {len(objects)} objects, {len(problems)} problems")
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
