"""A worker whose model is another than its name stands for hears which one it is, and what to do."""

from dataclasses import replace
from pathlib import Path

import pytest

from hotslot.errors import BaseModelNameTakenError
from hotslot.rpc.channel import open_channel
from store_service.app import running_store
from store_service.settings import StoreSettings
from tests.support.checkpoints import base_spec
from worker_service.adapters.store_client import StoreView

SPEC = base_spec()
OTHER = replace(SPEC, weights_fingerprint="fine-tuned")


async def test_workers_of_one_model_register_it_and_one_of_another_is_told(tmp_path: Path) -> None:
    settings = StoreSettings(listen="127.0.0.1:0", data_dir=tmp_path, grace_s=0.1)
    async with running_store(settings) as server, open_channel(f"127.0.0.1:{server.port}") as channel:
        for _ in range(3):
            await StoreView(channel, SPEC.digest).register_base_model(SPEC)
        with pytest.raises(BaseModelNameTakenError) as caught:
            await StoreView(channel, OTHER.digest).register_base_model(OTHER)
        for part in (SPEC.name, SPEC.digest, OTHER.digest, "HOTSLOT_MODEL_NAME", "register it with move"):
            assert part in caught.value.message
        await StoreView(channel, OTHER.digest).register_base_model(replace(OTHER, name="acme/fine-tuned"))
