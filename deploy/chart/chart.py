"""The whole chart as files, and the values that make of it what each overlay is."""

import copy
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from deploy.chart.knobs import ABSENT, KNOBS, SWITCHES, Knob, value_at
from deploy.chart.writing import HELPERS, as_yaml, image_of, key_of, put_value, schema_of, template_of, values_of
from deploy.check_manifests import KUSTOMIZATIONS, KubernetesObject, build, kustomizations

NAME = "hotslot"
HEAD = "# Made by `python -m deploy.chart` from deploy/kubernetes; never edited by hand.\n"
_HASHED = re.compile(r"-[0-9a-z]{10}$")
"""Digest of a ConfigMap's content, as kustomize ends its name."""


class InexpressibleError(Exception):
    """An overlay changes what the chart has no value for."""


@dataclass(frozen=True, slots=True)
class ChartSources:
    """Objects of the base and of each overlay, with ConfigMaps under their bare names."""

    base: list[KubernetesObject]
    overlays: Mapping[str, list[KubernetesObject]]
    added: Mapping[str, list[KubernetesObject]]
    """Objects that are not the base's, by the switch of the component that they are of."""

    @classmethod
    def built(cls) -> "ChartSources":
        """Objects that kustomize makes of the files; raises InexpressibleError for those of no component."""
        folders = kustomizations()
        with ThreadPoolExecutor(2) as threads:
            built = [bare(objects) for objects in threads.map(build, folders)]
        base, *overlays = built
        return cls(
            base, {folder.name: objects for folder, objects in zip(folders[1:], overlays, strict=True)}, added_by(built)
        )


def added_by(built: Sequence[list[KubernetesObject]]) -> dict[str, list[KubernetesObject]]:
    """The objects that the first list has not, by the switch of the component whose files have them."""
    base, *overlays = built
    known = {key_of(manifest) for manifest in base}
    members = {switch: components_of(component) for switch, component in SWITCHES.items()}
    found: dict[str, dict[tuple[str, str], KubernetesObject]] = {}
    for manifest in itertools.chain.from_iterable(overlays):
        key = key_of(manifest)
        if key in known:
            continue
        owners = [switch for switch, names in members.items() if key in names]
        if len(owners) != 1:
            raise InexpressibleError(f"{key} is of {owners or 'no component'}, expected one of {list(SWITCHES)}")
        found.setdefault(owners[0], {}).setdefault(key, manifest)
    return {switch: list(objects.values()) for switch, objects in found.items()}


def components_of(name: str) -> set[tuple[str, str]]:
    """Kinds and names of the objects that a component's files have."""
    names: set[tuple[str, str]] = set()
    folder = KUSTOMIZATIONS / "components" / name
    if not folder.is_dir():
        return names
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    for entry in kustomization.get("configMapGenerator", ()):
        if entry.get("behavior") != "merge":
            names.add(("ConfigMap", entry["name"]))
    for resource in kustomization.get("resources", ()):
        path = folder / resource
        objects = build(path) if path.is_dir() else yaml.safe_load_all(path.read_text(encoding="utf-8"))
        names |= {key_of(manifest) for manifest in objects if manifest}
    return names


def bare(objects: Iterable[KubernetesObject]) -> list[KubernetesObject]:
    """The same objects, with names of ConfigMaps that have no digest of their content."""
    found = [copy.deepcopy(manifest) for manifest in objects]
    names = {m["metadata"]["name"]: _HASHED.sub("", m["metadata"]["name"]) for m in found if m["kind"] == "ConfigMap"}
    return [_renamed(manifest, names) for manifest in found]


def _renamed(thing: Any, names: Mapping[str, str]) -> Any:
    if isinstance(thing, dict):
        return {key: _renamed(value, names) for key, value in thing.items()}
    if isinstance(thing, list):
        return [_renamed(each, names) for each in thing]
    return names.get(thing, thing) if isinstance(thing, str) else thing


def overlay_values(sources: ChartSources, overlay: str) -> dict[str, Any]:
    """The values that make the overlay of the chart: switches, and what is other than in the base."""
    objects = {key_of(manifest): manifest for manifest in sources.overlays[overlay]}
    added = sources.added
    defaults = {key_of(m): m for m in (*sources.base, *(m for each in added.values() for m in each))}
    values: dict[str, Any] = {}
    for switch, its in added.items():
        if all(key_of(manifest) in objects for manifest in its):
            put_value(values, f"{switch}.enabled", True)
    for knob in KNOBS:
        manifest, default = objects.get((knob.kind, knob.name)), defaults.get((knob.kind, knob.name))
        if manifest is None or default is None:
            continue
        here, there = _value(knob, manifest, default), _value(knob, default, default)
        if here != there:
            put_value(values, knob.value, _changed(here, there, knob))
    return values


def _value(knob: Knob, manifest: KubernetesObject, default: KubernetesObject) -> Any:
    if knob.form == "more":
        before = value_at(default, knob.path[:-1])
        here = value_at(manifest, knob.path[:-1])
        return [] if here is ABSENT else here[0 if before is ABSENT else len(before) :]
    value = value_at(manifest, knob.path)
    if knob.form == "image":
        return image_of(value)
    return None if value is ABSENT else value


def _changed(here: Any, there: Any, knob: Knob) -> Any:
    """Values are merged into the defaults: entries that are the same are left out."""
    if isinstance(here, dict) and isinstance(there, dict):
        gone = dict.fromkeys(there.keys() - here.keys())
        return {
            name: _changed(value, there.get(name), knob) for name, value in here.items() if value != there.get(name)
        } | gone
    return here


def files(sources: ChartSources) -> dict[Path, str]:
    """Every file of the chart, by its path inside."""
    added = sources.added
    values = values_of(
        (*sources.base, *(m for each in added.values() for m in each)), [s for s in SWITCHES if s in added]
    )
    release = version("hotslot")
    chart = {
        "apiVersion": "v2",
        "name": NAME,
        "description": "Serves many LoRA adapters from one compiled base model.",
        "type": "application",
        "version": release,
        "appVersion": release,
        "kubeVersion": ">=1.34.0-0",
    }
    templates = {"base": "---\n".join(template_of(manifest) for manifest in sources.base)}
    templates |= {
        switch: "---\n".join(template_of(manifest, switch) for manifest in its) for switch, its in added.items()
    }
    found = {
        Path("Chart.yaml"): as_yaml(chart, HEAD),
        Path("values.yaml"): as_yaml(values, HEAD),
        Path("values.schema.json"): json.dumps(schema_of(values), indent=1),
        Path("templates/_helpers.tpl"): HELPERS,
    }
    found |= {Path(f"templates/{name}.yaml"): text for name, text in templates.items()}
    found |= {
        Path(f"values/{overlay}.yaml"): as_yaml(overlay_values(sources, overlay), HEAD) for overlay in sources.overlays
    }
    return found
