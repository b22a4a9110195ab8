"""Dependencies of the product by role, as the two `pyproject.toml` name them, and the closure that is installed."""

import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
OWN = ("hotslot", "hotslot-services")
ROLES: Mapping[str, Sequence[str]] = {
    "store": ("store", "postgres", "objects", "gateway", "signatures", "traces"),
    "worker": ("worker", "traces"),
}
"""Extras of the services in each image."""
EXTRAS = ("embedded", "up", "training")
"""Extras of the client that users install."""


def requirements_of(role: str) -> list[str]:
    """Direct dependencies of an image's role, without our own distributions."""
    client, services = _project("."), _project("distributions/services")
    found = {*client["dependencies"], *services["dependencies"]}
    for extra in ROLES[role]:
        found |= set(services["optional-dependencies"][extra])
    return _foreign(found)


def product_requirements() -> list[str]:
    """Direct dependencies of everything that users install."""
    client = _project(".")
    found = {each for role in ROLES for each in requirements_of(role)}
    for extra in EXTRAS:
        found |= set(client["optional-dependencies"][extra])
    return _foreign(found)


def installed_closure(requirements: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Versions of what requirements bring along, as installed, by name; and the names that are not installed."""
    seen: dict[str, frozenset[str]] = {}
    versions: dict[str, str] = {}
    missing: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if name in seen and extras <= seen[name]:
            continue
        extras |= seen.get(name, frozenset())
        seen[name] = extras
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.add(name)
            continue
        versions[name] = found.version
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in ("", *extras)):
                waiting.append(needed)
    return versions, sorted(missing)


def _project(folder: str) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _foreign(requirements: set[str]) -> list[str]:
    return sorted(text for text in requirements if canonicalize_name(Requirement(text).name) not in OWN)
