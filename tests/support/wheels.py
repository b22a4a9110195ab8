"""Wheels built from this tree, in environments that have their dependencies and nothing else of ours."""

import importlib.metadata
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 600.0
"""Longest run of a program: some start a whole deployment on a busy machine."""


@dataclass(frozen=True)
class Installed:
    """An environment with wheels of ours."""

    bin: Path
    site_packages: Path
    new: frozenset[str]
    """Entries of site-packages that installing the wheels made."""

    def run(self, *command: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a program of the environment as a user would: nothing of this repository is on its path."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HOTSLOT"))}
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=RUN_S, check=False,
        )  # fmt: skip


def build_wheels(folder: Path) -> None:
    """Build the client's and the services' wheel into a folder."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), ".", "./distributions/services"], cwd=ROOT, check=True)


def install(
    wheels: Sequence[Path], extras: Sequence[str], folder: Path, others: Mapping[str, str] | None = None
) -> Installed:
    """Install wheels into an empty environment; `extras` are those of the first, `others` modules that lie there."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    for distribution in dependencies_of(wheels, extras):
        link(distribution, site_packages)
    for name, text in (others or {}).items():
        (site_packages / name).write_text(text)
    before = {path.name for path in site_packages.iterdir()}
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", *map(str, wheels)], check=True)
    new = frozenset(path.name for path in site_packages.iterdir()) - before
    return Installed(folder / "bin", site_packages, new)


def dependencies_of(wheels: Sequence[Path], extras: Sequence[str] = ()) -> list[importlib.metadata.Distribution]:
    """Distributions that pip would install with the first wheel, beside the wheels, as they are installed here."""
    ours: dict[str, list[str]] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = message_from_bytes(archive.read(name))
        ours[canonicalize_name(metadata["Name"])] = metadata.get_all("Requires-Dist", [])
    found: dict[tuple[str, str], importlib.metadata.Distribution | None] = {}
    pending = list(wanted(next(iter(ours.values())), ["", *extras]))
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        key = (name, ",".join(sorted(requirement.extras)))
        if key in found:
            continue
        if name in ours:
            found[key] = None
            pending += wanted(ours[name], ["", *requirement.extras])
        else:
            distribution = found[key] = importlib.metadata.distribution(requirement.name)
            pending += wanted(distribution.requires or [], ["", *requirement.extras])
    return list({name: one for (name, _), one in found.items() if one is not None}.values())


def wanted(lines: Sequence[str], extras: Sequence[str]) -> Iterator[Requirement]:
    """Requirements that hold here, with one of these extras."""
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def link(distribution: importlib.metadata.Distribution, site_packages: Path) -> None:
    """Have a distribution of this environment in another one."""
    files = distribution.files
    assert files is not None
    for name in {file.parts[0] for file in files} - {"..", "__pycache__", "bin"}:
        target = site_packages / name
        if not target.exists():
            target.symlink_to(Path(str(distribution.locate_file(name))))


def top_level(wheel: Path) -> set[str]:
    """Names that a wheel has at its top."""
    with zipfile.ZipFile(wheel) as archive:
        return {name.split("/")[0] for name in archive.namelist()}
