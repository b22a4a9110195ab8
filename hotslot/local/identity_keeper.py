"""Keeper of a deployment's identity: makes what is missing, renews what ends, and changes the authority in three steps.

While processes run, no step may meet one that has not heard of the step before: first all trust both authorities, then
the new one signs, then it alone is trusted. Files are looked at once a second by those who use them; a step waits for
longer. A start, with no process running yet, does all at once, and so ends what an earlier `up` had begun.
"""

import datetime
import io
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from hotslot.content_files import PRIVATE, PRIVATE_DIRECTORY, make_directory, write_file
from hotslot.errors import InvalidRequestError, PreconditionError
from hotslot.local.authority import Authority, expires_within
from hotslot.local.identity_files import SECRETS, IdentityFiles, Renewal
from hotslot.local.own_principals import have_tokens
from hotslot.rpc.tls_files import LOOK_EVERY_S, TlsFiles, TlsPaths

CERTIFICATE_DAYS = 90
RENEWED_BEFORE = datetime.timedelta(days=30)
AUTHORITY_RENEWED_BEFORE = datetime.timedelta(days=365)
"""Longer than any certificate lives that it signs."""
SETTLE_S = 3 * LOOK_EVERY_S
"""Time after which every process goes by what files held before it."""
LOOKS_EVERY_S = 0.5
POOL_SECRET_BYTES = 32
EXPIRY_EVERY_S = 600.0


class IdentityKeeper:
    """Keeps the files of one deployment. It is used by one thread, of the process that runs the deployment."""

    def __init__(
        self, files: IdentityFiles, hosts: Mapping[str, Sequence[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`hosts` are the names that each process's certificate has, by process."""
        self.files = files
        self._hosts = hosts
        self._clock = clock
        self._number = 0
        self._authority: Authority | None = None
        self._steps: Iterator[Renewal | None] = iter(())
        self._next_step_s: float | None = None
        """None while no authority is being changed."""
        self._looked_s = self._checked_s = clock()

    def prepare(self) -> None:
        """Have everything there and valid, before any process starts.

        Raises PreconditionError for files that can neither be used nor be made anew without asking, and OSError.
        """
        folder = self.files.folder
        make_directory(folder)
        folder.chmod(PRIVATE_DIRECTORY)
        asked = self._asked()
        self._number = max(self._numbers(), default=0) or 1
        self._authority = self._opened(self._number)
        if asked is Renewal.AUTHORITY or expires_within(self._authority.ca_file, AUTHORITY_RENEWED_BEFORE):
            self._number += 1
            self._authority = self._opened(self._number)
        self._trust(self._number)
        self._forget_earlier()
        for process in self._hosts:
            if asked is not None or self._must_issue(process):
                self._issue(process)
        have_tokens(self.files.principals_file, self.files.token_file)
        if not self.files.pool_secret_file.exists():
            secret = secrets.token_hex(POOL_SECRET_BYTES).encode() + b"\n"
            write_file(self.files.pool_secret_file, io.BytesIO(secret), mode=PRIVATE)
        for path in folder.iterdir():
            if path.suffix in SECRETS:
                path.chmod(PRIVATE)
        self.files.request_file.unlink(missing_ok=True)

    def look(self) -> Renewal | None:
        """Do what is due while processes run; returns what was completed. Raises OSError."""
        now_s = self._clock()
        if now_s - self._looked_s < LOOKS_EVERY_S:
            return None
        self._looked_s = now_s
        if self._next_step_s is not None:
            return self._step(now_s)
        asked = self._asked()
        is_time = now_s - self._checked_s >= EXPIRY_EVERY_S
        if is_time:
            self._checked_s = now_s
        assert self._authority is not None, "it was prepared"
        if asked is Renewal.AUTHORITY or (
            is_time and expires_within(self._authority.ca_file, AUTHORITY_RENEWED_BEFORE)
        ):
            self._steps = self._change_authority()
            return self._step(now_s)
        due = [process for process in self._hosts if asked is not None or (is_time and self._must_issue(process))]
        for process in due:
            self._issue(process)
        if asked is not None:
            self.files.request_file.unlink(missing_ok=True)
        return Renewal.CERTIFICATES if due else None

    def _step(self, now_s: float) -> Renewal | None:
        if self._next_step_s is not None and now_s < self._next_step_s:
            return None
        self._next_step_s = None  # An error ends the change, which begins anew.
        done = next(self._steps)
        self._next_step_s = None if done else now_s + SETTLE_S
        return done

    def _change_authority(self) -> Iterator[Renewal | None]:
        """The steps, each of which is followed by a wait."""
        new = self._opened(self._number + 1)
        # With those of a change that an error ended, whose certificates may be in use.
        self._trust(*sorted(self._numbers()))
        yield None
        self._number, self._authority = self._number + 1, new
        for process in self._hosts:
            self._issue(process)
        yield None
        self._trust(self._number)
        self._forget_earlier()
        self.files.request_file.unlink(missing_ok=True)
        yield Renewal.AUTHORITY

    def _asked(self) -> Renewal | None:
        try:
            text = self.files.request_file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        return Renewal.AUTHORITY if text == Renewal.AUTHORITY else Renewal.CERTIFICATES

    def _numbers(self) -> list[int]:
        found = (path.name.rpartition("-")[2] for path in self.files.folder.glob("authority-*"))
        return [int(text) for text in found if text.isdecimal()]

    def _opened(self, number: int) -> Authority:
        folder = self.files.authority_folder(number)
        make_directory(folder)
        try:
            return Authority(folder)
        except (ValueError, AssertionError) as exc:
            problem = f"{folder} has no authority that can be used: {exc}"
            raise PreconditionError(f"{problem}; remove the folder, and a new one is made", "up") from exc

    def _trust(self, *numbers: int) -> None:
        data = b"".join((self.files.authority_folder(number) / "ca.crt").read_bytes() for number in numbers)
        trusted = self.files.trusted_file
        if not trusted.exists() or trusted.read_bytes() != data:
            write_file(trusted, io.BytesIO(data))

    def _forget_earlier(self) -> None:
        for number in self._numbers():
            if number < self._number:
                shutil.rmtree(self.files.authority_folder(number))

    def _must_issue(self, process: str) -> bool:
        """Tell whether a certificate is missing, ends soon, is another authority's, or is not its key's."""
        cert_file, key_file = self.files.cert_file(process), self.files.key_file(process)
        assert self._authority is not None
        if expires_within(cert_file, RENEWED_BEFORE) or not self._authority.has_signed(cert_file):
            return True
        try:
            TlsFiles(TlsPaths(cert_file, key_file))
        except InvalidRequestError:
            return True
        return False

    def _issue(self, process: str) -> None:
        assert self._authority is not None
        self._authority.issue(process, self._hosts[process], folder=self.files.folder, days=CERTIFICATE_DAYS)
