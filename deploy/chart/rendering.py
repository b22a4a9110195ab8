"""Rendering by Helm itself: its library, in the place of its command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

from deploy.chart.writing import key_of
from deploy.check_manifests import KubernetesObject

CHECKSUM = "checksum/settings"


def rendered(chart: Path, values: Mapping[str, Any]) -> dict[tuple[str, str], KubernetesObject]:
    """Objects by kind and name; raises `helm_python.HelmError`, also for values that the schema refuses."""
    with helm_python.Chart.load(str(chart)) as loaded:
        texts = loaded.render(dict(values), name="hotslot", namespace="hotslot")
    files = [text for name, text in texts.items() if name.endswith(".yaml")]
    return {key_of(each): each for text in files for each in yaml.safe_load_all(text) if each}


def without_checksums(objects: Mapping[tuple[str, str], KubernetesObject]) -> dict[tuple[str, str], KubernetesObject]:
    """The objects as kustomize makes them, where names of ConfigMaps do what these annotations do."""
    for manifest in objects.values():
        metadata = manifest.get("spec", {}).get("template", {}).get("metadata", {})
        if metadata.get("annotations", {}).pop(CHECKSUM, "") and not metadata["annotations"]:
            del metadata["annotations"]
    return dict(objects)
