"""One deployment for all integration tests: a store, and a worker with the real model that is started once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hotslot import BlockingHotslotClient
from hotslot.local.children import Child
from tests.support.lasting_keys import lasting_keys
from tests.support.stack import Stack
from worker_service.demo_model import BASE_MODEL, ensure_model

ROOT = Path(__file__).resolve().parents[2]
DEMO_ADAPTERS = ROOT / "deploy" / "demo" / "adapters"


@pytest.fixture(autouse=True)
def no_key_lasts() -> Iterator[None]:
    """Every key that a test leaves in a Valkey must end by itself."""
    yield
    assert lasting_keys() == {}, "keys without a time to live"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Valkey, and whatever the other fixtures start beside it."""
    with Stack(tmp_path_factory.mktemp("stack")) as processes:
        yield processes


@pytest.fixture(scope="session")
def store_process(stack: Stack) -> Child:
    """The real store."""
    return stack.start_store()


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The real base model, fetched and converted on first use."""
    return ensure_model()


@pytest.fixture(scope="session")
def worker_process(stack: Stack, store_process: Child, model_folder: Path) -> Child:
    """A real worker, shared by all tests, which leave it as they found it.

    Not compiled: that takes minutes, and is what the worker's own tests and the demo are about. One thread: on a
    machine that runs other things as well, threads wait for each other at every operation.
    """
    settings = {"dtype": "float32", "buckets": "1,8,32", "compile": "false", "num_threads": "1"}
    return stack.start_worker(model_folder, model_name=BASE_MODEL, **settings)


@pytest.fixture(scope="session")
def hotslot(store_process: Child, worker_process: Child) -> Iterator[BlockingHotslotClient]:
    """A client of the whole deployment."""
    with BlockingHotslotClient(store_process.spec.endpoint, worker_process.spec.endpoint) as client:
        yield client
