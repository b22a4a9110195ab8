"""What all tests need of the process that runs them (docs/decisions/tests.md)."""

import gc
import os
import signal
import sys

import pytest
import structlog
from hypothesis import settings

# Times of examples say how busy the machine is; what is slow is measured by benchmarks.
settings.register_profile("hotslot", deadline=None)
settings.load_profile("hotslot")


# Hundreds of processes are started: where the environment forbids to keep bytecode, each compiles all of our modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# As services log: structlog's own choice renders each exception with all local variables, for tenths of a second.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_configure() -> None:
    """Shells have what they run in the background ignore SIGINT, and so its children; tests send it and are heard."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("HOTSLOT_CONTEXT", None)


def pytest_collection_finish() -> None:
    """Twenty thousand tests and their modules stay to the end: no collection of garbage need look at them each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def own_contexts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No context of the user's, nor one that another file's tests left, says where commands go."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
