"""The real model, compiled in fp32 once for all tests here, and the shipped adapters as the store hands them out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.reference import read_reference
from hotslot.formats.manifest import Manifest
from store_service.admission.admit import Checkpoint, admit
from store_service.admission.settings import AdmissionLimits
from tests.model.driver import Driver
from worker_service.demo_model import BASE_MODEL, default_cache_dir, ensure_model
from worker_service.engine.core import EngineCore
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.weights import HostAdapter

ADAPTERS_DIR = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "adapters"


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    """The model as a worker has it after its start."""
    return load_model(
        ModelOptions(
            model=str(ensure_model()),
            model_name=BASE_MODEL,
            dtype="float32",
            num_slots=8,
            slot_rank=8,
            max_rank=32,
            max_sequences=8,
            kv_tokens=4096,
            max_sequence_tokens=512,
            token_buckets=(1, 8, 64),
            cache_dir=default_cache_dir(),
            # On a busy machine, threads that wait for each other make every step several times slower.
            num_threads=1,
        )
    )


@pytest.fixture(scope="session")
def reference() -> dict[str, list[dict[str, Any]]]:
    """By adapter or `base`: what freshly loaded PEFT says, for each prompt."""
    models: dict[str, list[dict[str, Any]]] = read_reference()["models"]
    return models


AdapterFrom = Callable[[Path], HostAdapter]


@pytest.fixture(scope="session")
def adapter_from(loaded: LoadedModel) -> AdapterFrom:
    """A PEFT folder, admitted, normalised and decoded."""

    def read(folder: Path) -> HostAdapter:
        blob = bytearray()
        files = {path.name: path for path in folder.iterdir()}
        manifest: Manifest = admit(Checkpoint(files), loaded.spec, AdmissionLimits(), blob.extend).require()
        return loaded.decoder.decode(manifest, blob)

    return read


@pytest.fixture(scope="session")
def adapters(adapter_from: AdapterFrom) -> dict[str, HostAdapter]:
    """The shipped adapters by name."""
    return {folder.name: adapter_from(folder) for folder in sorted(ADAPTERS_DIR.iterdir()) if folder.is_dir()}


@pytest.fixture
def driver(loaded: LoadedModel) -> Driver:
    """A fresh engine core on the model; slots may hold what earlier tests left."""
    return Driver(EngineCore(loaded.runner, loaded.limits, lambda: 0.0))
