"""Compiled code in one file: bound to a key, sealed, and never unpacked to anywhere but its place.

The file is a line of JSON (what the code is for, the digest of the rest, a seal over both) and a gzipped tar. The
code in it will run in this process, so nothing of it is looked at before digest and seal are found right.
"""

import gzip
import hashlib
import hmac
import json
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hotslot.content_files import StagedFile, digest_of_file, read_blocks
from hotslot.errors import CompiledCodeMismatchError, CompiledCodeRefusedError
from hotslot.ids import Digest
from shared.pool_secret import code_keys
from worker_service.model.shared_code import INDUCTOR_DIR, CodeKey
from worker_service.settings import WorkerSettings

FORMAT = 1
MAX_HEADER_BYTES = 64 * 2**10
MAX_FILES = 100_000
MAX_UNPACKED_RATIO = 16
"""Unpacked bytes for each byte that an archive may have; code is packed to a fifth or so."""
_KERNELS = re.compile(r"hotslot_cpu-[0-9a-f]{16}\.so")
_UNSHIPPED = (".lock", ".gch", ".tmp")
"""Locks, and headers that the compiler made for itself: large, quick to make, and bound to their path."""
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Archiver:
    """Packs and unpacks one cache directory."""

    cache_dir: Path
    max_bytes: int
    """Size of an archive; unpacked it may be MAX_UNPACKED_RATIO times as large."""
    secret: bytes = field(default=b"", repr=False)
    """Seals what is packed, and must have sealed what is unpacked; without one, a digest protects from damage only."""
    earlier_secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """Secrets that may have sealed what is unpacked, too, while one takes another's place."""

    @classmethod
    def of(cls, settings: WorkerSettings, cache_dir: Path) -> "Archiver":
        """Archiver by a worker's settings: with its own secret, or else with a key from the pool's.

        Raises InvalidRequestError for a pool's secret that cannot be used.
        """
        secret = settings.compiled_code_secret.get_secret_value().encode()
        keys = (secret,) if secret or settings.pool_secret_file is None else code_keys(settings.pool_secret_file)
        return cls(cache_dir, settings.max_compiled_code_bytes, keys[0], keys[1:])

    def pack(self, key: CodeKey, target: Path) -> int:
        """Write the directory's compiled code to a file; returns the number of files in it.

        Raises CompiledCodeRefusedError when it is larger than an archive may be, and OSError.
        """
        return self._pack(key, target, _shipped(self.cache_dir))

    def pack_name(self, key: CodeKey, target: Path) -> None:
        """Write an archive without files, which tells workers without a compiler whose code there is."""
        self._pack(key, target, [])

    def _pack(self, key: CodeKey, target: Path, files: list[Path]) -> int:
        path = target.with_name(f"{target.name}.{secrets.token_hex(4)}.payload")
        payload, staged = StagedFile(path), StagedFile(path.with_suffix(".staged"), digests=False)
        try:
            self._pack_payload(payload, target, files)
            digest = payload.digest()
            header = {"format": FORMAT, "facts": dict(key.facts), "payload": digest, "seal": self._seal(key, digest)}
            staged.write(json.dumps(header, sort_keys=True).encode() + b"\n")
            with path.open("rb") as rest:
                read_blocks(rest, staged.write)
            staged.publish(target, is_durable=False)
        finally:
            payload.discard()
            staged.discard()
        return len(files)

    def unpack(self, key: CodeKey, source: Path, *, replaces: bool = False) -> int:
        """Add an archive's files to the directory; returns how many were. Files that are there stay as they are.

        Where it `replaces` them, they do not; processes that have them open keep what they have.

        Raises CompiledCodeMismatchError (another key), CompiledCodeRefusedError (damaged, not sealed with the secret,
        too large, or with an entry that is no plain file in its place), and OSError.
        """
        if source.stat().st_size > self.max_bytes:
            raise CompiledCodeRefusedError(source.name, f"found more than {self.max_bytes} bytes")
        with source.open("rb") as file:
            self._check_header(key, file, source.name)
            self.cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            staging = self.cache_dir / f".unpacking-{secrets.token_hex(8)}"
            staging.mkdir(mode=0o700)
            try:
                names = list(self._unpack_payload(file, staging, source.name))
                if not names:  # its seal fits the key all the same: of code that is elsewhere it only tells the name
                    raise CompiledCodeRefusedError(source.name, "it has no files")
                return sum(_publish(staging / name, self.cache_dir / name, replaces=replaces) for name in names)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def read_name(self, key: CodeKey, source: Path) -> CodeKey:
        """Key whose code an archive has, which fits this one. Raises what `unpack` does."""
        with source.open("rb") as file:
            return self._check_header(key, file, source.name)

    def _check_header(self, key: CodeKey, file: IO[bytes], what: str) -> CodeKey:
        """Leaves the file at its payload; the archive's own key."""
        header = _parse_header(file.readline(MAX_HEADER_BYTES), what)
        begin = file.tell()
        found = digest_of_file(file)
        file.seek(begin)
        if found != header["payload"]:
            raise CompiledCodeRefusedError(what, f"the bytes have digest {found}, expected {header['payload']}")
        facts: Mapping[str, str] = header["facts"]
        if self.secret and not self._is_sealed(CodeKey(facts), found, header["seal"]):
            problem = "it is not sealed with this worker's HOTSLOT_COMPILED_CODE_SECRET, or HOTSLOT_POOL_SECRET_FILE"
            raise CompiledCodeRefusedError(what, problem)
        differences = key.differences(facts)
        if differences:
            raise CompiledCodeMismatchError(what, differences)
        return CodeKey(facts)

    def _seal(self, key: CodeKey, payload_digest: Digest) -> str:
        return _seal_of(self.secret, key, payload_digest) if self.secret else ""

    def _is_sealed(self, key: CodeKey, payload_digest: Digest, seal: str) -> bool:
        accepted = (self.secret, *self.earlier_secrets)
        return any(hmac.compare_digest(_seal_of(each, key, payload_digest), seal) for each in accepted)

    def _pack_payload(self, payload: StagedFile, target: Path, files: list[Path]) -> None:
        with (
            gzip.GzipFile("", "wb", compresslevel=3, fileobj=payload, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as tar,
        ):
            for path in files:
                with path.open("rb") as file:
                    entry = tar.gettarinfo(arcname=path.relative_to(self.cache_dir).as_posix(), fileobj=file)
                    entry.uid = entry.gid = entry.mtime = 0
                    entry.uname = entry.gname = ""
                    entry.mode = 0o644
                    tar.addfile(entry, file)
                if payload.size_bytes > self.max_bytes - MAX_HEADER_BYTES:
                    problem = f"{self.cache_dir} has more code than fits into {self.max_bytes} bytes; empty it"
                    raise CompiledCodeRefusedError(target.name, problem)

    def _unpack_payload(self, file: IO[bytes], staging: Path, what: str) -> Iterator[PurePosixPath]:
        left_bytes, num_files = self.max_bytes * MAX_UNPACKED_RATIO, 0
        try:
            with gzip.GzipFile(fileobj=file, mode="rb") as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
                for entry in tar:
                    name = _checked_name(entry, what)
                    left_bytes -= entry.size
                    num_files += 1
                    if left_bytes < 0 or num_files > MAX_FILES:
                        raise CompiledCodeRefusedError(what, "unpacked it is larger than an archive may be")
                    content = tar.extractfile(entry)
                    assert content is not None, "only plain files came this far"
                    path = staging / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("xb") as target:
                        shutil.copyfileobj(content, target, _BLOCK_BYTES)
                    yield name
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, FileExistsError, NotADirectoryError) as exc:
            raise CompiledCodeRefusedError(what, f"it is no archive of compiled code ({exc})") from exc


def _seal_of(secret: bytes, key: CodeKey, payload_digest: Digest) -> str:
    message = f"hotslot compiled code {FORMAT}\n{key.digest}\n{payload_digest}".encode()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def _parse_header(line: bytes, what: str) -> dict[str, Any]:
    try:
        header = json.loads(line)
        facts = header["facts"]
        strings = [header["payload"], header["seal"], *facts.keys(), *facts.values()]
        well_formed = header["format"] == FORMAT and all(isinstance(item, str) for item in strings)
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise CompiledCodeRefusedError(what, "it does not begin as an archive of compiled code") from exc
    if not well_formed:
        raise CompiledCodeRefusedError(what, f"it is not of format {FORMAT}")
    found: dict[str, Any] = header
    return found


def _checked_name(entry: tarfile.TarInfo, what: str) -> PurePosixPath:
    """Path of an entry, relative to the directory; anything but a plain file in its place is refused."""
    name = PurePosixPath(entry.name)
    in_place = not name.is_absolute() and ".." not in name.parts and name.as_posix() == entry.name
    known = _KERNELS.fullmatch(entry.name) or (len(name.parts) > 1 and name.parts[0] == INDUCTOR_DIR)
    if not (entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and in_place and known):
        raise CompiledCodeRefusedError(what, f"entry {entry.name[:120]!r} is no plain file of a compiler's cache")
    return name


def _shipped(cache_dir: Path) -> list[Path]:
    """Files that go into an archive, in a fixed order; links stay behind."""
    found = [path for path in (cache_dir / INDUCTOR_DIR).rglob("*") if path.suffix not in _UNSHIPPED]
    found += [path for path in cache_dir.glob("hotslot_cpu-*.so") if _KERNELS.fullmatch(path.name)]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def _publish(staged: Path, target: Path, *, replaces: bool) -> bool:
    if target.exists() and not replaces:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    staged.replace(target)
    return True
