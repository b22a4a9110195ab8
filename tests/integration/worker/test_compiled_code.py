"""Compiled code through a real store: others start warm with it, and whatever is wrong with it, they compile."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog.testing
import transformers

from hotslot.errors import (
    CompiledCodeNotFoundError,
    DigestMismatchError,
    ForbiddenError,
    InvalidRequestError,
    QuotaExceededError,
)
from hotslot.ids import DEFAULT_TENANT, Digest, TenantId, digest_of
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2 as pb
from hotslot.pb.hotslot.store.v1 import compiled_code_pb2_grpc as pb_grpc
from hotslot.rpc.channel import ChannelOptions, open_channel
from hotslot.rpc.status import from_rpc_error
from tests.support.store import open_store
from tests.support.tiny_models import SIZES, Architecture, make_model, save_model
from worker_service.compiled_code.archive import Archiver
from worker_service.compiled_code.sharing import CodeSharing, CodeStore
from worker_service.model.shared_code import CodeKey

pytestmark = pytest.mark.integration

KEY = CodeKey({"torch": "2.13.0", "compiler": "g++ 12"})
SECRET = b"0123456789abcdef"
BUDGET = 100_000


@pytest.fixture
async def endpoint(tmp_path: Path) -> AsyncIterator[str]:
    """A store that keeps compiled code for the default tenant."""
    async with open_store(tmp_path / "store", compiled_code_bytes=BUDGET) as store:
        yield store.endpoint


@pytest.fixture
async def channel(endpoint: str) -> AsyncIterator[Any]:
    async with open_channel(endpoint, ChannelOptions(max_attempts=1)) as channel:
        yield channel


def sharing(channel: Any, cache: Path, *, secret: bytes = SECRET, uploads: bool = True) -> CodeSharing:
    archiver = Archiver(cache, 2**20, secret)
    return CodeSharing(CodeStore(channel, DEFAULT_TENANT), archiver, uploads, asyncio.get_running_loop())


async def give(channel: Any, cache: Path, content: bytes = b"native code", secret: bytes = SECRET) -> None:
    """What a worker does that had to compile."""
    (cache / "inductor").mkdir(parents=True, exist_ok=True)
    (cache / "inductor" / "a.so").write_bytes(content)
    giver = sharing(channel, cache, secret=secret)
    giver.settle(KEY, 1)
    await asyncio.sleep(0)
    await giver.uploaded()


async def bring(channel: Any, cache: Path, key: CodeKey = KEY, **options: Any) -> str:
    """What a worker does at its start; the event that it logs."""
    with structlog.testing.capture_logs() as logs:
        await asyncio.to_thread(sharing(channel, cache, **options).bring, key)
    return str(logs[-1]["event"])


async def write(
    channel: Any, key: Digest, data: bytes, *, digest: Digest | None = None, size: int | None = None
) -> None:
    stub: Any = pb_grpc.CompiledCodeServiceStub(channel)
    first = pb.WriteCompiledCodeRequest(key=key, digest=digest or digest_of(data), size_bytes=size or len(data))
    try:
        await stub.WriteCompiledCode(iter([first, pb.WriteCompiledCodeRequest(data=data)]))
    except Exception as exc:
        raise from_rpc_error(exc) from exc  # type: ignore[arg-type]


async def test_a_worker_gets_what_another_compiled(channel: Any, tmp_path: Path) -> None:
    assert await bring(channel, tmp_path / "b") == "compiled_code_absent"
    await give(channel, tmp_path / "a")
    assert await bring(channel, tmp_path / "b") == "compiled_code_fetched"
    assert (tmp_path / "b" / "inductor" / "a.so").read_bytes() == b"native code"
    assert not list((tmp_path / "b").glob(".*")), "nothing of the transfer stays"


async def test_code_of_a_stranger_is_not_run(channel: Any, tmp_path: Path) -> None:
    await give(channel, tmp_path / "a", secret=b"a secret of somebody else")
    assert await bring(channel, tmp_path / "b") == "compiled_code_not_used"
    assert not (tmp_path / "b" / "inductor").exists()


async def test_an_archive_kept_under_another_key_is_not_used(channel: Any, tmp_path: Path) -> None:
    await give(channel, tmp_path / "a")
    other = CodeKey({"torch": "2.12.0", "compiler": "g++ 12"})
    await CodeStore(channel, DEFAULT_TENANT).read(KEY.digest, tmp_path / "archive", BUDGET)
    await write(channel, other.digest, (tmp_path / "archive").read_bytes())
    assert await bring(channel, tmp_path / "b", other) == "compiled_code_not_used"
    assert not (tmp_path / "b" / "inductor").exists()


async def test_an_archive_that_was_changed_in_the_store_is_not_used(channel: Any, tmp_path: Path) -> None:
    await give(channel, tmp_path / "a")
    kept = max((tmp_path / "store" / "compiled-code" / DEFAULT_TENANT).iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(kept.read_bytes())
    data[-20] ^= 1
    kept.chmod(0o600)
    kept.write_bytes(data)
    assert await bring(channel, tmp_path / "b") == "compiled_code_not_used"
    assert not (tmp_path / "b" / "inductor").exists()
    await give(channel, tmp_path / "c")
    assert await bring(channel, tmp_path / "b") == "compiled_code_fetched", "whoever compiles next heals it"


async def test_a_worker_without_a_compiler_gets_what_any_other_compiled(channel: Any, tmp_path: Path) -> None:
    cache = tmp_path / "b"
    assert await bring(channel, cache, KEY.opened) == "compiled_code_absent"
    await give(channel, tmp_path / "a")
    assert await bring(channel, cache, CodeKey({**KEY.opened.facts, "torch": "2.12.0"})) == "compiled_code_absent"
    assert await bring(channel, cache, KEY.opened) == "compiled_code_fetched"
    assert (cache / "inductor" / "a.so").read_bytes() == b"native code"
    with structlog.testing.capture_logs() as logs:
        await asyncio.to_thread(sharing(channel, cache).bring, KEY.opened)
    events = [log["event"] for log in logs if log["event"].startswith("compiled_code")]
    assert not events, "what is here already is not fetched again"
    (cache / "inductor" / "a.so").write_bytes(b"damaged")
    await asyncio.to_thread(partial(sharing(channel, cache).bring, KEY.opened, anew=True))
    assert (cache / "inductor" / "a.so").read_bytes() == b"native code", "but where it is of no use"


async def test_whose_code_there_is_must_be_sealed_too(channel: Any, tmp_path: Path) -> None:
    await give(channel, tmp_path / "a", secret=b"a secret of somebody else")
    assert await bring(channel, tmp_path / "b", KEY.opened) == "compiled_code_not_used"
    assert not (tmp_path / "b" / "inductor").exists()


async def test_a_worker_without_a_compiler_gives_nothing(channel: Any, tmp_path: Path) -> None:
    giver = sharing(channel, tmp_path / "a")
    giver.settle(KEY.opened, 0)
    await asyncio.sleep(0)
    await giver.uploaded()
    assert await bring(channel, tmp_path / "b", KEY.opened) == "compiled_code_absent"


async def test_workers_that_only_fetch_give_nothing(channel: Any, tmp_path: Path) -> None:
    reader = sharing(channel, tmp_path / "a", uploads=False)
    reader.settle(KEY, 3)
    await asyncio.sleep(0)
    await reader.uploaded()
    assert await bring(channel, tmp_path / "b") == "compiled_code_absent"


async def test_a_store_that_is_away_holds_up_no_start(tmp_path: Path) -> None:
    async with open_channel("127.0.0.1:1", ChannelOptions(max_attempts=1)) as channel:
        assert await bring(channel, tmp_path / "b") == "compiled_code_not_used"


async def test_only_the_operators_tenant_is_served(channel: Any, tmp_path: Path) -> None:
    stranger = CodeStore(channel, TenantId("other"))
    with pytest.raises(ForbiddenError):
        await stranger.read(KEY.digest, tmp_path / "x", BUDGET)
    (tmp_path / "mine").write_bytes(b"code")
    with pytest.raises(ForbiddenError):
        await stranger.write(KEY.digest, tmp_path / "mine")


async def test_a_store_keeps_none_unless_it_is_told_to(tmp_path: Path) -> None:
    async with open_store(tmp_path / "plain") as store, open_channel(store.endpoint) as channel:
        with pytest.raises(ForbiddenError, match="HOTSLOT_COMPILED_CODE_BYTES"):
            await CodeStore(channel, DEFAULT_TENANT).read(KEY.digest, tmp_path / "x", BUDGET)


async def test_the_store_takes_only_what_is_announced_and_forgets_what_is_not_used(
    channel: Any, tmp_path: Path
) -> None:
    keys = [digest_of(bytes([number])) for number in range(4)]
    with pytest.raises(DigestMismatchError):
        await write(channel, keys[0], b"code", digest=digest_of(b"other"))
    with pytest.raises(QuotaExceededError):
        await write(channel, keys[0], b"code" * 100, size=10)
    with pytest.raises(QuotaExceededError):
        await write(channel, keys[0], b"code", size=BUDGET + 1)
    with pytest.raises(InvalidRequestError, match="key"):
        await write(channel, Digest("../../etc"), b"code")
    store = CodeStore(channel, DEFAULT_TENANT)
    for key in keys[:2]:
        await write(channel, key, b"x" * 45_000)
    await store.read(keys[0], tmp_path / "used", BUDGET)
    await write(channel, keys[2], b"x" * 45_000)
    await store.read(keys[0], tmp_path / "still there", BUDGET)
    with pytest.raises(CompiledCodeNotFoundError):
        await store.read(keys[1], tmp_path / "gone", BUDGET)
    assert not list((tmp_path / "store" / "compiled-code" / ".stages").iterdir())


@pytest.mark.parametrize("pieces", [[b"0123456789x"], [b"0123456789", b"x"], [b"", b"0123456789x"]])
async def test_more_than_was_announced_is_refused_in_whichever_message_it_comes(
    channel: Any, tmp_path: Path, pieces: list[bytes]
) -> None:
    key, digest = digest_of(b"key"), digest_of(b"".join(pieces))

    async def messages() -> AsyncIterator[pb.WriteCompiledCodeRequest]:
        yield pb.WriteCompiledCodeRequest(key=key, digest=digest, size_bytes=10, data=pieces[0])
        for data in pieces[1:]:
            yield pb.WriteCompiledCodeRequest(data=data)

    stub: Any = pb_grpc.CompiledCodeServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.WriteCompiledCode(messages(), timeout=120)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(CompiledCodeNotFoundError):
        await CodeStore(channel, DEFAULT_TENANT).read(key, tmp_path / "x", BUDGET)


@pytest.mark.slow
async def test_a_second_worker_with_an_empty_cache_compiles_nothing(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama", is_tied=True)
    async with open_store(tmp_path / "store", compiled_code_bytes=2**26) as store:
        first = await _start(model, tmp_path / "first", store.endpoint)
        second = await _start(model, tmp_path / "second", store.endpoint)
    assert first["miss"] > 0
    assert first["hit"] == 0
    assert second["miss"] == 0
    assert second["hit"] == first["miss"]
    assert "cache" in second["stages"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_a_worker_without_a_compiler_starts_with_what_another_shipped_or_says_why_not(tmp_path: Path) -> None:
    model, nothing = tmp_path / "model", str(tmp_path / "nothing")
    save_model(model, Architecture(transformers.LlamaConfig, {**SIZES, "head_dim": 16}), 0)
    async with open_store(tmp_path / "store", compiled_code_bytes=2**26) as store:
        with pytest.raises(AssertionError, match=r"CompilerMissingError.*no compiled code that fits was found"):
            await _start(model, tmp_path / "alone", store.endpoint, path=nothing)
        first = await _start(model, tmp_path / "first", store.endpoint)
        second = await _start(model, tmp_path / "second", store.endpoint, path=nothing)
        assert first["miss"] > 0
        assert second["miss"] == 0
        assert second["digest"] == first["digest"]
        for program in (tmp_path / "second").glob("hotslot_cpu-*.so"):
            program.unlink()
        with pytest.raises(AssertionError, match=r"CompilerMissingError.*does not fit"):
            await _start(model, tmp_path / "second", store.endpoint, path=nothing)


async def _start(
    model: Path, cache_dir: Path, store: str, path: str = "/usr/local/bin:/usr/bin:/bin"
) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.compile_tiny", str(model), str(cache_dir), store,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"PATH": path, "HOME": str(cache_dir)},
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found
