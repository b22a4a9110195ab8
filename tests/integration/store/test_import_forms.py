"""Imports of what is not one adapter in two files: folders of adapters, whole models, shards, files beside weights."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import save

from hotslot import errors
from hotslot.codec import build
from hotslot.contract.catalog import BaseModel
from hotslot.formats.base_details import BaseDetails
from hotslot.formats.companions import Companions
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2
from store_service.catalog.base_models import BaseModels
from store_service.catalog.database import open_database
from tests.support.checkpoints import adapter, base_spec
from tests.support.fake_hub import FakeHub
from tests.support.store import StoreClient, error_of, hub_request, open_store

BASE = Companions(files=("generation_config.json", "tokenizer.json"), end_token_ids=(2,), added_tokens={"</s>": 2})
SPEC = replace(base_spec(), details=BaseDetails(frozenset(), BASE))


@pytest.fixture
async def store(tmp_path: Path, hub: FakeHub) -> AsyncIterator[StoreClient]:
    async with open_store(tmp_path / "data", hub_endpoint=hub.endpoint) as client:
        request = build(adapter_store_pb2.RegisterBaseModelRequest, base_model=BaseModel(SPEC, SPEC.digest))
        await client.call("RegisterBaseModel", request)
        yield client


def sharded() -> dict[str, bytes]:
    draft = adapter()
    names = list(draft.tensors)
    files = {"adapter_config.json": json.dumps(draft.config).encode()}
    for number in (1, 2):
        part = {name: draft.tensors[name] for name in names[number - 1 :: 2]}
        files[f"adapter_model-{number:05}-of-00002.safetensors"] = save(part)
    return files


async def test_folders_with_adapters_are_listed_with_how_to_choose_one(store: StoreClient, hub: FakeHub) -> None:
    files = adapter().files()
    hub.repositories["acme/many"] = {f"{f}/{name}": data for f in ("a", "b/c") for name, data in files.items()}
    error = await error_of(store.import_(hub_request(repo_id="acme/many", revision="v1")))
    assert isinstance(error, errors.SourceNotFoundError)
    assert "a, b/c" in error.message
    assert "hf:acme/many@v1#a" in error.message
    assert (await store.import_(hub_request(repo_id="acme/many", subfolder="b/c"))).digest


async def test_a_whole_model_is_said_to_be_one(store: StoreClient, hub: FakeHub) -> None:
    hub.repositories["acme/model"] = {"config.json": b"{}", "model.safetensors": b"x"}
    error = await error_of(store.import_(hub_request(repo_id="acme/model")))
    assert isinstance(error, errors.SourceNotFoundError)
    assert "whole model (model.safetensors)" in error.message


async def test_an_adapter_in_several_files_is_imported(store: StoreClient, hub: FakeHub) -> None:
    hub.repositories["acme/shards"] = sharded()
    version = await store.import_(hub_request(repo_id="acme/shards"))
    assert version.digest == (await store.push(adapter(), "pushed")).digest


async def test_what_lies_beside_the_weights_of_a_repository_is_judged(store: StoreClient, hub: FakeHub) -> None:
    beside = {
        "generation_config.json": json.dumps({"eos_token_id": [2, 7]}).encode(),
        "tokenizer.json": json.dumps({"added_tokens": [{"id": 15, "content": "<x>"}]}).encode(),
    }
    hub.repositories["acme/beside"] = {**adapter().files(), **beside}
    version = await store.import_(hub_request(repo_id="acme/beside"))
    assert list(version.manifest.end_token_ids) == [7]


def test_details_are_kept_once_they_are_known_and_never_lost(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'catalog.sqlite3'}")
    models = BaseModels(engine)
    plain = replace(SPEC, details=None)
    for spec, expected in ((plain, None), (SPEC, SPEC.details), (plain, SPEC.details)):
        models.register(spec)
        assert models.get(SPEC.name).spec.details == expected
    engine.dispose()
