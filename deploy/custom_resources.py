"""Custom resources of others in manifests, held against schemas of what is used of them."""

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

KUBERNETES = Path(__file__).parent / "kubernetes"
SCHEMAS = KUBERNETES / "schemas.yaml"


@cache
def schemas() -> Mapping[str, Mapping[str, Any]]:
    """The schemas of specs, by apiVersion/kind."""
    known: dict[str, Mapping[str, Any]] = dict(yaml.safe_load(SCHEMAS.read_text(encoding="utf-8"))["kinds"])
    return known


def is_custom(manifest: Mapping[str, Any]) -> bool:
    """True for an object that Kubernetes itself has no schema of."""
    return f"{manifest['apiVersion']}/{manifest['kind']}" in schemas()


def custom_problems(objects: list[dict[str, Any]]) -> Iterator[str]:
    """Problems that the schemas of custom resources find, unknown fields included."""
    for manifest in filter(is_custom, objects):
        kind = f"{manifest['apiVersion']}/{manifest['kind']}"
        validator = jsonschema.Draft202012Validator({"type": "object", **schemas()[kind]})
        for error in validator.iter_errors(manifest["spec"]):
            where = ".".join(map(str, ("spec", *error.path)))
            yield f"{kind}: {manifest['metadata']['name']}: {where}: {error.message}"
        if strays := manifest.keys() - {"apiVersion", "kind", "metadata", "spec"}:
            yield f"{kind}: {manifest['metadata']['name']}: unknown fields {', '.join(sorted(strays))}"
