"""Images are made of locked bytes, locks are of the pinned versions, and every licence is allowed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.supply import audit, licences
from tools.supply.closure import ROOT, requirements_of
from tools.supply.lock import BUILD, MACHINES

LOCKS = {name: ROOT / "requirements" / f"{name}.lock" for name in MACHINES}
DOCKERFILES = sorted((ROOT / "deploy").glob("*.Dockerfile"))
ENTRY = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?P<hashes>( \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def entries(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package in a lock."""
    text = LOCKS[name].read_text()
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    found = {m["name"]: (m["version"], m["hashes"].count("sha256:")) for m in ENTRY.finditer(body)}
    assert ENTRY.sub("", body) == "", "a line of the lock has no hash"
    return found


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    found = [re.split("==|;", line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version.strip() for name, version, *_ in found}


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_a_lock_has_the_pinned_versions_with_hashes(name: str) -> None:
    found, pinned = entries(name), pins()
    assert len(found) > 5
    for package, (version, num_hashes) in found.items():
        assert num_hashes >= 1
        if package in pinned:
            assert version.partition("+")[0] == pinned[package], f"{package}: run `make lock`"
    if name != "build":
        # What CUDA's build of torch brings is pinned by torch itself.
        torchs = re.compile(r"nvidia-|cuda-|triton$")
        assert {p for p in found if p not in pinned and not torchs.match(p)} == set(), "add it to the constraints"


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_a_lock_has_everything_that_its_role_names(name: str) -> None:
    wanted = BUILD if name == "build" else requirements_of(name.removesuffix("-cpu"))
    found = entries(name)
    for text in wanted:
        requirement = Requirement(text)
        version = found[canonicalize_name(requirement.name)][0]
        assert requirement.specifier.contains(version, prereleases=True), f"{text}: run `make lock`"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_installs_locked_bytes_alone(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    installs = re.findall(r"pip (?:install|wheel) [^&\n]*", text)
    assert len(installs) >= 4
    for command in installs:
        locked = "--require-hashes" in command and re.search(r"-r \S+", command)
        own = "--no-deps" in command and ("--no-index" in command or "--no-build-isolation" in command)
        assert bool(locked) or own, command
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2, "a base that no digest can pin"
    assert "pip check" in text, "a lock that lacks something"
    assert "sbom.cdx.json" in text
    assert "COPY --from=build /opt/hotslot /opt/hotslot" in text


def test_the_stores_image_has_no_compiler_and_no_installer() -> None:
    store = (ROOT / "deploy" / "store.Dockerfile").read_text()
    assert "apt-get" not in store
    assert "uninstall --yes pip" in store


def test_every_licence_is_allowed() -> None:
    assert list(licences.problems(licences.read_policy())) == []


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True), ("MIT OR GPL-3.0-only", True), ("MIT AND GPL-3.0-only", False), ("GPL-3.0-only", False),
        ("Apache-2.0 AND (MIT OR GPL-2.0)", True), ("", False), ("MITX", False),
    ],
)  # fmt: skip
def test_a_licence_is_judged_by_its_expression(expression: str, allowed: bool) -> None:
    assert licences.is_allowed(expression, {"MIT", "Apache-2.0"}) is allowed


def test_a_licence_that_is_not_in_the_list_is_a_problem() -> None:
    policy: dict[str, Any] = {**licences.read_policy(), "allowed": ["MIT"], "exceptions": {"gone": {"licence": "MIT"}}}
    found = list(licences.problems(policy))
    assert any("psycopg" in problem for problem in found)
    assert any("gone" in problem for problem in found)


@pytest.mark.parametrize(
    ("returned", "told", "unless_offline", "status"),
    [
        (0, "No known vulnerabilities found", False, 0),
        (1, "Found 2 known vulnerabilities in 1 package", False, 1),
        (1, "Found 2 known vulnerabilities in 1 package", True, 1),
        (1, "ConnectionError: Max retries exceeded", False, audit.NOT_AUDITED),
        (1, "ConnectionError: Max retries exceeded", True, 0),
        (1, "Traceback: something else", True, 1),
    ],
)
def test_an_audit_that_was_not_made_says_so(returned: int, told: str, unless_offline: bool, status: int) -> None:
    found, line = audit.verdict_of(returned, told, unless_offline)
    assert found == status
    assert ("NOT AUDITED" in line) == ("Connection" in told)


@pytest.mark.parametrize("name", ["store", "worker", "worker-cpu"])
def test_a_bill_of_materials_names_everything_that_is_locked(tmp_path: Path, name: str) -> None:
    target = tmp_path / "sbom.json"
    program = Path(sys.executable).with_name("cyclonedx-py")
    subprocess.run([program, "requirements", "--output-file", target, LOCKS[name]], check=True, capture_output=True)
    document = json.loads(target.read_text())
    assert document["bomFormat"] == "CycloneDX"
    found = {(canonicalize_name(each["name"]), each["version"]) for each in document["components"]}
    assert found == {(package, version) for package, (version, _) in entries(name).items()}
    assert all(each["externalReferences"][0]["hashes"] for each in document["components"])
