"""Archives of compiled code: what comes out is what went in, for its key alone, sealed, and in its place."""

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from pydantic import SecretStr

from hotslot.errors import CompiledCodeMismatchError, CompiledCodeRefusedError, InvalidRequestError
from worker_service.compiled_code.archive import Archiver
from worker_service.model.shared_code import CodeKey
from worker_service.settings import WorkerSettings

KEY = CodeKey({"torch": "2.13.0", "processor": "abc"})
OTHER_KEY = CodeKey({"torch": "2.12.0", "processor": "abc"})
SECRET = b"0123456789abcdef"
KERNELS = "hotslot_cpu-0123456789abcdef.so"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The sealed archive of a small cache."""
    cache = tmp_path / "warm"
    files = {"inductor/ab/cab.so": b"native" * 1000, "inductor/fxgraph/x/y": b"graph", KERNELS: b"kernels"}
    left_behind = {"inductor/ab/cab.lock": b"", "inductor/h.gch": b"large", "shared-123": b"", "notes.txt": b"mine"}
    for name, data in {**files, **left_behind}.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(data)
    (cache / "inductor" / "link").symlink_to("/etc/passwd")
    target = tmp_path / "code.hotslot"
    assert archiver(cache).pack(KEY, target) == 3
    return target


def archiver(cache: Path, *, secret: bytes = SECRET, max_bytes: int = 2**20) -> Archiver:
    return Archiver(cache, max_bytes, secret)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def forged(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], *, size: int | None = None) -> Path:
    """An archive whose digest is right, with these entries; unsealed, as a file that somebody hands out."""
    payload = io.BytesIO()
    with gzip.GzipFile(fileobj=payload, mode="wb") as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        for entry, data in entries:
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    digest = "sha256:" + hashlib.sha256(payload.getvalue()).hexdigest()
    header = {"format": 1, "facts": dict(KEY.facts), "payload": digest, "seal": ""}
    path.write_bytes(json.dumps(header).encode() + b"\n" + payload.getvalue())
    return path


def test_another_worker_of_the_same_key_gets_the_code_and_nothing_else(tmp_path: Path, packed: Path) -> None:
    cache = tmp_path / "cold"
    assert archiver(cache).unpack(KEY, packed) == 3
    assert names(cache) == {"inductor/ab/cab.so", "inductor/fxgraph/x/y", KERNELS}
    assert (cache / "inductor/ab/cab.so").read_bytes() == b"native" * 1000
    (cache / KERNELS).write_bytes(b"damaged")
    assert archiver(cache).unpack(KEY, packed) == 0, "what is there already stays"
    assert archiver(cache).unpack(KEY, packed, replaces=True) == 3
    assert (cache / KERNELS).read_bytes() == b"kernels"


def test_packing_the_same_code_twice_makes_the_same_bytes(tmp_path: Path, packed: Path) -> None:
    again = tmp_path / "again"
    archiver(tmp_path / "warm").pack(KEY, again)
    assert again.read_bytes() == packed.read_bytes()


def test_code_for_something_else_is_refused_with_the_difference(tmp_path: Path, packed: Path) -> None:
    with pytest.raises(CompiledCodeMismatchError, match=r"torch is '2\.13\.0', here '2\.12\.0'"):
        archiver(tmp_path / "cold").unpack(OTHER_KEY, packed)
    assert not (tmp_path / "cold").exists()


@pytest.mark.parametrize("position", [2, 40, 150, -100, -1])
def test_one_changed_bit_is_found_before_anything_is_unpacked(tmp_path: Path, packed: Path, position: int) -> None:
    data = bytearray(packed.read_bytes())
    data[position] ^= 1
    packed.write_bytes(data)
    with pytest.raises(CompiledCodeRefusedError):
        archiver(tmp_path / "cold").unpack(KEY, packed)
    assert not (tmp_path / "cold").exists()


def test_a_seal_with_another_secret_or_none_is_refused(tmp_path: Path, packed: Path) -> None:
    with pytest.raises(CompiledCodeRefusedError, match="not sealed"):
        archiver(tmp_path / "cold", secret=b"another secret of workers").unpack(KEY, packed)
    archiver(tmp_path / "warm", secret=b"").pack(KEY, packed)
    with pytest.raises(CompiledCodeRefusedError, match="not sealed"):
        archiver(tmp_path / "cold").unpack(KEY, packed)


def of_pool(cache: Path, *lines: str) -> Archiver:
    """A worker's whose settings name the pool's secret alone."""
    path = cache.with_name("pool-" + "-".join(lines))
    path.write_text("\n".join(f"{line:*<40}" for line in lines), "utf-8")
    return Archiver.of(WorkerSettings(model="m", pool_secret_file=path), cache)


def test_the_secret_of_the_pool_seals_code_too_and_may_be_changed(tmp_path: Path, packed: Path) -> None:
    of_pool(tmp_path / "warm", "old").pack(KEY, packed)
    assert of_pool(tmp_path / "first", "new", "old").unpack(KEY, packed) == 3
    for other in (of_pool(tmp_path / "cold", "new"), archiver(tmp_path / "cold")):
        with pytest.raises(CompiledCodeRefusedError, match="not sealed"):
            other.unpack(KEY, packed)


def test_a_file_with_the_key_of_records_seals_no_code(tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_text("records:" + 64 * "a", "utf-8")
    with pytest.raises(InvalidRequestError, match="the key of records alone"):
        Archiver.of(WorkerSettings(model="m", pool_secret_file=path), tmp_path)


def test_the_workers_own_secret_goes_before_the_pools(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    path.write_text(40 * "x", "utf-8")
    own = WorkerSettings(model="m", pool_secret_file=path, compiled_code_secret=SecretStr(SECRET.decode()))
    assert Archiver.of(own, tmp_path).secret == SECRET


def test_a_key_that_is_edited_breaks_the_seal(tmp_path: Path, packed: Path) -> None:
    packed.write_bytes(packed.read_bytes().replace(b"2.13.0", b"2.12.0", 1))
    with pytest.raises(CompiledCodeRefusedError, match="not sealed"):
        archiver(tmp_path / "cold").unpack(OTHER_KEY, packed)


@pytest.mark.parametrize(
    "name",
    ["../out.so", "inductor/../../out.so", "/tmp/out.so", "inductor", "elsewhere/x", "inductor//x", "hotslot_cpu-x.so"],
)
def test_an_entry_out_of_its_place_is_refused(tmp_path: Path, name: str) -> None:
    archive = forged(tmp_path / "bad", [(tarfile.TarInfo("inductor/ok"), b"1"), (tarfile.TarInfo(name), b"2")])
    with pytest.raises(CompiledCodeRefusedError, match="no plain file"):
        archiver(tmp_path / "cold", secret=b"").unpack(KEY, archive)
    assert names(tmp_path) == {"bad"}, "nothing of a refused archive stays"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_devices_and_directories_are_refused(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("inductor/x")
    entry.type, entry.linkname = kind, "/etc"
    archive = forged(tmp_path / "bad", [(entry, b""), (tarfile.TarInfo("inductor/x/passwd"), b"2")])
    with pytest.raises(CompiledCodeRefusedError):
        archiver(tmp_path / "cold", secret=b"").unpack(KEY, archive)
    assert names(tmp_path) == {"bad"}


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    archive = forged(tmp_path / "bomb", [(tarfile.TarInfo("inductor/zeros"), bytes(20 * 2**20))])
    with pytest.raises(CompiledCodeRefusedError, match="larger"):
        archiver(tmp_path / "cold", secret=b"", max_bytes=2**20).unpack(KEY, archive)
    assert names(tmp_path) == {"bomb"}


def test_more_code_than_an_archive_may_have_is_not_packed(tmp_path: Path, packed: Path) -> None:
    with pytest.raises(CompiledCodeRefusedError, match="more code"):
        archiver(tmp_path / "warm", max_bytes=65_536).pack(KEY, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("data", [b"", b"\n", b"{}\n", b"[]\n", b'{"format": 2}\n', b"\x1f\x8b", b"null\n"])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "junk").write_bytes(data)
    with pytest.raises(CompiledCodeRefusedError):
        archiver(tmp_path / "cold").unpack(KEY, tmp_path / "junk")


def test_code_of_any_compiler_fits_where_there_is_none(tmp_path: Path, packed: Path) -> None:
    compiled = CodeKey({**KEY.facts, "compiler": "g++ 12"})
    archiver(tmp_path / "warm").pack(compiled, packed)
    assert archiver(tmp_path / "cold").unpack(compiled.opened, packed) == 3
    with pytest.raises(CompiledCodeMismatchError, match=r"compiler is 'g\+\+ 12', here 'g\+\+ 13'"):
        archiver(tmp_path / "other").unpack(CodeKey({**KEY.facts, "compiler": "g++ 13"}), packed)
    with pytest.raises(CompiledCodeMismatchError, match="torch is"):
        archiver(tmp_path / "other").unpack(CodeKey({**OTHER_KEY.facts, "compiler": ""}), packed)


def test_what_only_tells_whose_code_there_is_does_not_pass_for_the_code(tmp_path: Path, packed: Path) -> None:
    """Its seal is for the same key, so a store could give one for the other, and nobody would ask again."""
    archiver(tmp_path / "warm").pack_name(KEY, packed)
    assert archiver(tmp_path / "cold").read_name(KEY, packed) == KEY
    with pytest.raises(CompiledCodeRefusedError, match="no files"):
        archiver(tmp_path / "cold").unpack(KEY, packed)
