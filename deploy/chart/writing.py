"""Templates, values and the schema of values, made from objects and the table of knobs."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from deploy.chart.knobs import ABSENT, KNOBS, Knob, put, value_at
from deploy.check_manifests import KubernetesObject

MARK = "HOTSLOT-KNOB-"
"""Text that no object has, in the place of a value until the object is text."""
HELPERS = """\
{{- define "hotslot.image" -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}
{{- define "hotslot.setting" -}}
{{ if kindIs "string" . }}{{ . | toJson }}{{ else }}{{ toJson . | toJson }}{{ end }}
{{- end }}
"""


def key_of(manifest: KubernetesObject) -> tuple[str, str]:
    """Kind and name, by which overlays' objects are compared with the base's."""
    return manifest["kind"], manifest["metadata"]["name"]


def default_of(knob: Knob, objects: Mapping[tuple[str, str], KubernetesObject]) -> Any:
    """The value that renders the objects as they are; ABSENT where the chart has no such object."""
    manifest = objects.get((knob.kind, knob.name))
    if manifest is None:
        return ABSENT
    if knob.form == "more":
        return []
    value = value_at(manifest, knob.path)
    if knob.form == "image":
        return image_of(value)
    return None if value is ABSENT else value


def image_of(text: str) -> dict[str, str]:
    """A name of an image in its parts."""
    name, _, digest = text.partition("@")
    repository, colon, tag = name.rpartition(":") if ":" in name.rpartition("/")[2] else (name, "", "")
    return {"repository": repository if colon else name, "tag": tag, "digest": digest}


def values_of(objects: Iterable[KubernetesObject], switches: Iterable[str]) -> dict[str, Any]:
    """The chart's default values: everything as it is, every switch off."""
    known = {key_of(manifest): manifest for manifest in objects}
    values: dict[str, Any] = {}
    for switch in switches:
        put_value(values, f"{switch}.enabled", False)
    for knob in KNOBS:
        if (default := default_of(knob, known)) is not ABSENT:
            put_value(values, knob.value, default)
    return values


def put_value(values: dict[str, Any], place: str, value: Any) -> None:
    """Set a value at its place with dots."""
    *parents, last = place.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = value


def template_of(manifest: KubernetesObject, switch: str = "") -> str:
    """The template of one object, which a switch adds where there is one."""
    marked = copy.deepcopy(manifest)
    knobs = [knob for knob in KNOBS if (knob.kind, knob.name) == key_of(manifest)]
    for number, knob in enumerate(knobs):
        put(marked, knob.path, f"{MARK}{number}")
    if settings := settings_of(marked):
        # New settings are new pods: the name of a ConfigMap has no digest of its content here.
        put(marked, ("spec", "template", "metadata", "annotations"), {"checksum/settings": f"{MARK}sum-{settings}"})
    text = yaml.safe_dump(marked, sort_keys=False, width=10_000, allow_unicode=True)
    text = text.replace("{{", '{{ "{{" }}')
    lines = [line for each in text.splitlines() for line in _rendered(each, knobs)]
    if switch:
        lines = [f"{{{{- if .Values.{switch}.enabled }}}}", *lines, "{{- end }}"]
    return "\n".join(lines) + "\n"


def settings_of(manifest: KubernetesObject) -> str:
    """The value with the settings of a workload's own container; empty for other objects."""
    if manifest["kind"] not in ("Deployment", "StatefulSet"):
        return ""
    name = manifest["metadata"]["name"]
    return next((k.value for k in KNOBS if (k.form, k.name) == ("settings", name)), "")


def _rendered(line: str, knobs: Sequence[Knob]) -> Iterator[str]:
    """The lines in the place of one that may have a mark."""
    before, mark, number = line.partition(MARK)
    if not mark:
        yield line
        return
    if number.startswith("sum-"):
        yield f"{before}{{{{ toJson .Values.{number.removeprefix('sum-')} | sha256sum }}}}"
        return
    knob = knobs[int(number)]
    value, indent = f".Values.{knob.value}", " " * (len(before) - len(before.lstrip(" ")))
    if knob.form == "optional":
        yield f'{{{{- if ne (toJson {value}) "null" }}}}'
        yield f"{before}{{{{ toJson {value} }}}}"
        yield "{{- end }}"
    elif knob.form == "more":
        yield f"{{{{- range {value} }}}}"
        yield f"{before}{{{{ toJson . }}}}"
        yield "{{- end }}"
    elif knob.form == "image":
        yield f'{before}{{{{ include "hotslot.image" {value} }}}}'
    elif knob.form == "settings":
        yield before.rstrip()
        yield f"{{{{- range $name, $setting := {value} }}}}"
        yield f'{indent}  {{{{ $name }}}}: {{{{ include "hotslot.setting" $setting }}}}'
        yield "{{- end }}"
    else:
        yield f"{before}{{{{ toJson {value} }}}}"


def schema_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the values, so that a mistyped name fails: names are known as far as knobs go."""
    places = {knob.value for knob in KNOBS}

    def below(node: Mapping[str, Any], place: str) -> dict[str, Any]:
        properties = {}
        for name, value in node.items():
            here = f"{place}.{name}".lstrip(".")
            if here not in places and isinstance(value, Mapping):
                properties[name] = below(value, here)
            else:
                properties[name] = _leaf(value)
        return {"type": "object", "additionalProperties": False, "properties": properties}

    schema = below(values, "")
    schema["properties"]["global"] = {"type": "object"}
    return {"$schema": "https://json-schema.org/draft-07/schema#", **schema}


def _leaf(value: Any) -> dict[str, Any]:
    kinds = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}
    # What has no value by default may have any; and no value where the default has one takes the default away.
    return {} if value is None else {"type": [kinds[type(value)], "null"]}


def as_yaml(values: Mapping[str, Any], head: str) -> str:
    """Values as a file."""
    return head + yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False, width=120, allow_unicode=True)
