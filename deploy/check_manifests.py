"""Builds every kustomization and checks it: Kubernetes' schemas, and the references that schemas cannot see."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

KUSTOMIZATIONS = Path(__file__).parent / "kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")
KUBERNETES_VERSIONS = ("1.35", "1.37")
WORKLOADS = {"Deployment", "StatefulSet"}
CUSTOM = {"cert-manager.io/v1"}
"""API versions of custom resources, for which Kubernetes has no schema."""
SECRETS = {
    "hotslot-store-tls", "hotslot-worker-tls", "hotslot-gateway-tls", "hotslot-redis", "hotslot-pool",
    "hotslot-principals",
}  # fmt: skip
"""Secrets that an operator makes; docs/deploy.md has what is in each."""

KubernetesObject = dict[str, Any]


def build(folder: Path) -> list[KubernetesObject]:
    """The objects of a kustomization."""
    built = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise SystemExit(f"{folder}: {built.stderr.strip()}")
    return [document for document in yaml.safe_load_all(built.stdout) if document]


def schema_problems(objects: list[KubernetesObject]) -> Iterator[str]:
    """Problems that the Kubernetes schemas find, unknown fields included."""
    for version in KUBERNETES_VERSIONS:
        for manifest in (each for each in objects if each["apiVersion"] not in CUSTOM):
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as exc:
                where = ".".join(map(str, exc.path))
                yield f"Kubernetes {version}: {_name(manifest)}: {where}: {exc.message}"


def reference_problems(objects: list[KubernetesObject]) -> Iterator[str]:
    """Selectors that select nothing, and names of things that are not there."""
    existing = {_name(manifest) for manifest in objects}
    workloads = [manifest for manifest in objects if manifest["kind"] in WORKLOADS]
    templates = [workload["spec"]["template"] for workload in workloads]
    for manifest in objects:
        spec = manifest.get("spec", {})
        selector = spec.get("selector", spec.get("podSelector"))
        if selector is not None:
            labels = selector.get("matchLabels", selector)
            if not any(labels.items() <= template["metadata"]["labels"].items() for template in templates):
                yield f"{_name(manifest)}: its selector {labels} matches no pod"
    for workload in workloads:
        yield from _missing_names(workload, existing)
        yield from _unknown_ports(workload, objects)


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
                if field in source:
                    wanted.add(f"{kind}/{source[field]['name']}")
        wanted |= {f"Secret/{name}" for name in _secret_volumes(pod) - SECRETS}
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                yield f"{_name(workload)}: mounts {mount['name']!r}, which is no volume of it"
    yield from (f"{_name(workload)}: needs {name}, which is not there" for name in sorted(wanted - existing))


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
            asked = container[probe].get("grpc") or container[probe]["httpGet"]
            if asked["port"] not in ports:
                yield f"{_name(workload)}: its {probe} asks a port that it does not open"
    for manifest in objects:
        if (
            manifest["kind"] == "Service"
            and manifest["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        ):
            for port in manifest["spec"]["ports"]:
                if port["targetPort"] not in ports:
                    yield f"{_name(manifest)}: {port['targetPort']!r} is no port of {_name(workload)}"


def _name(manifest: KubernetesObject) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def main() -> int:
    """Check them all; 1 when there is a problem."""
    failed = False
    for file in sorted(KUSTOMIZATIONS.rglob("kustomization.yaml")):
        objects = build(file.parent)
        problems = [*schema_problems(objects), *reference_problems(objects)]
        failed = failed or bool(problems) or not objects
        print(f"{file.parent.relative_to(KUSTOMIZATIONS.parent)}: {len(objects)} objects, {len(problems)} problems")
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
