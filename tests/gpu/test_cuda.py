"""The same model on a CUDA device: answers as PEFT's, nothing recompiled, nothing moved."""

from typing import Any

import pytest
import torch

from deploy.demo.reference import read_reference
from store_service.admission.admit import Checkpoint, admit
from store_service.admission.settings import AdmissionLimits
from tests.model.conftest import ADAPTERS_DIR
from tests.model.driver import Driver
from worker_service.demo_model import BASE_MODEL, ensure_model
from worker_service.engine.core import EngineCore
from worker_service.model.loading import load_model
from worker_service.model.options import LoadedModel, ModelOptions
from worker_service.model.weights import HostAdapter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.model,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def on_cuda() -> LoadedModel:
    """The real model in fp32; TF32 would not be exact enough to compare."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    return load_model(
        ModelOptions(
            model=str(ensure_model()),
            model_name=BASE_MODEL,
            dtype="float32",
            device="cuda",
            slot_rank=8,
            max_rank=32,
            kv_tokens=4096,
            max_sequence_tokens=512,
            token_buckets=(1, 8, 64),
        )
    )


def adapter_on(loaded: LoadedModel, name: str) -> HostAdapter:
    blob = bytearray()
    files = {path.name: path for path in (ADAPTERS_DIR / name).iterdir()}
    manifest = admit(Checkpoint(files), loaded.spec, AdmissionLimits(), blob.extend).require()
    return loaded.decoder.decode(manifest, blob)


def test_a_mixed_batch_on_cuda_answers_as_peft(on_cuda: LoadedModel) -> None:
    reference: dict[str, list[dict[str, Any]]] = read_reference()["models"]
    driver = Driver(EngineCore(on_cuda.runner, on_cuda.limits, lambda: 0.0))
    before = on_cuda.runner.addresses()
    rows = {}
    for name, prompts in reference.items():
        mix = () if name == "base" else ((adapter_on(on_cuda, name), 1.0),)
        rows[name] = driver.submit(prompts[0]["prompt_ids"], mix, max_tokens=32)
    driver.finish()
    for name, sequence_id in rows.items():
        assert driver.token_ids(sequence_id) == reference[name][0]["greedy_ids"][:32], name
    assert on_cuda.runner.addresses() == before
    assert on_cuda.runner.recompiles == 0


def test_in_bf16_the_paged_kernels_pass_the_start() -> None:
    """The self-test compares with plain transformers; blocks have the size that the kernels need."""
    torch.compiler.set_stance("default")
    loaded = load_model(
        ModelOptions(
            model=str(ensure_model()),
            model_name=BASE_MODEL,
            device="cuda",
            slot_rank=8,
            max_rank=32,
            kv_tokens=4096,
            max_sequence_tokens=512,
            token_buckets=(1, 8, 64),
        )
    )
    assert loaded.limits.block_tokens == 256
    assert loaded.runner.recompiles == 0
