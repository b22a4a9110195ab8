"""Write the locks that images are installed from: `python -m tools.supply.lock [NAME…]`.

A lock has the exact version of everything that an image's role needs, for Python 3.11 on Linux, with the SHA-256 of
each wheel that may be taken: pip, told to require hashes, installs these bytes and no others. Versions are those of
`requirements/constraints.txt`, wheels and hashes the package index's own.

`worker-cpu` has the CPU build of torch, which is not on that index: give a folder with its wheel as --find-links.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from tools.supply.closure import ROOT, requirements_of

FOLDER = ROOT / "requirements"
PYTHON = "3.11"
GLIBC = 28
"""Newest glibc 2.x that a wheel may need."""
X86_64, AARCH64 = (
    (f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC, 4, -1)))
    for machine in ("x86_64", "aarch64")
)
BUILD = ("cyclonedx-bom>=7.5", "hatchling==1.33.0")
"""Programs of the images' build stages."""
BEFORE_3_11_3 = ("async-timeout>=4.0.3",)
"""Needed by redis on an earlier Python 3.11 than the one that resolves, as Debian's is."""
MACHINES: Mapping[str, Sequence[Sequence[str]]] = {
    "build": (X86_64, AARCH64),
    "store": (X86_64, AARCH64),
    # What torch needs beside itself differs between machines.
    "worker": (X86_64,),
    "worker-cpu": (X86_64,),
}
"""Platforms of each lock, as sets of tags that pip takes wheels of."""


def requirements(name: str) -> list[str]:
    """Direct dependencies of a lock."""
    if name == "build":
        return list(BUILD)
    found = [*requirements_of(name.removesuffix("-cpu")), *BEFORE_3_11_3]
    return [f"{each}, ==2.13.0+cpu" if name == "worker-cpu" and each.startswith("torch") else each for each in found]


def lock_of(name: str, find_links: str) -> str:
    """Text of a lock."""
    versions: dict[str, str] = {}
    digests: defaultdict[str, set[str]] = defaultdict(set)
    for platforms in MACHINES[name]:
        for package, version, digest in _resolved(requirements(name), platforms, find_links):
            if versions.setdefault(package, version) != version:
                raise SystemExit(f"{package}: {version} on one machine, {versions[package]} on another")
            digests[package].add(digest)
    return lock_text(versions, digests)


def lock_text(versions: Mapping[str, str], digests: Mapping[str, Iterable[str]]) -> str:
    """Versions with the digests of their wheels, as pip reads them."""
    lines = ["# Written by `make lock`. Images are installed from it with pip's --require-hashes."]
    for package in sorted(versions):
        hashes = [f"    --hash=sha256:{digest}" for digest in sorted(digests[package])]
        lines.append(" \\\n".join([f"{package}=={versions[package]}", *hashes]))
    return "\n".join(lines) + "\n"


def _resolved(wanted: Sequence[str], platforms: Sequence[str], find_links: str) -> list[tuple[str, str, str]]:
    """Packages with versions and digests that pip would install on a machine."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "wanted.txt").write_text("\n".join(wanted) + "\n")
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
            "--ignore-installed", "--only-binary", ":all:", "--python-version", PYTHON, "--target", str(folder / "to"),
            "--report", str(folder / "report.json"), "--constraint", str(FOLDER / "constraints.txt"),
            "--requirement", str(folder / "wanted.txt"),
            *(f"--platform={platform}" for platform in platforms),
            *([f"--find-links={find_links}"] if find_links else []),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return [
        (canonicalize_name(item["metadata"]["name"]), item["metadata"]["version"], _digest(item["download_info"]))
        for item in report["install"]
    ]


def _digest(download: Mapping[str, Any]) -> str:
    """SHA-256 that the index has for a file, or a local file's own."""
    known = download.get("archive_info", {}).get("hashes", {}).get("sha256")
    if known:
        return str(known)
    with Path(unquote(urlsplit(download["url"]).path)).open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write locks, by default all but that of the CPU build of torch, which needs its wheel."""
    parser = argparse.ArgumentParser(prog="python -m tools.supply.lock", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MACHINES], help="locks to write")
    parser.add_argument("--find-links", default="", help="folder or page with more wheels")
    chosen = parser.parse_args(arguments)
    for name in chosen.names or [name for name in MACHINES if name != "worker-cpu" or chosen.find_links]:
        path = FOLDER / f"{name}.lock"
        path.write_text(lock_of(name, chosen.find_links), encoding="utf-8")
        print(f"lock: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
