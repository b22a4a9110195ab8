"""Listings of base models by a name or digest, over real sockets."""

from pathlib import Path
from typing import Any

import pytest

from hotslot import errors
from hotslot.clients.store import StoreClient as HotslotStoreClient
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.catalog.base_models import BaseModels
from store_service.catalog.records import BaseModelRecord
from tests.support.checkpoints import adapter, base_spec
from tests.support.store import StoreClient, error_of


async def test_a_page_of_a_base_models_listing_is_none_of_anothers(store: StoreClient) -> None:
    await store.register(base_spec("acme/another-name"))
    wanted = pb.ListBaseModelsRequest(base_model=base_spec().digest, page_size=1)
    response = await store.call("ListBaseModels", wanted)
    assert [model.name for model in response.base_models] == ["acme/tiny"]
    wanted.page_token = response.next_page_token
    response = await store.call("ListBaseModels", wanted)
    assert [model.name for model in response.base_models] == ["acme/another-name"]
    wanted.base_model = ""
    assert isinstance(await error_of(store.call("ListBaseModels", wanted)), errors.InvalidPageTokenError)


async def test_a_pull_asks_for_its_own_base_model_alone(
    store: StoreClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.push(adapter(), "bot")
    for number in range(5):
        await store.register(base_spec(f"acme/other-{number}", fingerprint=str(number)))
    read: list[str] = []
    list_all = BaseModels.list

    def noted(models: BaseModels, **wanted: Any) -> list[tuple[int, BaseModelRecord]]:
        found = list_all(models, **wanted)
        read.extend(record.spec.digest for _, record in found)
        return found

    monkeypatch.setattr(BaseModels, "list", noted)
    async with HotslotStoreClient(store.endpoint) as client:
        await client.pull("bot", tmp_path / "copy")
        assert read == [base_spec().digest]
        assert [model.spec.name async for model in client.list_base_models(base_model="acme/other-1")] == [
            "acme/other-1"
        ]
