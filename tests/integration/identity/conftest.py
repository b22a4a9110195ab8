"""One deployment of `hotslot up` for each file of tests of its identity."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotslot import BlockingStoreClient
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.secured_up import Secured, start_secured
from tests.support.stubbed_up import write_echo_workers


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's folder of contexts."""
    folder = tmp_path_factory.mktemp("config")
    before = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    yield folder
    if before is not None:
        os.environ["XDG_CONFIG_HOME"] = before


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("up")
    write_echo_workers(folder)
    # Connections end all the time, so that each state of the files has handshakes. The user's shell names another one.
    found = start_secured(
        folder, "--workers", "2",
        HOTSLOT_MAX_CONNECTION_AGE_S="1", HOTSLOT_TLS_CA_FILE="/nowhere.crt", HOTSLOT_TOKEN_FILE="/nowhere.token",
    )  # fmt: skip
    adapter(spec=echo_model().spec).write(folder / "bot")
    with BlockingStoreClient() as store:
        store.push(folder / "bot", "bot", base_model=echo_model().spec.digest)
    yield found
    found.process.terminate()
    found.process.communicate(timeout=120)
