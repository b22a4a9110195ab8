"""The container engine of this machine: Docker with its compose plugin, or Podman with podman-compose."""

import os
import resource
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

MAX_OPEN_FILES = 65_536
MAX_PROCESSES = 4_096


class EngineError(Exception):
    """There is no engine, or it could not build."""


@dataclass(frozen=True)
class ContainerEngine:
    """Commands that build and compose."""

    name: str
    compose: list[str]
    build_options: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that its commands need, beside the process's own."""

    def build(self, image: str, dockerfile: Path, context: Path, arguments: Mapping[str, str]) -> None:
        """Build one image with these build arguments; raises EngineError."""
        command = [self.name, "build", *self.build_options, "--file", str(dockerfile), "--tag", image]
        for name, value in {"PIP_ARGS": os.environ.get("PIP_ARGS", ""), **arguments}.items():
            command += ["--build-arg", f"{name}={value}"]
        command.append(str(context))
        done = subprocess.run(command, env=os.environ | self.environment, check=False)
        if done.returncode != 0:
            raise EngineError(
                f"{self.name} could not build {image}; where no container registry can be reached, "
                f"deploy/offline_base_images.sh makes stand-ins for the base images"
            )


def find_engine() -> ContainerEngine:
    """The first engine that answers; raises EngineError when there is none."""
    if _answers("docker", "info") and _answers("docker", "compose", "version"):
        return ContainerEngine("docker", ["docker", "compose"])
    if _answers("podman", "info") and _answers("podman-compose", "--version"):
        return ContainerEngine(
            "podman",
            ["podman-compose"],
            # Health checks are part of Docker's image format only. Builds use this machine's network, which may be
            # the only one that reaches a package index.
            ["--format", "docker", "--network", "host"],
            {"CONTAINERS_CONF": str(_podman_limits())},
        )
    raise EngineError(
        "found neither a running Docker with its compose plugin nor podman with podman-compose; "
        "install one (on Debian and Ubuntu: apt-get install podman podman-compose)"
    )


def _answers(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _podman_limits() -> Path:
    """A containers.conf with limits that this process may grant: inside a sandbox Podman's own are refused."""
    limits = [
        f"{name}={limit}:{limit}"
        for name, wanted, kind in (
            ("nofile", MAX_OPEN_FILES, resource.RLIMIT_NOFILE),
            ("nproc", MAX_PROCESSES, resource.RLIMIT_NPROC),
        )
        for hard in [resource.getrlimit(kind)[1]]
        for limit in [wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)]
    ]
    path = Path(__file__).resolve().parent.parent / "build" / "podman" / "containers.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[containers]\ndefault_ulimits = {limits!r}\n".replace("'", '"'))
    return path
