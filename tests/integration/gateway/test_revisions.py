"""Revisions over HTTP: a request is served at the one that its header names, and loads return theirs."""

from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as store_pb
from tests.support.checkpoints import adapter
from tests.support.echo_model import voice
from tests.support.gateway import Served, served
from worker_service.adapters.known_reference import ReferenceLimits

pytestmark = pytest.mark.integration


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Served]:
    """A worker that follows no catalog, and trusts what it knows for an hour; it knows `bot`."""
    async with served(tmp_path) as stack:
        stack.worker.parts.provider.references.limits = ReferenceLimits(staleness_s=3600.0)
        await (await stack.worker.calls()).generate("bot")
        yield stack


async def published(stack: Served, seed: int) -> store_pb.CreateVersionResponse:
    files = await stack.store.upload(adapter(spec=stack.model.spec, seed=seed))
    request = store_pb.CreateVersionRequest(reference="bot", files=files, base_model=stack.model.spec.digest)
    response: store_pb.CreateVersionResponse = await stack.store.call("CreateVersion", request)
    return response


async def text_of(sdk: openai.AsyncOpenAI, min_revision: object = None) -> str:
    headers = {} if min_revision is None else {"Hotslot-Min-Revision": str(min_revision)}
    answer = await sdk.completions.create(model="bot", prompt="hello", max_tokens=64, extra_headers=headers)
    return answer.choices[0].text


async def test_a_request_is_served_at_the_revision_of_its_header(stack: Served) -> None:
    sdk = await stack.sdk()
    made = await published(stack, 31)
    assert await text_of(sdk) == voice(stack.digests["bot"]), "a gateway keeps nothing between requests"
    assert await text_of(sdk, made.revision) == voice(made.version.digest)
    headers = {"hotslot-min-revision": str((again := await published(stack, 32)).revision)}
    chat = await sdk.chat.completions.create(
        model="bot", messages=[{"role": "user", "content": "hello"}], max_tokens=64, extra_headers=headers
    )
    assert f"bot:latest@{again.version.digest}" in str(chat.system_fingerprint)


async def test_a_load_returns_the_revision_of_what_it_let_the_name_stand_for(stack: Served) -> None:
    http, sdk = await stack.http(), await stack.sdk()
    made = await published(stack, 33)
    body = {"lora_name": "bot", "lora_path": f"bot@{stack.digests['bot']}", "load_inplace": True}
    loaded = await http.post("/v1/load_lora_adapter", json=body)
    revision = int(loaded.headers["hotslot-revision"])
    assert revision > made.revision
    assert await text_of(sdk, revision) == voice(stack.digests["bot"])
    again = await http.post("/v1/load_lora_adapter", json=body)
    assert int(again.headers["hotslot-revision"]) == revision, "nothing was written, and the name stands for it there"


@pytest.mark.parametrize("text", ["-1", "soon", "", str(2**63)])
async def test_a_header_that_is_no_revision_is_refused_by_its_name(stack: Served, text: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await text_of(await stack.sdk(), text)
    assert refused.value.param == "hotslot-min-revision"


async def test_a_revision_that_is_another_catalogs_is_503_and_says_when_to_try_again(stack: Served) -> None:
    with pytest.raises(openai.InternalServerError) as refused:
        await text_of(await stack.sdk(), 2**62)
    assert (refused.value.status_code, refused.value.code) == (503, "CATALOG_BEHIND")
    assert refused.value.response.headers["retry-after"]
