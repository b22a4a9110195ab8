"""Signed adapters over every way into a store: pushed, sent with the call, imported from a hub and from a folder."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from hotslot import StoreClient as Client
from hotslot.errors import HotslotError, InvalidRequestError, SignatureRefusedError
from hotslot.formats.manifest import MANIFEST_FORMAT_WITH_SIGNER, parse_manifest
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from hotslot.rpc.status import from_rpc_error
from tests.support.checkpoints import adapter, base_spec
from tests.support.fake_hub import FakeHub
from tests.support.signing import SIGNATURE, TestKey, policy_file
from tests.support.store import StoreClient, open_store

CONFIG, WEIGHTS, GENERATION = "adapter_config.json", "adapter_model.safetensors", "generation_config.json"


@dataclass
class Signing:
    """A store that asks one tenant for signatures."""

    store: StoreClient
    client: Client
    key: TestKey
    folder: Path
    hub: FakeHub

    def put_on_hub(self) -> None:
        self.hub.repositories["acme/bot"] = {path.name: path.read_bytes() for path in self.folder.iterdir()}


@pytest.fixture
async def signing(tmp_path: Path, hub: FakeHub) -> AsyncIterator[Signing]:
    key = TestKey(tmp_path, "release")
    policies = policy_file(tmp_path / "policies.json", {"default": [{"name": "release", "key": "release.pub"}]})
    folder = tmp_path / "imports" / "bot"
    adapter().write(folder)
    (folder / "README.md").write_text("a bot")
    settings = {"signature_policy_file": policies, "hub_endpoint": hub.endpoint, "import_refusal_ttl_s": 0.0}
    async with open_store(tmp_path / "data", import_roots=[str(tmp_path / "imports")], **settings) as store:
        await store.register(base_spec())
        async with Client(store.endpoint) as client:
            yield Signing(store, client, key, folder, hub)


async def publish_all_ways(signing: Signing) -> list[object]:
    """Version, or refusal, of each way into the store."""
    signing.put_on_hub()
    outcomes: list[object] = []
    calls = (
        signing.client.push(signing.folder, "bot-0"),
        signing.client.import_directory(str(signing.folder), "bot-1"),
        signing.client.import_hub("acme/bot", "bot-2"),
    )
    for call in calls:
        try:
            result = await call
            outcomes.append(getattr(result, "version", result))
        except HotslotError as exc:
            outcomes.append(exc)
    return outcomes


async def test_a_signed_adapter_comes_in_by_every_way_and_says_who_signed_it(signing: Signing) -> None:
    (signing.folder / GENERATION).write_text('{"eos_token_id": 7}')
    signing.key.sign(signing.folder)
    report = await signing.client.validate(signing.folder)
    versions = await publish_all_ways(signing)
    assert {getattr(version, "signer", version) for version in versions} == {"key:release"}
    assert {getattr(version, "digest", None) for version in versions} == {report.digest}
    resolved = (await signing.client.resolve("bot-0")).version
    assert resolved.signer == "key:release"
    manifest = parse_manifest(resolved.manifest_json, resolved.digest)
    assert manifest.signer == "key:release"
    assert json.loads(resolved.manifest_json)["format"] == MANIFEST_FORMAT_WITH_SIGNER
    command = [sys.executable, "-m", "hotslot", "show", "bot-0", "--store", signing.store.endpoint]
    for flags in ([], ["--json"]):
        shown = await asyncio.to_thread(
            subprocess.run, [*command, *flags], capture_output=True, text=True, check=True, timeout=60
        )
        assert "key:release" in shown.stdout


@pytest.mark.parametrize("kind", ["unsigned", "weights changed", "config changed", "a stranger's"])
async def test_an_adapter_that_is_not_signed_as_it_must_be_comes_in_by_no_way(
    signing: Signing, tmp_path: Path, kind: str
) -> None:
    if kind == "a stranger's":
        TestKey(tmp_path, "stranger").sign(signing.folder)
    elif kind != "unsigned":
        signing.key.sign(signing.folder)
        other = adapter(seed=3).files()
        name = CONFIG if kind == "config changed" else WEIGHTS
        (signing.folder / name).write_bytes(other[name] + b" " * (name == CONFIG))
    outcomes = await publish_all_ways(signing)
    assert [type(outcome) for outcome in outcomes] == [SignatureRefusedError] * 3, outcomes
    assert await signing.store.names() == []
    report = await signing.client.validate(signing.folder)
    assert not report.valid
    assert any(violation.code.startswith("SIGN") for violation in report.violations)


async def sent(signing: Signing, names: tuple[str, ...]) -> pb.Version:
    """Version of files that go with the call, in one message."""
    files = {name: (signing.folder / name).read_bytes() for name in names}
    data = b"".join(files.values())
    message = pb.PublishVersionRequest(
        version=pb.CreateVersionRequest(reference="bot"),
        files=[pb.StreamedFile(path=name, size_bytes=len(content)) for name, content in files.items()],
        data=data,
        data_digest=digest_of(data),
        finish=True,
    )

    async def messages() -> AsyncIterator[pb.PublishVersionRequest]:
        yield message

    try:
        answer = await signing.store.adapters.PublishVersion(messages(), metadata=signing.store.metadata, timeout=120)
    except grpc.aio.AioRpcError as exc:
        raise from_rpc_error(exc) from exc
    return answer.published.version  # type: ignore[no-any-return]


async def test_files_that_go_with_the_call_must_be_signed_too(signing: Signing) -> None:
    with pytest.raises(SignatureRefusedError, match="must be signed"):
        await sent(signing, (CONFIG, WEIGHTS))
    signing.key.sign(signing.folder)
    assert (await sent(signing, (CONFIG, WEIGHTS, SIGNATURE))).manifest.signer == "key:release"


async def test_another_tenant_is_asked_for_nothing(signing: Signing) -> None:
    version = await signing.store.of("other").push(adapter(), "bot")
    assert version.manifest.signer == ""
    assert b"signer" not in version.manifest_json
    signing.key.sign(signing.folder)
    signed = (await signing.client.push(signing.folder, "bot")).version
    assert signed.digest != version.digest
    assert signed.weights_digest == version.manifest.weights_digest


async def test_a_store_does_not_start_with_policies_that_it_cannot_use(tmp_path: Path) -> None:
    policies = policy_file(tmp_path / "policies.json", {"default": [{"name": "release", "key": "nothing.pub"}]})
    with pytest.raises(InvalidRequestError, match=r"nothing\.pub"):
        async with open_store(tmp_path / "data", signature_policy_file=policies):
            pass
