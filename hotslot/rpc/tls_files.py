"""Certificates and keys in files that may change at any time: read whole and checked, or the earlier ones stay."""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hotslot.errors import FieldViolation, InvalidRequestError

LOOK_EVERY_S = 1.0
"""Time between two looks at files."""
READ_ATTEMPTS = 3
Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """Places of PEM files; None where there is none."""

    cert_file: Path | None = None
    """Certificate, and those that lead from it to a trusted one."""
    key_file: Path | None = None
    """Key of that certificate."""
    ca_file: Path | None = None
    """Certificates that the other side's must lead to."""

    @property
    def all(self) -> tuple[Path | None, ...]:
        return (self.cert_file, self.key_file, self.ca_file)


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """Content of the files."""

    cert: bytes | None
    key: bytes | None = field(repr=False)
    ca: bytes | None


class FileStamps:
    """Notices that files have changed, by looking at most once in a while."""

    def __init__(self, paths: tuple[Path | None, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._clock = clock
        self._looked_s = clock()
        self.taken = self.look()

    def look(self) -> Stamps:
        """Stamps by which one state of the files is told from another."""
        return tuple(_stamp(path) for path in self._paths)

    def changed(self, every_s: float = LOOK_EVERY_S) -> bool:
        """Tell whether the files are others than when `taken` was; False between two looks."""
        now_s = self._clock()
        if now_s - self._looked_s < every_s:
            return False
        self._looked_s = now_s
        return self.look() != self.taken


class TlsFiles:
    """Current content of a certificate, its key and the trusted certificates."""

    def __init__(self, paths: TlsPaths, clock: Callable[[], float] = time.monotonic) -> None:
        """Read them; raises InvalidRequestError naming the file that cannot be used."""
        if (paths.cert_file is None) != (paths.key_file is None):
            given, missing = ("key", "certificate") if paths.cert_file is None else ("certificate", "key")
            raise InvalidRequestError([FieldViolation("tls", f"found a {given} without its {missing}")])
        self._paths = paths
        self._stamps = FileStamps(paths.all, clock)
        self.material, self._stamps.taken = self._read()

    def refresh(self, every_s: float = LOOK_EVERY_S) -> bool:
        """Read files that have changed; True when there is something new. Files that do not fit together are passed
        over, since they are being written: the earlier ones stay."""
        if not self._stamps.changed(every_s):
            return False
        try:
            material, stamps = self._read()
        except InvalidRequestError:
            return False
        is_new = material != self.material
        self.material, self._stamps.taken = material, stamps
        return is_new

    def _read(self) -> tuple[TlsMaterial, Stamps]:
        """The content, of one moment."""
        for _ in range(READ_ATTEMPTS):
            stamps = self._stamps.look()
            material = TlsMaterial(*(_content(path) for path in self._paths.all))
            self._check()
            if self._stamps.look() == stamps:
                return material, stamps
        raise InvalidRequestError([FieldViolation("tls", "the files change while they are read")])

    def _check(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which trusts nothing yet
        if self._paths.ca_file is not None:
            _checked(self._paths.ca_file, lambda: context.load_verify_locations(self._paths.ca_file))
        if (cert := self._paths.cert_file) is not None and (key := self._paths.key_file) is not None:
            # The password is for keys that have one, which would otherwise be asked for at the terminal.
            _checked(cert, lambda: context.load_cert_chain(cert, key, password=""))


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else None


def _content(path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path is not None else None
    except OSError as exc:
        raise _unusable(path, exc.strerror or str(exc)) from exc


def _checked(path: Path, load: Callable[[], object]) -> None:
    try:
        load()
    except ssl.SSLError as exc:
        raise _unusable(path, f"expected PEM, and a key that is the certificate's: {exc.reason or exc}") from exc
    except OSError as exc:
        raise _unusable(path, exc.strerror or str(exc)) from exc


def _unusable(path: Path | None, problem: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(str(path), problem)])
