"""Wheels built from this tree, and the client's in an environment that has its dependencies and nothing of ours."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model, voice
from tests.support.stack import Stack
from tests.support.wheels import Installed, build_wheels, dependencies_of, install, top_level

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
SPEC = echo_model().spec
OTHERS = {"client.py": "mine = 1\n", "shared.py": "mine = 2\n"}
"""Modules of the user's own, called as packages of this repository are or were."""
PROGRAM = """
from hotslot import AdapterSelection, BlockingHotslotClient, GenerationRequest

def answer(store: str, worker: str, prompt: str) -> str:
    with BlockingHotslotClient(store, worker) as hotslot:
        return hotslot.complete(GenerationRequest(prompt, (AdapterSelection("pirate", 0.5),))).text
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    build_wheels(folder)
    return folder


@pytest.fixture(scope="module")
def client_wheel(wheels: Path) -> Path:
    (wheel,) = wheels.glob("hotslot-*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(client_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install([client_wheel], [], tmp_path_factory.mktemp("environment"), OTHERS)


def test_the_client_has_one_package_with_types(client_wheel: Path) -> None:
    with zipfile.ZipFile(client_wheel) as archive:
        names = archive.namelist()
    modules = {name for name in names if not name.startswith("hotslot-")}
    assert modules == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "hotslot").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "hotslot/py.typed" in modules
    assert top_level(client_wheel) == {"hotslot", f"{client_wheel.name.rsplit('-', 3)[0]}.dist-info"}


def test_the_services_are_a_wheel_of_their_own(wheels: Path) -> None:
    (wheel,) = wheels.glob("hotslot_services-*.whl")
    packages = {"shared", "controller_service", "gateway_service", "store_service", "worker_service"}
    assert top_level(wheel) == {*packages, f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".cpp", ".h", ".mako")
    } - names
    assert not missing


def test_an_editable_install_runs_the_code_of_the_tree(tmp_path: Path) -> None:
    venv.create(tmp_path, with_pip=False, symlinks=True)
    (site_packages,) = tmp_path.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    target = ["--target", str(site_packages), "-e", ".", "-e", "distributions/services"]
    subprocess.run([*pip, *target], cwd=ROOT, check=True)
    assert {path.name for path in site_packages.iterdir() if path.is_dir()} & {"hotslot", "shared"} == set()
    code = "import importlib.util as u, sys; print(*(u.find_spec(name).origin for name in sys.argv[1:]), sep='\\n')"
    packages = ["hotslot", "shared", "controller_service", "gateway_service", "store_service", "worker_service"]
    done = subprocess.run(
        [str(tmp_path / "bin" / "python"), "-c", code, *packages],
        cwd=tmp_path, env={}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in packages], done.stderr


def test_installing_the_client_adds_one_name_and_leaves_other_modules_alone(
    installed: Installed, client_wheel: Path, tmp_path: Path
) -> None:
    assert installed.new == top_level(client_wheel)
    for name, text in OTHERS.items():
        assert (installed.site_packages / name).read_text() == text
    done = installed.run(
        "python", "-c", "import client, hotslot, shared; print(client.mine + shared.mine)", cwd=tmp_path
    )
    assert done.stdout == "3\n", done.stderr


def test_the_client_needs_nothing_of_the_services(client_wheel: Path) -> None:
    names = {canonicalize_name(distribution.name) for distribution in dependencies_of([client_wheel])}
    assert {"grpcio", "typer"} <= names
    assert not names & {"redis", "structlog", "sqlalchemy", "pydantic-settings", "torch", "transformers"}


def test_the_command_explains_itself_and_what_it_lacks(installed: Installed, tmp_path: Path) -> None:
    assert "generate" in installed.run("hotslot", "--help", cwd=tmp_path).stdout
    done = installed.run("hotslot", "up", "--data-dir", str(tmp_path), cwd=tmp_path)
    assert done.returncode != 0
    assert "hotslot[up]" in done.stderr


def test_the_client_pushes_and_generates(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "pirate").mkdir()
    adapter(spec=SPEC).write(tmp_path / "pirate")
    with Stack(tmp_path) as stack:
        store = stack.start_store()
        worker = stack.launch_echo_worker()
        worker.wait_ready(120)
        endpoints = {"HOTSLOT_STORE": store.spec.endpoint, "HOTSLOT_WORKER": worker.spec.endpoint}
        pushed = installed.run("hotslot", "push", "pirate", "pirate", "--json", cwd=tmp_path, **endpoints)
        assert pushed.returncode == 0, pushed.stderr
        code = f"{PROGRAM}\nprint(answer({store.spec.endpoint!r}, {worker.spec.endpoint!r}, 'hello'))"
        answered = installed.run("python", "-c", code, cwd=tmp_path)
        generated = installed.run("hotslot", "generate", "-a", "pirate", "hello", cwd=tmp_path, **endpoints)
    digest = next(part for part in pushed.stdout.split('"') if part.startswith("sha256:"))
    assert answered.stdout.strip() == voice(digest, 0.5), answered.stderr
    assert voice(digest) in generated.stdout, generated.stderr


@pytest.mark.parametrize(("code", "problem"), [(PROGRAM, ""), (PROGRAM.replace("0.5", '"half"'), "arg-type")])
def test_a_strict_type_check_of_a_users_program_sees_our_types(
    installed: Installed, tmp_path: Path, code: str, problem: str
) -> None:
    (tmp_path / "program.py").write_text(code)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [*mypy, "--python-executable", str(installed.bin / "python"), "program.py"],
        cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (problem in done.stdout) if problem else (done.returncode == 0), done.stdout + done.stderr
    assert bool(done.returncode) is bool(problem)
