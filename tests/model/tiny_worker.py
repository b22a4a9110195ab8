"""Tiny models as a worker has them, beside each other in one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from hotslot.formats.manifest import Manifest
from store_service.admission.admit import Checkpoint, admit
from store_service.admission.settings import AdmissionLimits
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.weights import HostAdapter

SLOT_RANK = 4
MAX_SEQUENCE_TOKENS = 64


@contextmanager
def apart() -> Iterator[None]:
    """Load and compile without other tests' models noticing: what is armed is so for the whole process."""
    graphs = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("default"):
        yield
    counters["stats"]["unique_graphs"] = graphs


def admitted(loaded: LoadedModel, folder: Path) -> tuple[Manifest, bytearray]:
    blob = bytearray()
    files = {path.name: path for path in folder.iterdir()}
    return admit(Checkpoint(files), loaded.spec, AdmissionLimits(), blob.extend).require(), blob


def load_tiny(base: Path, **changes: Any) -> LoadedModel:
    """A worker's model in fp32, uncompiled unless it is asked for."""
    return load_model(tiny_options(base, **changes))


def tiny_options(base: Path, **changes: Any) -> ModelOptions:
    """Options of such a model."""
    options = ModelOptions(
        model=str(base), model_name="tiny", dtype="float32", num_slots=8, slot_rank=SLOT_RANK, max_rank=16,
        max_sequences=8, kv_tokens=512, block_tokens=4, max_sequence_tokens=MAX_SEQUENCE_TOKENS,
        token_buckets=(8, 64), num_threads=1, compile=False,
    )  # fmt: skip
    return replace(options, **changes)


def decoded(loaded: LoadedModel, folder: Path) -> HostAdapter:
    """A PEFT folder as the engine gets it: admitted, checked, normalised and decoded."""
    manifest, blob = admitted(loaded, folder)
    loaded.decoder.check(manifest)
    return loaded.decoder.decode(manifest, blob)
