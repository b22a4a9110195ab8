"""A request through a gateway for whose model no worker is left has the store ask for one, by whatever name."""

from pathlib import Path
from typing import Any

import openai
import pytest

from hotslot.local.embedded_valkey import embedded_valkey
from hotslot.pb.externalscaler import externalscaler_pb2 as pb
from hotslot.pb.externalscaler import externalscaler_pb2_grpc
from hotslot.rpc.channel import ChannelOptions, open_channel
from tests.support.checkpoints import adapter
from tests.support.echo_model import echo_model
from tests.support.gateway import open_gateway
from tests.support.store import open_store

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("model", ["test/echo", "bot", "bot:latest"])
async def test_a_model_without_workers_is_503_and_wanted(tmp_path: Path, model: str) -> None:
    spec = echo_model().spec
    with embedded_valkey() as valkey:
        async with (
            open_store(tmp_path / "store", redis_url=valkey.url) as store,
            open_gateway(store=store.endpoint) as gateway,
            open_channel(store.endpoint, ChannelOptions(max_attempts=1)) as channel,
        ):
            await store.register(spec)
            await store.push(adapter(spec=spec), "bot", base_model=spec.digest)
            scaler: Any = externalscaler_pb2_grpc.ExternalScalerStub(channel)
            ref = pb.ScaledObjectRef(scalerMetadata={"baseModel": spec.name})
            assert not (await scaler.IsActive(ref, timeout=60)).result
            url = f"http://127.0.0.1:{gateway.server.port}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as sdk:
                with pytest.raises(openai.InternalServerError) as refused:
                    await sdk.completions.create(model=model, prompt="hello")
            assert refused.value.status_code == 503
            assert (await scaler.IsActive(ref, timeout=60)).result
            other = pb.ScaledObjectRef(scalerMetadata={"baseModel": "another/base"})
            assert not (await scaler.IsActive(other, timeout=60)).result
