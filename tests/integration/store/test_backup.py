"""Backups: taken of a store at work, whole or refused, and restored bit for bit."""

import asyncio
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import pytest

from hotslot import errors
from hotslot.ids import digest_of
from hotslot.pb.hotslot.store.v1 import adapter_store_pb2 as pb
from store_service.backup.__main__ import main
from store_service.backup.places import writing_to
from store_service.content.hold import holding
from tests.support.checkpoints import adapter
from tests.support.fake_hub import FakeHub
from tests.support.publisher import Known, Publisher, assert_restored
from tests.support.store import error_of, hub_request, open_store
from tests.support.store_process import StoreForks
from tests.support.waiting import until

KINDS = ("folder", "file", "stream")
NUM_CLIENTS = 4


def program(
    *arguments: object, stdin: bytes = b"", settings: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[bytes]:
    """`python -m store_service.backup` in this process, whose start takes longer than most of what it does here."""
    streams = [io.TextIOWrapper(io.BytesIO(data)) for data in (stdin, b"", b"")]
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        for name, value in settings.items():
            patch.setenv(f"HOTSLOT_{name.upper()}", value)
        code = main(list(map(str, arguments)))
    for stream in streams:
        stream.flush()
    _, out, err = (stream.buffer.getvalue() for stream in streams)
    return subprocess.CompletedProcess([str(part) for part in arguments], code, out, err)


def process(*arguments: object) -> subprocess.CompletedProcess[bytes]:
    """The same as an operator runs it."""
    command = [sys.executable, "-m", "store_service.backup", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False)


def back_up(data: Path, folder: Path, kind: str) -> str | bytes:
    """A backup of a kind: where it is, or all of it."""
    where = {"folder": str(folder / "backup"), "file": str(folder / "backup.tar"), "stream": "-"}[kind]
    done = process("create", where, "--data-dir", data)
    assert done.returncode == 0, done.stderr
    return done.stdout if kind == "stream" else where


def restore(backup: str | bytes, data: Path, command: str = "restore") -> subprocess.CompletedProcess[bytes]:
    if isinstance(backup, bytes):
        return program(command, "-", "--data-dir", data, stdin=backup)
    return program(command, backup, "--data-dir", data)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_acknowledged_before_a_backup_is_restored_bit_for_bit(
    kind: str, tmp_path: Path, forks: StoreForks
) -> None:
    publishers = [Publisher(f"bot-{number}", random.Random(number)) for number in range(NUM_CLIENTS)]
    settings = {"unreferenced_grace_s": 0, "collect_every_s": 0.05}
    async with forks.store(tmp_path, **settings) as process, process.client() as store:
        await store.register()
        working = [asyncio.ensure_future(publisher.work(store.of(publisher.name))) for publisher in publishers]
        await until(lambda: all(len(publisher.deleted) >= 1 for publisher in publishers))
        before = [Known.of(publisher) for publisher in publishers]
        backup = await asyncio.to_thread(back_up, tmp_path / "data", tmp_path, kind)
        for work in working:
            assert not work.done(), work.exception()
            work.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    shutil.rmtree(tmp_path / "data")
    restored = restore(backup, tmp_path / "restored")
    assert restored.returncode == 0, restored.stderr
    async with open_store(tmp_path / "restored") as restored_store:
        for publisher, known in zip(publishers, before, strict=True):
            await assert_restored(restored_store.of(publisher.name), publisher, known)


async def fill(data: Path) -> None:
    async with open_store(data) as store:
        await store.register()
        for seed in range(3):
            await store.of("acme").push(adapter(seed=seed), f"bot-{seed}")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    asyncio.run(fill(folder / "data"))
    back_up(folder / "data", folder, "folder")
    back_up(folder / "data", folder, "file")
    return folder


def blob_of(backup: Path) -> Path:
    return next(path for path in sorted((backup / "blobs").rglob("*")) if path.is_file())


def flip(path: Path, position: int = -1) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def forget_a_blob(backup: Path) -> None:
    """Manifest and blobs agree, and the catalog refers to one more."""
    path = backup / "manifest.json"
    path.chmod(0o644)
    document = json.loads(path.read_bytes())
    gone = document["blobs"].pop()
    digits = gone["digest"].removeprefix("sha256:")
    (backup / "blobs" / gone["tenant"] / digits[:2] / digits).unlink()
    path.write_text(json.dumps(document))


def empty_the_manifest(backup: Path) -> None:
    (backup / "manifest.json").unlink()
    (backup / "manifest.json").touch()


def rename_a_tenant(backup: Path) -> None:
    (backup / "blobs" / "acme").rename(backup / "blobs" / "other")


HARMS: dict[str, tuple[Callable[[Path], object], int]] = {
    "no manifest": (lambda backup: (backup / "manifest.json").unlink(), 5),
    "an empty manifest": (empty_the_manifest, 5),
    "no catalog": (lambda backup: (backup / "catalog.sqlite3").unlink(), 5),
    "a blob is missing": (lambda backup: blob_of(backup).unlink(), 5),
    "a bit of a blob": (lambda backup: flip(blob_of(backup)), 8),
    "a bit of the catalog": (lambda backup: flip(backup / "catalog.sqlite3", 5000), 8),
    "a blob that nobody speaks of": (forget_a_blob, 5),
    "blobs under another tenant": (rename_a_tenant, 5),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_backup_that_is_not_whole_is_refused_and_nothing_is_restored(harm: str, filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled / "backup", tmp_path / "backup")
    change, code = HARMS[harm]
    change(tmp_path / "backup")
    for command in ("verify", "restore"):
        refused = restore(str(tmp_path / "backup"), tmp_path / "data", command)
        assert refused.returncode == code, refused.stderr
        assert len(refused.stderr.splitlines()) == 1
    assert {path.name for path in (tmp_path / "data").iterdir()} <= {"lock"}
    assert restore(str(filled / "backup"), tmp_path / "data").returncode == 0


def test_an_archive_that_ends_anywhere_is_incomplete(filled: Path, tmp_path: Path) -> None:
    data, rng = (filled / "backup.tar").read_bytes(), random.Random(0)
    with tarfile.open(filled / "backup.tar") as archive:
        end = archive.getmember("manifest.json").offset_data
    for size in (0, 1, 511, 512, 10_240, end, end + 20, *(rng.randrange(end) for _ in range(5))):
        refused = restore(data[:size], tmp_path / "data")
        assert refused.returncode == 5, (size, refused.stderr)
        assert b"no complete backup" in refused.stderr or b"cannot be read" in refused.stderr
    assert {path.name for path in (tmp_path / "data").iterdir()} <= {"lock"}


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "blobs/../../escaped", "blobs/acme/aa/" + "a" * 63])
def test_nothing_leaves_an_archive_by_a_name_of_its_own(name: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"bad"))
        link = tarfile.TarInfo("catalog.sqlite3")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    refused = restore(buffer.getvalue(), tmp_path / "inside" / "data")
    assert refused.returncode == 5
    assert b"no backup of hotslot's" in refused.stderr
    assert not list(tmp_path.rglob("escaped"))


def test_nothing_is_overwritten(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    (tmp_path / "taken.tar").write_text("mine")
    for target in ("full", "taken.tar"):
        assert program("create", tmp_path / target, "--data-dir", filled / "data").returncode == 5
    assert program("create", tmp_path / "b.tar.gz", "--data-dir", filled / "data").returncode == 2
    for folder in (tmp_path / "full", filled / "data"):
        refused = restore(str(filled / "backup"), folder)
        assert refused.returncode == 5
        assert b"not empty" in refused.stderr
    assert [path.read_text() for path in (tmp_path / "full" / "notes", tmp_path / "taken.tar")] == ["mine", "mine"]
    for missing in (
        program("create", tmp_path / "b", "--data-dir", tmp_path / "nowhere"),
        restore("nowhere", tmp_path / "x"),
    ):
        assert missing.returncode == 3


@pytest.mark.parametrize("place", ["data", "data/below", "data/below/it"])
def test_a_restore_into_a_file_is_refused_by_name_and_changes_nothing(place: str, filled: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    refused = restore(str(filled / "backup"), tmp_path / place)
    assert refused.returncode == 5
    assert refused.stderr.decode().startswith(f"hotslot: {tmp_path / 'data'} is a file")
    assert (tmp_path / "data").read_text() == "x"


def test_a_restore_that_is_refused_leaves_nothing_behind(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled / "backup", tmp_path / "backup")
    flip(blob_of(tmp_path / "backup"))
    assert restore(str(tmp_path / "backup"), tmp_path / "data").returncode == 8
    assert list((tmp_path / "data").iterdir()) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "lock").touch()
    assert restore(str(tmp_path / "backup"), tmp_path / "old").returncode == 8
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["lock"], "that of a store is not ours to remove"


@pytest.mark.parametrize("place", ["backup", "backup.tar", "blobs/backup.tar", "blobs/../backup"])
def test_a_backup_inside_of_what_it_is_a_backup_of_is_refused(place: str, filled: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(filled, data)
    before = sorted(data.rglob("*"))
    done = program("create", data / place, "--data-dir", data)
    assert done.returncode == 2
    assert b"inside of the store's data folder" in done.stderr
    assert sorted(data.rglob("*")) == before


def test_two_backups_at_once_never_write_the_same_file(filled: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.tar"
    with writing_to(str(target), io.BytesIO()) as first:
        first.add("manifest.json", io.BytesIO(b"{}"), 2)
        done = program("create", target, "--data-dir", filled)
        assert done.returncode == 5
        assert b"another backup" in done.stderr
    with tarfile.open(target) as archive:
        assert archive.getnames() == ["manifest.json"]


def test_a_blob_that_has_rotted_makes_no_backup(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled / "data", tmp_path / "data")
    flip(blob_of(tmp_path / "data"))
    refused = program("create", tmp_path / "backup.tar", "--data-dir", tmp_path / "data")
    assert refused.returncode == 8
    assert not (tmp_path / "backup.tar").exists()
    blob_of(tmp_path / "data").unlink()
    refused = program("create", tmp_path / "backup.tar", "--data-dir", tmp_path / "data")
    assert refused.returncode == 3
    assert b"comes from no commit" in refused.stderr
    assert not (tmp_path / "backup.tar").exists()


async def test_what_comes_from_a_commit_and_left_the_disk_is_named_and_fetched(tmp_path: Path, hub: FakeHub) -> None:
    async with open_store(tmp_path / "data", hub_endpoint=hub.endpoint) as store:
        await store.register()
        version = await store.import_(hub_request())
    blob_of(tmp_path / "data").unlink()
    done = program("create", tmp_path / "backup", "--data-dir", tmp_path / "data", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["num_blobs"], document["num_elsewhere"]) == (0, 0, 1)
    assert restore(str(tmp_path / "backup"), tmp_path / "restored").returncode == 0
    async with open_store(tmp_path / "restored", hub_endpoint=hub.endpoint) as store:
        assert digest_of(await store.read(version.manifest.weights_digest)) == version.manifest.weights_digest


async def test_nothing_is_removed_while_a_backup_is_taken(tmp_path: Path) -> None:
    settings = {"unreferenced_grace_s": 0, "delete_grace_s": 0, "collect_every_s": 0.01}

    def num_blobs() -> int:
        return sum(path.is_file() for path in (tmp_path / "blobs").rglob("*"))

    async with open_store(tmp_path, **settings) as store:
        await store.register()
        with suppress(errors.HotslotError):
            await store.push(adapter(), "bot")
        with holding(tmp_path, timeout_s=10):
            await store.call("DeleteAdapter", pb.DeleteAdapterRequest(name="bot"))
            for _ in range(30):
                assert num_blobs() == 1
                await asyncio.sleep(0.01)
        await until(lambda: not num_blobs())


async def test_a_watch_of_the_store_that_was_lost_begins_anew(tmp_path: Path) -> None:
    async with open_store(tmp_path / "data") as store:
        await store.register()
        await store.push(adapter(seed=1), "bot")
        backup = await asyncio.to_thread(back_up, tmp_path / "data", tmp_path, "folder")
        await store.push(adapter(seed=2), "bot")
        lost = (await store.call("ListAdapters", pb.ListAdaptersRequest())).revision
    assert restore(backup, tmp_path / "restored").returncode == 0
    async with open_store(tmp_path / "restored") as store:
        for seed in (3, 4):
            await store.push(adapter(seed=seed), "bot")
        for revision in (1, lost):
            watch = store.stream("WatchAdapters", pb.WatchAdaptersRequest(from_revision=revision))
            assert isinstance(await error_of(watch), errors.RevisionCompactedError)
