"""Fetches compiled code from the store when a worker starts, and gives the store what it had to compile.

Called from the thread that loads the model; the calls to the store run on the worker's event loop. Nothing here can
fail a start: without the store's code the worker compiles.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import structlog

from hotslot.content_files import digest_of_file
from hotslot.errors import CompiledCodeNotFoundError, CompiledCodeRefusedError, HotslotError, StoreUnavailableError
from hotslot.ids import Digest, TenantId
from hotslot.pb.hotslot.fleet.v1 import fleet_pb2 as pb
from hotslot.rpc.status import from_rpc_error
from hotslot.rpc.tenant import TENANT_KEY
from worker_service.adapters.fleet_calls import FleetCalls
from worker_service.compiled_code.archive import Archiver
from worker_service.model.shared_code import COMPILER, CodeKey

log = structlog.get_logger(__name__)

CHUNK_BYTES = 512 * 2**10
TIMEOUT_S = 120.0
"""Longest time of a whole transfer."""


class CodeStore:
    """The store's calls about compiled code, for one tenant."""

    def __init__(self, channel: grpc.aio.Channel, tenant: TenantId) -> None:
        self._calls = FleetCalls(channel)
        self._metadata = ((TENANT_KEY, tenant),)

    async def read(self, key: Digest, target: Path, max_bytes: int) -> None:
        """Write a key's archive, unverified, to a new file.

        Raises CompiledCodeNotFoundError, CompiledCodeRefusedError (too large), and what else the store does.
        """
        reading = self._calls.read_code(pb.ReadCompiledCodeRequest(key=key), TIMEOUT_S, self._metadata)
        size_bytes = 0
        try:
            with target.open("xb") as file:
                async for message in reading:
                    size_bytes += len(message.data)
                    if size_bytes > max_bytes:
                        raise CompiledCodeRefusedError(f"the store's archive for {key}", f"more than {max_bytes} bytes")
                    await asyncio.to_thread(file.write, message.data)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc, unavailable=StoreUnavailableError) from exc
        finally:
            await reading.aclose()

    async def write(self, key: Digest, source: Path) -> None:
        """Keep a file as a key's archive. Raises what the store does."""
        digest, size_bytes = await asyncio.to_thread(_measured, source)
        first = pb.WriteCompiledCodeRequest(key=key, digest=digest, size_bytes=size_bytes)
        try:
            await self._calls.write_code(partial(_messages, first, source), TIMEOUT_S, self._metadata)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc, unavailable=StoreUnavailableError) from exc


def _measured(path: Path) -> tuple[Digest, int]:
    with path.open("rb") as file:
        return digest_of_file(file), path.stat().st_size


async def _messages(
    first: pb.WriteCompiledCodeRequest, source: Path
) -> AsyncGenerator[pb.WriteCompiledCodeRequest, None]:
    yield first
    with source.open("rb") as file:
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield pb.WriteCompiledCodeRequest(data=data)


@dataclass(slots=True)
class CodeSharing:
    """Shares one cache directory's code through the store."""

    store: CodeStore
    archiver: Archiver
    uploads: bool
    """True if code that had to be compiled is given to the store."""
    loop: asyncio.AbstractEventLoop
    _uploading: "asyncio.Task[None] | None" = field(default=None)

    def bring(self, key: CodeKey, *, anew: bool = False) -> None:
        """Have the store's code for this key in the cache directory, if there is any. Blocks.

        For a worker without a compiler the store is asked first whose code there is. `anew` fetches what was fetched
        before, in the place of files that may be damaged.
        """
        if self._marker(key).exists() and not anew:
            return
        try:
            named = key
            if key.is_open:
                with self._scratch() as file:
                    self._read(key, file)
                    named = self.archiver.read_name(key, file)
                if self._marker(named).exists() and not anew:
                    return
            with self._scratch() as file:
                self._read(named, file)
                num_new = self.archiver.unpack(named, file, replaces=anew)
            self._marker(named).touch()
        except CompiledCodeNotFoundError:
            log.info("compiled_code_absent", key=key.digest)
        except (HotslotError, OSError) as exc:
            log.warning("compiled_code_not_used", key=key.digest, why=str(exc))
        else:
            log.info("compiled_code_fetched", key=key.digest, new_files=num_new)

    def settle(self, key: CodeKey, num_compiled: int) -> None:
        """The warm-up has ended, with so many graphs compiled: give them to the store, in the background."""
        if self.uploads and not key.is_open and (num_compiled or not self._marker(key).exists()):
            self.loop.call_soon_threadsafe(self._begin_upload, key)

    async def close(self) -> None:
        """End an upload that is under way."""
        if self._uploading is not None:
            self._uploading.cancel()
            await asyncio.gather(self._uploading, return_exceptions=True)

    async def uploaded(self) -> None:
        """Wait until what `settle` began has ended."""
        if self._uploading is not None:
            await asyncio.wait([self._uploading])

    def _begin_upload(self, key: CodeKey) -> None:
        self._uploading = asyncio.create_task(self._upload(key), name="upload compiled code")

    async def _upload(self, key: CodeKey) -> None:
        try:
            with self._scratch() as file:
                num_files = await asyncio.to_thread(self.archiver.pack, key, file)
                await self.store.write(key.digest, file)
            if key.facts.get(COMPILER):
                with self._scratch() as file:
                    await asyncio.to_thread(self.archiver.pack_name, key, file)
                    await self.store.write(key.opened.digest, file)
            self._marker(key).touch()
        except (HotslotError, OSError) as exc:
            log.warning("compiled_code_not_kept", key=key.digest, why=str(exc))
        else:
            log.info("compiled_code_kept", key=key.digest, files=num_files)

    def _read(self, key: CodeKey, target: Path) -> None:
        reading = self.store.read(key.digest, target, self.archiver.max_bytes)
        asyncio.run_coroutine_threadsafe(reading, self.loop).result()

    def _marker(self, key: CodeKey) -> Path:
        """There once this directory and the store have the same code for a key."""
        return self.archiver.cache_dir / f"shared-{key.digest.removeprefix('sha256:')[:16]}"

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        directory = self.archiver.cache_dir
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = directory / f".shared-{secrets.token_hex(8)}"
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)
