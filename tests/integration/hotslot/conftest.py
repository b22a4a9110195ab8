"""A tiny base model, PEFT folders for it, and a store that tests may break."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hotslot import BlockingStoreClient, ChannelOptions
from hotslot.formats.base_spec import BaseModule, BaseSpec, ModuleKind
from hotslot.ids import TenantId
from hotslot.local.children import Child

BASE = "test/tiny"
WIDTH = 64
PATHS = [f"model.layers.{layer}.self_attn.{name}" for layer in range(2) for name in ("q_proj", "v_proj")]
SPEC = BaseSpec(BASE, "llama", "f" * 64, tuple(BaseModule(path, ModuleKind.LINEAR, WIDTH, WIDTH) for path in PATHS))
TENANT = "client-tests"

PeftFolder = Callable[..., Path]


@pytest.fixture
def peft_folder(tmp_path: Path) -> PeftFolder:
    """Writes what `save_pretrained` writes, with random weights: folder name, rank, seed, and overrides."""

    def write(name: str = "adapter", *, rank: int = 4, seed: int = 0, base: str = BASE, **config: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        random = np.random.default_rng(seed)
        tensors = {}
        for path in PATHS:
            a = random.normal(size=(rank, WIDTH)).astype(np.float32)
            b = random.normal(size=(WIDTH, rank)).astype(np.float32)
            tensors[f"base_model.model.{path}.lora_A.weight"] = a
            tensors[f"base_model.model.{path}.lora_B.weight"] = b
        save_file(tensors, folder / "adapter_model.safetensors")
        document = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
            "lora_alpha": 2 * rank, "target_modules": ["q_proj", "v_proj"], **config,
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(document))
        return folder

    return write


@pytest.fixture
def store(store_process: Child) -> Iterator[BlockingStoreClient]:
    """A client of the shared store, as a tenant of its own that knows the tiny base model."""
    options = ChannelOptions(tenant=TenantId(TENANT))
    with BlockingStoreClient(store_process.spec.endpoint, options) as client:
        client.register_base_model(SPEC)
        yield client
        for adapter in list(client.list_adapters()):
            client.delete_adapter(adapter.name)
