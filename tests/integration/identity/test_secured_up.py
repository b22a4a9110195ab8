"""`hotslot up` as it is without any option: who may call, what finds its credentials, and a rotation under load."""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import httpx2
import psutil
import pytest

from hotslot import (
    BlockingHotslotClient,
    BlockingWorkerClient,
    HotslotClient,
    StoreClient,
    WorkerClient,
)
from hotslot.cli.app import run
from hotslot.contexts import contexts_path
from hotslot.errors import HotslotError, UnauthenticatedError, UnavailableError
from hotslot.rpc.security import ChannelSecurity
from tests.support.machine_pace import slowness
from tests.support.secured_up import Secured
from tests.support.stubbed_up import ROOT

pytestmark = pytest.mark.integration

BODY = {"model": "bot", "prompt": "hello", "max_tokens": 4}


def commands(secured: Secured) -> list[list[str]]:
    worker = secured.ready["workers"][1]
    return [
        ["ls"], ["show", "bot"], ["ps"], ["workers"], ["top", "--count", "1", "--json"], ["status"],
        ["status", "--worker", worker], ["load", "bot"], ["pin", "bot"], ["unpin", "bot"], ["default"], ["enable"],
        ["drain", worker], ["undrain", worker], ["base", "ls"], ["tag", "bot", "stable"],
        ["generate", "-a", "bot", "hello"],
        ["generate", "--route", "-a", "bot", "hello"], ["policy", "ls"], ["context", "show", "local"],
    ]  # fmt: skip


def test_every_command_finds_the_deployment_and_its_credentials(
    secured: Secured, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in commands(secured):
        code = run(arguments)
        out, err = capsys.readouterr()
        assert code == 0, f"{arguments}: {out}{err}"
        assert secured.token not in out + err


def test_clients_without_arguments_find_them_too_and_a_worker_that_is_named(secured: Secured) -> None:
    with BlockingHotslotClient() as hotslot, BlockingWorkerClient() as worker:
        assert [found.name for found in hotslot.store.list_adapters()] == ["bot"]
        assert hotslot.complete("hello", adapters="bot").choices
        assert hotslot.worker.status().worker_id == worker.status().worker_id
    port = secured.ready["workers"][0].rpartition(":")[2]
    with BlockingWorkerClient(f"localhost:{port}") as worker:
        assert worker.status().worker_id


async def test_whoever_has_no_token_is_refused_and_whoever_speaks_plaintext_hears_nothing(secured: Secured) -> None:
    stranger = ChannelSecurity(secured.files.trusted_file)
    forged = ChannelSecurity(secured.files.trusted_file, token=secured.token[:-2] + "xx")
    own = {name: secured.files.token_file(name).read_text().strip() for name in ("worker", "gateway")}
    for security, error in ((stranger, UnauthenticatedError), (forged, UnauthenticatedError), (None, UnavailableError)):
        options = secured.once(security or ChannelSecurity())
        async with StoreClient(secured.ready["store"], options) as store:
            with pytest.raises(error):
                await store.get("bot")
        for endpoint in secured.ready["workers"]:
            async with WorkerClient(endpoint, options) as worker:
                with pytest.raises(error):
                    await worker.complete("hello")
    for token in own.values():
        security = ChannelSecurity(secured.files.trusted_file, token=token)
        async with StoreClient(secured.ready["store"], secured.once(security)) as store:
            with pytest.raises(HotslotError, match="needs the scope"):
                await store.delete_adapter("bot")


async def test_the_gateway_lets_this_machine_read_and_generate_and_nothing_else_without_the_token(
    secured: Secured,
) -> None:
    async with httpx2.AsyncClient(base_url=secured.ready["gateway"], trust_env=False, timeout=120) as http:
        own = {"authorization": f"Bearer {secured.token}"}
        load = {"lora_name": "bot:loaded", "lora_path": "bot:latest"}
        for headers, path, body, status in (
            ({}, "/v1/completions", BODY, 200),
            (own, "/v1/completions", BODY, 200),
            ({"authorization": "Bearer hs1_x_y"}, "/v1/completions", BODY, 401),
            ({"hotslot-tenant": "acme"}, "/v1/completions", BODY, 403),
            ({}, "/v1/load_lora_adapter", load, 403),
            (own, "/v1/load_lora_adapter", load, 200),
            ({}, "/v1/unload_lora_adapter", {"lora_name": "bot:loaded"}, 403),
        ):
            answer = await http.post(path, json=body, headers=headers)
            assert answer.status_code == status, (headers, path, answer.text)


def test_no_secret_is_on_a_command_line_in_a_log_or_readable_by_others(secured: Secured) -> None:
    # The secret of a token may have the sign in it that ends the token's id.
    secrets = {path.read_text().strip().split("_", 2)[2] for path in secured.files.folder.glob("*.token")}
    secrets.add(secured.files.pool_secret_file.read_text().strip())
    processes = [psutil.Process(secured.process.pid), *psutil.Process(secured.process.pid).children(recursive=True)]
    assert len(processes) >= 6
    environments = "".join(" ".join(one.environ().values()) for one in processes)
    password = re.search(r"redis://:([^@]+)@", environments)
    assert password is not None
    secrets.add(password[1])
    shown = "".join(" ".join(one.cmdline()) for one in processes)
    shown += "".join(path.read_text(errors="replace") for path in (secured.folder / "data" / "logs").glob("*.log"))
    shown += (secured.folder / "err").read_text() + json.dumps(secured.ready)
    assert not [secret for secret in secrets if secret in shown]
    assert secured.ready["redis_url"].startswith("redis://:***@")
    assert (secured.folder / "data").stat().st_mode & 0o077 == 0
    assert contexts_path(os.environ).stat().st_mode & 0o077 == 0


async def answered_until(stop: asyncio.Event, call: Callable[[], Awaitable[object]], failures: list[str]) -> int:
    """Call again and again; returns how often that went well."""
    count = 0
    while not stop.is_set():
        try:
            await call()
            count += 1
        except (HotslotError, httpx2.HTTPError, AssertionError) as exc:
            failures.append(f"{call}: {type(exc).__name__}: {exc}")
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.01)
    return count


async def callers(secured: Secured, stack: AsyncExitStack) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    """Each kind of call: over lasting channels and new ones, with no attempt but the first, and over HTTP."""
    security = secured.files.user
    store = await stack.enter_async_context(StoreClient(secured.ready["store"], secured.once(security)))
    yield lambda: store.resolve("bot")
    for endpoint in secured.ready["workers"]:
        worker = await stack.enter_async_context(WorkerClient(endpoint, secured.once(security.for_workers())))
        yield lambda worker=worker: worker.complete("hello", adapters="bot")  # type: ignore[misc]
    hotslot = await stack.enter_async_context(HotslotClient())
    yield lambda: hotslot.complete("hello", adapters="bot")
    http = await stack.enter_async_context(httpx2.AsyncClient(base_url=secured.ready["gateway"], trust_env=False))

    async def over_http() -> None:
        answer = await http.post("/v1/completions", json=BODY, timeout=120)
        assert answer.status_code == 200, answer.text

    yield over_http

    async def newcomer() -> None:
        async with WorkerClient(secured.ready["workers"][0], secured.once(security.for_workers())) as worker:
            await worker.model_info()

    yield newcomer


async def test_every_partys_certificate_and_the_authority_are_renewed_under_load_without_a_failed_call(
    secured: Secured,
) -> None:
    before = {path.name: path.read_bytes() for path in secured.files.folder.glob("*.crt")}
    failures: list[str] = []
    stop = asyncio.Event()
    began_s = time.monotonic()
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(answered_until(stop, call, failures)) async for call in callers(secured, stack)]
        for arguments in ([], ["--authority"]):
            await asyncio.sleep(1.5)
            command = [sys.executable, "-m", "hotslot", "renew", "--json", "--data-dir", str(secured.folder / "data")]
            renewing = await asyncio.create_subprocess_exec(
                *command, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await renewing.communicate()
            what = "authority" if arguments else "certificates"
            assert json.loads(out) == {"renewed": what, "at_next_start": False}
        await asyncio.sleep(2.5)
        stop.set()
        counts = await asyncio.gather(*tasks)
    took_s = time.monotonic() - began_s
    assert failures == [], f"{len(failures)} of {sum(counts)} calls failed"
    assert min(counts) > 5, counts
    assert took_s < 40 * slowness()
    after = {path.name: path.read_bytes() for path in secured.files.folder.glob("*.crt")}
    assert after.keys() == before.keys() == {"store.crt", "worker-1.crt", "worker-2.crt", "trusted.crt"}
    assert not {name for name in after if after[name] == before[name]}
    (secured.folder / "old.crt").write_bytes(before["trusted.crt"])
    old = ChannelSecurity(secured.folder / "old.crt", token=secured.token)
    async with StoreClient(secured.ready["store"], secured.once(old)) as store:
        with pytest.raises(UnavailableError):
            await store.get("bot")
