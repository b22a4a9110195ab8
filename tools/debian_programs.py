"""Programs as Debian packages them, for tests and tools: the installed one, or its package unpacked below build/.

Nothing is installed or started, and no root is needed. Libraries that the machine lacks come with it, by apt.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hotslot.file_lock import lock

ROOT = Path(__file__).resolve().parents[1]
UNPACKED = ROOT / "build" / "debian"
COMMAND_S = 300.0
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig><dir>/usr/share/fonts</dir><dir>{folder}/usr/share/fonts</dir><cachedir>{folder}/fonts</cachedir></fontconfig>
"""


class ProgramMissingError(Exception):
    """A program that is neither installed nor to be had."""


@dataclass(frozen=True, slots=True)
class DebianProgram:
    """A program that can be started, with variables of its environment."""

    path: str
    environment: Mapping[str, str]


@cache
def debian_program(package: str, path: str) -> DebianProgram:
    """The program of a package at a path; raises ProgramMissingError where it cannot be had."""
    found = shutil.which(Path(path).name) or (f"/{path}" if Path("/", path).exists() else None)
    if found is not None:
        return DebianProgram(found, {})
    folder = UNPACKED / package
    if not (folder / path).exists():
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise _missing(package, "there is no apt-get")
        _unpack(package, folder)
    if not (folder / path).exists():
        raise _missing(package, f"it has no {path}")
    return DebianProgram(str(folder / path), _environment(folder))


def _environment(folder: Path) -> dict[str, str]:
    libraries = sorted({str(library.parent) for library in folder.rglob("*.so*")})
    fonts = folder / "fonts.conf"
    environment = {"LD_LIBRARY_PATH": ":".join(libraries)}
    if not Path("/etc/fonts").exists():
        fonts.write_text(_FONTS.format(folder=folder), encoding="utf-8")
        environment["FONTCONFIG_FILE"] = str(fonts)
    return environment


def _unpack(package: str, folder: Path) -> None:
    """Fetch the package with all that it needs and the machine lacks; a second process waits for the first."""
    UNPACKED.mkdir(parents=True, exist_ok=True)
    with (UNPACKED / f"{package}.lock").open("w") as file:
        lock(file.fileno())
        if folder.exists():
            return
        fresh = Path(f"{folder}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        why = _fetch(package, fresh, ())
        if why:
            # The machine's lists are missing or old; others are read for this alone.
            own = _own_lists()
            why = _run(["apt-get", *own, "update"], fresh) or _fetch(package, fresh, own)
        if why:
            raise _missing(package, why)
        for fetched in sorted(fresh.glob("*.deb")):
            why = why or _run(["dpkg-deb", "-x", str(fetched), str(fresh)], fresh)
            fetched.unlink()
        if why:
            raise _missing(package, why)
        fresh.rename(folder)


def _fetch(package: str, folder: Path, options: Sequence[str]) -> str:
    wanted = ["apt-get", *options, "install", "--simulate", "--no-install-recommends", package]
    planned = subprocess.run(wanted, timeout=COMMAND_S, capture_output=True, text=True, check=False)
    names = [line.split()[1] for line in planned.stdout.splitlines() if line.startswith("Inst ")]
    if planned.returncode or not names:
        return planned.stderr or f"{' '.join(wanted)} plans nothing"
    return _run(["apt-get", *options, "download", *names], folder)


def _own_lists() -> list[str]:
    for name in ("lists/partial", "cache/archives/partial"):
        (UNPACKED / "apt" / name).mkdir(parents=True, exist_ok=True)
    places = {"Dir::State::Lists": UNPACKED / "apt" / "lists", "Dir::Cache": UNPACKED / "apt" / "cache"}
    return ["-o", "APT::Sandbox::User=root", *(part for name, at in places.items() for part in ("-o", f"{name}={at}"))]


def _run(command: Sequence[str], folder: Path) -> str:
    """Reason for which a command failed; empty where it did not."""
    done = subprocess.run(command, cwd=folder, timeout=COMMAND_S, capture_output=True, text=True, check=False)
    return (done.stderr or f"{command[0]} ended with {done.returncode}") if done.returncode else ""


def _missing(package: str, why: str) -> ProgramMissingError:
    return ProgramMissingError(f"{package} is neither installed nor to be had: apt-get install {package}\n{why}")
