"""Examples of the pages, run from top to bottom against a real deployment: what they show is what is printed."""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from hotslot import BlockingHotslotClient
from hotslot.cli.app import run
from hotslot.local.child_processes import free_port
from hotslot.local.children import Child, ChildSpec
from tests.integration.conftest import ROOT
from tests.support.page_examples import PageExample, examples, missing_lines, typed_lines
from tools.docs.settings_reference import SERVICES

pytestmark = [pytest.mark.integration, pytest.mark.model]

PAGES = ["README.md", "docs/quickstart.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "how-to").glob("*.md"))
OF_THE_WHOLE = ("hotslot up", "hotslot down", "hotslot drain", "hotslot undrain", "make ", "source ", "python train.py")
"""Lines about a deployment that other tests use too, or about the checkout: only their options are looked at."""
DATA: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
    "text": str,
}
"""Blocks that are not run: how to tell that one is well-formed."""
VARIABLES = re.compile(r"^(?:HOTSLOT_\w+=\S+ +)+")
SHELL = set("|><;&*$`")
TIMEOUT_S = 240


@pytest.fixture(scope="module")
def gateway(
    hotslot: BlockingHotslotClient, store_process: Child, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """host:port of a gateway before the store and the worker."""
    endpoint = f"127.0.0.1:{free_port()}"
    settings = {
        "HOTSLOT_GATEWAY_LISTEN": endpoint,
        "HOTSLOT_STORE": store_process.spec.endpoint,
        "HOTSLOT_GATEWAY_WORKER": hotslot.worker.client.endpoint,
    }
    log = tmp_path_factory.mktemp("gateway") / "gateway.log"
    child = Child(ChildSpec("gateway", "gateway_service", endpoint, settings, log, health_path="/health"))
    child.wait_ready(TIMEOUT_S)
    yield endpoint
    child.kill()


@pytest.fixture
def clean_store(hotslot: BlockingHotslotClient) -> Iterator[None]:
    """Nothing that a page pushes is there for the next one, or for other tests."""
    before = {adapter.name for adapter in hotslot.store.list_adapters()}
    yield
    for adapter in list(hotslot.store.list_adapters()):
        if adapter.name not in before:
            hotslot.store.delete_adapter(adapter.name)


class Reader:
    """Someone who types what a page says, in a folder that looks like a checkout."""

    def __init__(self, folder: Path, addresses: dict[str, str], node: Callable[[], list[str]]) -> None:
        """`addresses` replaces those of the pages; `node` is the command that runs a program, without the program."""
        self._folder = folder
        self._addresses = addresses
        self._node = node
        self._printed = ""
        self.num_run = 0
        for name in ("deploy", "protos"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "bin").mkdir()
        command = folder / "bin" / "hotslot"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hotslot "$@"\n')
        command.chmod(0o755)

    def read(self, example: PageExample) -> None:
        """Do what a block is for; raises AssertionError where the page is wrong."""
        where = f"{example.page}:{example.line}"
        text = self._here(example.text)
        if example.reason:
            return
        if example.language == "console":
            for typed in typed_lines(text):
                self._type(typed.command.replace(".venv/bin/", ""), where)
                shown = () if typed.command.replace(".venv/bin/", "").startswith(OF_THE_WHOLE) else typed.shown
                self._compare(shown, f"{where}: {typed.command}")
        elif example.language == "python":
            self._printed = _run_python(self._folder / "example.py", text)
            self.num_run += 1
        elif example.language == "javascript":
            *node, program = self._node()
            Path(program).write_text(text)
            self._printed = self._finish([*node, program], where)
            self.num_run += 1
        elif example.language == "text" and text.startswith("> "):
            self._compare(tuple(line.removeprefix("> ") for line in text.splitlines()), where)
        else:
            assert example.language in DATA, f"{where}: a block of {example.language!r} is neither run nor data"
            DATA[example.language](text)

    def _here(self, text: str) -> str:
        for address, ours in self._addresses.items():
            text = text.replace(address, ours)
        return text

    def _compare(self, shown: tuple[str, ...], where: str) -> None:
        missing = missing_lines(shown, self._printed)
        assert not missing, f"{where}: {missing} was not printed, but {self._printed}"

    def _type(self, command: str, where: str) -> None:
        variables = VARIABLES.match(command)
        if variables is not None:
            _check_variables(variables[0], where)
            command = command[variables.end() :]
        of_the_whole = command.startswith(OF_THE_WHOLE)
        if command.startswith("hotslot ") and not SHELL & set(command):
            _, *arguments = shlex.split(command, comments=True)
            code, self._printed = _hotslot([*arguments, *(["--help"] if of_the_whole else [])])
            assert code == 0, f"{where}: {command}: {self._printed}"
            self.num_run += not of_the_whole
        elif not of_the_whole:
            self._printed = self._finish(["bash", "-c", command], where)
            self.num_run += 1

    def _finish(self, command: list[str], where: str) -> str:
        path = os.pathsep.join([str(self._folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        found = subprocess.run(
            command,
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert found.returncode == 0, f"{where}: {command}: {found.stdout}"
        return found.stdout


def _hotslot(arguments: list[str]) -> tuple[int, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = run(arguments)
    return code, printed.getvalue()


def _run_python(program: Path, text: str) -> str:
    program.write_text(text)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(program), run_name="__main__")
    return out.getvalue()


def _check_variables(text: str, where: str) -> None:
    known = {f"HOTSLOT_{name.upper()}" for settings in SERVICES.values() for name in settings.model_fields}
    unknown = {pair.partition("=")[0] for pair in text.split()} - known
    assert not unknown, f"{where}: there is no setting {unknown}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(
    page: str,
    store_process: Child,
    worker_process: Child,
    gateway: str,
    clean_store: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    store, worker = store_process.spec.endpoint, worker_process.spec.endpoint
    monkeypatch.chdir(tmp_path)
    for name, value in {"HOTSLOT_STORE": store, "HOTSLOT_WORKER": worker, "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    # The examples name the ports that `hotslot up` takes unless it is told others.
    addresses = {
        "localhost:7400": store, "localhost:7500": worker, "localhost:7600": gateway,
        "HotslotClient()": f"HotslotClient({store!r}, {worker!r})",
    }  # fmt: skip
    reader = Reader(tmp_path, addresses, lambda: request.getfixturevalue("node_program")("example.js"))
    for example in examples(ROOT / page, page):
        reader.read(example)
    assert reader.num_run > 0, "a page has an example that is run"


def test_an_example_that_is_not_run_says_why_and_most_are_run() -> None:
    found = [example for page in PAGES for example in examples(ROOT / page, page)]
    skipped = [example for example in found if example.reason]
    assert len(found) > 40
    assert len(skipped) < len(found) / 5
    assert all(len(example.reason.split()) > 3 for example in skipped)


def test_what_a_page_shows_and_is_not_printed_is_found() -> None:
    printed = "NAME   TAGS\npirate latest   07c5\n"
    assert missing_lines(("NAME TAGS", "pirate…07c5", "…", ""), printed) == []
    assert missing_lines(("pirate", "NAME…x"), printed) == ["pirate", "NAME…x"]
    typed = list(typed_lines("$ one \\\n  more\nshown\n$ two 'a\nb'\n"))
    assert [(line.command, line.shown) for line in typed] == [("one \\\n  more", ("shown",)), ("two 'a\nb'", ())]
