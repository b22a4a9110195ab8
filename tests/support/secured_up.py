"""A deployment of `hotslot up` with the real store and gateway, and workers of the echo model, as its user has it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotslot import ChannelOptions
from hotslot.local.child_processes import free_ports
from hotslot.local.identity_files import IdentityFiles, identity_files
from hotslot.rpc.security import ChannelSecurity
from tests.support.stubbed_up import ROOT

ATTEMPTS = 4


@dataclass
class Secured:
    """A deployment of `hotslot up`, and the environment of its user."""

    process: "subprocess.Popen[str]"
    ready: dict[str, Any]
    folder: Path

    @property
    def files(self) -> IdentityFiles:
        return identity_files(self.folder / "data")

    @property
    def token(self) -> str:
        return self.files.token_file("user").read_text().strip()

    def once(self, security: ChannelSecurity) -> ChannelOptions:
        return ChannelOptions(max_attempts=1, security=security)


def start_secured(folder: Path, *arguments: str, **environment: str) -> Secured:
    """Start it in a folder that has its stubs, and wait until it is ready; ports that are lost meanwhile are others."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("HOTSLOT_")}
    for _ in range(ATTEMPTS):
        numbers = zip(("store", "worker", "gateway"), free_ports(3), strict=True)
        ports = [word for name, port in numbers for word in (f"--{name}-port", str(port))]
        command = [sys.executable, "-m", "hotslot", "up", "--json", "--model", "m", "--data-dir", "data"]
        with (folder / "err").open("w") as err:
            process = subprocess.Popen(
                [*command, *ports, *arguments], cwd=folder, env={**inherited, "PYTHONPATH": str(ROOT), **environment},
                stdout=subprocess.PIPE, stderr=err, text=True,
            )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            return Secured(process, json.loads(line), folder)
        process.wait(60)
        if "is taken" not in (folder / "err").read_text():
            break
    raise AssertionError((folder / "err").read_text())
